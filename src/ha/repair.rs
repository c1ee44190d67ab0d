//! Making a member follow again whose data does not fit or does not start: rewind where that can work, else copy anew.
//! Both need a leader that answers; what may exist nowhere else is kept (design: invariant 4).

use std::time::Duration;

use super::{Job, Memory, Plan, Upstream, View, standby};
use crate::clock::Boottime;

/// Pause between copies where there was no space for one: each fills the disk first.
const FULL: Duration = Duration::from_secs(60);

/// What is wrong with the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It holds something the leader's history does not contain.
    Diverged {
        /// pg_rewind can see it, and the directory has what it needs, as far as is known.
        rewindable: bool,
    },
    /// Postgres does not start on it.
    DoesNotStart,
    /// Its replica does not come far enough to be asked.
    NeverConsistent,
    /// It is a part of the leader's history, but the WAL from there on is gone.
    WalGone,
}

impl Fault {
    const fn why(self) -> &'static str {
        match self {
            Self::Diverged { .. } => "our timeline has diverged",
            Self::DoesNotStart => "postgres does not start on this data directory",
            Self::NeverConsistent => "the replica does not become consistent",
            Self::WalGone => "the WAL this replica needs is gone",
        }
    }

    /// What is replaced stays under another name, unless it is certainly contained in what replaces it or somebody said
    /// that it is not wanted.
    const fn keep(self, view: &View, rewind_tried: bool) -> bool {
        let dynamic = &view.dynamic;
        match self {
            Self::Diverged { .. } => {
                let after_rewind = rewind_tried && dynamic.remove_data_directory_on_rewind_failure;
                let wanted_gone = after_rewind || dynamic.remove_data_directory_on_diverged_timelines;
                // Whether the remote cluster is the right one is known to people only (contract: HA rules §12b).
                dynamic.standby.is_some() || !wanted_gone
            }
            Self::DoesNotStart | Self::NeverConsistent => true,
            Self::WalGone => false,
        }
    }
}

/// The next step, or `None` when everything was tried and nothing helped. Whether the directory of a running server has
/// what pg_rewind needs is only known once it is down, so it is tried; a failure leads to a clone.
pub(super) fn repair(
    view: &View,
    memory: &Memory,
    leader: Upstream,
    fault: Fault,
    now: Boottime,
) -> Option<Plan> {
    let why = fault.why();
    let rewindable = view.dynamic.use_pg_rewind && fault == Fault::Diverged { rewindable: true };
    if rewindable && memory.may_rewind() {
        // pg_rewind wants a source that is no standby itself.
        let source = standby::remote(view).filter(Upstream::streams).unwrap_or(leader);
        let because = match source.is_remote() {
            true => format!("{why}: rewinding to the remote cluster '{}'", source.member),
            false => format!("{why}: rewinding to leader '{}'", source.member),
        };
        return Some(Plan::begin(because, Job::Rewind(source)));
    }
    if memory.disk_is_full() && memory.clone_failures.0 > 0 {
        let left = FULL.saturating_sub(now.since(memory.clone_failures.1));
        if !left.is_zero() {
            return Some(Plan::wait(format!("{why}, and there was no space for a copy")).again_in(left));
        }
    }
    if let Some(left) = Memory::backoff(memory.clone_failures, now) {
        let because = "the last clone failed, waiting before the next attempt";
        return Some(Plan::wait(because).again_in(left));
    }
    // Nothing is kept of what is replaced here: the disk does not fill with it.
    let worth_it = match fault {
        Fault::WalGone => memory.may_clone_late(now),
        _ => memory.may_clone(now),
    };
    if !worth_it {
        return None;
    }
    let and = match fault {
        Fault::Diverged { .. } if rewindable => " and pg_rewind did not help",
        Fault::Diverged { .. } => " and pg_rewind cannot be used",
        _ => "",
    };
    let keep = fault.keep(view, rewindable);
    let old = if keep { "kept aside" } else { "removed" };
    let because = format!(
        "{why}{and}: cloning from '{}', the old data is {old}",
        leader.member
    );
    Some(Plan::begin(because, Job::Clone { from: leader, keep }))
}
