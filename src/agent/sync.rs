//! Synchronous replication as the loop sees it and carries it out. What is to be done is decided in `ha::sync`.

use std::time::Duration;

use serde_json::{Map, Value};
use tracing::{info, warn};

use super::{Agent, execute::Done, instance::chain};
use crate::{
    dcs::{DcsError, Key, When, Written},
    ha::{
        DcsView, Job, Local, View,
        sync::{self, Mark, Sender, Sight, StandbyNames},
    },
    model::{Lsn, SyncKey, SyncKind, Version},
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

    /// A replica that commits wait for, as far as we know.
    pub(super) fn is_sync_standby(&self) -> bool {
        let seen = self.last_cluster.as_ref();
        sync::kind(&self.dynamic) != SyncKind::Off
            && matches!(&self.sight.local, Local::Running(running) if !running.is_primary())
            && seen.is_some_and(|seen| seen.cluster.sync.has_standby(&self.identity.member))
    }

    /// A replica is being stopped (and perhaps started again): it is not to be waited for. Only as long as the job runs.
    pub(super) fn leaves_sync_duty(&self) -> bool {
        let job = self.jobs.view().map(|running| running.job);
        matches!(job, Some(Job::Restart | Job::Demote { .. }))
            && !self.sight.local.may_write()
            && sync::kind(&self.dynamic) != SyncKind::Off
    }

    /// Our tags as others are to see them now.
    pub(super) fn published_tags(&self) -> Map<String, Value> {
        let mut tags = self.identity.tags.published();
        if self.leaves_sync_duty() {
            tags.insert("nosync".to_owned(), true.into());
        }
        tags
    }

    pub(super) async fn write_sync(&mut self, key: &SyncKey, view: &View) -> Done {
        let when = key.version.map_or(When::Absent, When::Version);
        let written = self
            .in_time(self.dcs.write(Key::Sync, &key.to_json(), when))
            .await;
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
        let deleted = self
            .in_time(self.dcs.delete(Key::Sync, When::Version(version)))
            .await;
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
