//! Synchronous replication under random faults: members join and leave, every process dies at every point, writes of
//! `/sync` get lost or come late, settings come in force late, modes change. The real decision is asked at every turn.
//!
//! Two things must hold: at every instant each set of members that may lead by `/sync` meets each set that suffices for an
//! acknowledgement; and no new primary lacks what was acknowledged. At the end all faults are healed, and the cluster must
//! have a leader that acknowledges, and a `/sync` that says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::builder::*;
use crate::{
    clock::Boottime,
    ha::{
        Action, DcsView, Down, Job, Local, Memory, Peers, Running, Standing, StartAs, View, decide,
        sync::{self, Mark, NameSet, SETTLE, Sender, Sight, StandbyNames},
    },
    model::{
        Cluster, DbState, Dynamic, Leader, Lsn, MemberName, PeerStatus, PgState, Role, SyncKey, SyncKind,
        SystemId, Tags, Timeline, Version,
    },
};

/// A small generator of pseudo-random numbers (Sebastiano Vigna: splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("small")
    }

    /// So often in a hundred.
    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }
}

/// The setting of a running primary, on its way from the file to all who obey it.
#[derive(Debug, Clone, Default)]
struct Setting {
    /// In the file.
    file: StandbyNames,
    /// Seen by whoever asks.
    shown: StandbyNames,
    shown_since: Option<Boottime>,
    /// Some still obey these.
    old: Vec<StandbyNames>,
}

#[derive(Debug, Clone)]
struct Node {
    up: bool,
    primary: bool,
    crashed_primary: bool,
    /// Receives WAL from the primary.
    streaming: bool,
    timeline: u32,
    /// Records, by number: every primary writes its own.
    wal: Vec<u64>,
    tags: Tags,
    memory: Memory,
    setting: Setting,
    asked: Option<StandbyNames>,
    users_own: bool,
    mark: Option<Mark>,
    unsure: bool,
}

impl Node {
    fn position(&self) -> Lsn {
        Lsn(self.wal.len() as u64 * 10)
    }
}

struct Walk {
    chance: Chance,
    now: Boottime,
    dynamic: Dynamic,
    cluster: Cluster,
    nodes: BTreeMap<MemberName, Node>,
    version: u64,
    /// Writes of `/sync` that have got no answer yet.
    late: Vec<SyncKey>,
    next_record: u64,
    /// Acknowledged while the mode promised something.
    acknowledged: BTreeSet<u64>,
    healing: bool,
    log: Vec<String>,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Walk {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let size = 2 + chance.below(4);
        let node = |name: &&str| {
            let node = Node {
                up: true,
                primary: *name == "a",
                crashed_primary: false,
                streaming: *name != "a",
                timeline: 1,
                wal: vec![0],
                tags: Tags::default(),
                memory: Memory {
                    followed: true,
                    last_leader: Some("a".into()),
                    ..Memory::default()
                },
                setting: Setting::default(),
                asked: None,
                users_own: true,
                mark: None,
                unsure: true,
            };
            (MemberName::from(*name), node)
        };
        let cluster = Cluster {
            leader: Some(Leader {
                name: "a".into(),
                version: Version(1),
                lease: 7,
            }),
            ..view().cluster
        };
        let mut walk = Self {
            chance,
            now: NOW,
            dynamic: Dynamic::default(),
            cluster,
            nodes: NAMES[..size].iter().map(node).collect(),
            version: 10,
            late: Vec::new(),
            next_record: 1,
            acknowledged: BTreeSet::new(),
            healing: false,
            log: Vec::new(),
        };
        walk.change_mode();
        walk
    }

