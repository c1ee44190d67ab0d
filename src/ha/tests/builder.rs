//! Builds views on the real types. Nothing is defaulted that a rule under test depends on, except: we are `b`, the
//! cluster is initialized and on timeline 1, nobody leads, and our agent has been up for long.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use crate::{
    clock::Boottime,
    dcs::Hold,
    ha::{
        Action, DcsView, Down, Finished, Job, LeaderFacts, LeaderProbe, Local, Memory, Peers, Plan, Running,
        RunningJob, Shutdown, Silence, Source, Standing, Upstream, View, decide, lease,
    },
    model::{
        Cluster, ControlData, DbState, Dynamic, FailoverKey, HistoryRow, Leader, Lsn, Member, MemberData,
        MemberName, PeerStatus, PgState, Role, StandbyCluster, StatusKey, SystemId, Tags, Timeline, Version,
    },
};

pub(super) const SYSTEM: &str = "7400000000000000001";
pub(super) const NOW: Boottime = Boottime(10_000 * 1_000_000_000);
pub(super) const TTL: Duration = Duration::from_secs(30);

pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn at(name: &str) -> Upstream {
    Upstream {
        member: name.into(),
        host: name.into(),
        port: 5432,
        source: Source::Member,
    }
}

pub(super) fn member(name: &str) -> Member {
    Member {
        name: name.into(),
        data: MemberData {
            conn_url: format!("postgres://{name}:5432/postgres"),
            api_url: format!("http://{name}:8008/patroni"),
            state: PgState::Running,
            role: Role::Replica,
            ..MemberData::default()
        },
    }
}

pub(super) fn tags(pairs: &[(&str, Value)]) -> Map<String, Value> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

/// A replica's answer.
pub(super) fn replica_at(position: u64) -> PeerStatus {
    PeerStatus {
        role: Role::Replica,
        in_recovery: true,
        position: Lsn(position),
        timeline: Timeline(1),
        tags: Tags::default(),
        watchdog_failed: false,
        replaying: false,
        receiving: false,
    }
}

/// It has been started with more WAL than it has replayed so far.
pub(super) fn still_replaying(peer: PeerStatus) -> PeerStatus {
    PeerStatus {
        replaying: true,
        ..peer
    }
}

pub(super) fn primary_at(position: u64) -> PeerStatus {
    PeerStatus {
        role: Role::Primary,
        in_recovery: false,
        ..replica_at(position)
    }
}

pub(super) fn on_timeline(timeline: u32, peer: PeerStatus) -> PeerStatus {
    PeerStatus {
        timeline: Timeline(timeline),
        ..peer
    }
}

pub(super) fn tagged(name: &str, value: Value, mut peer: PeerStatus) -> PeerStatus {
    peer.tags.0.insert(name.into(), value);
    peer
}

/// History of a cluster that is on `timeline`; timeline n ended at n * 1000.
pub(super) fn history(timeline: u32) -> Vec<HistoryRow> {
    let row = |n| HistoryRow {
        timeline: Timeline(n),
        lsn: Lsn(u64::from(n) * 1000),
        reason: "no recovery target specified".into(),
        timestamp: Some("t".into()),
        new_leader: Some("x".into()),
    };
    (1..timeline).map(row).collect()
}

pub(super) fn control(state: DbState, timeline: u32, checkpoint: u64) -> ControlData {
    ControlData {
        system_id: SystemId(SYSTEM.into()),
        state,
        checkpoint: Lsn(checkpoint),
        redo: Lsn(checkpoint),
        timeline: Timeline(timeline),
        min_recovery_end: Lsn(0),
        min_recovery_timeline: Timeline(0),
        checksums: true,
        wal_log_hints: false,
        settings: Vec::new(),
    }
}

/// A hold under which a primary is to be stopped this long after `now`.
pub(super) fn hold_until(now: Boottime, left: Duration) -> Hold {
    let reserve = lease::margin(TTL) + lease::stop_budget(TTL);
    Hold {
        sent_at: (now + left + reserve).minus(TTL),
        ttl: TTL,
        lease: 7,
    }
}

#[derive(Clone)]
pub(super) struct Build {
    pub(super) view: View,
    pub(super) cluster: Cluster,
    now: Boottime,
    down: Option<Boottime>,
}

