//! The leader's record: taking, keeping and giving up the lock.
//!
//! Every write of it names the `resourceVersion` it was decided on, so of two writers the API server lets one through;
//! a write that comes late finds another version and is refused. A refusal is looked into: the record that is there
//! now may be our own write, whose answer was lost.
//!
//! A tenure is named by the time it began (`acquireTime`, in microseconds): the lease of [`Hold`]. A record with our
//! name and another tenure than ours, or than the one a predecessor left, is a namesake's, and is never taken from it
//! while it counts.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{
    Inherited, Kubernetes, Wrote,
    layout::{Kind, Mode, Target},
    lock,
    object::{self, Object, Place, Record},
};
use crate::{
    clock::Boottime,
    dcs::{DcsError, Hold, Key, Lock},
};

/// Rounds a lock call makes before it says that it could not find out. Each needs another change at the wrong moment.
pub(super) const ROUNDS: usize = 8;

/// Who has the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// Somebody else, or a namesake.
    Other(String),
    /// We, in this tenure.
    We(i64),
}

/// What became of a write.
enum Turn {
    Held(Hold),
    /// It was not done; what is there instead.
    Moved(Option<Box<Object>>),
}

impl Kubernetes {
    pub(super) async fn take_lock(&self, deadline: Instant) -> Result<Lock, DcsError> {
        self.refuse_other_modes(deadline).await?;
        let mut there = self.read_leader(deadline).await?;
        for _ in 0..ROUNDS {
            match self.holder(there.as_ref(), false) {
                Holder::Other(name) => return Ok(Lock::Lost(Some(name.as_str().into()))),
                Holder::We(_) => return self.keep_lock(deadline).await,
                Holder::Nobody => {}
            }
            match self.begin(there.as_ref(), deadline).await? {
                Turn::Held(hold) => return self.settled(hold, deadline).await,
                Turn::Moved(now) => there = now.map(|object| *object),
            }
        }
        Err(self.unsettled())
    }

    pub(super) async fn keep_lock(&self, deadline: Instant) -> Result<Lock, DcsError> {
        let known = lock(&self.state).leader.take();
        let mut there = match known {
            Some(object) => Some(object),
            None => self.read_leader(deadline).await?,
        };
        for _ in 0..ROUNDS {
            let tenure = match self.holder(there.as_ref(), true) {
                Holder::Other(name) => return Ok(Lock::Lost(Some(name.as_str().into()))),
                Holder::We(tenure) => Some(tenure),
                Holder::Nobody => None,
            };
            let turn = match (tenure, there.as_ref()) {
                (Some(tenure), Some(object)) => self.go_on(object, tenure, deadline).await?,
                (_, object) => {
                    self.refuse_other_modes(deadline).await?;
                    match self.begin(object, deadline).await? {
                        Turn::Held(hold) => return self.settled(hold, deadline).await,
                        moved => moved,
                    }
                }
            };
            match turn {
                Turn::Held(hold) => return Ok(self.held(hold)),
                Turn::Moved(now) => there = now.map(|object| *object),
            }
        }
        Err(self.unsettled())
    }

    /// Releases the lock if it is ours, in the tenure we held it in.
    pub(super) async fn drop_lock(&self, status: Option<&str>, deadline: Instant) -> Result<(), DcsError> {
        let tenure = {
            let state = lock(&self.state);
            state.held.or(state.tenure)
        };
        let Some(tenure) = tenure else { return Ok(()) };
        let form = self.layout.mode.form();
        for _ in 0..ROUNDS {
            let Some(object) = self.read_leader(deadline).await? else {
                break;
            };
            let record = Record::of(&object, form);
            if !record.is_some_and(|record| record.leader == self.name && record.lease() == tenure) {
                break;
            }
            let (mut annotations, spec) = Record::released(form);
            if let Some(status) = status {
                annotations.extend(object::patch(Key::Status, Some(status), ""));
            }
            let mut rest = vec![("spec", spec)];
            if self.layout.mode == Mode::Endpoints {
                rest.push(("subsets", Value::Array(vec![])));
            }
            let patch = self
                .layout
                .patch(Some(&object.metadata.resource_version), annotations, &rest);
            match self
                .pool
                .patch(&self.layout.at(Place::Leader), &patch, deadline)
                .await?
            {
                Wrote::Done(object) => {
                    self.see_leader(Some(&object));
                    break;
                }
                Wrote::Conflict | Wrote::Missing => {}
            }
        }
        {
            let mut state = lock(&self.state);
            (state.held, state.leader, state.leading) = (None, None, false);
        }
        if self.layout.mode == Mode::Leases {
            let _turn = self.serving.lock().await;
            self.point_service_at(None, deadline).await;
        }
        Ok(())
    }

