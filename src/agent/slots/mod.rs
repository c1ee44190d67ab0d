//! Replication slots: what `ha::slots` wants is carried out here, beside the loop. Short statements go through one lane,
//! what may take long (making and moving logical slots) through another, so that no member waits for its slot.
//! Copying logical slots from the leader is a job, because postgres has to be restarted.

mod lane;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};

use super::{Agent, jobs::FinalAdvance};
use crate::{
    clock::Boottime,
    ha::{
        Source, Upstream,
        slots::{self, Change, Op, Place, Readiness, Retained, Retention, Situation, Slot, Wanted, Whose},
    },
    model::{Cluster, Lsn, MemberName, SlotKind, StatusKey},
    postgres::query::{self, LocalView, Where},
};
use lane::{Batch, Lane};

/// How often it is said that a slot holds a lot of WAL back.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// What is known about slots between turns.
#[derive(Debug, Default)]
pub(super) struct Slots {
    retention: Retention,
    /// Slots of this server that are ours; read from disk once.
    ours: Option<BTreeSet<String>>,
    quick: Lane,
    slow: Lane,
    /// Logical slots to be copied.
    missing: Vec<String>,
    /// Logical slots that are here and of no use.
    unusable: BTreeSet<String>,
    readiness: Readiness,
    /// The leader with which the logical slots here were looked at first.
    followed: Option<MemberName>,
    warned: BTreeMap<String, Boottime>,
}

impl Slots {
    /// Logical slots to be copied from the leader.
    pub(super) fn missing(&self) -> Vec<String> {
        self.missing.clone()
    }

    /// A job begins: the server will be another thing after it.
    pub(super) fn pause(&self) {
        self.quick.cancel();
        self.slow.cancel();
    }

    /// These were copied.
    pub(super) fn copied(&mut self, names: &[String]) {
        for name in names {
            self.unusable.remove(name);
        }
        self.missing.clear();
        self.readiness.begin(names.iter().cloned());
    }

    async fn collect(&mut self) {
        self.quick.collect().await;
        let Some(report) = self.slow.collect().await else {
            return;
        };
        self.unusable.extend(report.unusable);
        if let Some(leader) = &report.leader {
            for slot in self.readiness.note(leader) {
                info!(slot, "a logical slot can be used after a failover");
            }
        }
    }

    /// Another leader, or this process is new: what the logical slots here need may be gone there.
    fn note_leader(&mut self, leader: &MemberName, there: &[Slot], wanted: &BTreeMap<String, Wanted>) {
        let logical = there
            .iter()
            .filter(|slot| slot.kind != SlotKind::Physical && wanted.contains_key(&slot.name) && !slot.synced)
            .map(|slot| slot.name.clone());
        if self.followed.as_ref() != Some(leader) {
            self.followed = Some(leader.clone());
            self.readiness.begin(logical);
        }
        self.readiness
            .keep(|name| there.iter().any(|slot| slot.name == name));
    }
}

impl Agent {
    /// Brings the slots nearer to what they should be. Only looks and begins; what is begun ends by itself.
    pub(super) async fn tend_slots(&mut self, cluster: &Arc<Cluster>) {
        self.slots.collect().await;
        if self.jobs.view().is_some() {
            return;
        }
        let Some(answer) = self.sight.answer.clone() else {
            return;
        };
        let Some(place) = self.slot_place(cluster, &answer) else {
            return;
        };
        self.note_retention(cluster, place);
        let there = observed(&answer);
        let (changes, ours, wanted) = self.with_situation(cluster, &answer, place, &there, |situation| {
            let wanted = slots::wanted(situation);
            let ours = slots::record(situation, &wanted);
            (slots::changes(situation), ours, wanted)
        });
        // Before anything is made: what is made and not noted could not be told from a person's after a crash.
        // Every time: a write may have failed, and a rewind or a copy brings another member's.
        record::store(self.instance.data_dir(), &ours);
        self.slots.ours = Some(ours);
        if let Place::Replica { .. } = place {
            if let Some(leader) = &cluster.leader {
                self.slots.note_leader(&leader.name, &there, &wanted);
            }
        } else {
            self.slots.followed = None;
            self.slots.readiness = Readiness::default();
            self.slots.unusable.clear();
        }
        self.share_out(cluster, place, changes, &there);
        self.warn_of_retained(cluster);
    }