pub(super) fn view() -> Build {
    let dynamic = Dynamic::default();
    let cluster = Cluster {
        initialize: Some(SYSTEM.into()),
        initialize_version: Some(Version(1)),
        config: Some(Map::new()),
        config_version: Some(Version(2)),
        history: Some(Vec::new()),
        ..Cluster::default()
    };
    let view = View {
        me: "b".into(),
        tags: Tags::default(),
        dynamic,
        wall: Timestamp::UNIX_EPOCH,
        dcs: DcsView::Known {
            cluster: Arc::new(Cluster::default()),
        },
        hold: None,
        local: Local::Empty,
        job: None,
        finished: None,
        peers: None,
        leader_probe: None,
        can_restore: false,
        failsafe: crate::ha::failsafe::Sight::default(),
        sync: None,
        missing_slots: Vec::new(),
        shutdown: None,
        watchdog_failed: false,
        contained: true,
        memory: Memory::default(),
    };
    Build {
        view,
        cluster,
        now: NOW,
        down: None,
    }
}

impl Build {
    pub(super) fn me(mut self, name: &str) -> Self {
        self.view.me = name.into();
        self
    }

    pub(super) fn later(mut self, by: Duration) -> Self {
        self.now = self.now + by;
        self
    }

    pub(super) fn change(mut self, change: impl FnOnce(&mut View)) -> Self {
        change(&mut self.view);
        self
    }

    pub(super) fn cluster(mut self, change: impl FnOnce(&mut Cluster)) -> Self {
        change(&mut self.cluster);
        self
    }

    pub(super) fn memory(self, change: impl FnOnce(&mut Memory)) -> Self {
        self.change(|view| change(&mut view.memory))
    }

    pub(super) fn dynamic(self, change: impl FnOnce(&mut Dynamic)) -> Self {
        self.change(|view| change(&mut view.dynamic))
    }

    // --- the cluster

