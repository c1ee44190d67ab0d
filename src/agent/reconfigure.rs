//! The cluster's configuration on its way to postgres: taken from the store, written and reloaded, and what then still
//! waits for a restart (contract: PostgreSQL configuration §7, environment §4).

use std::time::Duration;

use tracing::{info, warn};

use super::{Agent, publish};
use crate::{
    clock::Boottime,
    ha::{Local, Standing},
    model::{RoleScope, remarks},
};

/// Postgres has read its files again by then.
const SETTLED: Duration = Duration::from_millis(1500);
/// Meanwhile it is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Agent {
    /// `self.dynamic` is new.
    pub(super) fn took_dynamic(&mut self) {
        info!(timing = ?self.dynamic.timing, "the dynamic configuration is in force");
        (self.unapplied, self.reload_due) = (true, true);
        self.dynamic_copy.due = true;
        self.instance.note_dynamic(&self.dynamic);
        self.remarks = remarks(&self.dynamic.raw)
            .iter()
            .map(ToString::to_string)
            .collect();
        for remark in &self.remarks {
            warn!("/config: {remark}");
        }
    }

    /// A watchdog is required and there is none that works; why not is told once.
    pub(super) fn watchdog_failed(&mut self) -> bool {
        let failed = self.watchdog.failed();
        if self.no_watchdog != failed {
            match &failed {
                Some(because) => warn!(from = "usable", to = "unusable", because, "the required watchdog"),
                None => info!(from = "unusable", to = "usable", "the required watchdog"),
            }
            self.no_watchdog.clone_from(&failed);
        }
        failed.is_some()
    }

    /// Some settings hold in one role only: a change of role is a change of configuration then.
    pub(super) fn note_scope(&mut self) {
        let Local::Running(running) = &self.sight.local else {
            return;
        };
        let scope = match running.standing {
            Standing::Primary { .. } => RoleScope::Primary,
            Standing::Replica { .. } if self.dynamic.standby.is_some() && self.lease.counts() => {
                RoleScope::StandbyLeader
            }
            Standing::Replica { .. } => RoleScope::Replica,
        };
        if self.jobs.view().is_none() && self.instance.note_scope(scope, &self.dynamic) {
            info!(role = scope.as_str(), "applying the settings for this role");
            self.unapplied = true;
        }
    }

    /// Gives postgres the dynamic configuration it does not have yet; tried again by every turn. Not beside a job,
    /// which writes the same files, and begins with the configuration as it was.
    pub(super) async fn apply_dynamic(&mut self) {
        if !self.unapplied || self.jobs.view().is_some() {
            return;
        }
        let deferred = self.deferred.take();
        let told = deferred.is_some();
        let applied = match deferred {
            Some(settings) => self.instance.reload(settings, &self.dynamic).await,
            None => self.instance.apply(&self.dynamic).await,
        };
        match applied {
            Ok(()) => {
                self.unapplied = false;
                self.settle();
                if std::mem::take(&mut self.reload_due) && !told {
                    self.instance.announce_reload();
                }
            }
            Err(error) => warn!(error, "could not apply the dynamic configuration to postgres yet"),
        }
    }

    /// Postgres was told to read its files again.
    pub(super) fn settle(&mut self) {
        self.settling = Some(Boottime::now() + SETTLED);
    }

    /// What a restart would change shows within moments of the change that asks for it.
    pub(super) fn sooner(&mut self, wait: Duration) -> Duration {
        match self.settling {
            Some(until) if Boottime::now() < until => wait.min(LOOK_AGAIN),
            Some(_) | None => {
                self.settling = None;
                wait
            }
        }
    }

    /// Which settings wait for a restart, with the value in force and the one it would bring.
    pub(super) async fn note_pending_restart(&mut self) {
        let Some(answer) = &self.sight.answer else {
            if matches!(self.sight.local, Local::Down(_) | Local::Empty | Local::Leftover) {
                self.pending_restart.clear();
            }
            return;
        };
        self.instance.learn_units().await;
        let rows = &answer.pending_restart;
        // On the heap: this is part of the future of every turn of the loop.
        let wanted = Box::pin(self.instance.values_at_next_start(rows)).await;
        let rows = rows
            .iter()
            .zip(wanted)
            .map(|(row, new)| (row.name.clone(), row.setting.clone(), new));
        let raised = self.instance.raised().into_iter();
        let raised = raised.map(|raised| (raised.name, raised.old_value, raised.new_value));
        let pending = publish::pending(rows.chain(raised));
        if pending != self.pending_restart && !pending.is_empty() {
            info!(settings = %serde_json::Value::Object(pending.clone()), "a restart is needed for these settings");
        }
        self.pending_restart = pending;
    }
}
