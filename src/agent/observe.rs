//! Adapters → [`View`]: one look at the store and one at the local postgres, both bounded in time.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{Agent, Sight};
use crate::{
    clock::Boottime,
    dcs::{Dcs, Hold},
    ha::{DcsView, Down, Job, Local, Running, Standing, View, lease},
    model::{Cluster, Lsn, Timing},
    postgres::{
        conninfo::Conninfo,
        datadir::DataDir,
        postmaster::State,
        query::{LocalView, QueryError, Where},
    },
};

/// A local query that takes longer than this counts as no answer in this turn.
const QUERY_LIMIT: Duration = Duration::from_millis(1500);
/// The same where the time to be primary is (nearly) over.
const HURRIED_QUERY_LIMIT: Duration = Duration::from_millis(100);

impl Agent {
    /// Everything the decision may rest on, as of now.
    pub(super) async fn observe(&mut self) -> View {
        let shutting_down = self.shutdown.is_some();
        let limit = read_limit(&self.dynamic.timing, self.lease.hold().as_ref(), Boottime::now());
        let dcs = Arc::clone(&self.dcs);
        let store = async {
            // A stop needs postgres and the lock only; it must not wait for a store that does not answer.
            if shutting_down {
                Err("stopping".to_owned())
            } else {
                read(&*dcs, limit).await
            }
        };
        let (store, sight) = tokio::join!(store, self.look());
        self.sight = sight;
        if let Some(id) = self.sight.local.system_id() {
            self.system_id = Some(id.clone());
        }
        let dcs = self.note_store(store).await;
        View {
            me: self.identity.member.clone(),
            tags: self.identity.tags.clone(),
            dynamic: self.dynamic.clone(),
            wall: jiff::Timestamp::now(),
            dcs,
            hold: self.lease.hold(),
            local: self.sight.local.clone(),
            job: self.jobs.view(),
            finished: self.finished.clone(),
            peers: None,
            leader_probe: None,
            shutdown: self.shutdown,
            memory: self.memory.clone(),
        }
    }

    async fn note_store(&mut self, store: Result<Cluster, String>) -> DcsView {
        match store {
            Ok(cluster) => {
                if let Some(since) = self.dcs_down_since.take() {
                    let seconds = Boottime::now().since(since).as_secs_f32();
                    info!(from = "unreachable", to = "reachable", seconds, "the DCS answers");
                }
                let cluster = Arc::new(cluster);
                self.note_cluster(&cluster).await;
                DcsView::Known { cluster }
            }
            Err(error) => {
                let now = Boottime::now();
                if self.dcs_down_since.is_none() && self.shutdown.is_none() {
                    warn!(
                        from = "reachable",
                        to = "unreachable",
                        because = error,
                        "the DCS does not answer"
                    );
                }
                DcsView::Down {
                    since: *self.dcs_down_since.get_or_insert(now),
                }
            }
        }
    }

    /// One look at the local postgres.
    pub(super) async fn look(&self) -> Sight {
        let at = Boottime::now();
        let state = self.instance.postmaster().state();
        let (local, answer) = match &state {
            State::Running { .. } => match self.instance.monitor().observe(self.query_limit(at)).await {
                Ok(mut view) => {
                    view.replayed_timeline = self.instance.replay_timeline(&view).await;
                    (Local::Running(running(&view)), Some(view))
                }
                Err(error) => (self.without_answer(&error, at), None),
            },
            State::Starting { since, .. } => (
                Local::Starting {
                    since: *since,
                    primary: !self.instance.standby_signal(),
                },
                None,
            ),
            State::Stopping { .. } | State::Cleaning { .. } => (Local::Stopping, None),
            // A job owns the directory: what it looks like now means nothing yet.
            State::Stopped { .. } if self.directory_is_in_work() => (Local::Stopping, None),
            State::Stopped { .. } => (self.look_at_directory().await, None),
        };
        Sight {
            at,
            local,
            answer,
            postmaster: state,
        }
    }

    /// A postgres that has to be stopped now is not waited for: if it does not answer, it counts as what it last was.
    fn query_limit(&self, now: Boottime) -> Duration {
        let left = |hold: Hold| lease::deadlines(&hold).demote_at.since(now);
        self.lease.hold().map_or(QUERY_LIMIT, |hold| {
            left(hold).clamp(HURRIED_QUERY_LIMIT, QUERY_LIMIT)
        })
    }