    fn share_out(&mut self, cluster: &Cluster, place: Place, changes: Vec<Change>, there: &[Slot]) {
        let gone = |name: &String| there.iter().any(|slot| slot.name == *name);
        self.slots.unusable.retain(gone);
        let (mut quick, mut slow, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match &change.op {
                Op::Copy { .. } => missing.push(change.slot),
                Op::Advance {
                    database: Some(_), ..
                } if self.slots.unusable.contains(&change.slot) => {
                    missing.push(change.slot);
                }
                Op::Advance {
                    database: Some(_), ..
                }
                | Op::Create(SlotKind::Logical { .. }) => slow.push(change),
                Op::Create(SlotKind::Physical) | Op::Drop | Op::Advance { database: None, .. } => {
                    quick.push(change);
                }
            }
        }
        self.slots.missing = missing;
        for change in quick
            .iter()
            .filter(|change| change.op == Op::Drop && place.leads())
        {
            let lost =
                |slot: &&Slot| slot.name == change.slot && slot.lost && slot.kind != SlotKind::Physical;
            if self.slots.quick.is_idle() && there.iter().any(|slot| lost(&slot)) {
                warn!(
                    slot = change.slot,
                    "this logical slot was invalidated and is made anew: its consumer misses what was written meanwhile"
                );
            }
        }
        for change in slow.iter().filter(|change| matches!(change.op, Op::Create(_))) {
            let published = cluster.status.slots.as_ref();
            if self.slots.slow.is_idle() && published.is_some_and(|slots| slots.contains_key(&change.slot)) {
                warn!(
                    slot = change.slot,
                    "the last leader had this logical slot and it is not here: its consumer misses what was written \
                     until it is made anew"
                );
            }
        }
        let leader = match place {
            Place::Replica { .. } if !self.slots.readiness.is_complete() => leader(cluster),
            _ => None,
        };
        let batch = |changes, leader| Batch {
            instance: Arc::clone(&self.instance),
            changes,
            leader,
        };
        let (quick, slow) = (batch(quick, None), batch(slow, leader));
        self.slots.quick.begin(quick);
        self.slots.slow.begin(slow);
    }

    /// `None`: what this server is and what it should be are not one thing now, or nobody leads.
    fn slot_place(&self, cluster: &Cluster, answer: &LocalView) -> Option<Place> {
        let leader = cluster.leader.as_ref()?;
        let ours = leader.name == self.identity.member;
        match &answer.place {
            Where::Primary(_) if ours && self.lease.counts() => Some(Place::Primary),
            Where::Standby(_) if ours && self.dynamic.standby.is_some() => Some(Place::StandbyLeader),
            Where::Standby(standby) if !ours => Some(Place::Replica {
                replayed: standby.replay_lsn.unwrap_or(Lsn::INVALID),
            }),
            _ => None,
        }
    }

    fn note_retention(&mut self, cluster: &Cluster, place: Place) {
        if self.slots.ours.is_none() {
            self.slots.ours = Some(record::load(self.instance.data_dir()));
        }
        let ttl = self.dynamic.member_slots_ttl;
        if place.leads() {
            self.slots
                .retention
                .note(cluster, &self.identity.member, ttl, Boottime::now());
        } else {
            self.slots.retention.rest();
        }
    }

