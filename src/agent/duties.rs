//! What only the leader writes, where it differs from what is there: `/status`, `/history`, the members' slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tracing::{info, warn};

use super::{Agent, execute::in_time, jobs::store_history};
use crate::{
    clock::Boottime,
    dcs::{Key, When},
    ha::{DcsView, View, history},
    model::{Cluster, Lsn, MemberName, StatusKey, Timeline},
    postgres::query::{LocalView, Slot, Where},
};

impl Agent {
    pub(super) async fn leader_duties(&mut self, view: &View) {
        let DcsView::Known { cluster } = &view.dcs else {
            return;
        };
        let Some(answer) = self.sight.answer.clone() else {
            return;
        };
        match &answer.place {
            Where::Primary(primary) => {
                self.keep_slots(cluster, &answer).await;
                self.write_status(cluster, &answer, primary.flush_lsn).await;
                self.write_history(cluster, primary.timeline).await;
            }
            // Of a standby cluster: its members cascade from here. The history is the remote cluster's.
            Where::Standby(standby) => {
                self.keep_slots(cluster, &answer).await;
                let received = standby.received().unwrap_or(Lsn::INVALID);
                let position = received.max(standby.replay_lsn.unwrap_or(Lsn::INVALID));
                self.write_status(cluster, &answer, position).await;
            }
        }
    }

    async fn write_status(&self, cluster: &Cluster, answer: &LocalView, flushed: Lsn) {
        let status = status(answer, flushed, &self.identity.member, |slot| {
            self.slots_seen.contains_key(slot)
        });
        if status == cluster.status {
            return;
        }
        match serde_json::to_string(&status) {
            Ok(text) => {
                if let Err(error) = in_time(self.dcs.write(Key::Status, &text, When::Always)).await {
                    warn!(%error, "could not write /status");
                }
            }
            Err(error) => warn!(%error, "could not render /status"),
        }
    }

    async fn write_history(&self, cluster: &Cluster, timeline: Timeline) {
        let (local, started) = self.instance.history(timeline);
        let max_rows = self.dynamic.max_timelines_history;
        let stored = cluster.history.as_deref();
        let Some(rows) = history::update(
            stored,
            &local,
            timeline,
            &self.identity.member,
            &started,
            max_rows,
        ) else {
            return;
        };
        if let Err(error) = in_time(store_history(&*self.dcs, &rows)).await {
            warn!(%error, "could not write /history");
        }
    }

    /// Every member that streams from the leader has a slot here; the slot of a member that is away is kept for a
    /// while, so that it can come back without a new copy.
    async fn keep_slots(&mut self, cluster: &Cluster, answer: &LocalView) {
        if !self.dynamic.use_slots {
            return;
        }
        let now = Boottime::now();
        let wanted = wanted_slots(cluster, &self.identity.member);
        for slot in &wanted {
            self.slots_seen.insert(slot.clone(), now);
        }
        let ttl = self.dynamic.member_slots_ttl;
        for slot in missing(&wanted, &answer.slots) {
            match self.instance.create_slot(slot).await {
                Ok(()) => info!(slot, "created the replication slot of a member"),
                Err(error) => warn!(slot, error, "could not create the replication slot of a member"),
            }
        }
        // A slot nobody knows as a member's was made by a person: not ours to drop.
        for slot in cluster.status.retain_slots.iter().flatten() {
            self.slots_seen.entry(slot.clone()).or_insert(now);
        }
        // Contract: HA rules §13: nothing is dropped in a paused cluster.
        for slot in answer.slots.iter().filter(|_| !self.dynamic.pause) {
            let Some(seen) = self.slots_seen.get(&slot.slot_name).copied() else {
                continue;
            };
            if abandoned(slot, &wanted, now.since(seen), ttl) {
                match self.instance.drop_slot(&slot.slot_name).await {
                    Ok(()) => info!(
                        slot = slot.slot_name,
                        "dropped the replication slot of a member that is gone"
                    ),
                    Err(error) => warn!(slot = slot.slot_name, error, "could not drop a replication slot"),
                }
            }
        }
    }

    /// Slots the others will want when we lead.
    pub(super) fn slots_to_serve(&self) -> Vec<String> {
        let seen = self.last_cluster.as_ref().filter(|_| self.dynamic.use_slots);
        seen.map(|seen| {
            wanted_slots(&seen.cluster, &self.identity.member)
                .into_iter()
                .collect()
        })
        .unwrap_or_default()
    }

    /// A replica has slots only for the members that stream from it (tag `replicatefrom`); others, left from a time
    /// as leader, would hold WAL back for nobody.
    pub(super) async fn replica_slots(&mut self, cluster: &Cluster) {
        let Some(answer) = &self.sight.answer else { return };
        if !matches!(answer.place, Where::Standby(_)) {
            return;
        }
        let wanted = match self.dynamic.use_slots {
            true => cascaded_slots(cluster, &self.identity.member),
            false => BTreeSet::new(),
        };
        for slot in missing(&wanted, &answer.slots) {
            match self.instance.create_slot(slot).await {
                Ok(()) => info!(
                    slot,
                    "created the replication slot of a member that streams from here"
                ),
                Err(error) => warn!(slot, error, "could not create the replication slot of a member"),
            }
        }
        let members: BTreeSet<String> = cluster.members.iter().map(|m| m.name.slot()).collect();
        let stale = |slot: &&Slot| {
            let name = &slot.slot_name;
            is_member_slot(slot) && !slot.active && members.contains(name) && !wanted.contains(name)
        };
        for slot in answer.slots.iter().filter(stale).filter(|_| !self.dynamic.pause) {
            match self.instance.drop_slot(&slot.slot_name).await {
                Ok(()) => info!(
                    slot = slot.slot_name,
                    "dropped a replication slot left from a time as leader"
                ),
                Err(error) => warn!(slot = slot.slot_name, error, "could not drop a replication slot"),
            }
        }
    }

