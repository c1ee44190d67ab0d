//! The rules of POST /switchover and /failover, in the contract's order (contract: REST API §10).
//!
//! Pure: [`validate`] judges the request, [`candidates`] and [`judge`] the cluster, [`outcome`] one look at what
//! became of it. Asking, writing and waiting is done by `routes`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{refusal::Refusal, schedule};
use crate::{
    agent::handle::SyncMode,
    model::{Cluster, FailoverKey, MemberName, PeerStatus},
};

/// Which of the two endpoints was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A planned hand-over from a leader.
    Switchover,
    /// Put a leader in place where there is none, or over the head of a broken one.
    Failover,
}

impl Action {
    const fn noun(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Switchover => "Switchover",
            Self::Failover => "Failover",
        }
    }

    /// `(Successfully) switched over`.
    const fn done(self) -> (&'static str, &'static str) {
        match self {
            Self::Switchover => ("switched over", "Switched over"),
            Self::Failover => ("failed over", "Failed over"),
        }
    }
}

/// A request that may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it is now: a failover that names a leader has become a switchover.
    pub action: Action,
    /// What to write.
    pub key: FailoverKey,
}

fn name(body: &Map<String, Value>, key: &str) -> Option<MemberName> {
    let text = body
        .get(key)
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())?;
    Some(text.into())
}

/// Rules 1 to 8.
pub fn validate(
    action: Action,
    body: &Map<String, Value>,
    now: Timestamp,
    paused: bool,
) -> Result<Plan, Refusal> {
    let leader = name(body, "leader");
    let candidate = name(body, "candidate").or_else(|| name(body, "member"));
    let scheduled_at = match body.get("scheduled_at") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    match action {
        Action::Failover if candidate.is_none() => {
            return Err(Refusal::bad_request(
                "Failover could be performed only to a specific candidate",
            ));
        }
        Action::Switchover if leader.is_none() => {
            return Err(Refusal::bad_request(
                "Switchover could be performed only from a specific leader",
            ));
        }
        _ => {}
    }
    let scheduled_at = match scheduled_at {
        None => None,
        Some(_) if action == Action::Failover => {
            return Err(Refusal::bad_request("Failover can't be scheduled"));
        }
        Some(_) if paused => {
            return Err(Refusal::bad_request(
                "Can't schedule switchover in the paused state",
            ));
        }
        Some(text) => Some(schedule::in_future(&text, "switchover", now)?),
    };
    if paused && candidate.is_none() {
        return Err(Refusal::bad_request(
            "Switchover is possible only to a specific candidate in a paused state",
        ));
    }
    if leader.is_some() && leader == candidate {
        return Err(Refusal::bad_request("Switchover target and source are the same"));
    }
    let action = if leader.is_some() {
        Action::Switchover
    } else {
        action
    };
    Ok(Plan {
        action,
        key: FailoverKey {
            leader,
            candidate,
            scheduled_at,
        },
    })
}

/// Rule 9 up to the question to the members themselves: who would have to be asked.
pub fn candidates(plan: &Plan, cluster: &Cluster, sync: SyncMode) -> Result<Vec<MemberName>, Refusal> {
    let refuse = |text: String| Err(Refusal::new(412, text));
    let noun = plan.action.noun();
    let current = cluster.leader.as_ref().map(|leader| &leader.name);
    if plan.key.leader.is_some() && plan.key.leader.as_ref() != current {
        return refuse("leader name does not match".to_owned());
    }
    let names = |keep: &dyn Fn(&crate::model::Member) -> bool| -> Vec<MemberName> {
        let kept = cluster.members.iter().filter(|member| keep(member));
        kept.map(|member| member.name.clone()).collect()
    };
    let priority = sync == SyncMode::Priority;
    if let Some(candidate) = &plan.key.candidate {
        if plan.action == Action::Switchover && priority && !cluster.sync.has_standby(candidate) {
            return refuse("candidate name does not match with sync_standby".to_owned());
        }
        if cluster.member(candidate).is_none() {
            return refuse("candidate does not exists".to_owned());
        }
        return Ok(vec![candidate.clone()]);
    }
    let (found, missing) = if priority {
        (
            names(&|member| cluster.sync.has_standby(&member.name)),
            "can not find sync_standby",
        )
    } else {
        let other =
            |member: &crate::model::Member| Some(&member.name) != current && !member.data.api_url.is_empty();
        (names(&other), "cluster does not have members except leader")
    };
    if found.is_empty() {
        return refuse(format!("{noun} is not possible: {missing}"));
    }
    Ok(found)
}

/// The rest of rule 9: at least one of those asked answered and could lead.
pub fn judge(plan: &Plan, answers: &BTreeMap<MemberName, Option<PeerStatus>>) -> Result<(), Refusal> {
    if answers.values().flatten().any(PeerStatus::can_lead) {
        return Ok(());
    }
    let noun = plan.action.noun();
    Err(Refusal::new(
        412,
        format!("{noun} is not possible: no good candidates have been found"),
    ))
}

/// Rule 12, one look: what became of the plan. `None`: not decided yet.
#[must_use]
pub fn outcome(
    plan: &Plan,
    old_leader: Option<&MemberName>,
    cluster: &Cluster,
) -> Option<Result<String, Refusal>> {
    let (done, done_title) = plan.action.done();
    match cluster.leader.as_ref().map(|leader| &leader.name) {
        Some(new) if Some(new) != old_leader => Some(Ok(match &plan.key.candidate {
            Some(wanted) if wanted != new => {
                format!("{done_title} to \"{new}\" instead of \"{wanted}\"")
            }
            _ => format!("Successfully {done} to \"{new}\""),
        })),
        _ if cluster.failover.is_none() => Some(Err(Refusal::unavailable(format!(
            "{} failed",
            plan.action.title()
        )))),
        _ => None,
    }
}

/// Rule 12, when time is up.
#[must_use]
pub fn undecided(plan: &Plan, waited_s: u64) -> Refusal {
    let title = plan.action.title();
    Refusal::unavailable(format!(
        "{title} status unknown after {waited_s} seconds; operation may still be in progress"
    ))
}

#[cfg(test)]
#[path = "switchover_tests.rs"]
mod tests;
