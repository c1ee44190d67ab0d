//! The end of this process: who asks for it, what it leaves behind, and with which status it ends.

use std::time::Duration;

use tracing::{debug, info};

use super::{Agent, signals::Event as Signal};
use crate::{
    exit::Exit,
    ha::{Job, Shutdown},
};

impl Agent {
    /// Whoever took the lock under our name is alive and passed the check that we would fail now. Fighting for it
    /// would make two primaries in turn.
    pub(super) fn step_down_for_a_namesake(&mut self) {
        if self.verdict.is_none() && self.lease.lost_to().as_ref() == Some(&self.identity.member) {
            tracing::error!(
                member = %self.identity.member,
                "another process with our name has taken the leader lock: stopping. Give every member a name of its \
                 own (HOWDAH_NAME), or stop the other one"
            );
            self.verdict = Some(Exit::DuplicateName);
            self.ask_to_stop(Shutdown::Fast, "the lock was taken under our name");
        }
    }

    pub(super) async fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Shutdown(mode) => self.ask_to_stop(mode, "signal"),
            Signal::InitGone => self.ask_to_stop(Shutdown::Fast, "init is gone, nobody fences"),
            Signal::Reload => self.reload().await,
        }
    }

    pub(super) fn ask_to_stop(&mut self, mode: Shutdown, because: &str) {
        let harder = self.shutdown.is_none_or(|old| mode > old);
        if harder {
            info!(?mode, because, "asked to stop");
            self.shutdown = Some(mode);
            if mode >= Shutdown::Fast {
                self.hurried.cancel();
            }
            if let Some(running) = self.jobs.view()
                && matches!(running.job, Job::Demote { .. } | Job::Restart)
            {
                self.instance.hurry(mode);
            }
        }
    }

    pub(super) async fn leave(&mut self, exit: Exit, because: &str) {
        match exit {
            Exit::Ok => info!(status = exit.code(), because, "stopped"),
            _ => tracing::error!(status = exit.code(), because, "stopping"),
        }
        self.publish(because, Duration::ZERO);
        let leaving = exit == Exit::Ok && self.dynamic.pause && self.sight.postmaster.pid().is_some();
        let told = match leaving {
            true => self.guard.leaving(),
            false => self.guard.stopping(),
        };
        if let Err(error) = told {
            debug!(%error, "could not tell init");
        }
        if leaving {
            info!(
                "the cluster is paused: postgres goes on without this process, its member key is left to expire"
            );
            return;
        }
        // The key is our namesake's; and a store that refuses us or did not even release the lock is not asked again.
        if matches!(exit, Exit::DuplicateName | Exit::Unavailable) || self.lease.outlives_us() {
            return;
        }
        // Best effort: the key would expire by itself.
        let removed = tokio::time::timeout(Duration::from_secs(1), self.dcs.remove_member()).await;
        debug!(?removed, "removed the member key");
    }

    /// A stop that went well ends with the reason for it, or says that the others have to wait for the lock.
    pub(super) fn final_status(&self, exit: Exit) -> Exit {
        match (exit, self.verdict) {
            (Exit::Ok, Some(verdict)) => verdict,
            (Exit::Ok, None) if self.lease.left_to_expire() => Exit::Dirty,
            (exit, _) => exit,
        }
    }
}