    /// The status to leave behind with a lock that is released at `end`.
    pub(super) fn status_text(&self, view: &View, end: Lsn) -> Option<String> {
        let status = StatusKey {
            optime: end,
            ..self.last_status(view)
        };
        serde_json::to_string(&status).ok()
    }

    pub(super) fn last_status(&self, view: &View) -> StatusKey {
        match (&view.dcs, &self.last_cluster) {
            (DcsView::Known { cluster }, _) => cluster.status.clone(),
            (DcsView::Down { .. }, Some(seen)) => seen.cluster.status.clone(),
            (DcsView::Down { .. }, None) => StatusKey::default(),
        }
    }
}

/// `/status` as of now: the leader's slots and, under its own slot name, its position.
fn status(answer: &LocalView, flushed: Lsn, me: &MemberName, ours: impl Fn(&str) -> bool) -> StatusKey {
    let position = |slot: &Slot| slot.confirmed_flush_lsn.or(slot.restart_lsn);
    let mut slots: BTreeMap<String, Lsn> = answer
        .slots
        .iter()
        .filter_map(|slot| Some((slot.slot_name.clone(), position(slot)?)))
        .collect();
    slots.insert(me.slot(), flushed);
    let retained = answer
        .slots
        .iter()
        .filter(|slot| is_member_slot(slot) && ours(&slot.slot_name));
    let retain: Vec<String> = retained.map(|slot| slot.slot_name.clone()).collect();
    StatusKey {
        optime: flushed,
        slots: Some(slots),
        retain_slots: (!retain.is_empty()).then_some(retain),
    }
}

/// Slots of the other members, except those that stream from another replica.
fn wanted_slots(cluster: &Cluster, me: &MemberName) -> BTreeSet<String> {
    let streams_from_us = |member: &&crate::model::Member| {
        let tags = member.tags();
        let elsewhere = tags
            .replicatefrom()
            .is_some_and(|from| from != me.0 && cluster.member(&from.into()).is_some());
        member.name != *me && !tags.nostream() && !elsewhere
    };
    cluster
        .members
        .iter()
        .filter(streams_from_us)
        .map(|member| member.name.slot())
        .collect()
}

/// Slots of the members that stream from us while another leads.
fn cascaded_slots(cluster: &Cluster, me: &MemberName) -> BTreeSet<String> {
    let leader = cluster.leader.as_ref().map(|leader| &leader.name);
    let from_us = |member: &&crate::model::Member| {
        let tags = member.tags();
        member.name != *me
            && Some(&member.name) != leader
            && !tags.nostream()
            && tags.replicatefrom().is_some_and(|from| from == me.0)
    };
    let members = cluster.members.iter().filter(from_us);
    members.map(|member| member.name.slot()).collect()
}

fn missing<'a>(wanted: &'a BTreeSet<String>, there: &'a [Slot]) -> impl Iterator<Item = &'a str> {
    wanted
        .iter()
        .map(String::as_str)
        .filter(|name| there.iter().all(|slot| slot.slot_name != *name))
}

fn is_member_slot(slot: &Slot) -> bool {
    slot.slot_type == "physical" && !slot.temporary
}

fn abandoned(slot: &Slot, wanted: &BTreeSet<String>, away: Duration, ttl: Duration) -> bool {
    is_member_slot(slot) && !slot.active && !wanted.contains(&slot.slot_name) && away >= ttl
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Member;

    fn slot(name: &str, active: bool) -> Slot {
        Slot {
            slot_name: name.into(),
            slot_type: "physical".into(),
            active,
            ..Slot::default()
        }
    }

    #[test]
    fn members_that_stream_from_us_get_a_slot() {
        let member = |name: &str, tags: &str| Member::parse(name, &format!("{{\"tags\":{tags}}}"));
        let cluster = Cluster {
            members: vec![
                member("a", "{}"),
                member("b", "{}"),
                member("c", r#"{"replicatefrom":"b"}"#),
                member("d", r#"{"replicatefrom":"gone"}"#),
                member("e", r#"{"nostream":true}"#),
            ],
            ..Cluster::default()
        };
        let wanted = wanted_slots(&cluster, &"a".into());
        assert_eq!(wanted.iter().collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(missing(&wanted, &[slot("b", true)]).collect::<Vec<_>>(), ["d"]);
        // And from a replica those that name it.
        let cascaded = |me: &str| {
            cascaded_slots(&cluster, &me.into())
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(cascaded("b"), ["c"]);
        assert_eq!(cascaded("a"), Vec::<String>::new());
    }

    #[test]
    fn a_slot_goes_only_when_its_member_has_been_away_long_enough() {
        const MEMBER_SLOTS_TTL: Duration = Duration::from_secs(1800);
        let wanted = BTreeSet::from(["b".to_owned()]);
        let (short, long) = (Duration::from_secs(10), Duration::from_secs(3600));
        assert!(abandoned(&slot("x", false), &wanted, long, MEMBER_SLOTS_TTL));
        assert!(!abandoned(&slot("x", false), &wanted, short, MEMBER_SLOTS_TTL));
        assert!(!abandoned(&slot("x", true), &wanted, long, MEMBER_SLOTS_TTL));
        assert!(!abandoned(&slot("b", false), &wanted, long, MEMBER_SLOTS_TTL));
    }
}
