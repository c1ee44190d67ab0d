//! Making a stopped directory follow the leader's history: everything around `pg_rewind` (contract: HA rules §12b).

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, chain};
use crate::{
    ha::{Failure, StartAs, Upstream},
    model::Dynamic,
    postgres::{
        archive,
        pidfile::{self, Holder},
        query::{Address, LeaderProbe, Monitor},
        restore_wal, rewind,
    },
};

/// Rewinding reads the WAL since the histories parted.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// Crash recovery reads the WAL since the last checkpoint.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3600);
/// How long the leader's control file may lag behind its timeline.
const LEADER_CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);
/// Segments fetched from the archive for one rewind, at most.
const MISSING_SEGMENTS: u32 = 256;
/// One look at the leader, and the pause between two.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_millis(250);

impl Instance {
    /// Makes the stopped directory follow the leader's history.
    pub async fn rewind(
        &self,
        to: &Upstream,
        dynamic: &Dynamic,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.refuse_attic("pg_rewind")?;
        self.write_passfile(to)?;
        self.leader_is_ready(to, cancel).await?;
        let was_standby = self.standby_signal();
        let role = StartAs::Replica(Some(to.clone()));
        // Before, because pg_rewind and crash recovery read these files too; again afterwards for standby.signal.
        let args = self.write_files(&role, dynamic, None).await?;
        let done = self.rewind_with(to, &args, cancel).await;
        if let Err(error) = done {
            // The directory must not change its kind by a failure.
            if let Err(error) = self.conf().set_standby(was_standby) {
                warn!(error = chain(&error), "could not put standby.signal back");
            }
            return Err(Failure::Failed(error));
        }
        self.write_files(&role, dynamic, None).await?;
        Ok(())
    }

    async fn rewind_with(
        &self,
        to: &Upstream,
        args: &[String],
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        self.recover_crash(args, cancel).await?;
        self.archive_ready(args, cancel).await;
        let settings = self.settings();
        let source = self.connection(to, &settings.rewind);
        let restore = self.value_at_start(args, "restore_command").await;
        let restore = restore.filter(|command| !command.is_empty());
        let conf = self.conf();
        let input = rewind::Input {
            conf: &conf,
            source: &source,
            passfile: &settings.passfile,
            has_restore_command: restore.is_some(),
            options: &self.hooks().rewind,
            deadline: REWIND_LIMIT,
            identity: None,
        };
        let by_hand = restore.filter(|_| !rewind::fetches_wal(self.binaries.major(), &conf));
        match self.run_rewind(&input, by_hand.as_deref(), cancel).await? {
            rewind::Outcome::Done => {
                info!(leader = %to.member, "rewound");
                Ok(())
            }
            // The comparison found the histories parted; following now would fail for ever.
            rewind::Outcome::NotNeeded => {
                Err("pg_rewind found nothing to rewind although the histories have parted".to_owned())
            }
            rewind::Outcome::Failed {
                tail, target_broken, ..
            } => Err(format!(
                "pg_rewind failed (directory {}): {tail}",
                if target_broken { "unusable" } else { "unchanged" }
            )),
        }
    }