    fn change_mode(&mut self) {
        let mode = self
            .chance
            .pick(&["true", "true", "\"quorum\"", "\"quorum\"", "false"]);
        let (strict, count) = (self.chance.percent(50), 1 + self.chance.below(3));
        let text = format!(
            r#"{{"synchronous_mode":{},"synchronous_mode_strict":{strict},"synchronous_node_count":{count}}}"#,
            mode.expect("one of these")
        );
        let raw: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        self.dynamic = Dynamic::from_map(raw.as_object().expect("a map"));
        if self.dynamic.sync.kind == SyncKind::Off {
            self.acknowledged.clear();
        }
        self.note(format!("mode {text}"));
    }

    fn note(&mut self, line: String) {
        self.log.push(line);
    }

    fn story(&self) -> String {
        let nodes = self.nodes.iter().map(|(name, n)| {
            format!(
                "{name}: up {} primary {} streaming {} tl {} wal {:?} shown '{}' file '{}' asked {:?}",
                n.up, n.primary, n.streaming, n.timeline, n.wal, n.setting.shown, n.setting.file, n.asked
            )
        });
        let nodes: Vec<String> = nodes.collect();
        let tail = self.log[self.log.len().saturating_sub(60)..].join("\n");
        format!(
            "{tail}\n/sync {}\n{}",
            self.cluster.sync.to_json(),
            nodes.join("\n")
        )
    }

    fn primary(&self) -> Option<MemberName> {
        let alive = |(_, n): &(&MemberName, &Node)| n.up && n.primary;
        self.nodes.iter().find(alive).map(|(name, _)| name.clone())
    }

    fn node(&mut self, name: &MemberName) -> &mut Node {
        self.nodes.get_mut(name).expect("a member")
    }

