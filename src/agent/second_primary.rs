//! What is noted for people and metrics only: who else calls itself a primary, and how a change of leader went.

use tracing::{info, warn};

use super::{
    Agent,
    execute::Done,
    handover::{self, Side},
};
use crate::{
    clock::Boottime,
    ha::{DcsView, Local, Standing, View},
    metrics::{Cause, Takeover},
    model::{Cluster, MemberName, PgState, Role},
};

/// Members that call themselves a running primary beside the leader.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: Option<Boottime>,
    told: bool,
}

impl Watch {
    /// It lasts: no change of leader that is just being published.
    pub(super) const fn suspected(&self) -> bool {
        self.told
    }
}

/// By their keys, which a member that is gone leaves behind for ttl at most.
fn others(cluster: &Cluster, me: &MemberName, i_am: bool) -> Vec<MemberName> {
    let leader = cluster.leader.as_ref().map(|leader| &leader.name);
    let claims = cluster.members.iter().filter(|member| {
        let running = member.data.state == PgState::Running && member.data.role == Role::Primary;
        running && member.name != *me && (i_am || Some(&member.name) != leader)
    });
    claims.map(|member| member.name.clone()).collect()
}

impl Agent {
    pub(super) fn note_second_primary(&mut self, view: &View) {
        // What nobody could read tells nothing new.
        let DcsView::Known { cluster } = &view.dcs else {
            return;
        };
        let i_am = matches!(&view.local, Local::Running(running) if running.is_primary());
        let others = others(cluster, &self.identity.member, i_am);
        let (now, watch) = (Boottime::now(), &mut self.second_primary);
        if others.is_empty() {
            if watch.told {
                info!("no second primary is seen any more");
            }
            *watch = Watch::default();
            return;
        }
        let since = *watch.since.get_or_insert(now);
        if !watch.told && now.since(since) > self.dynamic.timing.loop_wait {
            watch.told = true;
            let names: Vec<&str> = others.iter().map(MemberName::as_str).collect();
            warn!(
                members = names.join(", "),
                "split brain suspected: more than one member calls itself a primary"
            );
        }
    }

    /// WAL comes from a leader at this moment.
    pub(super) fn note_wal(&mut self) {
        if let Local::Running(running) = &self.sight.local
            && matches!(running.standing, Standing::Replica { streaming: true, .. })
        {
            self.last_wal = Some(self.sight.at);
        }
    }

    /// The lock is ours now.
    pub(super) fn note_taken(&mut self, done: &Done, view: &View) {
        let (Done::Yes, DcsView::Known { cluster }) = (done, &view.dcs) else {
            return;
        };
        let cause = match &cluster.failover {
            Some(key) if key.leader.is_some() => Cause::Switchover,
            Some(_) => Cause::ManualFailover,
            None => Cause::Failover,
        };
        self.takeover = Some(Takeover {
            cause,
            free_since: self.memory.unlocked_since,
            last_wal: self.last_wal,
        });
    }

    /// The promotion is through.
    pub(super) fn note_promoted(&mut self) {
        let Some(takeover) = self.takeover.take() else {
            return;
        };
        let now = Boottime::now();
        self.metrics.promoted(&takeover, now);
        if let Some(mut handover) = self
            .instance
            .last_handover()
            .filter(|last| last.side == Side::Took)
        {
            let promotion = handover.phases.iter().map(|(_, took)| *took).sum();
            if let Some(since) = takeover.free_since {
                let taken = now.since(since).saturating_sub(promotion);
                handover.phases.insert(0, (handover::TAKEN, taken));
            }
            self.metrics.handed_over(&handover);
            self.instance.note_handover(handover);
        }
        let seconds = |since: Option<Boottime>| since.map(|since| now.since(since).as_secs_f64());
        info!(
            cause = takeover.cause.as_str(),
            since_lock_free_seconds = seconds(takeover.free_since),
            since_last_wal_seconds = seconds(takeover.last_wal),
            "took over from the former leader"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::{HEALTHY, cluster};

    #[test]
    fn only_a_primary_beside_the_leader_is_a_second_one() {
        let healthy = cluster(HEALTHY);
        assert!(others(&healthy, &"n2".into(), false).is_empty());
        assert!(others(&healthy, &"n1".into(), true).is_empty());
        // This member is a primary, whoever holds the lock.
        assert_eq!(others(&healthy, &"n2".into(), true), ["n1".into()]);
        let third = r#"{"conn_url":"postgres://n3/postgres","api_url":"http://n3:8008/patroni","state":"running","role":"primary","version":"4.1.4"}"#;
        let mut pairs = HEALTHY.to_vec();
        pairs.push(("members/n3", third));
        for me in ["n1", "n2"] {
            assert_eq!(others(&cluster(&pairs), &me.into(), me == "n1"), ["n3".into()]);
        }
    }
}
