//! What the agent tells about itself, and what only the leader writes (`src/agent/publish.rs`, `duties.rs`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use howdah::{
    dcs::{Key, When},
    ha::{Job, Local, Standing, history},
    model::{Cluster, HistoryRow, Lsn, MemberData, PeerStatus, PgState, Role, StatusKey, Timeline},
};

use super::{Agent, Snapshot};
use crate::exec::{First, race};

const TOUCH_LIMIT: Duration = Duration::from_secs(2);
const WRITE_LIMIT: Duration = Duration::from_secs(2);

impl Agent {
    pub(super) fn publish(&self) {
        let host = &self.world.nodes[self.node];
        let status = match &*self.sight.borrow() {
            Local::Running(running) => Some(PeerStatus {
                role: if running.is_primary() {
                    Role::Primary
                } else {
                    Role::Replica
                },
                in_recovery: !running.is_primary(),
                position: running.position(),
                timeline: running.timeline,
                tags: host.tags.clone(),
                watchdog_failed: false,
                replaying: false,
                receiving: running.is_receiving(),
            }),
            _ => None,
        };
        *self.snapshot.borrow_mut() = Snapshot {
            at: self.sight_at.get(),
            primary: status.as_ref().is_some_and(|status| !status.in_recovery),
            status,
        };
    }

    pub(super) async fn touch_member(&self) {
        let data = self.member_data();
        let now = self.now();
        let loop_wait = self.dynamic.borrow().timing.loop_wait;
        let same = self
            .touched
            .borrow()
            .as_ref()
            .filter(|(old, at)| blank(old) == blank(&data) && now.since(*at) < loop_wait)
            .map(|(old, _)| old.clone());
        let write = same.unwrap_or(data);
        let touch = self.dcs.touch(write.clone());
        if let First::One(Ok(())) = race(touch, self.local_sleep(TOUCH_LIMIT)).await {
            let mut touched = self.touched.borrow_mut();
            if touched.as_ref().is_none_or(|(old, _)| *old != write) {
                *touched = Some((write, now));
            }
        }
    }

    fn member_data(&self) -> MemberData {
        let host = &self.world.nodes[self.node];
        let sight = self.sight.borrow();
        let job = self.job();
        let (role, state) = role_and_state(job.as_ref(), &sight, self.memory.borrow().start_failures.0 > 0);
        let mut data = MemberData {
            conn_url: host.conn_url.clone(),
            api_url: host.api_url.clone(),
            state,
            role,
            tags: host.tags.published(),
            ..MemberData::default()
        };
        if let Local::Running(running) = &*sight {
            data.timeline = (running.timeline != Timeline::UNKNOWN).then_some(running.timeline);
            data.xlog_location = Some(running.position());
            if let Standing::Replica {
                received, replayed, ..
            } = running.standing
            {
                data.receive_lsn = Some(received);
                data.replay_lsn = Some(replayed);
            }
        }
        data
    }

    pub(super) async fn leader_duties(&self, cluster: &Cluster) {
        let Local::Running(running) = self.sight.borrow().clone() else {
            return;
        };
        let Standing::Primary { flushed } = running.standing else {
            return;
        };
        let pg = &self.world.nodes[self.node].pg;
        self.keep_slots(cluster);
        let mut slots: BTreeMap<String, Lsn> = BTreeMap::new();
        let mut retain = Vec::new();
        if let Some(data) = pg.data.borrow().as_ref() {
            for (node, at) in &data.slots {
                let name = self.world.nodes[*node].name.slot();
                slots.insert(name.clone(), Lsn(*at));
                retain.push(name);
            }
        }
        slots.insert(self.world.nodes[self.node].name.slot(), flushed);
        let status = StatusKey {
            optime: flushed,
            slots: Some(slots),
            retain_slots: (!retain.is_empty()).then_some(retain),
        };
        if status != cluster.status {
            let write = self.dcs.write(Key::Status, When::Always, move |cluster, _| {
                cluster.status = status
            });
            race(write, self.local_sleep(WRITE_LIMIT)).await;
        }
        let rows = self.local_history(pg.data.borrow().as_ref().map(|data| data.branch));
        if let Some(rows) = self.history_update(cluster.history.as_deref(), &rows, running.timeline) {
            race(self.write_history(rows), self.local_sleep(WRITE_LIMIT)).await;
        }
    }

    pub(super) fn local_history(&self, branch: Option<usize>) -> Vec<HistoryRow> {
        branch.map_or_else(Vec::new, |branch| self.world.wal.borrow().history(branch))
    }