    pub(super) fn with(mut self, member: Member) -> Self {
        self.cluster.members.retain(|m| m.name != member.name);
        self.cluster.members.push(member);
        self.cluster.members.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    pub(super) fn replica(self, name: &str) -> Self {
        self.with(member(name))
    }

    pub(super) fn leader(mut self, name: &str) -> Self {
        self.cluster.leader = Some(Leader {
            name: name.into(),
            version: Version(9),
            lease: 7,
        });
        let mut leader = member(name);
        leader.data.role = Role::Primary;
        self.with(leader)
    }

    pub(super) fn timeline(self, timeline: u32) -> Self {
        self.cluster(|cluster| cluster.history = Some(history(timeline)))
    }

    pub(super) fn optime(self, optime: u64) -> Self {
        self.cluster(|cluster| cluster.status.optime = Lsn(optime))
    }

    pub(super) fn initialize(self, text: Option<&str>) -> Self {
        self.cluster(|cluster| {
            cluster.initialize = text.map(Into::into);
            cluster.initialize_version = text.map(|_| Version(1));
        })
    }

    pub(super) fn slots(self, names: &[&str]) -> Self {
        self.cluster(|cluster| {
            cluster.status = StatusKey {
                retain_slots: Some(names.iter().map(|n| (*n).to_owned()).collect()),
                ..cluster.status.clone()
            };
        })
    }

    pub(super) fn request(mut self, leader: Option<&str>, candidate: Option<&str>) -> Self {
        self.cluster.failover = Some(FailoverKey {
            leader: leader.map(MemberName::from),
            candidate: candidate.map(MemberName::from),
            scheduled_at: None,
        });
        self
    }

    /// Seconds from now; negative: in the past.
    pub(super) fn scheduled(mut self, offset: i64) -> Self {
        let due = self.view.wall + SignedDuration::from_secs(offset);
        self.cluster
            .failover
            .get_or_insert_with(FailoverKey::default)
            .scheduled_at = Some(due);
        self
    }

    pub(super) fn dcs_down_for(mut self, time: Duration) -> Self {
        self.down = Some(self.now.minus(time));
        self
    }

    /// The cluster follows the one at `remote:5432`.
    pub(super) fn standby_of_remote(self) -> Self {
        self.dynamic(|dynamic| {
            dynamic.standby = Some(StandbyCluster {
                host: Some("remote".into()),
                restore_command: Some("cp /archive/%f %p".into()),
                ..StandbyCluster::default()
            });
        })
    }

    // --- ourselves

    pub(super) fn local(self, local: Local) -> Self {
        self.change(|view| view.local = local)
    }

    fn running(self, standing: Standing) -> Self {
        self.local(Local::Running(Running {
            standing,
            timeline: Timeline(1),
            parent: None,
            system_id: Some(SystemId(SYSTEM.into())),
        }))
    }

    pub(super) fn running_primary(self, flushed: u64) -> Self {
        self.running(Standing::Primary {
            flushed: Lsn(flushed),
        })
    }

    /// A replica that streams from nobody.
    pub(super) fn running_replica(self, position: u64) -> Self {
        self.running(Standing::Replica {
            received: Lsn(position),
            replayed: Lsn(position),
            streaming: false,
            upstream: None,
            paused_for_parameters: false,
            receiving: false,
        })
    }

    /// A replica configured to stream from `name`.
    pub(super) fn replica_of(self, name: &str, position: u64, streaming: bool) -> Self {
        self.running(Standing::Replica {
            received: Lsn(position),
            replayed: Lsn(position),
            streaming,
            upstream: Some((name.into(), 5432)),
            paused_for_parameters: false,
            receiving: true,
        })
    }

    /// Timeline of our own data.
    pub(super) fn mine(self, timeline: u32) -> Self {
        self.change(|view| match &mut view.local {
            Local::Running(running) => running.timeline = Timeline(timeline),
            Local::Down(down) => down.control.timeline = Timeline(timeline),
            _ => {}
        })
    }

    pub(super) fn down(self, state: DbState) -> Self {
        let standby_signal = matches!(state, DbState::ShutDownInRecovery | DbState::InArchiveRecovery);
        self.local(Local::Down(Down {
            control: control(state, 1, 500),
            standby_signal,
            checkpoint_end: None,
            parent: None,
        }))
    }

    pub(super) fn crashed_primary(self) -> Self {
        self.down(DbState::InProduction)
    }

    pub(super) fn clean_primary(self, end: u64) -> Self {
        self.down(DbState::ShutDown).change(|view| {
            if let Local::Down(down) = &mut view.local {
                down.checkpoint_end = Some(Lsn(end));
            }
        })
    }

    pub(super) fn stopped_replica(self) -> Self {
        self.down(DbState::ShutDownInRecovery)
    }

    /// Where the timeline of our own data begins.
    pub(super) fn born(self, timeline: u32, at: u64) -> Self {
        let parent = Some((Timeline(timeline), Lsn(at)));
        self.change(|view| match &mut view.local {
            Local::Running(running) => running.parent = parent,
            Local::Down(down) => down.parent = parent,
            _ => {}
        })
    }

    pub(super) fn silent(self, primary: bool) -> Self {
        self.silent_for(primary, secs(2), Silence::NoAnswer)
    }

    pub(super) fn silent_for(self, primary: bool, time: Duration, why: Silence) -> Self {
        let since = self.now.minus(time);
        // Looked at every second since.
        let before = self.now.minus(Duration::from_secs(1));
        let looks = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        self.change(|view| view.memory.silent_looks = (looks, before))
            .local(Local::Silent { since, primary, why })
    }

    pub(super) fn unknown(self, time: Duration) -> Self {
        let since = self.now.minus(time);
        let reason = "fork: no memory".to_owned();
        self.local(Local::Unknown { reason, since })
    }

    pub(super) fn stopping(self, time: Duration) -> Self {
        let since = self.now.minus(time);
        self.local(Local::Stopping {
            since,
            crashed: false,
        })
    }

    pub(super) fn cleaning(self, time: Duration) -> Self {
        let since = self.now.minus(time);
        self.local(Local::Stopping { since, crashed: true })
    }

    pub(super) fn starting(self, primary: bool, since: Duration) -> Self {
        let since = self.now.minus(since);
        self.local(Local::Starting { since, primary })
    }

    pub(super) fn tag(self, name: &str, value: impl Into<Value>) -> Self {
        self.change(|view| {
            view.tags.0.insert(name.into(), value.into());
        })
    }

    /// A valid hold: demotion would be due in that time.
    pub(super) fn hold_for(self, left: Duration) -> Self {
        let hold = hold_until(self.now, left);
        self.change(|view| view.hold = Some(hold))
    }

    /// A hold whose demotion was due that long ago.
    pub(super) fn hold_expired(self, ago: Duration) -> Self {
        let hold = hold_until(self.now.minus(ago), Duration::ZERO);
        self.change(|view| view.hold = Some(hold))
    }

    pub(super) fn job(self, job: Job, since: Duration) -> Self {
        let since = self.now.minus(since);
        self.change(|view| view.job = Some(RunningJob { job, since }))
    }

    pub(super) fn finished(self, job: Job, ok: bool) -> Self {
        let outcome = if ok {
            Ok(())
        } else {
            Err("it did".to_owned().into())
        };
        self.change(|view| view.finished = Some(Finished { job, outcome }))
    }

    pub(super) fn shutdown(self, how: Shutdown) -> Self {
        self.change(|view| view.shutdown = Some(how))
    }

    // --- what we know of others

    /// We followed this leader before; without it our agent knows of none (a cold start).
    pub(super) fn seen(self, leader: &str) -> Self {
        self.memory(|memory| {
            memory.last_leader = Some(leader.into());
            memory.followed = true;
        })
    }

    pub(super) fn unlocked_for(self, time: Duration) -> Self {
        let since = self.now.minus(time);
        let unknown = self.cluster.initialize.is_none();
        self.memory(|memory| {
            memory.unlocked_since = Some(since);
            memory.lost.since = unknown.then_some(since);
        })
    }

    /// Answers that have just come in, from these and nobody else.
    pub(super) fn peers(self, answers: &[(&str, Option<PeerStatus>)]) -> Self {
        let at = self.now;
        let answers = answers
            .iter()
            .map(|(name, answer)| (MemberName::from(*name), answer.clone()))
            .collect();
        self.change(|view| view.peers = Some(Peers { at, answers }))
    }

    pub(super) fn probed(self, leader: &str, facts: Result<LeaderFacts, String>) -> Self {
        let at = self.now;
        self.change(|view| {
            view.leader_probe = Some(LeaderProbe {
                leader: leader.into(),
                at,
                facts,
            });
        })
    }

    pub(super) fn leader_on(self, leader: &str, timeline: u32) -> Self {
        let facts = LeaderFacts {
            in_recovery: false,
            timeline: Timeline(timeline),
            history: history(timeline),
            flushed: Lsn(1 << 40),
        };
        self.probed(leader, Ok(facts))
    }

    pub(super) fn leader_in_recovery(self, leader: &str) -> Self {
        let facts = LeaderFacts {
            in_recovery: true,
            timeline: Timeline(1),
            history: Vec::new(),
            flushed: Lsn(0),
        };
        self.probed(leader, Ok(facts))
    }

    // --- the answer

    pub(super) fn build(&self) -> View {
        let mut view = self.view.clone();
        view.dcs = match self.down {
            Some(since) => DcsView::Down { since },
            None => {
                let mut cluster = self.cluster.clone();
                if cluster.member(&view.me).is_none() {
                    let mut me = member(view.me.as_str());
                    me.data.tags.clone_from(&view.tags.0);
                    cluster.members.push(me);
                    cluster.members.sort_by(|a, b| a.name.cmp(&b.name));
                }
                DcsView::Known {
                    cluster: Arc::new(cluster),
                }
            }
        };
        view
    }

    pub(super) fn plan(&self) -> Plan {
        decide(&self.build(), self.now)
    }

    /// The DCS answers again.
    pub(super) fn dcs_is_back(mut self) -> Self {
        self.down = None;
        self
    }

    /// The same view one step later, with what the plan remembered.
    pub(super) fn next(mut self) -> Self {
        self.view.memory = self.plan().memory.expect("every plan remembers");
        self.view.finished = None;
        self
    }
}

pub(super) const KEEP: bool = true;
pub(super) const DROP: bool = false;

/// The whole plan: its actions, whether the lease goes on, and a part of its reason.
#[track_caller]
pub(super) fn check(build: Build, actions: &[Action], keep_lock: bool, because: &str) {
    let plan = build.plan();
    assert_eq!(plan.actions, actions, "because: {}", plan.because);
    assert_eq!(plan.keep_lock, keep_lock, "because: {}", plan.because);
    assert!(
        plan.because.contains(because),
        "'{}' does not say '{because}'",
        plan.because
    );
}

/// Nothing is done, and the reason says so.
#[track_caller]
pub(super) fn waits(build: Build, because: &str) {
    check(build, &[], DROP, because);
}

/// Replay stands still until a restart with larger settings.
pub(super) fn pause_replay(view: &mut View) {
    if let Local::Running(Running {
        standing: Standing::Replica {
            paused_for_parameters,
            ..
        },
        ..
    }) = &mut view.local
    {
        *paused_for_parameters = true;
    }
}

pub(super) fn clone_of(from: &str) -> Job {
    let (from, keep) = (at(from), true);
    Job::Clone { from, keep }
}

pub(super) fn copy(from: &str, keep: bool) -> Action {
    Action::Begin(Job::Clone { from: at(from), keep })
}

pub(super) fn demote(mode: crate::ha::DemoteMode, deadline: Boottime) -> Action {
    Action::Begin(Job::Demote { mode, deadline })
}

pub(super) fn probe(names: &[&str]) -> Action {
    probe_also(names, &[])
}

pub(super) fn probe_also(present: &[&str], vanished: &[&str]) -> Action {
    let with_url = |names: &[&str]| {
        names
            .iter()
            .map(|n| (MemberName::from(*n), format!("http://{n}:8008/patroni")))
            .collect()
    };
    Action::ProbePeers {
        present: with_url(present),
        vanished: with_url(vanished),
    }
}
