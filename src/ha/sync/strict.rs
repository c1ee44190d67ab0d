//! Fewer standbys than the mode demands (contract: HA rules §11.3).

use super::{State, Step, promotion};

/// What commits wait for meanwhile: those who were promised last, or nobody that will ever come. `/sync` stays as it is.
pub(super) fn wait(state: &State<'_>) -> Vec<Step> {
    let wanted = promotion::names(state.kind, true, state.sync.quorum, &state.voters());
    if state.sight.in_force == wanted && state.at_rest() {
        return Vec::new();
    }
    vec![Step::Set(Some(wanted))]
}