    /// Runs pg_rewind; fetches what it misses, one segment after the other, where it cannot do that itself.
    async fn run_rewind(
        &self,
        input: &rewind::Input<'_>,
        restore_command: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<rewind::Outcome, String> {
        for _ in 0..MISSING_SEGMENTS {
            let outcome = rewind::run(&self.binaries, input, cancel)
                .await
                .map_err(|error| chain(&error))?;
            let (missing, tail, command) = match (&outcome, restore_command) {
                (
                    rewind::Outcome::Failed {
                        tail,
                        missing_wal: Some(missing),
                        target_broken: false,
                    },
                    Some(command),
                ) => (missing, tail, command),
                _ => return Ok(outcome),
            };
            restore_wal::fetch(self.data_dir(), command, missing, None, cancel)
                .await
                .map_err(|error| format!("pg_rewind failed: {tail}; {}", chain(&error)))?;
            info!(
                segment = missing,
                "fetched a segment that pg_rewind needs from the archive"
            );
        }
        Err(format!(
            "pg_rewind misses more than {MISSING_SEGMENTS} WAL segments"
        ))
    }

    /// pg_rewind would recover a crashed directory itself, but cannot where the pid of the crashed postmaster belongs
    /// to somebody else now, where our user has no name, or where standby.signal is there.
    async fn recover_crash(&self, args: &[String], cancel: &CancellationToken) -> Result<(), String> {
        let control = self.control().await?;
        if !rewind::needs_crash_recovery(control.state) {
            return Ok(());
        }
        if self.data_dir().join("backup_label").exists() {
            info!("not recovering: the directory is a base backup that was never started");
            return Ok(());
        }
        let stranger = match pidfile::holder(self.data_dir()) {
            Ok(Holder::Stranger { pid }) => Some(pid),
            Ok(Holder::Nobody) => None,
            Ok(Holder::Postmaster(file)) => {
                return Err(format!(
                    "a postmaster (process {}) runs in the data directory",
                    file.pid
                ));
            }
            Err(error) => return Err(format!("read postmaster.pid: {error}")),
        };
        info!(state = ?control.state, "crash recovery before the rewind");
        let recovery = rewind::Recovery {
            conf: &self.conf(),
            args,
            stranger,
            deadline: RECOVERY_LIMIT,
            identity: None,
        };
        rewind::crash_recovery(&self.binaries, &recovery, cancel)
            .await
            .map_err(|error| format!("crash recovery before the rewind: {}", chain(&error)))
    }

    /// Archives everything a stopped primary has, with the segment its shutdown checkpoint is in: whoever follows from an
    /// archive sees the end only with it. Returns whether WAL is archived at all.
    pub async fn archive_end(&self, dynamic: &Dynamic, cancel: &CancellationToken) -> bool {
        let args = self.arguments_now(dynamic);
        let mode = self.value_at_start(&args, "archive_mode").await;
        let command = self.value_at_start(&args, "archive_command").await;
        let Some(command) = command.filter(|command| !command.is_empty()) else {
            return false;
        };
        if !matches!(mode.as_deref(), Some("on" | "always")) {
            return false;
        }
        let marked = match self.control().await {
            Ok(control) => archive::mark_ready(self.data_dir(), control.timeline, control.checkpoint)
                .map_err(|error| chain(&error)),
            Err(error) => Err(error),
        };
        if let Err(error) = marked {
            warn!(error, "the segment of the shutdown checkpoint cannot be archived");
        }
        match archive::archive_ready(self.data_dir(), &command, None, cancel).await {
            Ok(segments) => info!(segments, "archived the end of our WAL"),
            Err(error) => warn!(error = chain(&error), "could not archive the end of our WAL"),
        }
        true
    }

    /// The end of our timeline may exist nowhere else; pg_rewind removes what the leader does not have.
    async fn archive_ready(&self, args: &[String], cancel: &CancellationToken) {
        let mode = self.value_at_start(args, "archive_mode").await;
        if !matches!(mode.as_deref(), Some("on" | "always")) {
            return;
        }
        let command = self
            .value_at_start(args, "archive_command")
            .await
            .unwrap_or_default();
        if command.is_empty() {
            return;
        }
        match archive::archive_ready(self.data_dir(), &command, None, cancel).await {
            Ok(0) => {}
            Ok(segments) => info!(segments, "archived the WAL that was ready before the rewind"),
            Err(error) => warn!(
                error = chain(&error),
                "could not archive all WAL before the rewind"
            ),
        }
    }

    /// pg_rewind judges by the source's control file, which names the new timeline only after a checkpoint
    /// (documentation of pg_rewind, "Notes"): before that it would find nothing to rewind.
    async fn leader_is_ready(&self, leader: &Upstream, cancel: &CancellationToken) -> Result<(), Failure> {
        let cancelled = || Failure::Cancelled("cancelled before the rewind".to_owned());
        let deadline = Instant::now() + LEADER_CHECKPOINT_LIMIT;
        let mut checkpoint = None;
        loop {
            let seen = self.probe(leader, PROBE_LIMIT).await;
            if seen.as_ref().is_ok_and(is_ready) {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            if Instant::now() >= deadline {
                let why = match seen {
                    Ok(seen) if seen.in_recovery => "it is still in recovery".to_owned(),
                    Ok(seen) => format!(
                        "its control file still names timeline {} instead of {}",
                        seen.control_timeline, seen.timeline
                    ),
                    Err(error) => error,
                };
                return Err(Failure::NotYet(format!(
                    "the leader {} cannot be rewound to yet: {why}",
                    leader.member
                )));
            }
            if seen.is_ok_and(|seen| !seen.in_recovery) && checkpoint.is_none() {
                checkpoint = Some(self.ask_for_checkpoint(leader));
            }
            // Cancel-safe: a timer.
            tokio::select! {
                () = cancel.cancelled() => return Err(cancelled()),
                () = sleep(PROBE_EVERY) => {}
            }
        }
    }

    /// A task of its own, which ends with its statement's limit: the leader makes one by itself as well, and whichever
    /// is first is noticed by looking.
    fn ask_for_checkpoint(&self, leader: &Upstream) -> tokio::task::JoinHandle<()> {
        let settings = self.settings();
        let monitor = |host: &str| {
            let address = Address::Tcp(host.trim().to_owned());
            Monitor::new(settings.target(&settings.superuser, address, leader.port, &settings.database))
        };
        // Of a remote cluster there may be several; a replica that is asked too comes to no harm.
        let monitors: Vec<Monitor> = leader.host.split(',').map(monitor).collect();
        let member = leader.member.clone();
        tokio::spawn(async move {
            for monitor in monitors {
                if let Err(error) = monitor.execute_long("CHECKPOINT", LEADER_CHECKPOINT_LIMIT).await {
                    warn!(error = chain(&error), leader = %member, "could not checkpoint the leader before the rewind");
                }
            }
        })
    }
}

fn is_ready(leader: &LeaderProbe) -> bool {
    !leader.in_recovery && leader.control_timeline == leader.timeline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lsn, SystemId, Timeline};

    #[test]
    fn a_leader_is_ready_after_its_checkpoint() {
        let leader = |in_recovery, control: u32| LeaderProbe {
            system_id: SystemId("7".into()),
            in_recovery,
            timeline: Timeline(3),
            flushed: Lsn::INVALID,
            control_timeline: Timeline(control),
            history_text: None,
        };
        assert!(is_ready(&leader(false, 3)));
        assert!(!is_ready(&leader(false, 2)));
        assert!(!is_ready(&leader(true, 3)));
    }
}
