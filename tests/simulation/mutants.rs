//! Seeded bugs: each is a change around the shipped core (to the view before the decision, to the plan after it) or to a
//! rule of the modelled shell. The simulation is worth something because it finds every one of them.

use std::sync::Arc;

use howdah::{
    clock::Boottime,
    ha::{Action, DcsView, DemoteMode, Job, Local, Plan, View, lost::Lost},
    model::{Cluster, Lsn, StatusKey, Timeline},
};

use crate::{
    properties::Property::{
        self, BoundedLoss, NoNeedlessDemotion, NoStalePromotion, NothingLost, OneWriter, Recovery, SelfFence,
    },
    world::World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    NoDeadline,
    WallClock,
    StoppedClock,
    NoFence,
    OldBelief,
    OldDataLeads,
    NoPeerAhead,
    NoTimelineCheck,
    ReplicaRegisters,
    ReleaseFirst,
    UncheckedTimeline,
    CloneInPlace,
    ErrorDemotes,
    FailsafeIgnoresNo,
    LostLockIsFree,
    NamesNotInForce,
    FlagOutlivesWriter,
    SyncKeyFirst,
}

/// One row of the table.
pub(crate) struct Row {
    pub(crate) mutant: Mutant,
    pub(crate) name: &'static str,
    /// What is wrong with it.
    pub(crate) what: &'static str,
    /// Within how many seeds it has to be found.
    pub(crate) within: u64,
    /// A seed among those that is known to find it, tried first; without it the search begins at 0.
    pub(crate) known: Option<u64>,
    /// By one of these.
    pub(crate) caught_by: &'static [Property],
}

const fn row(
    mutant: Mutant,
    name: &'static str,
    (within, known): (u64, Option<u64>),
    caught_by: &'static [Property],
    what: &'static str,
) -> Row {
    Row {
        mutant,
        name,
        what,
        within,
        known,
        caught_by,
    }
}

pub(crate) const TABLE: &[Row] = &[
    row(
        Mutant::NoDeadline,
        "no_deadline_check",
        (200, Some(13)),
        &[OneWriter, SelfFence],
        "a hold on the lock counts for ever",
    ),
    row(
        Mutant::WallClock,
        "wall_clock_instead_of_monotonic",
        (2000, Some(65)),
        &[OneWriter, SelfFence, NoNeedlessDemotion],
        "leases are judged by a clock that people can set",
    ),
    row(
        Mutant::StoppedClock,
        "stale_view_trusted_after_a_thaw",
        (500, Some(132)),
        &[OneWriter, SelfFence],
        "the time during which a host was frozen is not seen",
    ),
    row(
        Mutant::NoFence,
        "no_fence_in_init",
        (500, Some(45)),
        &[OneWriter, SelfFence],
        "nobody ends a primary whose agent does not",
    ),
    row(
        Mutant::OldBelief,
        "race_won_on_old_belief",
        (4000, Some(51)),
        &[NoStalePromotion, BoundedLoss],
        "answers of peers count however old they are",
    ),
    row(
        Mutant::OldDataLeads,
        "old_data_leads_after_a_cold_start",
        (2000, Some(127)),
        &[OneWriter, BoundedLoss, NoStalePromotion],
        "a member that was away leads with what it has",
    ),
    row(
        Mutant::NoPeerAhead,
        "no_peer_ahead_check",
        (2000, Some(13)),
        &[NoStalePromotion, BoundedLoss],
        "a peer that has more is no objection",
    ),
    row(
        Mutant::NoTimelineCheck,
        "no_timeline_check",
        (2000, Some(127)),
        &[OneWriter, BoundedLoss, NoStalePromotion],
        "the cluster's timeline is not looked at",
    ),
    row(
        Mutant::ReplicaRegisters,
        "initialize_restored_by_a_replica",
        (2000, Some(21)),
        &[NoStalePromotion],
        "a replica tells an empty store whose data this is",
    ),
    row(
        Mutant::ReleaseFirst,
        "lock_released_before_postgres_is_down",
        (200, Some(4)),
        &[OneWriter],
        "the lock is given away before postgres is stopped",
    ),
    row(
        Mutant::UncheckedTimeline,
        "replica_does_not_compare_a_new_timeline",
        (2000, Some(12)),
        &[Recovery],
        "a replica follows without asking whether it can",
    ),
    row(
        Mutant::CloneInPlace,
        "copy_made_in_place",
        (2000, Some(337)),
        &[NoStalePromotion],
        "a copy that broke off looks like data",
    ),
    row(
        Mutant::ErrorDemotes,
        "an_error_of_the_store_demotes",
        (500, Some(0)),
        &[NoNeedlessDemotion],
        "a failed read of the store counts as a lost lock",
    ),
    row(
        Mutant::FailsafeIgnoresNo,
        "failsafe_ignores_a_no",
        (1000, Some(67)),
        &[OneWriter],
        "a primary without the store goes on whatever the others say",
    ),
    row(
        Mutant::LostLockIsFree,
        "lock_of_a_wiped_store_is_free_at_once",
        (3000, Some(1602)),
        &[OneWriter, NothingLost],
        "a lock that a wiped store has lost counts as released",
    ),
    row(
        Mutant::NamesNotInForce,
        "sync_key_and_synchronous_standby_names_disagree",
        (3000, Some(58)),
        &[NothingLost],
        "a change of whom commits wait for is taken for done and is not",
    ),
    row(
        Mutant::SyncKeyFirst,
        "sync_changes_in_reversed_order",
        (3000, Some(2506)),
        &[NothingLost],
        "/sync names a standby before commits wait for it",
    ),
    row(
        Mutant::FlagOutlivesWriter,
        "nosync_flag_outlives_its_writer",
        (3000, Some(889)),
        &[Recovery],
        "nobody leads while the sync set is being changed, also when the one who changes it is gone",
    ),
];

