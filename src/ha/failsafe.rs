//! Failsafe mode: a primary that has lost the DCS goes on while every other member promises not to lead (contract: HA
//! rules §9).
//!
//! Why there are never two primaries by it. All times of one member are its own CLOCK_BOOTTIME.
//!
//! 1. *Who is asked.* The primary asks every name in a `/failsafe` that it wrote itself since it has the lock, and that
//!    it has read back, together with every name it has since tried to add. Only holders of the lock write the key, each
//!    under the version it has read. So whoever finds itself in the key is asked, and whoever does not find itself in
//!    it does not lead ([`excluded`]).
//! 2. *What they promise.* A member that accepts at T takes no lock before T + ttl. Promise and request for the lock
//!    exclude each other: who has the lock or is asking for it refuses, who has promised does not ask.
//! 3. *How long it counts.* The primary counts ttl from when it *sent* the question, which is before any T, less the
//!    margin of [`lease::margin`]; several answers count from the oldest of their questions.
//! 4. *What may be forgotten.* An agent that has been started within the last ttl may have promised something before; it
//!    does not lead while a name of the key is out of sight ([`young`]). A name leaves the key only when its member
//!    key is gone, and a lock is taken only on a view so new that nobody can have had the lock and lost it since.
//!
//! A lease that counts needs nobody's consent, and a renewal ends the need for it; a loss that is proven ends both.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value};

use super::{Action, DcsView, Memory, Plan, View, lease};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName, Version},
};

/// Names and addresses of REST APIs.
pub type Members = BTreeMap<MemberName, String>;

/// What one member last said to our question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It promised not to lead for ttl from when it answered; the question was sent then.
    Yes(Boottime),
    /// Anything else, in words. What it promised before stands until it is over, but is not renewed.
    No(String),
}

/// The answers so far; who has not answered yet is not in it.
pub type Answers = BTreeMap<MemberName, Said>;

/// The member we have promised not to lead, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Who asked last.
    pub to: MemberName,
    /// The latest end of all that was promised.
    pub until: Boottime,
}

/// Names one question of a primary: its round of questions, and its place in it. What is promised to it can be given
/// back by naming it or a later one of the same round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Question {
    /// The round.
    pub round: u64,
    /// The place.
    pub number: u64,
}

/// What this member has promised, by whom it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promises(BTreeMap<MemberName, (Boottime, Question)>);

impl Promises {
    /// Promises `to` not to lead before `now + ttl`.
    pub fn give(&mut self, to: MemberName, question: Question, ttl: Duration, now: Boottime) {
        self.0.retain(|_, (until, _)| now < *until);
        let (until, latest) = self.0.entry(to).or_insert((now, question));
        *until = (*until).max(now + ttl);
        // Questions may overtake each other.
        if latest.round != question.round || latest.number < question.number {
            *latest = question;
        }
    }

    /// Forgets what was promised to this question, but nothing that was promised to a later one.
    pub fn take_back(&mut self, to: &MemberName, question: Question) {
        self.0.retain(|name, (_, latest)| {
            name != to || latest.round != question.round || latest.number > question.number
        });
    }

    /// The promise that ends last, if one binds at `now`.
    #[must_use]
    pub fn binding(&self, now: Boottime) -> Option<Promise> {
        let last = self.0.iter().max_by_key(|(_, (until, _))| *until);
        let (to, (until, _)) = last.filter(|(_, (until, _))| now < *until)?;
        Some(Promise {
            to: to.clone(),
            until: *until,
        })
    }
}

/// What this member knows of failsafe mode, beside what it remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// A promise that still binds us.
    pub promise: Option<Promise>,
    /// What the others have answered to our question, while we ask it.
    pub answers: Answers,
}

/// A write of `/failsafe` whose outcome has not been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    under: Option<Version>,
    members: Members,
}

/// What one turn tells the next of `/failsafe`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The key as last read.
    members: Members,
    /// Its version, if we wrote it as the leader we are.
    ours: Option<Version>,
    attempt: Option<Attempt>,
    /// The last turn in which the DCS did not answer.
    blind_at: Option<Boottime>,
    /// The first turn of this agent.
    started: Option<Boottime>,
}

impl Known {
    pub(super) fn note(&mut self, view: &View, now: Boottime) {
        self.started.get_or_insert(now);
        let DcsView::Known { cluster } = &view.dcs else {
            self.blind_at = Some(now);
            return;
        };
        self.members = members(cluster.failsafe.as_ref());
        // A lock that has run out in a store that can only be read is still nobody else's while our right counts.
        let free = cluster.leader.is_none() && view.valid_hold(now).is_some();
        if !cluster.is_leader(&view.me) && !free {
            // What was known in a former role does not count in the next.
            (self.ours, self.attempt) = (None, None);
            return;
        }
        if let Some(attempt) = &self.attempt
            && attempt.under != cluster.failsafe_version
        {
            // The version has moved: no earlier write of ours can still come through.
            self.ours = cluster
                .failsafe_version
                .filter(|_| attempt.members == self.members);
            self.attempt = None;
        }
        if self.ours != cluster.failsafe_version {
            self.ours = None;
        }
    }

