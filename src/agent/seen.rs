//! What a look at the store changes in the agent itself: the configuration in force, and whether it may be here at all.

use std::sync::Arc;

use tracing::{debug, error, info};

use super::{Agent, Seen};
use crate::{
    clock::Boottime,
    config::DcsConfig,
    exit::Exit,
    model::{Cluster, Dynamic},
};

impl Agent {
    pub(super) async fn note_cluster(&mut self, cluster: &Arc<Cluster>, asked_at: Boottime) {
        let epoch = jiff::Timestamp::now().as_second();
        self.last_cluster = Some(Seen {
            cluster: Arc::clone(cluster),
            asked_at,
            at: Boottime::now(),
            epoch_s: u64::try_from(epoch).unwrap_or(0),
        });
        if !cluster.is_leader(&self.identity.member) {
            self.lease.seen_elsewhere();
        }
        // Nothing of ours is in the store before this is known.
        if let Some(exit) = self.namesake_in(cluster).await {
            self.verdict = Some(exit);
            return;
        }
        if cluster.config.is_none() || cluster.config_version == self.config_version {
            return;
        }
        let Some(raw) = &cluster.config else { return };
        let dynamic = Dynamic::from_map(raw);
        self.config_version = cluster.config_version;
        let old = std::mem::replace(&mut self.dynamic, dynamic);
        // The watchdog first: it is armed together with init's fence.
        self.watchdog
            .configure(self.dynamic.timing.ttl, self.dynamic.pause);
        self.lease.set_fenced(!self.dynamic.pause);
        if old == self.dynamic {
            return;
        }
        if old.pause != self.dynamic.pause {
            let name = |paused| if paused { "paused" } else { "managed" };
            info!(
                from = name(old.pause),
                to = name(self.dynamic.pause),
                because = "the dynamic configuration says so"
            );
        }
        self.took_dynamic();
        if old.timing != self.dynamic.timing {
            self.dcs
                .set_timing(self.dynamic.timing.ttl, self.dynamic.timing.retry_timeout)
                .await;
            // The leader key moves to the new lease before the member key does: whoever starts here next under our name
            // knows the lock by the two being on one lease.
            if self.lease.counts()
                && let Err(error) = self.lease.renew().await
            {
                debug!(%error, "could not renew the lock with the new ttl yet");
            }
        }
    }

    /// A store that refuses us from the start will not change its mind: better to say so by ending than to wait for
    /// ever. One that accepted us before, or a postgres that runs, is worth waiting for.
    pub(super) fn note_refused_credentials(&mut self, error: &str) {
        if self.last_cluster.is_some() || self.sight.postmaster.pid().is_some() || self.verdict.is_some() {
            return;
        }
        match &self.started.config.dcs {
            DcsConfig::Etcd3(etcd3) => {
                let user = etcd3.credentials.as_ref().map(|c| c.username.clone());
                error!(
                    user,
                    error,
                    "the DCS refuses user {}: check HOWDAH_ETCD3_USERNAME, HOWDAH_ETCD3_PASSWORD and the rights of this user",
                    user.as_deref().unwrap_or("(none given)")
                );
            }
            DcsConfig::Embedded(_) => error!(error, "the embedded etcd refuses us"),
            DcsConfig::Kubernetes(_) => error!(
                error,
                "the Kubernetes API refuses us: check the Role of the pod's service account, or the kubeconfig"
            ),
            DcsConfig::Consul(_) => error!(
                error,
                "Consul refuses us: check HOWDAH_CONSUL_TOKEN and the rules of its policy (key, session, node)"
            ),
            DcsConfig::ZooKeeper(_) => error!(
                error,
                "ZooKeeper refuses us: check HOWDAH_ZOOKEEPER_AUTH_DATA and the ACLs of the cluster's nodes"
            ),
        }
        self.verdict = Some(Exit::Unavailable);
    }
}