/// The view of the store, to be changed.
fn cluster(view: &mut View) -> Option<&mut Cluster> {
    match &mut view.dcs {
        DcsView::Known { cluster } => Some(Arc::make_mut(cluster)),
        DcsView::Down { .. } => None,
    }
}

/// What the core is shown.
pub(crate) fn before(world: &World, node: usize, view: &mut View) {
    let Some(mutant) = world.mutant else { return };
    let now = world.nodes[node].local(world);
    match mutant {
        Mutant::NoDeadline => {
            if let Some(hold) = &mut view.hold {
                hold.sent_at = now;
            }
        }
        Mutant::OldBelief => {
            let mut beliefs = world.book.beliefs.borrow_mut();
            match &mut view.peers {
                Some(peers) => beliefs[node] = Some(peers.clone()),
                None => {
                    view.peers = beliefs[node].clone().map(|mut peers| {
                        peers.at = now;
                        peers
                    });
                }
            }
        }
        Mutant::OldDataLeads => {
            view.memory.followed = true;
            if let Some(cluster) = cluster(view) {
                cluster.history = None;
                cluster.status = StatusKey::default();
            }
        }
        Mutant::NoPeerAhead => {
            for peer in view
                .peers
                .iter_mut()
                .flat_map(|peers| peers.answers.values_mut())
                .flatten()
            {
                peer.position = Lsn(0);
                peer.timeline = Timeline::UNKNOWN;
            }
        }
        Mutant::NoTimelineCheck => {
            if let Some(cluster) = cluster(view) {
                cluster.history = None;
            }
        }
        // Long over.
        Mutant::LostLockIsFree => {
            view.memory.lost = Lost {
                since: Some(Boottime(0)),
                ..Lost::default()
            };
        }
        Mutant::UncheckedTimeline => {
            if let DcsView::Known { cluster } = &view.dcs
                && let Some(leader) = &cluster.leader
            {
                let published = cluster
                    .member(&leader.name)
                    .and_then(|member| member.data.timeline);
                view.memory.compared_with =
                    Some((leader.name.clone(), published.unwrap_or(Timeline::UNKNOWN)));
                view.memory.not_streaming_since = None;
            }
        }
        _ => {}
    }
}

/// What is made of its plan.
pub(crate) fn after(world: &World, node: usize, view: &View, plan: &mut Plan) {
    let Some(mutant) = world.mutant else { return };
    let primary = matches!(&view.local, Local::Running(running) if running.is_primary());
    match (mutant, &view.dcs, &view.local) {
        (Mutant::FlagOutlivesWriter, DcsView::Known { cluster }, _) => {
            let flag = &world.book.sync_changing;
            if primary && cluster.is_leader(&view.me) {
                flag.set(plan.actions.iter().any(changes_sync));
            } else if !primary && flag.get() && plan.actions.contains(&Action::AcquireLock) {
                plan.actions.clear();
            }
        }
        (Mutant::ReplicaRegisters, DcsView::Known { cluster }, Local::Running(running))
            if cluster.initialize.is_none() && !running.is_primary() =>
        {
            if let Some(id) = &running.system_id {
                plan.actions.insert(0, Action::WriteInitialize(id.clone(), None));
            }
        }
        (Mutant::ErrorDemotes, DcsView::Down { .. }, Local::Running(running))
            if running.is_primary() && view.job.is_none() && view.shutdown.is_none() =>
        {
            let deadline = view.stop_by(world.nodes[node].local(world));
            plan.actions = vec![Action::Begin(Job::Demote {
                mode: DemoteMode::Offline,
                deadline,
            })];
            plan.keep_lock = false;
        }
        _ => {}
    }
}

const fn changes_sync(action: &Action) -> bool {
    matches!(
        action,
        Action::WriteSync(_) | Action::SetSyncNames(_) | Action::MarkSync(_)
    )
}
