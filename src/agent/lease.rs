//! Keeps the lock: one task that renews, and the only place that takes or gives it up.
//!
//! Task: [`Lease::keep`]. In: the decision whether to keep ([`Lease::set_keep`]). Out: the hold on a watch channel and
//! the fence deadline in init. Ends with the agent. A slow query, a clone or a checkpoint elsewhere never delays it;
//! and because taking, renewing and releasing exclude each other, a renewal can never take back a released lock.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{
    clock::Boottime,
    dcs::{Dcs, DcsError, Hold, Lock},
    ha::lease::{Deadlines, attempt_limit, deadlines, interval},
};

/// Where the fence deadline goes: init's guard, or nowhere in a test.
pub trait Fence: Send + Sync + std::fmt::Debug {
    /// Until then this node may be primary; `lease` is what a restarted agent goes on with.
    fn arm(&self, until: Boottime, lease: i64);
    /// Postgres is certainly not primary: there is nothing to fence.
    fn disarm(&self);
}

/// The lock as this member holds it.
#[derive(Debug)]
pub struct Lease {
    dcs: Arc<dyn Dcs>,
    fence: Arc<dyn Fence>,
    /// Excludes acquire, renew and release from each other.
    turn: Mutex<()>,
    hold: watch::Sender<Option<Hold>>,
    keep: watch::Sender<bool>,
    /// Counts proven losses, to wake the loop.
    losses: watch::Sender<u64>,
}

impl Lease {
    /// `adopted`: the hold of an agent that died before us, for postgres it left running.
    #[must_use]
    pub fn new(dcs: Arc<dyn Dcs>, fence: Arc<dyn Fence>, adopted: Option<Hold>) -> Arc<Self> {
        let keep = adopted.is_some();
        Arc::new(Self {
            dcs,
            fence,
            turn: Mutex::new(()),
            hold: watch::Sender::new(adopted),
            keep: watch::Sender::new(keep),
            losses: watch::Sender::new(0),
        })
    }

    /// The hold; `None` after proof that we have none. An expired one stays until then.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        *self.hold.borrow()
    }

    /// Changes with every proven loss of the lock.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    /// Whether renewing goes on.
    pub fn set_keep(&self, keep: bool) {
        self.keep
            .send_if_modified(|old| std::mem::replace(old, keep) != keep);
    }

    /// Takes the free lock. `Ok(false)`: lost the race.
    pub async fn acquire(&self) -> Result<bool, DcsError> {
        let _turn = self.turn.lock().await;
        let answer = self.dcs.acquire().await?;
        Ok(self.note(answer))
    }

    /// Makes sure of a lock that carries our name.
    pub async fn renew(&self) -> Result<bool, DcsError> {
        let _turn = self.turn.lock().await;
        let answer = self.dcs.renew().await?;
        Ok(self.note(answer))
    }

    /// Gives the lock up, writing `/status` in the same step. Call only when postgres cannot write any more.
    pub async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        let _turn = self.turn.lock().await;
        self.set_keep(false);
        let answer = self.dcs.release(status).await;
        // Released or not (it expires by itself then): we do not act on it any more.
        self.hold.send_replace(None);
        self.fence.disarm();
        answer
    }

    /// Postgres is certainly down or in recovery: whatever hold there was is not acted on any more, and init has
    /// nothing to watch. The key in the store is left to expire.
    pub fn forget(&self) {
        self.set_keep(false);
        self.hold.send_replace(None);
        self.fence.disarm();
    }

    /// Runs `work`, but not past the moment until which the present hold counts; `None`: cut short. Without a hold, or
    /// with one that has run out, it is not limited: then this is the work that stops postgres.
    pub async fn while_it_lasts<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let demote_at = || self.hold().map(|hold| deadlines(&hold).demote_at);
        let limited = demote_at().is_some_and(|at| Boottime::now() < at);
        let mut work = std::pin::pin!(work);
        loop {
            // A hold that was given up meanwhile limits nothing any more.
            let left = demote_at().map(|at| at.since(Boottime::now()));
            let Some(left) = left.filter(|_| limited) else {
                return Some(work.await);
            };
            match timeout(left, &mut work).await {
                Ok(done) => return Some(done),
                // Renewed meanwhile: it goes on.
                Err(_) if demote_at().is_none_or(|at| Boottime::now() < at) => {}
                Err(_) => return None,
            }
        }
    }

    fn note(&self, answer: Lock) -> bool {
        match answer {
            Lock::Held(hold) => {
                let Deadlines { fence_at, .. } = deadlines(&hold);
                // The fence first: no moment in which somebody acts on a hold that init does not know of.
                self.fence.arm(fence_at, hold.lease);
                self.hold.send_replace(Some(hold));
                self.set_keep(true);
                true
            }
            Lock::Lost(holder) => {
                if self.hold.send_replace(None).is_some() {
                    let holder = holder.map_or_else(|| "nobody".to_owned(), |name| name.0);
                    // The fence stays armed: postgres has to be down by the old deadline in any case.
                    warn!(
                        from = "holding the lock",
                        to = "not holding it",
                        holder,
                        "lost the leader lock"
                    );
                    self.losses.send_modify(|losses| *losses += 1);
                }
                false
            }
        }
    }

    /// Renews while told to keep. Runs for the life of the agent.
    pub async fn keep(self: Arc<Self>) {
        let mut hold = self.hold.subscribe();
        let mut keep = self.keep.subscribe();
        let mut failed_since: Option<Boottime> = None;
        loop {
            let current = *hold.borrow_and_update();
            let wanted = *keep.borrow_and_update();
            // Past its own deadline the loop demotes: a renewal now could hide that another has led meanwhile.
            let current = current.filter(|hold| Boottime::now() < deadlines(hold).demote_at);
            let (Some(current), true) = (current, wanted) else {
                // Cancel-safe: `changed` only waits.
                tokio::select! {
                    changed = hold.changed() => if changed.is_err() { return },
                    changed = keep.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let pause = next_attempt(&current, failed_since.is_some(), Boottime::now());
            // Cancel-safe: a sleep that is cut short only means an earlier look at the hold.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = keep.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
            }
            self.attempt(&current, &mut failed_since).await;
        }
    }

    async fn attempt(&self, current: &Hold, failed_since: &mut Option<Boottime>) {
        let _turn = self.turn.lock().await;
        if !*self.keep.borrow() || self.hold.borrow().is_none() {
            return;
        }
        // One request must not use up the lease: several attempts fit in.
        let allowed = attempt_limit(current.ttl);
        let answer = timeout(allowed, self.dcs.renew()).await;
        let left = deadlines(current).demote_at.since(Boottime::now());
        match answer {
            Ok(Ok(lock)) => {
                if let Some(since) = failed_since.take() {
                    let seconds = Boottime::now().since(since).as_secs_f32();
                    info!(
                        from = "not renewing",
                        to = "renewing",
                        seconds,
                        "the DCS answers again"
                    );
                }
                self.note(lock);
            }
            Ok(Err(error)) => report(failed_since, left, &error.to_string()),
            Err(_) => report(failed_since, left, &format!("no answer within {allowed:?}")),
        }
    }
}

