//! One look at the store and one at the local postgres, both bounded in time (`src/agent/observe.rs`).

use std::{sync::Arc, time::Duration};

use howdah::{
    clock::Boottime,
    ha::{DcsView, Job, Local, Running, Silence, Standing, View, lease},
    model::{Dynamic, Lsn, Timeline},
};

use super::Agent;
use crate::{
    exec::{First, MS, both, race},
    postgres::Phase,
};

const QUERY_LIMIT: Duration = Duration::from_millis(1500);
const HURRIED_QUERY_LIMIT: Duration = Duration::from_millis(100);

impl Agent {
    pub(super) async fn observe(&self) -> View {
        let limit = self.read_limit();
        let stopping = self.shutdown.get().is_some();
        let store = async {
            if stopping {
                return None;
            }
            match race(self.dcs.cluster(), self.local_sleep(limit)).await {
                First::One(Ok(cluster)) => Some(cluster),
                _ => None,
            }
        };
        let asked_at = self.now();
        let (store, ()) = both(store, self.look()).await;
        let dcs = match store {
            Some(cluster) => {
                self.dcs_down_since.set(None);
                self.note_cluster(&cluster, asked_at).await;
                DcsView::Known { cluster }
            }
            None => {
                let now = self.now();
                let since = self.dcs_down_since.get().unwrap_or(now);
                self.dcs_down_since.set(Some(since));
                DcsView::Down { since }
            }
        };
        let host = &self.world.nodes[self.node];
        View {
            me: host.name.clone(),
            tags: host.tags.clone(),
            dynamic: (**self.dynamic.borrow()).clone(),
            wall: self.world.wall(self.node),
            dcs,
            hold: self.lease.hold(),
            local: self.sight.borrow().clone(),
            job: self.present(),
            finished: self.finished.borrow().clone(),
            peers: None,
            leader_probe: None,
            failsafe: self.failsafe_sight(),
            sync: self.sync_sight(),
            missing_slots: Vec::new(),
            shutdown: self.shutdown.get(),
            can_restore: false,
            watchdog_failed: false,
            contained: true,
            memory: self.memory.borrow().clone(),
        }
    }

    fn read_limit(&self) -> Duration {
        let retry = self.dynamic.borrow().timing.retry_timeout;
        let usual = (retry / 3).clamp(Duration::from_millis(500), Duration::from_secs(3));
        match self.pressing_hold() {
            Some(hold) => {
                let left = lease::deadlines(&hold).demote_at.since(self.now());
                usual.min(left).max(Duration::from_millis(50))
            }
            None => usual,
        }
    }

    /// The hold whose end limits everything; in a paused cluster a primary goes on without one.
    fn pressing_hold(&self) -> Option<howdah::dcs::Hold> {
        self.lease.hold().filter(|_| !self.dynamic.borrow().pause)
    }

    async fn note_cluster(&self, cluster: &Arc<howdah::model::Cluster>, asked_at: Boottime) {
        *self.last_cluster.borrow_mut() = Some((Arc::clone(cluster), asked_at));
        if !cluster.is_leader(&self.world.nodes[self.node].name) {
            self.lease.seen_elsewhere();
        }
        if cluster.config.is_none() || cluster.config_version == self.config_version.get() {
            return;
        }
        let Some(raw) = &cluster.config else { return };
        let dynamic = Arc::new(Dynamic::from_map(raw));
        self.config_version.set(cluster.config_version);
        let old = self.dynamic.replace(Arc::clone(&dynamic));
        self.unapplied.set(true);
        self.lease.set_fenced(!dynamic.pause);
        if old.timing != dynamic.timing {
            self.dcs
                .set_timing(dynamic.timing.ttl, dynamic.timing.retry_timeout);
            if self.lease.counts() {
                // Its outcome is noted by the lease itself.
                let _noted = self.lease.renew().await;
            }
        }
    }

