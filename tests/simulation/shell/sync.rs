//! Synchronous replication as the loop sees it and carries it out (`src/agent/sync.rs`, `instance/sync_names.rs`).

use std::time::Duration;

use howdah::{
    dcs::{Key, When},
    ha::{
        Local, Standing,
        sync::{self, Mark, Method, Sender, Sight, StandbyNames},
    },
    model::{Lsn, SyncKey, SyncKind, Version},
};

use super::Agent;
use crate::{
    exec::{First, race},
    mutants::Mutant,
    postgres,
};

const MARK_LIMIT: Duration = Duration::from_secs(2);

/// Where the value of `synchronous_standby_names` comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Names {
    /// An agent that has just begun does not know yet.
    #[default]
    Kept,
    /// Of a server that was started as a replica.
    Standby,
    /// Set by the decision; `None`: the user's own.
    Set(Option<StandbyNames>),
}

impl Agent {
    pub(super) fn sync_sight(&self) -> Option<Sight> {
        let pg = &self.world.nodes[self.node].pg;
        let flushed = match &*self.sight.borrow() {
            Local::Running(running) => match running.standing {
                Standing::Primary { flushed } => flushed,
                Standing::Replica { .. } => return None,
            },
            _ => return None,
        };
        let in_force = match &*self.names.borrow() {
            Names::Set(Some(asked))
                if matches!(
                    self.world.mutant,
                    Some(Mutant::NamesNotInForce | Mutant::SyncKeyFirst)
                ) =>
            {
                asked.clone()
            }
            _ => pg.sync_in_force.borrow().clone(),
        };
        let off = sync::kind(&self.dynamic.borrow()) == SyncKind::Off;
        let file = self.world.nodes[self.node].sync_file.borrow().clone();
        let mut names = self.names.borrow_mut();
        if off && *names == Names::Kept && file.is_none() {
            *names = Names::Set(None);
        }
        let (asked, users_own) = match &*names {
            Names::Set(ours) => (ours.clone(), ours.is_none()),
            Names::Standby => (None, off),
            Names::Kept => (None, false),
        };
        let mut first = in_force.count;
        let mut senders = Vec::new();
        for sender in pg.senders.borrow().iter() {
            let name = &self.world.nodes[sender.node].name;
            let named = in_force.names.contains(name);
            let state = match (named, in_force.method) {
                (false, _) => "async",
                (true, Method::Any) => "quorum",
                (true, Method::First) if first > 0 => {
                    first -= 1;
                    "sync"
                }
                (true, Method::First) => "potential",
            };
            senders.push(Sender {
                name: name.0.clone(),
                streaming: sender.flushed > 0,
                sync_state: state.to_owned(),
                position: (sender.flushed > 0).then_some(Lsn(sender.flushed)),
            });
        }
        Some(Sight {
            flushed,
            in_force,
            asked,
            users_own,
            senders,
            checkpointer_waits: !pg.checkpointer_busy.get(),
            mark: self.mark.borrow().clone(),
            unsure: self.sync_unsure.get(),
        })
    }

    pub(super) async fn write_sync(&self, key: &SyncKey) -> bool {
        let when = key.version.map_or(When::Absent, When::Version);
        let value = key.clone();
        let write = self.dcs.write(Key::Sync, when, move |cluster, version| {
            cluster.sync = SyncKey {
                version: Some(version),
                ..value
            };
        });
        let written = self.in_time(write).await;
        self.sync_unsure.set(written.is_err());
        let written = matches!(written, Ok(Some(_)));
        let held = self.world.book.held_names.borrow_mut()[self.node].take_if(|_| written);
        let agent = self.world.nodes[self.node].agent.borrow().clone();
        if let (Some(_), Some(agent)) = (&held, agent) {
            // The second step comes a turn after the first, as it does where nothing else wakes the loop.
            self.world.sim.spawn(self.proc, async move {
                let turn = agent.dynamic.borrow().timing.loop_wait;
                agent.local_sleep(turn).await;
                agent.put_sync_file(held);
            });
        }
        written
    }

    pub(super) async fn delete_sync(&self, version: Version) -> bool {
        let deleted = self.in_time(self.dcs.delete(Key::Sync, version)).await;
        self.sync_unsure.set(deleted.is_err());
        matches!(deleted, Ok(true))
    }

    pub(super) fn set_sync_names(&self, names: Option<&StandbyNames>) -> bool {
        *self.mark.borrow_mut() = None;
        *self.names.borrow_mut() = Names::Set(names.cloned());
        self.write_sync_file(names.cloned());
        !self.world.nodes[self.node].disk_full.get()
    }

    /// Writes the file, and reloads a server that runs.
    fn write_sync_file(&self, names: Option<StandbyNames>) {
        let host = &self.world.nodes[self.node];
        if host.disk_full.get() {
            return;
        }
        let some = |names: &Option<StandbyNames>| names.as_ref().is_some_and(|names| !names.names.is_empty());
        if self.world.mutant == Some(Mutant::NamesNotInForce)
            && some(&names)
            && some(&host.sync_file.borrow())
        {
            return;
        }
        if self.world.mutant == Some(Mutant::SyncKeyFirst) && some(&names) {
            self.world.book.held_names.borrow_mut()[self.node] = names;
            return;
        }
        self.put_sync_file(names);
    }

    fn put_sync_file(&self, names: Option<StandbyNames>) {
        let host = &self.world.nodes[self.node];
        let changed = *host.sync_file.borrow() != names;
        *host.sync_file.borrow_mut() = names;
        if changed {
            postgres::reload(&self.world, self.node);
        }
    }

    pub(super) async fn mark_sync(&self, names: &StandbyNames) -> bool {
        let marked = race(
            postgres::write_record(&self.world, self.node, 50),
            self.local_sleep(MARK_LIMIT),
        );
        let First::One(Some(pos)) = marked.await else {
            return false;
        };
        *self.mark.borrow_mut() = Some(Mark {
            names: names.clone(),
            lsn: Lsn(pos.lsn),
        });
        true
    }

    /// What is written for a server that is started, or told to follow another.
    pub(super) fn prepare_sync_names(&self, primary: bool) {
        if !primary {
            *self.names.borrow_mut() = Names::Standby;
        }
        self.rewrite_sync_names(primary);
    }

    /// The file as the present settings want it.
    fn rewrite_sync_names(&self, primary: bool) {
        let dynamic = self.dynamic.borrow();
        let kind = sync::kind(&dynamic);
        let names = self.names.borrow().clone();
        let value = match (names, primary) {
            (Names::Set(names), _) => names,
            (Names::Kept, true) => {
                let kept = self.world.nodes[self.node].sync_file.borrow().clone();
                kept.or_else(|| (kind != SyncKind::Off).then(StandbyNames::none))
            }
            (Names::Kept | Names::Standby, _) => match kind {
                SyncKind::Off => None,
                SyncKind::Quorum => Some(StandbyNames::nobody_will_do(Method::Any)),
                SyncKind::On if dynamic.sync.strict => Some(StandbyNames::nobody_will_do(Method::First)),
                SyncKind::On => Some(StandbyNames::none()),
            },
        };
        drop(dynamic);
        self.write_sync_file(value);
    }

    /// Gives postgres the settings it does not have yet; not beside a job, which writes the same files.
    pub(super) fn apply_dynamic(&self) {
        let pg = &self.world.nodes[self.node].pg;
        if self.unapplied.get() && self.job().is_none() {
            self.unapplied.set(false);
            if pg.running() {
                self.rewrite_sync_names(pg.primary.get());
            }
        }
    }
}