fn next_attempt(hold: &Hold, failing: bool, now: Boottime) -> Duration {
    let every = interval(hold.ttl);
    if failing {
        return (every / 4).clamp(Duration::from_millis(100), Duration::from_secs(1));
    }
    (hold.sent_at + every).since(now)
}

fn report(failed_since: &mut Option<Boottime>, left: Duration, error: &str) {
    let lease_left_s = left.as_secs_f32();
    match failed_since {
        None => {
            *failed_since = Some(Boottime::now());
            warn!(
                error,
                lease_left_s, "cannot renew the leader lock, retrying until the lease runs out"
            );
        }
        Some(_) => debug!(error, lease_left_s, "still cannot renew the leader lock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A keeper whose hold stops counting in `left`.
    fn holding_for(left: Duration) -> Arc<Lease> {
        #[derive(Debug)]
        struct NoFence;
        impl Fence for NoFence {
            fn arm(&self, _until: Boottime, _lease: i64) {}
            fn disarm(&self) {}
        }
        let store = crate::dcs::memory::Store::system();
        let member = store.member("a", TTL);
        Lease::new(Arc::new(member), Arc::new(NoFence), Some(hold_for(left)))
    }

    const TTL: Duration = Duration::from_secs(30);

    fn hold_for(left: Duration) -> Hold {
        let fresh = Hold {
            sent_at: Boottime::now(),
            ttl: TTL,
            lease: 1,
        };
        let counts = deadlines(&fresh).demote_at.since(fresh.sent_at);
        Hold {
            sent_at: (fresh.sent_at + left).minus(counts),
            ..fresh
        }
    }

    #[tokio::test]
    async fn what_does_not_end_is_cut_short_when_the_hold_stops_counting() {
        let lease = holding_for(Duration::from_millis(50));
        assert_eq!(lease.while_it_lasts(std::future::pending::<()>()).await, None);
        assert!(deadlines(&hold_for(Duration::ZERO)).demote_at <= Boottime::now());
        // The turn after it is the one that stops postgres: it has the time it needs.
        assert_eq!(lease.while_it_lasts(async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn what_runs_while_the_hold_is_renewed_goes_on() {
        let lease = holding_for(Duration::from_millis(50));
        let work = async {
            lease.hold.send_replace(Some(hold_for(TTL)));
            tokio::time::sleep(Duration::from_millis(150)).await;
            7
        };
        assert_eq!(lease.while_it_lasts(work).await, Some(7));
    }

    #[test]
    fn renews_every_interval_and_hurries_after_a_failure() {
        let hold = Hold {
            sent_at: Boottime(0) + Duration::from_secs(100),
            ttl: Duration::from_secs(30),
            lease: 1,
        };
        assert_eq!(next_attempt(&hold, false, hold.sent_at), Duration::from_secs(5));
        assert_eq!(
            next_attempt(&hold, false, hold.sent_at + Duration::from_secs(9)),
            Duration::ZERO
        );
        assert_eq!(next_attempt(&hold, true, hold.sent_at), Duration::from_secs(1));
    }
}