    /// Takes a look at the leader's object in: who judges the record's age must see every change of it.
    pub(super) fn see_leader(&self, object: Option<&Object>) {
        let record = object.and_then(|object| Record::of(object, self.layout.mode.form()));
        let now = Boottime::now();
        self.observed
            .send_if_modified(|observed| observed.note(record.as_ref(), now));
    }

    pub(super) async fn read_leader(&self, deadline: Instant) -> Result<Option<Object>, DcsError> {
        let object = self.pool.get(&self.layout.at(Place::Leader), deadline).await?;
        self.see_leader(object.as_ref());
        Ok(object)
    }

    /// `inherit`: a predecessor's tenure is ours too.
    fn holder(&self, object: Option<&Object>, inherit: bool) -> Holder {
        let Some(record) = object.and_then(|object| Record::of(object, self.layout.mode.form())) else {
            return Holder::Nobody;
        };
        if record.leader == self.name && self.may_go_on(record.lease(), inherit) {
            return Holder::We(record.lease());
        }
        match self.is_over(&record) {
            true => Holder::Nobody,
            false => Holder::Other(record.leader),
        }
    }

    /// Whether a recorded lock is nobody's any more.
    pub(super) fn is_over(&self, record: &Record) -> bool {
        self.observed.borrow().is_over(record, Boottime::now())
    }

    /// Whether that tenure is ours, or was a predecessor's.
    fn may_go_on(&self, tenure: i64, inherit: bool) -> bool {
        let state = lock(&self.state);
        state.tenures.contains(&tenure) || inherit && state.inherited == Inherited::Tenure(tenure)
    }

    /// Begins a tenure in a free lock.
    async fn begin(&self, object: Option<&Object>, deadline: Instant) -> Result<Turn, DcsError> {
        let tenure = self.new_tenure();
        let changes = object.map_or(0, |object| {
            object::transitions(object, self.layout.mode.form()).saturating_add(1)
        });
        self.record(object, tenure, changes, deadline).await
    }

    /// Renews. A predecessor's tenure, or one of another ttl, is gone on with as a new one.
    async fn go_on(&self, object: &Object, tenure: i64, deadline: Instant) -> Result<Turn, DcsError> {
        let current = lock(&self.state).tenure;
        let tenure = match current {
            Some(current) if current == tenure => tenure,
            _ => self.new_tenure(),
        };
        let changes = object::transitions(object, self.layout.mode.form());
        self.record(Some(object), tenure, changes, deadline).await
    }

    /// Noted before it is written: a write whose answer is lost must be known as ours.
    fn new_tenure(&self) -> i64 {
        let now = jiff::Timestamp::now().as_microsecond();
        // Two processes of one name must not choose the same: clocks give milliseconds, chance the rest.
        let tenure = now - now % 1000 + i64::from(self.chance() % 1000);
        let mut state = lock(&self.state);
        let tenure = tenure.max(state.tenure.map_or(0, |last| last + 1));
        state.tenures.insert(tenure);
        state.tenure = Some(tenure);
        tenure
    }

