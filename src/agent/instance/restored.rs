//! A new cluster out of what a command brings: a backup, recovered to where the operator says (contract: bootstrap and
//! images §3.2).
//!
//! ```text
//! command ─► recovery settings ─► start, nobody but us let in ─► end of recovery ─► roles, post_bootstrap ─► stop
//! ```
//!
//! Init scripts and what else is for an empty cluster is not run: this one has its data already.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    Instance, SMALL, Settings, chain,
    work::{MAINTENANCE, discard},
};
use crate::{
    model::{BootstrapMethod, Dynamic},
    postgres::{
        datadir::{self, INCOMPLETE, NEW_CLUSTER},
        files,
        inplace::InPlace,
        postmaster::State,
        query::Where,
        recovery::{Recovery, target_settings},
        staging::Staging,
    },
};

/// Recovery reads all WAL from the backup on.
const RECOVERY_LIMIT: Duration = Duration::from_secs(7 * 86_400);
/// Pause between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Instance {
    /// Has the command bring the data, and marks it as unfinished.
    pub(super) async fn bring(
        &self,
        method: &BootstrapMethod,
        settings: &Settings,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        info!(
            method = method.name,
            "creating the cluster with a method of the operator's"
        );
        let failed = |error: String| format!("bootstrap method {}: {error}", method.name);
        if method.no_params {
            // It knows no place but its own, which has to be the data directory.
            return self.bring_here(method, settings, cancel).await.map_err(failed);
        }
        let staging = Staging::prepare(self.data_dir()).map_err(|error| chain(&error))?;
        let dir = staging.dir();
        datadir::mark_new_cluster(dir).map_err(|error| chain(&error))?;
        let arguments = method.arguments(&settings.scope, &dir.to_string_lossy());
        let made = match self.run_command(&method.command, &arguments, dir, cancel).await {
            Ok(()) => self.judge(dir, None, cancel).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            discard(&staging);
            return Err(failed(error));
        }
        self.install_unfinished(&staging)
    }

    async fn bring_here(
        &self,
        method: &BootstrapMethod,
        settings: &Settings,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let dir = self.data_dir();
        let place = InPlace::begin(dir, false).map_err(|error| chain(&error))?;
        datadir::mark_new_cluster(dir).map_err(|error| chain(&error))?;
        let arguments = method.arguments(&settings.scope, &dir.to_string_lossy());
        let made = match self.run_command(&method.command, &arguments, dir, cancel).await {
            Ok(()) => self.judge(dir, None, cancel).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            place
                .give_up()
                .map_err(|left| format!("{error}; and {}", chain(&left)))?;
            return Err(error);
        }
        // It stays marked until the cluster is ready.
        files::write_atomic(&dir.join(INCOMPLETE), NEW_CLUSTER, 0o600).map_err(|error| chain(&error))?;
        datadir::repair_mode(dir).map_err(|error| chain(&error))
    }

    /// Recovers what was brought and gives it our roles. Postgres is left running.
    pub(super) async fn prepare_restored(
        &self,
        method: &BootstrapMethod,
        settings: &Settings,
        dynamic: &Dynamic,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let own_recovery = method.recovery_conf.is_none() && method.keep_existing_recovery_conf;
        let recovery = method.recovery_conf.as_ref().map(|conf| Recovery {
            standby: false,
            settings: target_settings(self.binaries.major(), conf),
        });
        self.set_recovery_files(recovery.is_some(), own_recovery)?;
        let control = self.control().await?;
        let args = self
            .write_restored_files(recovery.as_ref(), own_recovery, dynamic, &control)
            .await?;
        self.launch(args, RECOVERY_LIMIT, cancel)
            .await
            .map_err(|failure| failure.to_string())?;
        self.monitor.retarget(settings.local_target(MAINTENANCE)).await;
        self.await_end_of_recovery(cancel).await?;
        info!("recovery has ended, giving the cluster its roles");
        self.create_roles(settings).await?;
        self.create_database(&settings.create_database).await?;
        self.create_database(&settings.database).await?;
        self.grant_where_agents_connect(settings).await?;
        self.post_bootstrap(settings, cancel).await
    }

    /// The signal files as told; a request to promote that came with the backup is none.
    fn set_recovery_files(&self, recover: bool, own_recovery: bool) -> Result<(), String> {
        let conf = self.conf();
        let promote = self.data_dir().join("promote");
        files::remove_if_there(&promote).map_err(|error| chain(&error))?;
        if own_recovery {
            if conf.is_standby() {
                return Err(
                    "the method left standby.signal, with which recovery never ends by itself: it should leave \
                     recovery.signal"
                        .to_owned(),
                );
            }
            return Ok(());
        }
        conf.set_standby(false).map_err(|error| chain(&error))?;
        if recover {
            let signal = self.data_dir().join("recovery.signal");
            files::write_atomic(&signal, b"", 0o600).map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    async fn await_end_of_recovery(&self, cancel: &CancellationToken) -> Result<(), String> {
        let deadline = Instant::now() + RECOVERY_LIMIT;
        let mut last = String::new();
        while Instant::now() < deadline {
            if matches!(
                self.postmaster.state(),
                State::Stopped { .. } | State::Cleaning { .. }
            ) {
                return Err(format!(
                    "postgres ended before its recovery did; the reason is in its own lines above {last}"
                ));
            }
            match self.monitor.observe(SMALL).await {
                Ok(view) if matches!(view.place, Where::Primary(_)) => return Ok(()),
                Ok(_) => last.clear(),
                // While it recovers it lets nobody in.
                Err(error) => last = format!("(last answer: {})", chain(&error)),
            }
            // Cancel-safe: a timer.
            tokio::select! {
                () = cancel.cancelled() => return Err("cancelled".to_owned()),
                () = sleep(LOOK_EVERY) => {}
            }
        }
        Err(format!(
            "recovery has not ended within {} h {last}",
            RECOVERY_LIMIT.as_secs() / 3600
        ))
    }
}
