//! Mode `on` (contract: HA rules §11.1): commits wait for every standby that is named, and only those are in `/sync`.
//!
//! Added in postgres first, and in `/sync` once the standby has everything; removed from `/sync` first. A standby that
//! is to be replaced and still there stays until its successor is in `/sync`, so that there is always one that can lead.

use super::{NameSet, StandbyNames, State, Step, promise, strict};

pub(super) fn steps(state: &State<'_>) -> Vec<Step> {
    if !state.leads() {
        return vec![state.write(NameSet::default(), 0)];
    }
    let voters = state.voters();
    let in_force = &state.sight.in_force;
    if !promise::kept(state.me, &voters, state.quorum(), in_force) {
        // Whoever changed the setting behind our back: nobody may rely on a promise that is not kept.
        return vec![state.write(NameSet::default(), 0)];
    }
    if state.active.len() < state.least {
        return strict::wait(state);
    }
    if state.quorum() > 0 {
        return from_quorum(state);
    }
    let replaced = !state.active.within(&voters);
    let staying = voters
        .iter()
        .filter(|name| state.active.contains(name) || (replaced && state.able.contains(name)))
        .collect::<NameSet>();
    let target = state.active.union(&staying);
    let wanted = StandbyNames::all(target.clone());
    let mut steps = Vec::new();
    if staying != voters {
        steps.push(state.write(staying.clone(), 0));
    }
    if *in_force != wanted || !state.at_rest() {
        steps.push(Step::Set(Some(wanted)));
        return steps;
    }
    if !steps.is_empty() || target.within(&staying) {
        return steps;
    }
    let confirmed = target.and(&state.confirmed);
    if confirmed.within(&staying) {
        vec![Step::Confirm]
    } else {
        vec![state.write(staying.union(&confirmed), 0)]
    }
}

/// The mode was `quorum` until now: no voter alone can be sure to have everything yet.
fn from_quorum(state: &State<'_>) -> Vec<Step> {
    let wanted = StandbyNames::all(state.active.clone());
    if !promise::kept(state.me, &state.voters(), state.quorum(), &wanted) {
        return vec![state.write(NameSet::default(), 0)];
    }
    if state.sight.in_force != wanted || !state.at_rest() {
        return vec![Step::Set(Some(wanted))];
    }
    if state.active.within(&state.confirmed) {
        return vec![state.write(state.active.clone(), 0)];
    }
    vec![Step::Confirm]
}
