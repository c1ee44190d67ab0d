//! A small model of a DCS with leases and of postgres, so that plans can be carried out turn by turn. Far from the
//! simulator's faithfulness; enough to see whether decisions of several members, fed back, lead anywhere.

mod acts;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::builder::*;
use crate::{
    clock::Boottime,
    dcs::Hold,
    ha::{
        Action, DcsView, DemoteMode, Down, Finished, Job, LeaderFacts, LeaderProbe, Local, Memory, Parent,
        Peers, Running, RunningJob, Shutdown, Silence, Standing, StartAs, View, decide, lease,
    },
    model::{
        Cluster, DbState, HistoryRow, Leader, Lsn, MemberName, PeerStatus, PgState, Role, SystemId, Tags,
        Timeline, Version, switch_point,
    },
};

const TICK: Duration = ms(100);
const JOB_TIME: Duration = ms(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pg {
    Down,
    Primary,
    Replica,
}

/// A data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) timeline: u32,
    pub(super) position: u64,
    history: Vec<HistoryRow>,
    state: DbState,
    standby_signal: bool,
}

impl Data {
    fn parent(&self) -> Option<Parent> {
        self.history.last().map(|row| (row.timeline, row.lsn))
    }

    fn fits_into(&self, source: &Self) -> bool {
        match self.timeline.cmp(&source.timeline) {
            std::cmp::Ordering::Equal => self.parent() == source.parent() && self.position <= source.position,
            std::cmp::Ordering::Less => switch_point(&source.history, Timeline(self.timeline))
                .is_some_and(|end| self.position <= end.0),
            std::cmp::Ordering::Greater => false,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) alive: bool,
    pub(super) frozen: bool,
    pub(super) cut_off: bool,
    /// Postgres lives and says nothing.
    pub(super) hung: bool,
    /// A promotion is asked for and does not happen; the request stands as long as postgres runs.
    pub(super) promotion_stalls: bool,
    promote_requested: bool,
    /// What it would need to go on is not there any more.
    pub(super) wal_is_gone: bool,
    pub(super) pg: Pg,
    pub(super) data: Option<Data>,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) log: Vec<String>,
    pub(super) upstream: Option<MemberName>,
    streaming: bool,
    hold: Option<Hold>,
    keep: bool,
    job: Option<(RunningJob, Boottime)>,
    finished: Option<Finished>,
    memory: Memory,
    silent_since: Option<Boottime>,
    dcs_down_since: Option<Boottime>,
    touched: Option<Boottime>,
    next: Boottime,
}

pub(super) struct World {
    pub(super) now: Boottime,
    pub(super) cluster: Cluster,
    pub(super) nodes: BTreeMap<String, Node>,
    lease_end: Boottime,
    version: u64,
}

impl World {
    pub(super) fn new(names: &[&str]) -> Self {
        let node = |name: &&str| ((*name).to_owned(), Node::fresh(NOW, None));
        Self {
            now: NOW,
            cluster: Cluster::default(),
            nodes: names.iter().map(node).collect(),
            lease_end: NOW,
            version: 1,
        }
    }