    pub(super) fn history_update(
        &self,
        stored: Option<&[HistoryRow]>,
        local: &[HistoryRow],
        timeline: Timeline,
    ) -> Option<Vec<HistoryRow>> {
        let me = &self.world.nodes[self.node].name;
        let max = self.dynamic.borrow().max_timelines_history;
        history::update(stored, local, timeline, me, "2026-01-01T00:00:00+00:00", max)
    }

    pub(super) async fn write_history(&self, rows: Vec<HistoryRow>) {
        let write = self.dcs.write(Key::History, When::Always, move |cluster, _| {
            cluster.history = Some(rows)
        });
        // What was not written is written by a later turn.
        let _later = write.await;
    }

    /// A slot for every other member that streams from here.
    fn keep_slots(&self, cluster: &Cluster) {
        if !self.dynamic.borrow().use_slots {
            return;
        }
        let wanted = self.wanted_slots(cluster);
        if let Some(data) = self.world.nodes[self.node].pg.data.borrow_mut().as_mut() {
            for node in wanted {
                data.slots
                    .entry(node)
                    .or_insert(data.wal_from.max(data.checkpoint.lsn));
            }
        }
    }

    pub(super) fn wanted_slots(&self, cluster: &Cluster) -> Vec<usize> {
        let me = &self.world.nodes[self.node].name;
        let wanted = cluster.members.iter().filter(|member| {
            let tags = member.tags();
            let elsewhere = tags
                .replicatefrom()
                .is_some_and(|from| from != me.0 && cluster.member(&from.into()).is_some());
            member.name != *me && !tags.nostream() && !elsewhere
        });
        wanted
            .filter_map(|member| self.world.index_of(&member.name))
            .collect()
    }

    /// A replica that may lead keeps the slots of all others, and moves them along with what they publish.
    pub(super) fn replica_slots(&self, cluster: &Arc<Cluster>) {
        let host = &self.world.nodes[self.node];
        let running = matches!(&*self.sight.borrow(), Local::Running(running) if !running.is_primary());
        if !running || host.pg.primary.get() || !self.dynamic.borrow().use_slots {
            return;
        }
        if let Some(data) = host.pg.data.borrow_mut().as_mut() {
            for member in cluster.members.iter().filter(|member| member.name != host.name) {
                let Some(node) = self.world.index_of(&member.name) else {
                    continue;
                };
                let published = member.data.xlog_location.map_or(0, |lsn| lsn.0);
                let begin = data.wal_from.max(data.checkpoint.lsn.min(published.max(1)));
                let slot = data.slots.entry(node).or_insert(begin);
                *slot = (*slot).max(published.min(data.flushed));
            }
        }
    }
}

fn blank(data: &MemberData) -> MemberData {
    MemberData {
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        ..data.clone()
    }
}

fn role_and_state(job: Option<&Job>, local: &Local, start_failed: bool) -> (Role, PgState) {
    let role = match local {
        Local::Empty | Local::Leftover => Role::Uninitialized,
        Local::Running(running) if running.is_primary() => Role::Primary,
        Local::Starting { primary: true, .. } | Local::Silent { primary: true, .. } => Role::Primary,
        Local::Down(down) if down.was_primary() => Role::Demoted,
        _ => Role::Replica,
    };
    let state = match (job, local) {
        (Some(Job::Bootstrap), _) => return (Role::Uninitialized, PgState::Initializing),
        (Some(Job::Clone { .. }), _) => return (Role::Uninitialized, PgState::CreatingReplica),
        (Some(Job::Rewind(_)), _) => PgState::Stopped,
        (Some(Job::Restart), _) => PgState::Restarting,
        (Some(Job::Demote { .. }), Local::Running(_) | Local::Stopping { .. } | Local::Silent { .. }) => {
            PgState::Stopping
        }
        (Some(Job::Start(_)), Local::Down(_) | Local::Starting { .. } | Local::Stopping { .. }) => {
            PgState::Starting
        }
        (_, Local::Running(_) | Local::Silent { .. }) => PgState::Running,
        (_, Local::Starting { .. }) => PgState::Starting,
        (_, Local::Stopping { .. }) => PgState::Stopping,
        (_, Local::Down(_)) if start_failed => PgState::StartFailed,
        (
            _,
            Local::Empty | Local::Leftover | Local::Broken { .. } | Local::Unknown { .. } | Local::Down(_),
        ) => PgState::Stopped,
    };
    (role, state)
}