    async fn record(
        &self,
        object: Option<&Object>,
        tenure: i64,
        transitions: u32,
        deadline: Instant,
    ) -> Result<Turn, DcsError> {
        let form = self.layout.mode.form();
        let ttl = self.ttl();
        let record = Record {
            leader: self.name.clone(),
            acquired: object::time(tenure),
            renewed: object::time(self.next_moment()),
            ttl: ttl.as_secs().to_string(),
            transitions: transitions.to_string(),
        };
        let (annotations, spec) = record.patch(form);
        let mut rest = vec![("spec", spec)];
        if let Some(subsets) = self.subsets(object, deadline).await {
            rest.push(("subsets", subsets));
        }
        let (kind, name, path) = (
            self.layout.mode.kind(Place::Leader),
            self.layout.name(Place::Leader),
            self.layout.at(Place::Leader),
        );
        let sent_at = Boottime::now();
        let wrote = match object {
            Some(object) => {
                let version = object.metadata.resource_version.as_str();
                let patch = self.layout.patch(Some(version), annotations, &rest);
                self.pool.patch(&path, &patch, deadline).await?
            }
            None => {
                let create = self.layout.create(kind, &name, annotations, &rest);
                self.pool
                    .create(&self.layout.all(kind), &create, deadline)
                    .await?
            }
        };
        let hold = Hold {
            sent_at,
            ttl,
            lease: tenure,
        };
        let now = match wrote {
            Wrote::Done(object) => {
                self.see_leader(Some(&object));
                lock(&self.state).leader = Some(*object);
                return Ok(Turn::Held(hold));
            }
            Wrote::Conflict | Wrote::Missing => self.read_leader(deadline).await?,
        };
        let there = now.as_ref().and_then(|object| Record::of(object, form));
        if there.is_some_and(|there| there.is_same_write(&record)) {
            lock(&self.state).leader = now;
            return Ok(Turn::Held(hold));
        }
        Ok(Turn::Moved(now.map(Box::new)))
    }

    /// A lock that has just been taken: whoever works in another mode may have taken its own in the same moment. Both
    /// have written before they look, so at least one of the two sees the other.
    async fn settled(&self, hold: Hold, deadline: Instant) -> Result<Lock, DcsError> {
        if let Err(error) = self.refuse_other_modes(deadline).await {
            lock(&self.state).held = Some(hold.lease);
            self.drop_lock(None, Instant::now() + self.timing().retry_timeout)
                .await?;
            return Err(error);
        }
        Ok(self.held(hold))
    }

    fn held(&self, hold: Hold) -> Lock {
        {
            let mut state = lock(&self.state);
            (state.held, state.leading) = (Some(hold.lease), true);
        }
        if self.layout.mode == Mode::Leases {
            self.keep_service_in_background();
        }
        Lock::Held(hold)
    }

    /// The ttl as it is recorded: whole seconds, rounded up.
    pub(super) fn ttl(&self) -> Duration {
        whole_seconds(self.timing().ttl)
    }

    /// A renewal is seen by its time, so no two have the same.
    fn next_moment(&self) -> i64 {
        let now = jiff::Timestamp::now().as_microsecond();
        let mut state = lock(&self.state);
        if now == state.moment {
            state.moment += 1;
        } else {
            state.moment = now;
        }
        state.moment
    }

    fn unsettled(&self) -> DcsError {
        DcsError::Answer {
            endpoint: "the API server".to_owned(),
            reason: format!("{} kept changing", self.layout.at(Place::Leader)),
        }
    }