    /// The key as last read.
    #[must_use]
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// Everybody who may find itself in the key.
    fn everybody(&self) -> Members {
        let mut all = self.members.clone();
        if let Some(attempt) = &self.attempt {
            all.extend(attempt.members.clone());
        }
        all
    }
}

/// The key as stored, without what is no address.
fn members(stored: Option<&Map<String, Value>>) -> Members {
    stored
        .into_iter()
        .flatten()
        .map(|(name, url)| {
            let url = url.as_str().unwrap_or_default();
            (MemberName::from(name.as_str()), url.to_owned())
        })
        .collect()
}

/// The leader's duty: the key names all members with an address and the leader itself (contract: DCS layout §2). The
/// first write of a leadership is made even if nothing differs, so that no late write of a predecessor can come
/// through after it.
pub(super) fn duty(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    now: Boottime,
) -> Option<(Action, Memory)> {
    if !view.dynamic.failsafe_mode {
        return None;
    }
    let known = &memory.failsafe;
    // Our own key comes with the end of this turn.
    cluster.member(&view.me)?;
    let mut wanted: Members = cluster
        .members
        .iter()
        .filter(|member| !member.data.api_url.is_empty() || member.name == view.me)
        .map(|member| (member.name.clone(), member.data.api_url.clone()))
        .collect();
    // After an outage everybody comes back at its own time: nobody is to be left out for having been slower.
    let settled = known
        .blind_at
        .is_none_or(|at| now.since(at) >= view.dynamic.timing.ttl);
    if !settled {
        for (name, url) in &known.members {
            wanted.entry(name.clone()).or_insert_with(|| url.clone());
        }
    }
    if known.ours.is_some() && wanted == known.members {
        return None;
    }
    let mut memory = memory.clone();
    // A write of which nothing is known yet stays a possibility, and so do the names in it.
    let mut tried = wanted.clone();
    if let Some(attempt) = &known.attempt
        && attempt.under == cluster.failsafe_version
        && attempt.members != wanted
    {
        tried = attempt.members.clone();
        tried.extend(wanted.clone());
    }
    memory.failsafe.attempt = Some(Attempt {
        under: cluster.failsafe_version,
        members: tried.clone(),
    });
    let action = Action::WriteFailsafe {
        members: tried,
        under: cluster.failsafe_version,
    };
    Some((action, memory))
}

/// Names and addresses in the key that can be asked.
pub(super) fn listed(view: &View, cluster: &Cluster) -> Members {
    let mut listed = members(cluster.failsafe.as_ref().filter(|_| view.dynamic.failsafe_mode));
    listed.retain(|_, url| !url.is_empty());
    listed
}

/// Whether the key says that this member must not lead (contract: HA rules §2, row 10).
pub(super) fn excluded(view: &View, cluster: &Cluster) -> bool {
    leaves_out(view, cluster, &view.me)
}

/// Whether the key says that `member` must not lead.
pub(super) fn leaves_out(view: &View, cluster: &Cluster, member: &MemberName) -> bool {
    let named = |key: &Map<String, Value>| key.is_empty() || key.contains_key(member.as_str());
    view.dynamic.failsafe_mode && !cluster.failsafe.as_ref().is_none_or(named)
}

/// The time for which this agent may be bound by what its predecessor promised, and a member that could be primary by
/// it. Members with a key reach the DCS: they need no consent.
pub(super) fn young(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    now: Boottime,
) -> Option<(MemberName, Duration)> {
    if !view.dynamic.failsafe_mode {
        return None;
    }
    let age = now.since(memory.failsafe.started?);
    let left = view.dynamic.timing.ttl.saturating_sub(age);
    let out_of_sight = memory
        .failsafe
        .members
        .keys()
        .find(|name| **name != view.me && cluster.member(name).is_none())?;
    (!left.is_zero()).then(|| (out_of_sight.clone(), left))
}

/// How long a right counts from when it was asked for until postgres is stopped for want of another: no answer that
/// comes later is worth anything.
#[must_use]
pub fn usable(ttl: Duration) -> Duration {
    ttl.saturating_sub(lease::margin(ttl) + lease::stop_budget(ttl))
}