    // --- what happens by itself

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(20 + self.chance.below(150) as u64);
        self.settings();
        self.late_writes();
        match self.chance.below(100) {
            0..25 => self.commit(),
            25..50 => self.replicate(),
            50..80 => self.turn(),
            80..86 => self.connect(),
            _ if self.healing => self.turn(),
            86..90 => self.leave(),
            90..92 => self.retag(),
            92..94 => self.die(),
            94..97 => self.rise(),
            97..98 => self.forget(),
            98..99 => self.change_mode(),
            _ => self.elect(),
        }
        if self.primary().is_none() {
            self.elect();
        }
        self.acknowledge();
        self.invariant();
    }

    /// What is in the file comes in force, first for whoever looks and then for everybody.
    fn settings(&mut self) {
        let now = self.now;
        let Some(name) = self.primary() else { return };
        let (show, obey) = (self.chance.percent(60), self.chance.percent(30));
        let setting = &mut self.node(&name).setting;
        if setting.file != setting.shown && show {
            setting
                .old
                .push(std::mem::replace(&mut setting.shown, setting.file.clone()));
            setting.shown_since = Some(now);
        }
        // The checkpointer may take longer: it has to be seen to wait.
        let long = setting.shown_since.is_none_or(|since| now.since(since) >= SETTLE);
        let unset = setting.old.iter().any(StandbyNames::is_none);
        if obey || (long && !unset) {
            setting.old.clear();
        }
    }

    fn late_writes(&mut self) {
        if !self.late.is_empty() && self.chance.percent(20) {
            let index = self.chance.below(self.late.len());
            let key = self.late.swap_remove(index);
            let done = self.put_sync(&key);
            self.note(format!("a late write of {}: {done}", key.to_json()));
        }
    }

    fn put_sync(&mut self, key: &SyncKey) -> bool {
        if self.cluster.sync.version != key.version {
            return false;
        }
        self.version += 1;
        self.cluster.sync = SyncKey {
            version: Some(Version(self.version)),
            ..key.clone()
        };
        true
    }

    fn commit(&mut self) {
        if let Some(name) = self.primary() {
            let record = self.next_record;
            self.next_record += 1;
            self.node(&name).wal.push(record);
        }
    }

    fn replicate(&mut self) {
        let Some(source) = self.primary() else { return };
        let timeline = self.nodes[&source].timeline;
        let wal = std::mem::take(&mut self.node(&source).wal);
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let much = if self.healing {
                usize::MAX / 2
            } else {
                self.chance.below(4)
            };
            let node = self.node(&name);
            if node.up && node.streaming && !node.primary {
                let end = wal.len().min(node.wal.len() + much);
                node.wal.extend_from_slice(&wal[node.wal.len().min(end)..end]);
                node.timeline = timeline;
                node.memory.followed = true;
            }
        }
        self.node(&source).wal = wal;
    }

    /// A replica connects; what it has and the primary has not is rewound.
    fn connect(&mut self) {
        let Some(source) = self.primary() else { return };
        let wal = self.nodes[&source].wal.clone();
        let healing = self.healing;
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let now = healing || self.chance.percent(40);
            let node = self.node(&name);
            if node.up && !node.primary && !node.streaming && now {
                node.crashed_primary = false;
                let common = node.wal.iter().zip(&wal).take_while(|(a, b)| a == b).count();
                node.wal.truncate(common);
                node.streaming = true;
            }
        }
    }

    fn some_replica(&mut self) -> Option<MemberName> {
        let replicas = self.nodes.iter().filter(|(_, n)| n.up && !n.primary);
        let replicas: Vec<_> = replicas.map(|(name, _)| name.clone()).collect();
        self.chance.pick(&replicas)
    }

    fn leave(&mut self) {
        if let Some(name) = self.some_replica() {
            self.node(&name).streaming = false;
            self.note(format!("{name} lost its stream"));
        }
    }

    fn retag(&mut self) {
        let tag = self.chance.pick(&["nosync", "nofailover"]).expect("one of these");
        let on = self.chance.percent(40);
        if let Some(name) = self.some_replica() {
            self.node(&name).tags.0.insert(tag.to_owned(), on.into());
            self.note(format!("{name} {tag} {on}"));
        }
    }

    fn die(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        let name = self.chance.pick(&names).expect("members");
        self.kill(&name);
    }

    fn kill(&mut self, name: &MemberName) {
        self.note(format!("{name} dies"));
        let lost = self.cluster.is_leader(name);
        if lost {
            self.cluster.leader = None;
        }
        let now = self.now;
        for node in self.nodes.values_mut() {
            if lost {
                node.streaming = false;
                node.memory.unlocked_since = Some(now);
            }
        }
        let node = self.node(name);
        node.crashed_primary |= node.primary;
        (node.up, node.primary, node.streaming) = (false, false, false);
    }

    fn rise(&mut self) {
        let down = self.nodes.iter().filter(|(_, n)| !n.up);
        let down: Vec<_> = down.map(|(name, _)| name.clone()).collect();
        if let Some(name) = self.chance.pick(&down) {
            self.raise(&name);
        }
    }

    fn raise(&mut self, name: &MemberName) {
        self.note(format!("{name} starts"));
        let led = self.cluster.leader.is_some();
        let node = self.node(name);
        node.up = true;
        node.memory = Memory::default();
        (node.asked, node.users_own, node.mark, node.unsure) = (None, false, None, true);
        if led {
            // It is compared with the leader and follows it.
            node.crashed_primary = false;
        }
    }

    /// The leader's agent dies and another goes on beside its postgres.
    fn forget(&mut self) {
        if let Some(name) = self.primary() {
            self.note(format!("the agent of {name} is restarted"));
            let node = self.node(&name);
            node.memory = Memory {
                followed: true,
                ..Memory::default()
            };
            (node.asked, node.users_own, node.mark, node.unsure) = (None, false, None, true);
        }
    }

    // --- what the members decide

    fn view(&self, name: &MemberName) -> View {
        let node = &self.nodes[name];
        let mut view = view().view;
        view.me = name.clone();
        view.dynamic = self.dynamic.clone();
        view.tags = node.tags.clone();
        view.memory = node.memory.clone();
        let mut cluster = self.cluster.clone();
        for (name, node) in self.nodes.iter().filter(|(_, n)| n.up) {
            let mut member = member(&name.0);
            member.data.tags = node.tags.0.clone();
            member.data.state = PgState::Running;
            cluster.members.push(member);
        }
        view.dcs = DcsView::Known {
            cluster: Arc::new(cluster),
        };
        view.hold = self
            .cluster
            .is_leader(name)
            .then(|| hold_until(self.now, secs(9)));
        view.local = self.local(node);
        view
    }

    fn local(&self, node: &Node) -> Local {
        if node.crashed_primary {
            return Local::Down(Down {
                control: control(DbState::InProduction, node.timeline, node.position().0),
                standby_signal: false,
                checkpoint_end: None,
                parent: None,
            });
        }
        let position = node.position();
        Local::Running(Running {
            standing: if node.primary {
                Standing::Primary { flushed: position }
            } else {
                Standing::Replica {
                    received: position,
                    replayed: position,
                    streaming: node.streaming,
                    upstream: None,
                    paused_for_parameters: false,
                    receiving: false,
                }
            },
            timeline: Timeline(node.timeline),
            parent: None,
            system_id: Some(SystemId(SYSTEM.into())),
        })
    }

    fn sight(&mut self, name: &MemberName) -> Sight {
        let stale = self.chance.percent(50);
        let node = &self.nodes[name];
        let setting = &node.setting;
        let lately = setting
            .shown_since
            .is_some_and(|since| self.now.since(since) < SETTLE);
        let senders = self.nodes.iter().filter(|(_, n)| n.up && n.streaming);
        let sender = |(name, n): (&MemberName, &Node)| Sender {
            name: name.0.clone(),
            streaming: true,
            sync_state: if setting.shown.names.contains(name) {
                "sync"
            } else {
                "async"
            }
            .to_owned(),
            position: Some(n.position()),
        };
        Sight {
            flushed: node.position(),
            in_force: setting.shown.clone(),
            asked: node.asked.clone(),
            users_own: node.users_own,
            senders: senders.map(sender).collect(),
            checkpointer_waits: setting.old.is_empty() || (lately && stale),
            mark: node.mark.clone(),
            unsure: node.unsure,
        }
    }

    fn turn(&mut self) {
        let Some(name) = self.primary() else { return };
        let mut view = self.view(&name);
        view.sync = Some(self.sight(&name));
        let plan = decide(&view, self.now);
        self.node(&name).memory = plan.memory.clone().expect("every plan remembers");
        self.carry_out(&name, &plan.actions, &plan.because);
    }

    /// A member that is up looks at the free lock.
    fn elect(&mut self) {
        if self.primary().is_some() {
            return;
        }
        let up = self.nodes.iter().filter(|(_, n)| n.up);
        let up: Vec<_> = up.map(|(name, _)| name.clone()).collect();
        let Some(name) = self.chance.pick(&up) else { return };
        let mut view = self.view(&name);
        let mut answers = BTreeMap::new();
        for (peer, node) in &self.nodes {
            if *peer == name {
                continue;
            }
            let reached = node.up && !node.crashed_primary && (self.healing || self.chance.percent(80));
            answers.insert(
                peer.clone(),
                reached.then(|| PeerStatus {
                    role: Role::Replica,
                    in_recovery: true,
                    position: node.position(),
                    timeline: Timeline(node.timeline),
                    tags: node.tags.clone(),
                    watchdog_failed: false,
                    replaying: false,
                    receiving: false,
                }),
            );
        }
        view.peers = Some(Peers {
            at: self.now,
            answers,
        });
        let plan = decide(&view, self.now);
        self.node(&name).memory = plan.memory.clone().expect("every plan remembers");
        self.carry_out(&name, &plan.actions, &plan.because);
    }

    fn carry_out(&mut self, name: &MemberName, actions: &[Action], because: &str) {
        for action in actions {
            if !self.healing && self.chance.percent(3) {
                return self.kill(name);
            }
            if !matches!(action, Action::LeaderDuties) {
                self.note(format!("{name}: {action:?} ({because})"));
            }
            if !self.act(name, action) {
                return;
            }
            self.invariant();
        }
    }

    fn act(&mut self, name: &MemberName, action: &Action) -> bool {
        match action {
            Action::AcquireLock => {
                self.cluster.leader = Some(Leader {
                    name: name.clone(),
                    version: Version(1),
                    lease: 7,
                });
            }
            Action::WriteSync(key) => return self.write_sync(name, key),
            Action::DeleteSync(version) => {
                if self.cluster.sync.version != Some(*version) {
                    return false;
                }
                self.cluster.sync = SyncKey::default();
            }
            Action::SetSyncNames(names) => {
                let node = self.node(name);
                node.setting.file = names.clone().unwrap_or_default();
                (node.asked, node.users_own) = (names.clone(), names.is_none());
                node.mark = None;
            }
            Action::MarkSync(names) => {
                self.commit();
                let node = self.node(name);
                let lsn = node.position();
                node.mark = Some(Mark {
                    names: names.clone(),
                    lsn,
                });
            }
            Action::LeaderDuties => self.write_history(name),
            Action::Begin(Job::Promote | Job::Start(StartAs::Primary)) => self.becomes_primary(name),
            Action::ReleaseLock(_) => self.cluster.leader = None,
            Action::Begin(_) => {
                // Stopped for some reason of its own.
                self.kill(name);
                return false;
            }
            _ => {}
        }
        true
    }

    fn write_sync(&mut self, name: &MemberName, key: &SyncKey) -> bool {
        let fate = if self.healing { 99 } else { self.chance.below(100) };
        let (answered, done) = match fate {
            0..4 => (false, false),
            4..8 => {
                self.late.push(key.clone());
                (false, false)
            }
            8..12 => (false, self.put_sync(key)),
            _ => (true, self.put_sync(key)),
        };
        self.node(name).unsure = !answered;
        answered && done
    }

    fn write_history(&mut self, name: &MemberName) {
        let timeline = self.nodes[name].timeline;
        if self.cluster.timeline().0 < timeline {
            self.cluster.history = Some(history(timeline));
        }
    }

    fn becomes_primary(&mut self, name: &MemberName) {
        let missing: Vec<u64> = {
            let has: BTreeSet<u64> = self.nodes[name].wal.iter().copied().collect();
            self.acknowledged.difference(&has).copied().collect()
        };
        assert!(
            missing.is_empty(),
            "{name} leads without {missing:?}\n{}",
            self.story()
        );
        let again = self.node(name).crashed_primary;
        let latest = self.nodes.values().map(|n| n.timeline).max().expect("members");
        let node = self.node(name);
        if !again {
            node.timeline = latest + 1;
        }
        // In force before anything is written: the placeholder of a replica, or what was in the file at the start.
        node.setting.shown = node.setting.file.clone();
        (node.setting.shown_since, node.setting.old) = (None, Vec::new());
        (node.primary, node.crashed_primary, node.streaming) = (true, false, false);
        for (other, node) in &mut self.nodes {
            if other != name {
                node.streaming = false;
                node.memory.unlocked_since = None;
            }
        }
        if !self.chance.percent(20) {
            self.write_history(name);
        }
        self.note(format!("{name} is primary"));
    }

    // --- what must hold

    fn rules(&self, name: &MemberName) -> Vec<StandbyNames> {
        let setting = &self.nodes[name].setting;
        let old = setting.old.iter().cloned();
        old.chain([setting.shown.clone(), setting.file.clone()]).collect()
    }

    fn acknowledge(&mut self) {
        let Some(name) = self.primary() else { return };
        let setting = &self.nodes[&name].setting;
        let rules: Vec<_> = setting.old.iter().chain([&setting.shown]).cloned().collect();
        let protected = sync::kind(&self.dynamic) != SyncKind::Off && self.cluster.sync.leader.is_some();
        if !protected {
            return;
        }
        let wal = &self.nodes[&name].wal;
        // As far as the slowest of those that are waited for.
        let reached = |rule: &StandbyNames| {
            let standbys = rule.names.iter().filter_map(|n| self.nodes.get(n));
            let mut ends: Vec<usize> = standbys
                .filter(|n| n.up && n.streaming)
                .map(|n| n.wal.len())
                .collect();
            ends.sort_unstable();
            match rule.count {
                0 => wal.len(),
                count => ends.iter().rev().nth(count - 1).copied().unwrap_or(0),
            }
        };
        let end = rules.iter().map(reached).max().unwrap_or(0);
        let news = wal[..end]
            .iter()
            .rev()
            .take_while(|record| !self.acknowledged.contains(record));
        let news: Vec<u64> = news.copied().collect();
        self.acknowledged.extend(news);
    }

    fn invariant(&self) {
        let (Some(me), SyncKind::On | SyncKind::Quorum) = (self.primary(), sync::kind(&self.dynamic)) else {
            return;
        };
        let Some(leader) = &self.cluster.sync.leader else {
            return;
        };
        let voters: NameSet = self.cluster.sync.standbys.iter().collect();
        let quorum = usize::try_from(self.cluster.sync.quorum).expect("small");
        for rule in self.rules(&me) {
            assert!(
                sync::kept(&me, &voters.clone().with(leader), quorum, &rule),
                "'{rule}' does not keep the promise\n{}",
                self.story()
            );
        }
    }

    /// All faults end; now the cluster has to come to rest.
    fn heal(&mut self) {
        self.healing = true;
        self.late.clear();
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if !self.nodes[&name].up {
                self.raise(&name);
            }
            self.node(&name).tags = Tags::default();
        }
        self.note("healing".to_owned());
        for _ in 0..400 {
            self.step();
        }
        let Some(leader) = self.primary() else {
            panic!("nobody leads\n{}", self.story());
        };
        let (sync, others) = (&self.cluster.sync, self.nodes.len() - 1);
        let wanted = self.dynamic.sync.node_count.min(others);
        let setting = &self.nodes[&leader].setting.shown;
        let expected = match sync::kind(&self.dynamic) {
            SyncKind::Off => (None, 0, 0, 0),
            SyncKind::On => (Some(leader), 0, wanted, wanted),
            SyncKind::Quorum => (Some(leader), others - wanted, others, wanted),
        };
        let found = (
            sync.leader.clone(),
            usize::try_from(sync.quorum).expect("small"),
            sync.standbys.len(),
            setting.count,
        );
        assert_eq!(found, expected, "{}", self.story());
    }
}

/// So many seeds from this one on; with `HOWDAH_TEST_WALK=seed` that one alone, and with `HOWDAH_TEST_WALKS=n` so many.
fn no_acknowledged_commit_is_lost(first: u64) {
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match given("HOWDAH_TEST_WALK") {
        Some(seed) => (seed, 1),
        None => (first, given("HOWDAH_TEST_WALKS").unwrap_or(400)),
    };
    for seed in first..first + count {
        let caught = std::panic::catch_unwind(|| {
            let mut walk = Walk::new(seed);
            for _ in 0..250 {
                walk.step();
            }
            walk.heal();
        });
        assert!(
            caught.is_ok(),
            "seed {seed}: HOWDAH_TEST_WALK={seed} shows it again"
        );
    }
}

#[test]
fn no_acknowledged_commit_is_lost_whatever_happens() {
    no_acknowledged_commit_is_lost(0);
}

#[test]
fn nor_in_other_random_walks() {
    no_acknowledged_commit_is_lost(1_000_000);
}

#[test]
fn nor_in_yet_others() {
    no_acknowledged_commit_is_lost(2_000_000);
}