    /// Refuses while a lock of the same cluster counts in another mode: with two locks there would be two leaders.
    pub(super) async fn refuse_other_modes(&self, deadline: Instant) -> Result<(), DcsError> {
        let [one, two] = self.others;
        let (first, second) = tokio::join!(self.lock_in(one, deadline), self.lock_in(two, deadline));
        for (mode, holder) in [(one, first?), (two, second?)] {
            if let Some(name) = holder {
                let (theirs, ours) = (mode.as_str(), self.layout.mode.as_str());
                return Err(DcsError::Config(format!(
                    "kubernetes: '{name}' holds the lock of cluster {} in {theirs}, and this member is to use {ours}. Two \
                     locks would make two leaders: stop all members that use {theirs} first, or set \
                     HOWDAH_KUBERNETES_MODE={theirs} here (a lock nobody renews is passed over after its ttl)",
                    self.layout.scope
                )));
            }
        }
        Ok(())
    }

    /// Who holds the lock as another mode records it.
    async fn lock_in(&self, mode: Mode, deadline: Instant) -> Result<Option<String>, DcsError> {
        /// Rights change seldom.
        const AGAIN: Duration = Duration::from_secs(60);
        let refused = lock(&self.state).unreadable.get(&mode).copied();
        if refused.is_some_and(|at| Boottime::now().since(at) < AGAIN) {
            return Ok(None);
        }
        let object = match self.pool.get(&self.layout.lock_in(mode), deadline).await {
            // Whoever must not read that kind is in a cluster that was not given the right to use it.
            Err(DcsError::Credentials { .. }) => {
                lock(&self.state).unreadable.insert(mode, Boottime::now());
                return Ok(None);
            }
            answer => answer?,
        };
        let record = object.and_then(|object| Record::of(&object, mode.form()));
        let now = Boottime::now();
        let mut state = lock(&self.state);
        let ttl = state.timing.ttl;
        let seen = state.others.entry(mode).or_default();
        seen.ttl = whole_seconds(ttl);
        seen.note(record.as_ref(), now);
        Ok(seen.alive(now).map(|record| record.leader.clone()))
    }

    /// The address to write with the record; `None`: it is there already, or is no part of this mode.
    async fn subsets(&self, object: Option<&Object>, deadline: Instant) -> Option<Value> {
        if self.layout.mode != Mode::Endpoints {
            return None;
        }
        let Some(target) = self.target(deadline).await else {
            if !std::mem::replace(&mut lock(&self.state).service_failed, true) {
                tracing::warn!(
                    "our address is not known, the leader's Service leads nowhere: set HOWDAH_KUBERNETES_POD_IP"
                );
            }
            return None;
        };
        let wanted = self.layout.subsets(&target, &self.ports);
        let there = object.map(|object| &object.subsets);
        (there != Some(&wanted)).then_some(wanted)
    }

    /// Where we are reached. Asks for our own pod until it is known: a lock is not delayed for it for long.
    pub(super) async fn target(&self, deadline: Instant) -> Option<Target> {
        const PATIENCE: Duration = Duration::from_millis(300);
        if let Some(target) = lock(&self.state).target.clone() {
            return Some(target);
        }
        let limit = deadline.min(Instant::now() + PATIENCE);
        let path = self.layout.one(Kind::Pod, &self.name);
        let pod = self.pool.get(&path, limit).await.ok()?;
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let ip = self
            .pod_ip
            .clone()
            .or_else(|| pod.as_ref().and_then(|pod| text(&pod.status["podIP"])))?;
        let target = Target {
            ip,
            hostname: pod.as_ref().and_then(|pod| text(&pod.spec["hostname"])),
            node: pod.as_ref().and_then(|pod| text(&pod.spec["nodeName"])),
            pod: pod.map(|pod| (pod.metadata.name, pod.metadata.uid)),
        };
        lock(&self.state).target = Some(target.clone());
        Some(target)
    }
}

pub(super) fn whole_seconds(duration: Duration) -> Duration {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    Duration::from_secs(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_recorded_in_whole_seconds_and_never_shorter() {
        assert_eq!(whole_seconds(Duration::from_millis(2500)), Duration::from_secs(3));
        assert_eq!(whole_seconds(Duration::from_secs(30)), Duration::from_secs(30));
        assert_eq!(whole_seconds(Duration::ZERO), Duration::from_secs(1));
    }
}