    /// One look at the local postgres.
    pub(super) async fn look(&self) {
        let at = self.now();
        let local = self.look_around(at).await;
        *self.sight.borrow_mut() = local;
        self.sight_at.set(at);
    }

    async fn look_around(&self, at: Boottime) -> Local {
        let world = &self.world;
        let host = &world.nodes[self.node];
        let pg = &host.pg;
        match pg.phase.get() {
            Phase::Running => self.query(at).await,
            Phase::Starting { since } => {
                let signal = pg.data.borrow().as_ref().is_some_and(|data| data.standby_signal);
                Local::Starting {
                    since,
                    primary: !signal,
                }
            }
            Phase::Stopping { since } => Local::Stopping {
                since,
                crashed: false,
            },
            Phase::Cleaning { since, requested } => Local::Stopping {
                since,
                crashed: !requested,
            },
            Phase::Stopped { .. } if self.directory_is_in_work() => Local::Stopping {
                since: at,
                crashed: false,
            },
            Phase::Stopped { .. } => {
                // pg_controldata.
                world.sim.sleep(world.between(2 * MS, 8 * MS)).await;
                host.disk(world).await;
                match pg.data.borrow().as_ref() {
                    None => Local::Empty,
                    Some(data) if data.incomplete && data.half => Local::Leftover,
                    Some(data) if data.incomplete => Local::Empty,
                    Some(data) => Local::Down(data.look(&world.wal.borrow())),
                }
            }
        }
    }

    fn directory_is_in_work(&self) -> bool {
        matches!(
            self.job(),
            Some(Job::Bootstrap | Job::Clone { .. } | Job::Rewind(_))
        )
    }

    /// The monitor query over the open connection.
    async fn query(&self, at: Boottime) -> Local {
        let world = &self.world;
        let host = &world.nodes[self.node];
        let limit = self.pressing_hold().map_or(QUERY_LIMIT, |hold| {
            let left = lease::deadlines(&hold).demote_at.since(at);
            left.clamp(HURRIED_QUERY_LIMIT, QUERY_LIMIT)
        });
        let answer = async {
            world.sim.sleep(world.between(MS / 2, 3 * MS)).await;
            while host.pg.hung.get() || world.sim_frozen(host.pg.server.get()) {
                world.sim.sleep(50 * MS).await;
            }
        };
        let silent = matches!(race(answer, self.local_sleep(limit)).await, First::Two(()));
        let wal = world.wal.borrow();
        let pg = &host.pg;
        if silent || !pg.running() {
            let last = self.sight.borrow();
            let signal = pg.data.borrow().as_ref().is_some_and(|data| data.standby_signal);
            let was_primary = match &*last {
                Local::Running(running) => running.is_primary(),
                Local::Silent { primary, .. } | Local::Starting { primary, .. } => *primary,
                _ => false,
            };
            let primary = was_primary || !signal;
            let since = match &*last {
                Local::Silent {
                    since,
                    why: Silence::NoAnswer,
                    ..
                } => *since,
                _ => at,
            };
            return Local::Silent {
                since,
                primary,
                why: Silence::NoAnswer,
            };
        }
        let data = pg.data.borrow();
        let Some(data) = data.as_ref() else {
            return Local::Empty;
        };
        let standing = if pg.primary.get() {
            Standing::Primary {
                flushed: Lsn(data.flushed),
            }
        } else {
            Standing::Replica {
                received: Lsn(data.written),
                replayed: Lsn(pg.replayed.get()),
                streaming: pg.streaming.get(),
                receiving: pg.streaming.get() || pg.upstream.get().is_some(),
                upstream: pg.upstream.get().map(|up| (world.nodes[up].host.clone(), 5432)),
                paused_for_parameters: false,
            }
        };
        Local::Running(Running {
            standing,
            timeline: Timeline(wal.timeline(data.branch)),
            parent: wal.parent(data.branch),
            system_id: Some(crate::postgres::system_id(wal.branches[data.branch].system)),
        })
    }
}