    pub(super) fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this world")
    }

    /// The container is killed: nothing but data and DCS keys stays.
    pub(super) fn kill(&mut self, name: &str) {
        let node = self.node(name);
        node.alive = false;
        node.stopped();
        node.job = None;
    }

    pub(super) fn boot(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        let log = std::mem::take(&mut node.log);
        *node = Node::fresh(now, node.data.take());
        node.log = log;
    }

    /// `kill -9` of the postmaster.
    pub(super) fn crash(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        node.stopped();
        node.next = now;
    }

    /// The timeline this member is on begins elsewhere than everybody else's of that number.
    pub(super) fn fork(&mut self, name: &str) {
        let data = self.node(name).data.as_mut().expect("data");
        data.history.last_mut().expect("a later timeline").lsn.0 -= 1;
    }

    pub(super) fn request(&mut self, leader: Option<&str>, candidate: Option<&str>) {
        self.cluster.failover = view().request(leader, candidate).cluster.failover;
        self.wake();
    }

    /// Runs until the condition holds; the time it took, or a report of who waits for what.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, limit: Duration, done: fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now.since(start) < limit,
                "not within {limit:?}: {what}\nlock: {:?}\n{}",
                self.cluster.leader,
                self.report()
            );
            self.tick();
        }
        self.now.since(start)
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    pub(super) fn report(&self) -> String {
        let line = |(name, node): (&String, &Node)| {
            let tail = node.log.iter().rev().take(4).rev();
            let tail: Vec<_> = tail.map(String::as_str).collect();
            format!(
                "{name}: alive {} pg {:?} data {:?} job {:?}\n   {}",
                node.alive,
                node.pg,
                node.data.as_ref().map(|d| (d.timeline, d.position)),
                node.job.as_ref().map(|(job, _)| job.job.name()),
                tail.join("\n   ")
            )
        };
        self.nodes.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// One primary, which holds the lock, and everybody else alive streams from it.
    pub(super) fn healthy(&self) -> bool {
        let Some(leader) = self.cluster.leader.as_ref().map(|l| &l.name) else {
            return false;
        };
        self.nodes.iter().filter(|(_, n)| n.alive).all(|(name, n)| {
            if *name == leader.0 {
                n.pg == Pg::Primary && !n.hung
            } else {
                n.pg == Pg::Replica && n.streaming && n.upstream.as_ref() == Some(leader)
            }
        }) && self.nodes.get(&leader.0).is_some_and(|n| n.alive)
    }

    fn wake(&mut self) {
        let now = self.now;
        for node in self.nodes.values_mut().filter(|n| !n.cut_off) {
            node.next = now;
        }
    }

    pub(super) fn tick(&mut self) {
        self.now = self.now + TICK;
        if self.cluster.leader.is_some() && self.now >= self.lease_end {
            self.cluster.leader = None;
            self.wake();
        }
        self.publish();
        self.replicate();
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in &names {
            let node = &self.nodes[name];
            if !node.alive || node.frozen {
                continue;
            }
            self.renew(name);
            self.finish_job(name);
            if self.nodes[name].next <= self.now {
                self.turn(name);
            }
            self.fence(name);
        }
        self.one_writer();
    }

    fn one_writer(&self) {
        let writes = |n: &&Node| {
            n.pg == Pg::Primary
                && !n.frozen
                && n.hold
                    .is_some_and(|hold| self.now < lease::deadlines(&hold).fence_at)
        };
        let writers = self.nodes.values().filter(writes).count();
        assert!(writers <= 1, "{writers} writers\n{}", self.report());
    }

    /// Init: a primary past its deadline ends, with everything around it.
    fn fence(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        let past = |hold: Hold| now >= lease::deadlines(&hold).fence_at;
        if node.alive && node.pg == Pg::Primary && node.hold.is_some_and(past) {
            node.log.push("FENCED".to_owned());
            self.kill(name);
        }
    }

    fn publish(&mut self) {
        let (now, before) = (self.now, self.cluster.members.len());
        self.cluster.members.clear();
        for (name, node) in &mut self.nodes {
            if node.alive && !node.frozen && !node.cut_off {
                node.touched = Some(now);
            }
            if node.touched.is_none_or(|at| now.since(at) >= TTL) {
                continue;
            }
            let mut key = member(name);
            if node.data.is_none() {
                key.data.role = Role::Uninitialized;
            }
            key.data.state = match (&node.job, node.pg) {
                (Some((job, _)), _) if job.job == Job::Bootstrap => PgState::Initializing,
                (_, Pg::Down) => PgState::Stopped,
                _ => PgState::Running,
            };
            key.data.timeline = node.data.as_ref().map(|data| Timeline(data.timeline));
            self.cluster.members.push(key);
        }
        if before != self.cluster.members.len() {
            self.wake();
        }
    }

    fn replicate(&mut self) {
        let sources: BTreeMap<String, Data> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.alive && !n.frozen && !n.hung && n.pg != Pg::Down)
            .filter_map(|(name, n)| Some((name.clone(), n.data.clone()?)))
            .collect();
        for (name, node) in &mut self.nodes {
            let Some(data) = node.data.as_mut().filter(|_| node.alive && !node.frozen) else {
                continue;
            };
            if node.pg == Pg::Primary && !node.hung {
                data.position += 10;
            }
            let source = node.upstream.as_ref().and_then(|up| sources.get(&up.0));
            let source = source.filter(|_| node.pg == Pg::Replica && !node.hung && !node.wal_is_gone);
            let source = source.filter(|source| data.fits_into(source));
            let was = std::mem::replace(&mut node.streaming, source.is_some());
            if was && !node.streaming {
                node.log.push(format!("{name} lost its stream"));
                node.next = self.now;
            }
            if let Some(source) = source {
                data.position = source.position;
                data.timeline = source.timeline;
                data.history.clone_from(&source.history);
            }
        }
    }

    fn renew(&mut self, name: &str) {
        let (now, mine) = (self.now, self.cluster.is_leader(&name.into()));
        let node = self.node(name);
        if node.cut_off {
            return;
        }
        if !mine {
            node.hold = None;
        } else if let (Some(hold), true) = (&mut node.hold, node.keep)
            && now < lease::deadlines(hold).demote_at
        {
            hold.sent_at = now;
            self.lease_end = now + TTL;
        }
    }

    fn local(node: &Node) -> Local {
        let Some(data) = &node.data else {
            return Local::Empty;
        };
        let standing = match node.pg {
            Pg::Down => {
                let mut control = control(data.state, data.timeline, data.position);
                control.min_recovery_end = Lsn(0);
                return Local::Down(Down {
                    checkpoint_end: (data.state == DbState::ShutDown).then_some(Lsn(data.position)),
                    control,
                    standby_signal: data.standby_signal,
                    parent: data.parent(),
                });
            }
            Pg::Primary => Standing::Primary {
                flushed: Lsn(data.position),
            },
            Pg::Replica => Standing::Replica {
                received: Lsn(data.position),
                replayed: Lsn(data.position),
                streaming: node.streaming,
                upstream: node.upstream.as_ref().map(|up| (up.0.clone(), 5432)),
                paused_for_parameters: false,
                receiving: false,
            },
        };
        Local::Running(Running {
            standing,
            timeline: Timeline(data.timeline),
            parent: data.parent(),
            system_id: Some(SystemId(SYSTEM.into())),
        })
    }

    fn turn(&mut self, name: &str) {
        let now = self.now;
        let mut view = view().me(name).view;
        let node = self.node(name);
        view.hold = node.hold;
        node.silent_since = node.hung.then(|| node.silent_since.unwrap_or(now));
        view.local = match node.silent_since {
            Some(since) if node.pg != Pg::Down => Local::Silent {
                since,
                primary: node.pg == Pg::Primary,
                why: Silence::NoAnswer,
            },
            _ => Self::local(node),
        };
        view.job = node.job.as_ref().map(|(job, _)| job.clone());
        view.finished = node.finished.take();
        view.memory = node.memory.clone();
        view.shutdown = node.shutdown;
        node.dcs_down_since = node.cut_off.then(|| node.dcs_down_since.unwrap_or(now));
        view.dcs = match node.dcs_down_since {
            Some(since) => DcsView::Down { since },
            None => DcsView::Known {
                cluster: Arc::new(self.cluster.clone()),
            },
        };
        for asked in 0.. {
            assert!(asked < 4, "asks without end\n{}", self.report());
            let plan = decide(&view, now);
            let node = self.node(name);
            node.keep = plan.keep_lock;
            node.next = now + plan.again_in.unwrap_or(secs(10)).clamp(TICK, secs(10));
            node.memory = plan.memory.clone().expect("every plan remembers");
            let line = format!("{} {:?}", plan.because, plan.actions);
            if node.log.last().is_none_or(|last| *last != line) {
                node.log.push(line);
            }
            match plan.actions.as_slice() {
                [Action::ProbePeers { present, vanished }] => {
                    let names = present.iter().chain(vanished);
                    let answers = names.map(|(peer, _)| (peer.clone(), self.answer(&peer.0)));
                    view.peers = Some(Peers {
                        at: now,
                        answers: answers.collect(),
                    });
                }
                [Action::ProbeLeader(up)] => {
                    view.leader_probe = Some(LeaderProbe {
                        leader: up.member.clone(),
                        at: now,
                        facts: self.facts(&up.member.0),
                    });
                }
                actions => {
                    for action in actions {
                        if !self.act(name, &view, action) {
                            break;
                        }
                    }
                    return;
                }
            }
            view.memory = self.node(name).memory.clone();
            view.finished = None;
        }
    }

    fn answer(&self, name: &str) -> Option<PeerStatus> {
        let node = self.nodes.get(name)?;
        let data = node.data.as_ref()?;
        (node.alive && !node.frozen && !node.hung && node.pg != Pg::Down).then(|| PeerStatus {
            role: Role::Replica,
            in_recovery: node.pg == Pg::Replica,
            position: Lsn(data.position),
            timeline: Timeline(data.timeline),
            tags: Tags::default(),
            watchdog_failed: false,
            replaying: false,
            receiving: false,
        })
    }

    fn facts(&self, name: &str) -> Result<LeaderFacts, String> {
        let node = self.nodes.get(name).ok_or("unknown")?;
        let data = node.data.as_ref().ok_or("no data")?;
        if !node.alive || node.frozen || node.hung || node.pg == Pg::Down {
            return Err("connection refused".to_owned());
        }
        Ok(LeaderFacts {
            in_recovery: node.pg == Pg::Replica,
            timeline: Timeline(data.timeline),
            history: data.history.clone(),
            flushed: Lsn(data.position),
        })
    }
}

impl Node {
    fn stopped(&mut self) {
        self.pg = Pg::Down;
        (self.hung, self.promote_requested) = (false, false);
    }

    fn fresh(now: Boottime, data: Option<Data>) -> Self {
        Self {
            alive: true,
            frozen: false,
            cut_off: false,
            hung: false,
            promotion_stalls: false,
            promote_requested: false,
            wal_is_gone: false,
            pg: Pg::Down,
            data,
            shutdown: None,
            log: Vec::new(),
            upstream: None,
            streaming: false,
            hold: None,
            keep: false,
            job: None,
            finished: None,
            memory: Memory::default(),
            silent_since: None,
            dcs_down_since: None,
            touched: None,
            next: now,
        }
    }
}
