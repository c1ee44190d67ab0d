//! Adapters → [`View`]: one look at the store and one at the local postgres, both bounded in time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{Agent, Sight, instance::chain};
use crate::{
    clock::Boottime,
    dcs::{Dcs, DcsError, Hold},
    ha::{DcsView, Down, Job, Local, Parent, Running, Silence, Standing, View, lease},
    model::{Cluster, ControlData, DbState, Lsn, Timeline, Timing},
    postgres::{
        conninfo::Conninfo,
        datadir::{DataDir, Reason, Unfinished},
        postmaster::State,
        probe::{self, Reach},
        query::{LocalView, QueryError, Where},
    },
};

/// A local query that takes longer than this counts as no answer in this turn.
const QUERY_LIMIT: Duration = Duration::from_millis(1500);
/// The same where the time to be primary is (nearly) over.
const HURRIED_QUERY_LIMIT: Duration = Duration::from_millis(100);
/// A new connection is tried this often while everything is in order.
const PROBE_EVERY: Duration = Duration::from_secs(5);

impl Agent {
    /// Everything the decision may rest on, as of now.
    pub(super) async fn observe(&mut self) -> View {
        let shutting_down = self.shutdown.is_some();
        let limit = read_limit(
            &self.dynamic.timing,
            self.pressing_hold().as_ref(),
            Boottime::now(),
        );
        let dcs = Arc::clone(&self.dcs);
        let store = async {
            // A stop needs postgres and the lock only; it must not wait for a store that does not answer.
            if shutting_down {
                Err(Unread::Because("stopping".to_owned()))
            } else {
                read(&*dcs, limit).await
            }
        };
        let asked_at = Boottime::now();
        let (store, sight) = tokio::join!(store, self.look());
        self.sight = sight;
        if let Some(id) = self.sight.local.system_id() {
            self.system_id = Some(id.clone());
        }
        let dcs = Box::pin(self.note_store(store, asked_at)).await;
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
            can_restore: self.instance.can_restore(&self.dynamic),
            failsafe: self.failsafe_sight(),
            sync: self.sync_sight(),
            missing_slots: self.slots.missing(),
            shutdown: self.shutdown,
            watchdog_failed: self.watchdog_failed(),
            contained: self.guard.is_container(),
            memory: self.memory.clone(),
        }
    }

    async fn note_store(&mut self, store: Result<Cluster, Unread>, asked_at: Boottime) -> DcsView {
        match store {
            Ok(cluster) => {
                if let Some(since) = self.dcs_down_since.take() {
                    let seconds = Boottime::now().since(since).as_secs_f32();
                    info!(from = "unreachable", to = "reachable", seconds, "the DCS answers");
                }
                let cluster = Arc::new(cluster);
                self.note_cluster(&cluster, asked_at).await;
                DcsView::Known { cluster }
            }
            Err(error) => {
                let now = Boottime::now();
                let error = match error {
                    Unread::Because(error) => error,
                    Unread::Credentials(error) => {
                        self.note_refused_credentials(&error);
                        error
                    }
                };
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

    /// One look at the local postgres. On the heap: it asks many things, and the loop's own future would hold it all.
    pub(super) fn look(&self) -> impl Future<Output = Sight> + Send {
        Box::pin(self.look_around())
    }

    async fn look_around(&self) -> Sight {
        let at = Boottime::now();
        let state = self.instance.postmaster().state();
        let (local, answer) = match &state {
            State::Running { pid, .. } if probe::is_stopped(*pid) => {
                (self.silent(Silence::Stopped, "its process is stopped", at), None)
            }
            State::Running { pid, .. } => match self.instance.monitor().observe(self.query_limit(at)).await {
                Ok(_) if !self.takes_connections(at).await => (
                    self.silent(Silence::NoAnswer, "it answers no new connection", at),
                    None,
                ),
                Ok(mut view) => {
                    view.replayed_timeline = self.instance.replay_timeline(&view).await;
                    self.note_own_wal(&mut view);
                    let mut running = running(&view);
                    running.parent = self.parent(running.timeline);
                    self.note_paused(&view, &mut running).await;
                    (Local::Running(running), Some(view))
                }
                Err(error) => (self.without_answer(&error, *pid, at).await, None),
            },
            State::Starting { since, .. } => (
                Local::Starting {
                    since: *since,
                    primary: !self.instance.standby_signal(),
                },
                None,
            ),
            State::Stopping { since, .. } => (
                Local::Stopping {
                    since: *since,
                    crashed: false,
                },
                None,
            ),
            State::Cleaning { last, since } => (
                Local::Stopping {
                    since: *since,
                    crashed: !last.requested,
                },
                None,
            ),
            // A job owns the directory: what it looks like now means nothing yet.
            State::Stopped { .. } if self.directory_is_in_work() => (
                Local::Stopping {
                    since: at,
                    crashed: false,
                },
                None,
            ),
            State::Stopped { .. } => (self.look_at_directory(at).await, None),
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
        self.pressing_hold().map_or(QUERY_LIMIT, |hold| {
            left(hold).clamp(HURRIED_QUERY_LIMIT, QUERY_LIMIT)
        })
    }

    /// The hold whose end limits everything; in a paused cluster a primary goes on without one.
    fn pressing_hold(&self) -> Option<Hold> {
        self.lease.hold().filter(|_| !self.dynamic.pause)
    }

    fn directory_is_in_work(&self) -> bool {
        let job = self.jobs.view().map(|running| running.job);
        matches!(
            job,
            Some(
                Job::Bootstrap
                    | Job::BootstrapStandby
                    | Job::Restore
                    | Job::Clone { .. }
                    | Job::Rewind(_)
                    | Job::CopySlots { .. }
            )
        )
    }

    /// Sessions that are open, ours among them, are served on while the postmaster hangs: so a new connection is tried too,
    /// not with every look.
    async fn takes_connections(&self, now: Boottime) -> bool {
        let last = Boottime(self.probed.load(Ordering::Relaxed));
        let hung = matches!(self.sight.local, Local::Silent { .. });
        if !hung && now.since(last) < PROBE_EVERY {
            return true;
        }
        let answers = probe::answers(&self.instance.monitor().target(), self.query_limit(now)).await;
        if answers {
            self.probed.store(now.0, Ordering::Relaxed);
        }
        answers
    }

    /// Once all the WAL of its own is replayed, more comes only by ways that show in its positions.
    fn note_own_wal(&self, view: &mut LocalView) {
        let started = view.started_epoch.to_bits();
        let Where::Standby(standby) = &mut view.place else {
            return;
        };
        if !standby.replaying {
            self.replayed_own.store(started, Ordering::Relaxed);
        } else if self.replayed_own.load(Ordering::Relaxed) == started {
            standby.replaying = false;
        }
    }

    async fn without_answer(&self, error: &QueryError, pid: i32, now: Boottime) -> Local {
        match what_it_says(error) {
            Said::NotYet => {
                let primary = may_be_primary(&self.sight.local, self.instance.standby_signal());
                let since = match self.sight.local {
                    Local::Starting { since, .. } => since,
                    _ => now,
                };
                Local::Starting { since, primary }
            }
            Said::No => self.silent(Silence::Refused, &error.to_string(), now),
            Said::Nothing => {
                let limit = self.query_limit(Boottime::now());
                let why = match probe::reach(self.instance.monitor(), pid, limit).await {
                    Reach::Stopped => Silence::Stopped,
                    Reach::Nothing => Silence::NoAnswer,
                    Reach::Connection => Silence::NoSession,
                    Reach::Session => Silence::Slow,
                };
                self.silent(why, &error.to_string(), now)
            }
        }
    }

    /// A postmaster that lives and does not answer. Whether it hangs is judged by how long that lasts; which probe fails
    /// may change meanwhile.
    fn silent(&self, why: Silence, because: &str, now: Boottime) -> Local {
        let primary = may_be_primary(&self.sight.local, self.instance.standby_signal());
        let hangs = |why: Silence| !matches!(why, Silence::Slow | Silence::Refused);
        let since = match self.sight.local {
            Local::Silent {
                since, why: before, ..
            } if before == why || (hangs(before) && hangs(why) && why != Silence::Stopped) => since,
            _ => {
                warn!(from = "answering", to = ?why, because, "postgres did not answer");
                now
            }
        };
        Local::Silent { since, primary, why }
    }

    async fn look_at_directory(&self, now: Boottime) -> Local {
        match self.instance.classify() {
            DataDir::Empty | DataDir::Incomplete(Unfinished::NewCluster) => return Local::Empty,
            DataDir::Incomplete(Unfinished::Copy) => return Local::Leftover,
            DataDir::Valid(_) => {}
            DataDir::Unusable(reason) if is_damage(&reason) => {
                return Local::Broken {
                    reason: reason.to_string(),
                };
            }
            DataDir::Unusable(reason) => return self.unknown(reason.to_string(), now),
        }
        let control = match self.instance.read_control().await {
            Ok(control) => control,
            Err(error) => {
                let reason = chain(&error);
                return if error.is_damage() {
                    Local::Broken { reason }
                } else {
                    self.unknown(reason, now)
                };
            }
        };
        let checkpoint_end = match control.state {
            DbState::ShutDown => self.instance.checkpoint_end(&control).await,
            _ => None,
        };
        let mut down = Down {
            control,
            standby_signal: self.instance.standby_signal(),
            checkpoint_end,
            parent: None,
        };
        down.parent = self.parent(down.timeline());
        Local::Down(down)
    }

    /// A full disk, a limit on processes, a file server that is away: nothing that says anything about the data.
    fn unknown(&self, reason: String, now: Boottime) -> Local {
        let since = match self.sight.local {
            Local::Unknown { since, .. } => since,
            _ => {
                warn!(because = reason, "cannot look at the data directory");
                now
            }
        };
        Local::Unknown { reason, since }
    }

    /// Where our timeline begins, by our own history file.
    fn parent(&self, timeline: Timeline) -> Option<Parent> {
        let (rows, _) = self.instance.history(timeline);
        rows.last().map(|row| (row.timeline, row.lsn))
    }

    /// Why replay is paused is only told by pg_control, which has the primary's settings by then (PostgreSQL:
    /// `xlog_redo` stores them before it checks them).
    async fn note_paused(&self, view: &LocalView, running: &mut Running) {
        let (
            Where::Standby(standby),
            Standing::Replica {
                paused_for_parameters,
                ..
            },
        ) = (&view.place, &mut running.standing)
        else {
            return;
        };
        if standby.paused
            && let Ok(control) = self.instance.read_control().await
        {
            *paused_for_parameters = undercuts(view, &control);
        }
    }
}

/// What it last was counts, or else what it would be started as. After a promotion the signal file is gone before
/// anybody has looked, after a crash it is there no more: in doubt a primary.
const fn may_be_primary(last: &Local, standby_signal: bool) -> bool {
    let was_primary = match last {
        Local::Running(running) => running.is_primary(),
        Local::Silent { primary, .. } | Local::Starting { primary, .. } => *primary,
        _ => false,
    };
    was_primary || !standby_signal
}

/// What a failed look says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// It is on its way up (or down).
    NotYet,
    /// An error: it is there.
    No,
    /// No answer in time, or no connection.
    Nothing,
}

const fn what_it_says(error: &QueryError) -> Said {
    match error {
        QueryError::NotAccepting { .. } => Said::NotYet,
        QueryError::ConnectFailed { .. } | QueryError::Timeout { .. } => Said::Nothing,
        QueryError::Auth { .. }
        | QueryError::Tls { .. }
        | QueryError::Sql { .. }
        | QueryError::Decode { .. } => Said::No,
    }
}

/// The data itself is at fault, not the way to it.
const fn is_damage(reason: &Reason) -> bool {
    matches!(reason, Reason::Version(_) | Reason::Damaged(_))
}

/// The server runs with less than pg_control says its primary has.
fn undercuts(view: &LocalView, control: &ControlData) -> bool {
    let number = |text: &str| text.parse::<i64>().ok();
    control.settings.iter().any(|(name, theirs)| {
        let ours = view.limits.get(name).and_then(|text| number(text));
        ours.zip(number(theirs))
            .is_some_and(|(ours, theirs)| ours < theirs)
    })
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
            receiving: standby.receiving,
            upstream: upstream(&view.primary_conninfo),
            paused_for_parameters: false,
        },
    };
    Running {
        standing,
        timeline: view.timeline(),
        parent: None,
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

/// Why there is no view of the store.
enum Unread {
    /// It refused us.
    Credentials(String),
    /// Anything else.
    Because(String),
}

async fn read(dcs: &dyn Dcs, limit: Duration) -> Result<Cluster, Unread> {
    match timeout(limit, dcs.cluster()).await {
        Ok(Ok(cluster)) => Ok(cluster),
        Ok(Err(error @ DcsError::Credentials { .. })) => Err(Unread::Credentials(error.to_string())),
        Ok(Err(error)) => Err(Unread::Because(error.to_string())),
        Err(_) => Err(Unread::Because(format!("no answer within {limit:?}"))),
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

    /// The store falls silent between the look at it and the first write of a turn, just before a renewal.
    #[test]
    fn a_primary_notices_in_time_that_its_store_is_silent_to_ask_the_others() {
        for seconds in 3..=120 {
            let ttl = Duration::from_secs(seconds);
            let timing = Timing {
                ttl,
                loop_wait: ttl / 3,
                retry_timeout: ttl / 3,
            };
            let noticed = lease::interval(ttl)
                + super::super::execute::write_limit(ttl)
                + super::super::REFUSED_AGAIN
                + read_limit(&timing, None, Boottime(0));
            let left = crate::ha::failsafe::usable(ttl).checked_sub(noticed);
            let enough = Duration::from_millis(400);
            assert!(left.is_some_and(|left| left >= enough), "ttl {seconds}: {left:?}");
        }
    }

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
    fn an_error_is_an_answer_and_silence_is_not() {
        let refused = QueryError::Sql {
            code: "53300".into(),
            message: "too many clients already".into(),
        };
        let auth = QueryError::Auth {
            message: "password".into(),
        };
        let limit = QUERY_LIMIT;
        assert_eq!(what_it_says(&refused), Said::No);
        assert_eq!(what_it_says(&auth), Said::No);
        assert_eq!(what_it_says(&QueryError::Timeout { limit }), Said::Nothing);
        let starting = QueryError::NotAccepting {
            message: "starting up".into(),
        };
        assert_eq!(what_it_says(&starting), Said::NotYet);
    }

    #[test]
    fn what_has_been_promoted_is_no_replica_even_if_it_was_never_seen_as_a_primary() {
        let since = Boottime(0);
        let replica = Local::Starting {
            since,
            primary: false,
        };
        assert!(may_be_primary(&replica, false));
        assert!(!may_be_primary(&replica, true));
        assert!(may_be_primary(&Local::Starting { since, primary: true }, true));
        assert!(may_be_primary(&Local::Empty, false));
    }

    #[test]
    fn only_damage_is_damage() {
        assert!(is_damage(&Reason::Damaged("global/pg_control")));
        assert!(is_damage(&Reason::Version("x".into())));
        assert!(!is_damage(&Reason::Unreadable("Too many open files".into())));
        assert!(!is_damage(&Reason::Mode { mode: 0o777 }));
    }

    #[test]
    fn reads_host_and_port_of_the_upstream() {
        assert_eq!(upstream("user=r host=pg1 port=5433"), Some(("pg1".into(), 5433)));
        assert_eq!(upstream("host=pg1"), Some(("pg1".into(), 5432)));
        assert_eq!(upstream(""), None);
    }
}
