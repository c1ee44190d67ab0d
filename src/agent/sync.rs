//! Synchronous replication as the loop sees it and carries it out. What is to be done is decided in `ha::sync`.

use std::time::Duration;

use tracing::{info, warn};

use super::{Agent, execute::Done, instance::chain};
use crate::{
    dcs::{DcsError, Key, When, Written},
    ha::{
        DcsView, View,
        sync::{Mark, Sender, Sight, StandbyNames},
    },
    model::{Lsn, SyncKey, Version},
    postgres::query::{LocalView, WalSender, Where},
};

/// One small record, and its flush.
const MARK_LIMIT: Duration = Duration::from_secs(2);
/// With `synchronous_commit=local`, as all our own commands: it must not wait for what it is to prove. The message alone
/// would not be flushed; the commit is.
const MARK: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'howdah', 'sync')::text";
/// What the checkpointer waits for when it has nothing to do, or between two writes. It has looked for reloads then.
const CHECKPOINTER_WAITS: &[&str] = &["CheckpointerMain", "CheckpointWriteDelay"];

impl Agent {
    /// What the running primary says; `None` if it is none, or did not answer.
    pub(super) fn sync_sight(&self) -> Option<Sight> {
        let answer = self.sight.answer.as_ref()?;
        let Where::Primary(primary) = &answer.place else {
            return None;
        };
        let asked = self.instance.sync_names(&self.dynamic);
        Some(Sight {
            flushed: primary.flush_lsn,
            in_force: StandbyNames::parse(&answer.synchronous_standby_names),
            asked: asked.ours.map(|text| StandbyNames::parse(&text)),
            users_own: asked.users_own,
            senders: senders(answer),
            checkpointer_waits: answer
                .checkpointer
                .as_deref()
                .is_some_and(|event| CHECKPOINTER_WAITS.contains(&event)),
            mark: self.sync_mark.clone(),
            unsure: self.sync_unsure,
        })
    }

    pub(super) async fn write_sync(&mut self, key: &SyncKey, view: &View) -> Done {
        let when = key.version.map_or(When::Absent, When::Version);
        let written = super::execute::in_time(self.dcs.write(Key::Sync, &key.to_json(), when)).await;
        if matches!(written, Ok(Written::Yes(_))) {
            let before = match &view.dcs {
                DcsView::Known { cluster } => cluster.sync.to_json(),
                DcsView::Down { .. } => "?".to_owned(),
            };
            info!(from = before, to = key.to_json(), "changed /sync");
        }
        self.note_sync_write(&written);
        super::execute::answer(written)
    }

    pub(super) async fn delete_sync(&mut self, version: Version) -> Done {
        let deleted = super::execute::in_time(self.dcs.delete(Key::Sync, When::Version(version))).await;
        if matches!(deleted, Ok(Written::Yes(_))) {
            info!("removed /sync");
        }
        self.note_sync_write(&deleted);
        super::execute::answer(deleted)
    }

    /// A write without an answer may still take place, later than what is read next.
    fn note_sync_write(&mut self, written: &Result<Written, DcsError>) {
        self.sync_unsure = written.is_err();
    }

    pub(super) async fn set_sync_names(&mut self, names: Option<&StandbyNames>) -> Done {
        self.sync_mark = None;
        let text = names.map(StandbyNames::render);
        let shown = text.clone().unwrap_or_else(|| "(as configured)".to_owned());
        match self.instance.set_sync_names(text, &self.dynamic).await {
            Ok(()) => {
                info!(to = shown, "synchronous_standby_names was written");
                Done::Yes
            }
            Err(error) => {
                warn!(
                    error,
                    to = shown,
                    "synchronous_standby_names could not be written"
                );
                Done::Refused(error)
            }
        }
    }

    pub(super) async fn mark_sync(&mut self, names: &StandbyNames) -> Done {
        let answer = self.instance.monitor().execute(MARK, MARK_LIMIT).await;
        let lsn = match answer {
            Ok(text) => text.and_then(|text| text.parse::<Lsn>().ok()),
            Err(error) => return Done::Refused(chain(&error)),
        };
        let Some(lsn) = lsn else {
            return Done::Refused("no position came back".to_owned());
        };
        let names = names.clone();
        self.sync_mark = Some(Mark { names, lsn });
        Done::Yes
    }
}

/// Positions as `synchronous_commit` means them (contract: HA rules §11).
fn senders(view: &LocalView) -> Vec<Sender> {
    let position = |sender: &WalSender| match view.synchronous_commit.as_str() {
        "remote_write" => sender.write_lsn,
        "remote_apply" => sender.replay_lsn,
        _ => sender.flush_lsn,
    };
    let sender = |sender: &WalSender| Sender {
        name: sender.application_name.clone(),
        streaming: sender.state.as_deref() == Some("streaming"),
        sync_state: sender.sync_state.clone().unwrap_or_default(),
        position: position(sender),
    };
    view.senders.iter().map(sender).collect()
}