/// From what all of `of` have said: when the oldest of the questions they said yes to was sent. With nobody to ask,
/// now.
#[must_use]
pub fn consent(of: &Members, answers: &Answers, now: Boottime) -> Option<Boottime> {
    let mut oldest = now;
    for name in of.keys() {
        match answers.get(name)? {
            Said::Yes(asked_at) => oldest = oldest.min(*asked_at),
            Said::No(_) => return None,
        }
    }
    Some(oldest)
}

/// Whom a primary without the DCS has to ask, or why asking is no use.
fn addressees(view: &View, memory: &Memory) -> Result<Members, &'static str> {
    let known = &memory.failsafe;
    if !view.dynamic.failsafe_mode {
        return Err("failsafe_mode is off");
    }
    if known.ours.is_none() {
        return Err("this leader has not written /failsafe yet");
    }
    let mut all = known.everybody();
    if all.remove(&view.me).is_none() {
        return Err("/failsafe does not name this member");
    }
    Ok(all)
}

/// A store that can be read and does not renew is no better than one that does not answer: a primary whose right is about
/// to run out asks the others beside whatever else it does, and first.
pub(super) fn beside(view: &View, memory: &Memory, mut plan: Plan, now: Boottime) -> Plan {
    let Some(hold) = view
        .valid_hold(now)
        .filter(|_| view.local.may_write() && plan.keep_lock)
    else {
        return plan;
    };
    if now < hold.sent_at + usable(hold.ttl) * 2 / 3 {
        return plan;
    }
    if let Ok(Some(of)) = ask(view, memory, now) {
        plan.actions.insert(0, Action::AskConsent(of));
    }
    plan
}

/// The question to the others, once a third of the time that is left to a primary without renewals is over: early
/// enough for slow answers and further attempts, and not with every hiccup of the DCS.
pub(super) fn ask(view: &View, memory: &Memory, now: Boottime) -> Result<Option<Members>, &'static str> {
    let of = addressees(view, memory)?;
    let Some(hold) = view.valid_hold(now) else {
        return Err("the right to lead has run out");
    };
    let due = hold.sent_at + usable(hold.ttl) / 3;
    // Whoever asks goes on asking: the right it has got counts from a question that is seconds old.
    let asking = !view.failsafe.answers.is_empty();
    Ok((asking || now >= due).then_some(of))
}

/// What the others say, for the log.
pub(super) fn standing(view: &View, of: &Members, now: Boottime) -> String {
    if let Some(asked_at) = consent(of, &view.failsafe.answers, now) {
        return format!(
            "all other members accept this primary, asked {:.0} s ago",
            now.since(asked_at).as_secs_f32()
        );
    }
    let missing = of.keys().map(|name| match view.failsafe.answers.get(name) {
        Some(Said::Yes(_)) => None,
        Some(Said::No(why)) => Some(format!("'{name}': {why}")),
        None => Some(format!("'{name}' has not answered yet")),
    });
    let missing: Vec<String> = missing.flatten().collect();
    format!(
        "asking the other members to accept this primary; {}",
        missing.join(", ")
    )
}

/// What would become of this primary if the DCS vanished now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// It would go on, as long as these accept it.
    Stays(BTreeSet<MemberName>),
    /// It would be stopped when its lease runs out.
    Demoted(String),
    /// It would go on without being asked anything.
    Paused,
    /// There is no primary here to be stopped.
    NotPrimary,
}

/// The outlook by what is known now. With answers of the others to a status question in the view, a member that did not
/// answer counts against it.
#[must_use]
pub fn outlook(view: &View) -> Outlook {
    if !view.local.may_write() {
        return Outlook::NotPrimary;
    }
    if view.dynamic.pause {
        return Outlook::Paused;
    }
    let of = match addressees(view, &view.memory) {
        Ok(of) => of,
        Err(why) => return Outlook::Demoted(why.to_owned()),
    };
    let silent = |name: &&MemberName| {
        let answers = view.peers.as_ref().map(|peers| &peers.answers);
        answers.is_some_and(|answers| matches!(answers.get(*name), Some(None)))
    };
    match of.keys().find(silent) {
        Some(name) => Outlook::Demoted(format!("'{name}' is named in /failsafe and does not answer")),
        None => Outlook::Stays(of.into_keys().collect()),
    }
}

impl std::fmt::Display for Outlook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = "if the DCS vanished now, the primary would";
        match self {
            Self::Stays(of) if of.is_empty() => {
                write!(f, "{prefix} stay: no other member is named in /failsafe")
            }
            Self::Stays(of) => {
                let names: Vec<&str> = of.iter().map(MemberName::as_str).collect();
                write!(f, "{prefix} stay as long as it reaches {}", names.join(", "))
            }
            Self::Demoted(why) => write!(f, "{prefix} be stopped when its lease runs out: {why}"),
            Self::Paused => write!(f, "{prefix} stay: the cluster is paused"),
            Self::NotPrimary => f.write_str("this member is no primary"),
        }
    }
}
