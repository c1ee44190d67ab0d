//! Fewer standbys than the mode demands (contract: HA rules §11.3).

use super::{StandbyNames, State, Step, names::Method};
use crate::model::SyncKind;

/// What commits wait for meanwhile: those who were promised last, or nobody that will ever come. `/sync` stays as it is.
pub(super) fn wait(state: &State<'_>) -> Vec<Step> {
    let wanted = wanted(state);
    if state.sight.in_force == wanted && state.at_rest() {
        return Vec::new();
    }
    vec![Step::Set(Some(wanted))]
}

fn wanted(state: &State<'_>) -> StandbyNames {
    let method = match state.kind {
        SyncKind::Quorum => Method::Any,
        SyncKind::On | SyncKind::Off => Method::First,
    };
    let voters = state.voters();
    if voters.is_empty() {
        return StandbyNames::nobody_will_do(method);
    }
    let count = voters.len().saturating_sub(state.quorum()).max(1);
    match method {
        Method::First if count == voters.len() => StandbyNames::all(voters),
        _ => StandbyNames::any(count, voters),
    }
}
