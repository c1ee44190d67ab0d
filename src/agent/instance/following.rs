//! Whom a running replica follows, and the end of that.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Instance, SMALL, callbacks::Event, chain, lock, role_name};
use crate::{
    ha::{Source, StartAs, Upstream},
    model::Dynamic,
    postgres::{conninfo::Conninfo, postmaster::receives},
};

/// A WAL receiver that is not wanted any more ends within milliseconds, unless replay is held.
const RECEIVER_ENDS: Duration = Duration::from_millis(100);
const RECEIVER_LOOK: Duration = Duration::from_millis(5);

impl Instance {
    /// Whom a running replica follows, from its own settings.
    pub(super) async fn present_upstream(&self, dynamic: &Dynamic) -> Option<Upstream> {
        let view = self.monitor.observe(SMALL).await.ok()?;
        let conninfo = Conninfo::parse(&view.primary_conninfo).ok()?;
        let present = Upstream {
            member: "present upstream".into(),
            host: conninfo.get("host")?.to_owned(),
            port: conninfo.get("port").unwrap_or("5432").parse().ok()?,
            source: Source::Member,
        };
        let remote = dynamic.standby.as_ref().map(Upstream::remote);
        let is_remote = |remote: &Upstream| remote.address() == present.address();
        Some(remote.filter(is_remote).unwrap_or(present))
    }

    /// Points the running replica at another upstream.
    pub async fn follow(&self, upstream: Option<&Upstream>, dynamic: &Dynamic) -> Result<(), String> {
        let role = StartAs::Replica(upstream.cloned());
        let control = self.control().await.ok();
        Box::pin(self.write_files(&role, dynamic, control.as_ref())).await?;
        let name = role_name(&role);
        let before = lock(&self.role).replace(role);
        self.postmaster.reload().await.map_err(|error| chain(&error))?;
        if upstream.is_none() {
            self.end_receiver().await;
        }
        // The leader of a standby cluster comes and goes without a restart.
        if before.is_some_and(|before| role_name(&before) != name) {
            self.fire(Event::RoleChange, name);
        }
        Ok(())
    }

    /// Follows nobody any more: the startup process ends the WAL receiver, but where replay is held (paused, delayed, in
    /// conflict with a query) not before it goes on, and until then what arrives would still be confirmed.
    async fn end_receiver(&self) {
        let Some(postmaster) = self.postmaster.state().pid() else {
            return;
        };
        let ends = async {
            while receives(postmaster) {
                sleep(RECEIVER_LOOK).await;
            }
        };
        if timeout(RECEIVER_ENDS, ends).await.is_err() {
            info!("the WAL receiver does not end by itself, replay is held: ending it");
            if let Err(error) = self.postmaster.end_receiver().await {
                warn!(%error, "could not end the WAL receiver");
            }
        }
    }
}