    fn with_situation<T>(
        &self,
        cluster: &Cluster,
        answer: &LocalView,
        place: Place,
        there: &[Slot],
        of: impl FnOnce(&Situation<'_>) -> T,
    ) -> T {
        let retained = self
            .slots
            .retention
            .names(self.dynamic.member_slots_ttl, Boottime::now());
        let nothing = BTreeSet::new();
        of(&Situation {
            me: &self.identity.member,
            tags: &self.identity.tags,
            dynamic: &self.dynamic,
            cluster,
            place,
            major: u16::try_from(answer.version / 10_000).unwrap_or(u16::MAX),
            slots: there,
            retained: &retained,
            ours: self.slots.ours.as_ref().unwrap_or(&nothing),
        })
    }

    /// `/status` as of now.
    pub(super) fn status_now(&mut self, cluster: &Cluster, answer: &LocalView, flushed: Lsn) -> StatusKey {
        self.note_retention(cluster, Place::Primary);
        let there = observed(answer);
        self.with_situation(cluster, answer, Place::Primary, &there, |situation| {
            slots::status(situation, &slots::wanted(situation), flushed)
        })
    }

    /// Physical slots the others will stream from once we lead, as far as they are not here.
    pub(super) fn slots_to_serve(&self) -> Vec<String> {
        let (Some(seen), Some(answer)) = (&self.last_cluster, &self.sight.answer) else {
            return Vec::new();
        };
        let there = observed(answer);
        self.with_situation(&seen.cluster, answer, Place::Primary, &there, |situation| {
            let wanted = slots::wanted(situation).into_iter();
            wanted
                .filter(|(name, slot)| {
                    slot.expected_active
                        && matches!(slot.whose, Whose::Member(_))
                        && there.iter().all(|there| there.name != *name)
                })
                .map(|(name, _)| name)
                .collect()
        })
    }

    /// What a promotion begins with: logical slots here that the last leader left further on.
    pub(super) fn final_advance(&self) -> FinalAdvance {
        let (Some(seen), Some(answer)) = (&self.last_cluster, &self.sight.answer) else {
            return FinalAdvance::default();
        };
        let there = observed(answer);
        // PostgreSQL itself goes no further than it has replayed.
        let place = Place::Replica {
            replayed: Lsn(u64::MAX),
        };
        let changes = self.with_situation(&seen.cluster, answer, place, &there, slots::changes);
        let advance = |change: Change| match change.op {
            Op::Advance {
                database: Some(database),
                to,
            } => Some((change.slot, database, to)),
            _ => None,
        };
        FinalAdvance {
            slots: changes.into_iter().filter_map(advance).collect(),
            unready: self.slots.readiness.unready().map(str::to_owned).collect(),
        }
    }

    /// What every slot of the local server holds back.
    pub(super) fn retained_slots(&self) -> Vec<Retained> {
        let (Some(seen), Some(answer)) = (&self.last_cluster, &self.sight.answer) else {
            return Vec::new();
        };
        let (place, end) = match &answer.place {
            Where::Primary(primary) => (Place::Primary, primary.flush_lsn),
            Where::Standby(standby) => {
                let replayed = standby.replay_lsn.unwrap_or(Lsn::INVALID);
                let place = match seen.cluster.is_leader(&self.identity.member) {
                    true => Place::StandbyLeader,
                    false => Place::Replica { replayed },
                };
                (place, standby.reach().unwrap_or(replayed))
            }
        };
        let there = observed(answer);
        self.with_situation(&seen.cluster, answer, place, &there, |situation| {
            slots::retained(situation, end)
        })
    }

    fn warn_of_retained(&mut self, cluster: &Cluster) {
        let now = Boottime::now();
        let heavy = self
            .retained_slots()
            .into_iter()
            .filter(Retained::is_worth_a_warning);
        let heavy: Vec<Retained> = heavy.collect();
        self.slots
            .warned
            .retain(|name, _| heavy.iter().any(|share| share.slot.name == *name));
        for share in heavy {
            let due = self
                .slots
                .warned
                .get(&share.slot.name)
                .is_none_or(|at| now.since(*at) >= WARN_EVERY);
            if due {
                warn!(
                    slot = share.slot.name,
                    owner = share.owner.as_str(),
                    bytes = share.bytes,
                    wal_status = share.slot.wal_status,
                    scope_leader = cluster.leader.as_ref().map(|leader| leader.name.as_str()),
                    "nobody uses this replication slot, and it holds WAL back"
                );
                self.slots.warned.insert(share.slot.name, now);
            }
        }
    }

    /// Makes sure that the leader knows which rows are needed here.
    pub(super) fn note_feedback(&mut self, cluster: &Cluster) {
        let needed =
            slots::needs_feedback(&self.dynamic, cluster, &self.identity.member, &self.identity.tags);
        if self.instance.force_feedback(needed) {
            info!(
                on = needed,
                because = "logical slots are kept here or below, or are not any more",
                "hot_standby_feedback is insisted on"
            );
            self.unapplied = true;
        }
    }
}

fn leader(cluster: &Cluster) -> Option<Upstream> {
    let member = cluster.leader_member()?;
    let (host, port) = member.address()?;
    Some(Upstream {
        member: member.name.clone(),
        host,
        port,
        source: Source::Member,
    })
}

/// The slots of the local server in the words of the decision.
fn observed(answer: &LocalView) -> Vec<Slot> {
    answer.slots.iter().map(slot).collect()
}

fn slot(row: &query::Slot) -> Slot {
    let kind = match row.slot_type.as_str() {
        "logical" => SlotKind::Logical {
            database: row.database.clone().unwrap_or_default(),
            plugin: row.plugin.clone().unwrap_or_default(),
        },
        _ => SlotKind::Physical,
    };
    let logical = kind != SlotKind::Physical;
    Slot {
        name: row.slot_name.clone(),
        kind,
        temporary: row.temporary,
        active: row.active,
        restart: row.restart_lsn,
        confirmed: row.confirmed_flush_lsn,
        xmin: row.xmin.is_some() || (!logical && row.catalog_xmin.is_some()),
        lost: row.wal_status.as_deref() == Some("lost"),
        wal_status: row.wal_status.clone(),
        failover: row.failover,
        synced: row.synced,
    }
}