    fn directory_is_in_work(&self) -> bool {
        let job = self.jobs.view().map(|running| running.job);
        matches!(job, Some(Job::Bootstrap | Job::Clone(_) | Job::Rewind(_)))
    }

    fn without_answer(&self, error: &QueryError, now: Boottime) -> Local {
        // What it last was counts; if that is not known, the directory says what it was started as.
        let primary = match &self.sight.local {
            Local::Running(running) => running.is_primary(),
            Local::Silent { primary, .. } | Local::Starting { primary, .. } => *primary,
            _ => !self.instance.standby_signal(),
        };
        if matches!(error, QueryError::NotAccepting { .. }) {
            let since = match self.sight.local {
                Local::Starting { since, .. } => since,
                _ => now,
            };
            return Local::Starting { since, primary };
        }
        let since = match self.sight.local {
            Local::Silent { since, .. } => since,
            _ => {
                warn!(from = "answering", to = "silent", because = %error, "postgres did not answer");
                now
            }
        };
        Local::Silent { since, primary }
    }

    async fn look_at_directory(&self) -> Local {
        match self.instance.classify() {
            DataDir::Empty | DataDir::Incomplete => return Local::Empty,
            DataDir::Valid(_) => {}
            DataDir::Unusable(reason) => {
                return Local::Broken {
                    reason: reason.to_string(),
                };
            }
        }
        match self.instance.control().await {
            Ok(control) => {
                let standby_signal = self.instance.standby_signal();
                let checkpoint_end = match control.state {
                    crate::model::DbState::ShutDown => self.instance.checkpoint_end(&control).await,
                    _ => None,
                };
                Local::Down(Down {
                    control,
                    standby_signal,
                    checkpoint_end,
                })
            }
            Err(error) => Local::Broken { reason: error },
        }
    }
}

/// The decision's picture of a server that answered.
pub(super) fn running(view: &LocalView) -> Running {
    let standing = match &view.place {
        Where::Primary(primary) => Standing::Primary {
            flushed: primary.flush_lsn,
        },
        Where::Standby(standby) => Standing::Replica {
            received: standby.received().unwrap_or(Lsn::INVALID),
            replayed: standby.replay_lsn.unwrap_or(Lsn::INVALID),
            streaming: standby.is_streaming(),
            upstream: upstream(&view.primary_conninfo),
        },
    };
    Running {
        standing,
        timeline: view.timeline(),
        system_id: Some(view.system_id.clone()),
    }
}

fn upstream(primary_conninfo: &str) -> Option<(String, u16)> {
    let conninfo = Conninfo::parse(primary_conninfo).ok()?;
    let port = conninfo
        .get("port")
        .map_or(Some(5432), |port| port.parse().ok())?;
    Some((conninfo.get("host")?.to_owned(), port))
}

async fn read(dcs: &dyn Dcs, limit: Duration) -> Result<Cluster, String> {
    match timeout(limit, dcs.cluster()).await {
        Ok(Ok(cluster)) => Ok(cluster),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// How long one read may take: short enough that the loop still turns several times within a lease, and never past
/// the moment at which a primary has to be stopped.
fn read_limit(timing: &Timing, hold: Option<&Hold>, now: Boottime) -> Duration {
    let usual = (timing.retry_timeout / 3).clamp(Duration::from_millis(500), Duration::from_secs(3));
    match hold {
        Some(hold) => {
            let left = lease::deadlines(hold).demote_at.since(now);
            usual.min(left).max(Duration::from_millis(50))
        }
        None => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_never_outlasts_the_lease() {
        let timing = Timing::adjusted(30, 10, 10);
        let hold = Hold {
            sent_at: Boottime(0) + Duration::from_secs(100),
            ttl: timing.ttl,
            lease: 1,
        };
        let at = |seconds: u64| hold.sent_at + Duration::from_secs(seconds);
        assert_eq!(read_limit(&timing, None, at(0)), Duration::from_secs(3));
        assert_eq!(read_limit(&timing, Some(&hold), at(0)), Duration::from_secs(3));
        assert!(read_limit(&timing, Some(&hold), at(25)) <= Duration::from_secs(1));
        assert_eq!(
            read_limit(&timing, Some(&hold), at(60)),
            Duration::from_millis(50)
        );
    }

    #[test]
    fn reads_host_and_port_of_the_upstream() {
        assert_eq!(upstream("user=r host=pg1 port=5433"), Some(("pg1".into(), 5433)));
        assert_eq!(upstream("host=pg1"), Some(("pg1".into(), 5432)));
        assert_eq!(upstream(""), None);
    }
}
