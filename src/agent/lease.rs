//! Keeps the lock: one task that renews, and the only place that takes or gives it up.
//!
//! Task: [`Lease::keep`]. In: the decision whether to keep ([`Lease::set_keep`]) and the loop's sign of life
//! ([`Lease::beat`]). Out: the hold on a watch channel and the fence deadline in init. Ends with the agent. A slow
//! query, a clone or a checkpoint elsewhere never delays it; and because taking, renewing and releasing exclude each
//! other, a renewal can never take back a released lock. What was given up ([`Lease::forget`]) stays given up, also
//! when the answer to an earlier request comes later.

use std::{
    sync::{
        Arc, Mutex as Plain, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};
use tracing::{debug, error, info, warn};

use crate::{
    clock::Boottime,
    dcs::{Dcs, DcsError, Hold, Lock},
    ha::{
        failsafe::{Promise, Promises, Question},
        lease::{Deadlines, Right, attempt_limit, deadlines, interval},
    },
    model::MemberName,
};

/// Giving the lock up is a courtesy to the others: it must not cost the orderly end of this process.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Where the fence deadline goes: init's guard, or nowhere in a test.
pub trait Fence: Send + Sync + std::fmt::Debug {
    /// Until then this node may be primary; `lease` is what a restarted agent goes on with.
    fn arm(&self, until: Boottime, lease: i64);
    /// Postgres is certainly not primary: there is nothing to fence.
    fn disarm(&self);
}

/// What changes together, so that no answer of the store can undo a decision made while it was on its way.
#[derive(Debug, Default)]
struct Book {
    /// Counts how often the hold was given up.
    given_up: u64,
    /// The deadline init knows of.
    fence_at: Option<Boottime>,
    /// Who has the lock, when it is proven that we have not.
    lost_to: Option<MemberName>,
    /// Requests for the lock that are on their way.
    asking: usize,
    /// Whom we have promised not to take the lock.
    promises: Promises,
    /// The cluster is paused: a primary goes on without the lock, so there is no deadline for init.
    unfenced: bool,
}

/// Why nothing is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this member has the leader lock, or asks for it")]
pub struct Unpromised;

/// A request for the lock is on its way while this lives.
struct Asking<'a>(&'a Lease);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.book().asking -= 1;
    }
}

/// The lock as this member holds it.
#[derive(Debug)]
pub struct Lease {
    dcs: Arc<dyn Dcs>,
    fence: Arc<dyn Fence>,
    /// Excludes acquire, renew and release from each other.
    turn: Mutex<()>,
    right: watch::Sender<Option<Right>>,
    keep: watch::Sender<bool>,
    /// Counts proven losses, to wake the loop.
    losses: watch::Sender<u64>,
    book: Plain<Book>,
    /// When the loop was last seen turning.
    beat: AtomicU64,
    /// The last release got no answer: the key may be there until it expires.
    left_to_expire: AtomicBool,
    /// A request for the lock was sent and not answered yet, or never.
    unsure: AtomicBool,
    /// A hold was given up without asking the store to release it.
    forgotten: AtomicBool,
}

/// Which lock is asked for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    /// One that nobody holds.
    Free,
    /// One that carries our name.
    Ours,
}

impl Lease {
    /// `adopted`: the hold of an agent that died before us, for postgres it left running.
    #[must_use]
    pub fn new(dcs: Arc<dyn Dcs>, fence: Arc<dyn Fence>, adopted: Option<Hold>) -> Arc<Self> {
        let keep = adopted.is_some();
        let book = Book {
            fence_at: adopted.as_ref().map(|hold| deadlines(hold).fence_at),
            ..Book::default()
        };
        Arc::new(Self {
            dcs,
            fence,
            turn: Mutex::new(()),
            right: watch::Sender::new(adopted.map(Right::Lease)),
            keep: watch::Sender::new(keep),
            losses: watch::Sender::new(0),
            book: Plain::new(book),
            beat: AtomicU64::new(Boottime::now().0),
            left_to_expire: AtomicBool::new(false),
            unsure: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        })
    }

    /// The right to be primary as a hold; `None` after proof that we have none. An expired one stays until then.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        self.right().map(|right| right.hold())
    }

    /// What the right to be primary rests on.
    #[must_use]
    pub fn right(&self) -> Option<Right> {
        *self.right.borrow()
    }

    /// Changes with the right.
    #[must_use]
    pub fn rights(&self) -> watch::Receiver<Option<Right>> {
        self.right.subscribe()
    }

    /// All other members have accepted this primary, by questions sent at `asked_at` and later: the right to be primary
    /// counts as if the lock had been renewed then. `false`: there is no right that could be extended, the loop has
    /// decided to let it go or does not turn, or the right reaches further already.
    pub fn extend(&self, asked_at: Boottime) -> bool {
        let mut book = self.book();
        let Some(hold) = self.hold() else { return false };
        let still = Boottime::now().since(Boottime(self.beat.load(Ordering::Relaxed)));
        if !*self.keep.borrow() || still > hold.ttl || asked_at <= hold.sent_at {
            return false;
        }
        let right = Right::Consent {
            asked_at,
            ttl: hold.ttl,
            lease: hold.lease,
        };
        self.fence_until(&mut book, &right.hold());
        self.right.send_replace(Some(right));
        true
    }

    /// Promises `to` that this member takes no lock for `ttl` from now. Refused while it has the lock or asks for it:
    /// one of the two comes first, here as in the book.
    pub fn promise(&self, to: MemberName, question: Question, ttl: Duration) -> Result<(), Unpromised> {
        let mut book = self.book();
        if book.asking > 0 || self.counts() {
            return Err(Unpromised);
        }
        book.promises.give(to, question, ttl, Boottime::now());
        Ok(())
    }

    /// Whoever asked this needs the promise no more: it has the lock again, or its postgres is down.
    pub fn take_promise_back(&self, to: &MemberName, question: Question) {
        self.book().promises.take_back(to, question);
    }

    /// The promise that binds us now.
    #[must_use]
    pub fn promised(&self) -> Option<Promise> {
        self.book().promises.binding(Boottime::now())
    }

    /// Whether init fences this node; not while the cluster is paused. When it is again, the deadline of the present
    /// right counts.
    pub fn set_fenced(&self, fenced: bool) {
        let mut book = self.book();
        if book.unfenced != fenced {
            return;
        }
        book.unfenced = !fenced;
        match self.hold().filter(counting) {
            Some(hold) if fenced => self.fence_until(&mut book, &hold),
            _ if fenced => {}
            _ => {
                book.fence_at = None;
                self.fence.disarm();
            }
        }
    }

    fn fence_until(&self, book: &mut Book, hold: &Hold) {
        if book.unfenced {
            return;
        }
        let Deadlines { fence_at, .. } = deadlines(hold);
        self.fence.arm(fence_at, hold.lease);
        book.fence_at = Some(fence_at);
    }

    /// Notes that the lock is asked for, unless we have promised not to.
    fn begin_asking(&self) -> Result<Asking<'_>, DcsError> {
        let mut book = self.book();
        if let Some(promise) = book.promises.binding(Boottime::now()) {
            return Err(DcsError::Answer {
                endpoint: "the lock".to_owned(),
                reason: format!("not asked for: '{}' was promised so", promise.to),
            });
        }
        book.asking += 1;
        Ok(Asking(self))
    }

    /// Whether there is a hold and its time to be primary has not run out.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.hold().as_ref().is_some_and(counting)
    }

    /// Changes with every proven loss of the lock.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    /// Who had the lock when the store last proved that it is not ours. Our own name: another process uses it.
    #[must_use]
    pub fn lost_to(&self) -> Option<MemberName> {
        self.book().lost_to.clone()
    }

    /// How long init waits before it ends everything; `None`: nothing is armed.
    #[must_use]
    pub fn fence_left(&self) -> Option<Duration> {
        self.book().fence_at.map(|at| at.since(Boottime::now()))
    }

    /// The last release was not confirmed by the store.
    #[must_use]
    pub fn left_to_expire(&self) -> bool {
        self.left_to_expire.load(Ordering::Relaxed)
    }

    /// The leader key may carry our name: there is a hold, or a request for one whose answer nobody knows.
    #[must_use]
    pub fn may_be_ours(&self) -> bool {
        self.hold().is_some() || self.unsure.load(Ordering::Relaxed)
    }

    /// The leader key may outlive us, and so must the member key: together they tell a successor of our name that the
    /// lock is its to go on with.
    #[must_use]
    pub fn outlives_us(&self) -> bool {
        self.left_to_expire() || self.forgotten.load(Ordering::Relaxed) || self.may_be_ours()
    }

    /// The store was read and the lock is not ours.
    pub fn seen_elsewhere(&self) {
        self.forgotten.store(false, Ordering::Relaxed);
        // Unless a request is under way, whose outcome was not read.
        if self.turn.try_lock().is_ok() {
            self.unsure.store(false, Ordering::Relaxed);
        }
    }

    /// The loop turns. A loop that has not turned for a whole ttl decides nothing any more, so nothing is renewed for
    /// it: the fence ends what it cannot.
    pub fn beat(&self) {
        self.beat.store(Boottime::now().0, Ordering::Relaxed);
    }

    /// Resolves when there is no hold that counts: the present one has passed the moment from which postgres is
    /// stopped (renewals move it), or there is none. Cancel-safe: it only waits.
    pub async fn expired(&self) {
        let mut right = self.right.subscribe();
        loop {
            let current = right.borrow_and_update().map(|right| right.hold());
            let Some(current) = current.filter(counting) else {
                return;
            };
            let left = deadlines(&current).demote_at.since(Boottime::now());
            tokio::select! {
                changed = right.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Whether renewing goes on.
    pub fn set_keep(&self, keep: bool) {
        self.keep
            .send_if_modified(|old| std::mem::replace(old, keep) != keep);
    }

    /// Takes the free lock. `Ok(false)`: lost the race. The answer is noted also when the caller does not wait for it.
    pub async fn acquire(self: &Arc<Self>) -> Result<bool, DcsError> {
        self.ask(Wish::Free).await
    }

    /// Makes sure of a lock that carries our name. The answer is noted also when the caller does not wait for it.
    pub async fn renew(self: &Arc<Self>) -> Result<bool, DcsError> {
        self.ask(Wish::Ours).await
    }

    /// Runs the request to its end whatever becomes of the caller: what it did in the store must be known.
    async fn ask(self: &Arc<Self>, wish: Wish) -> Result<bool, DcsError> {
        let me = Arc::clone(self);
        let request = async move {
            let _turn = me.turn.lock().await;
            let _asking = me.begin_asking()?;
            let given_up = me.book().given_up;
            me.unsure.store(true, Ordering::Relaxed);
            let answer = match wish {
                Wish::Free => me.dcs.acquire().await?,
                Wish::Ours => me.dcs.renew().await?,
            };
            Ok(me.wanted(answer, given_up))
        };
        tokio::spawn(request).await.unwrap_or_else(|failure| {
            Err(DcsError::Answer {
                endpoint: "the lock".to_owned(),
                reason: failure.to_string(),
            })
        })
    }

    fn wanted(&self, answer: Lock, given_up: u64) -> bool {
        let held = self.note(answer, given_up);
        if held {
            self.set_keep(true);
        }
        held
    }

    /// Gives the lock up, writing `/status` in the same step; bounded. Call only when postgres cannot write any more
    /// (it is down, in recovery, or shut down and only serving receivers, see `orderly_stop`): whatever the store says, there is no hold afterwards and nothing to fence.
    pub async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        self.set_keep(false);
        // First, so that no hold that counts is left when nobody waits for the answer.
        self.left_to_expire.store(true, Ordering::Relaxed);
        self.give_up();
        let released = async {
            let _turn = self.turn.lock().await;
            self.dcs.release(status).await
        };
        let answer = timeout(RELEASE_LIMIT, released).await.unwrap_or_else(|_| {
            Err(DcsError::Timeout {
                endpoint: self.dcs.kind().to_owned(),
                waited: RELEASE_LIMIT,
            })
        });
        if answer.is_ok() {
            self.left_to_expire.store(false, Ordering::Relaxed);
            self.unsure.store(false, Ordering::Relaxed);
            self.forgotten.store(false, Ordering::Relaxed);
        }
        answer
    }

    /// Postgres is certainly down or in recovery: whatever hold there was is not acted on any more, and init has
    /// nothing to watch. The key in the store is left to expire.
    pub fn forget(&self) {
        if self.hold().is_some() {
            self.forgotten.store(true, Ordering::Relaxed);
        }
        self.set_keep(false);
        self.give_up();
    }

    fn give_up(&self) {
        let mut book = self.book();
        book.given_up += 1;
        book.fence_at = None;
        self.right.send_replace(None);
        self.fence.disarm();
    }

    /// Runs `work`, but not past the moment until which the present hold counts, nor past the proof that it was lost;
    /// `None`: cut short. Not limited while there is no hold or one that has run out before: then this is the work
    /// that stops postgres. A hold that `work` itself takes limits it from then on; one that it gives up, no more.
    pub async fn while_it_lasts<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut right = self.right.subscribe();
        let losses = *self.losses.borrow();
        let mut limited = false;
        let mut work = std::pin::pin!(work);
        loop {
            let current = right.borrow_and_update().map(|right| right.hold());
            let left = match current {
                Some(current) if counting(&current) => {
                    limited = true;
                    Some(deadlines(&current).demote_at.since(Boottime::now()))
                }
                Some(_) if limited => return None,
                None if limited && *self.losses.borrow() != losses => return None,
                Some(_) | None => None,
            };
            let over = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel-safe: the work goes on in the next round, the others only wait.
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                changed = right.changed() => if changed.is_err() { return None },
                () = over => {}
            }
        }
    }

    /// Takes an answer in, unless the hold was given up since it was asked for.
    fn note(&self, answer: Lock, given_up: u64) -> bool {
        let mut book = self.book();
        // A lock that was given up while it was asked for may be there all the same.
        let discarded = matches!(answer, Lock::Held(_)) && book.given_up != given_up;
        self.unsure.store(discarded, Ordering::Relaxed);
        match answer {
            Lock::Held(_) if book.given_up != given_up => {
                debug!("the lock was given up before its renewal was answered");
                false
            }
            Lock::Held(hold) => {
                // The fence first: no moment in which somebody acts on a hold that init does not know of.
                self.fence_until(&mut book, &hold);
                book.lost_to = None;
                // What was promised in the former role has ended, or the lock would not have been asked for.
                book.promises = Promises::default();
                self.left_to_expire.store(false, Ordering::Relaxed);
                self.forgotten.store(false, Ordering::Relaxed);
                self.right.send_replace(Some(Right::Lease(hold)));
                true
            }
            Lock::Lost(holder) => {
                book.lost_to.clone_from(&holder);
                // The loss is counted before it can be seen: whoever sees the hold go knows why.
                if self.right.borrow().is_some() {
                    let name = holder.map_or_else(|| "nobody".to_owned(), |holder| holder.0);
                    // The fence stays armed: postgres has to be down by the old deadline in any case.
                    warn!(
                        from = "holding the lock",
                        to = "not holding it",
                        holder = name,
                        "lost the leader lock"
                    );
                    self.losses.send_modify(|losses| *losses += 1);
                    self.right.send_replace(None);
                }
                false
            }
        }
    }

    /// A poisoned lock only means that another task panicked between two assignments of plain data.
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews while told to keep. Runs for the life of the agent.
    pub async fn keep(self: Arc<Self>) {
        let mut right = self.right.subscribe();
        let mut keep = self.keep.subscribe();
        let mut failed_since: Option<Boottime> = None;
        let mut stuck = false;
        loop {
            let current = right.borrow_and_update().map(|right| right.hold());
            let wanted = *keep.borrow_and_update();
            // Past its own deadline the loop demotes: a renewal now could hide that another has led meanwhile.
            let current = current.filter(counting);
            let (Some(current), true) = (current, wanted) else {
                // Cancel-safe: `changed` only waits.
                tokio::select! {
                    changed = right.changed() => if changed.is_err() { return },
                    changed = keep.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let pause = next_attempt(&current, failed_since.is_some() || stuck, Boottime::now());
            // Cancel-safe: a sleep that is cut short only means an earlier look at the hold.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = keep.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
            }
            let still = Boottime::now().since(Boottime(self.beat.load(Ordering::Relaxed)));
            let was_stuck = std::mem::replace(&mut stuck, still > current.ttl);
            if stuck {
                if !was_stuck {
                    error!(
                        still_s = still.as_secs_f32(),
                        "the loop does not turn, the lock is not renewed for it"
                    );
                }
                continue;
            }
            self.attempt(&current, &mut failed_since).await;
        }
    }

    async fn attempt(&self, current: &Hold, failed_since: &mut Option<Boottime>) {
        let _turn = self.turn.lock().await;
        let given_up = self.book().given_up;
        if !*self.keep.borrow() || self.right.borrow().is_none() {
            return;
        }
        let Ok(_asking) = self.begin_asking() else {
            return;
        };
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
                // Told meanwhile to let it expire: the answer must not move the deadline. A loss stays a loss.
                if *self.keep.borrow() || matches!(lock, Lock::Lost(_)) {
                    self.note(lock, given_up);
                }
            }
            Ok(Err(error)) => report(failed_since, left, &error.to_string()),
            Err(_) => report(failed_since, left, &format!("no answer within {allowed:?}")),
        }
    }
}

/// Its time to be primary has not run out.
fn counting(hold: &Hold) -> bool {
    Boottime::now() < deadlines(hold).demote_at
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
    use crate::dcs::memory::{Outage, Store};

    #[derive(Debug, Default)]
    struct Armed(Plain<Option<Boottime>>);

    impl Armed {
        fn until(&self) -> Option<Boottime> {
            *self.0.lock().expect("not poisoned")
        }
    }

    impl Fence for Armed {
        fn arm(&self, until: Boottime, _lease: i64) {
            *self.0.lock().expect("not poisoned") = Some(until);
        }
        fn disarm(&self) {
            *self.0.lock().expect("not poisoned") = None;
        }
    }

    const TTL: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(50);

    /// A keeper whose hold stops counting in `left`.
    fn holding_for(left: Duration) -> Arc<Lease> {
        let member = Store::system().member("a", TTL);
        let fence = Arc::new(Armed::default());
        Lease::new(Arc::new(member), fence, Some(hold_for(left)))
    }

    fn right_for(left: Duration) -> Right {
        Right::Lease(hold_for(left))
    }

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

    async fn for_ever() {
        std::future::pending().await
    }

    #[tokio::test]
    async fn what_does_not_end_is_cut_short_when_the_hold_stops_counting() {
        let lease = holding_for(MOMENT);
        assert_eq!(lease.while_it_lasts(for_ever()).await, None);
        assert!(!lease.counts());
        // The turn after it is the one that stops postgres: it has the time it needs.
        assert_eq!(lease.while_it_lasts(async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn what_runs_while_the_hold_is_renewed_goes_on() {
        let lease = holding_for(MOMENT);
        let work = async {
            lease.right.send_replace(Some(right_for(TTL)));
            tokio::time::sleep(MOMENT * 3).await;
            7
        };
        assert_eq!(lease.while_it_lasts(work).await, Some(7));
    }

    #[tokio::test]
    async fn a_proven_loss_cuts_the_work_short_and_giving_up_does_not() {
        let lease = holding_for(TTL);
        let lost = async {
            lease.note(Lock::Lost(Some("b".into())), 0);
            for_ever().await;
        };
        assert_eq!(lease.while_it_lasts(lost).await, None);
        assert_eq!(lease.lost_to(), Some("b".into()));
        let lease = holding_for(TTL);
        let given_up = async {
            lease.forget();
            tokio::time::sleep(MOMENT).await;
            7
        };
        assert_eq!(lease.while_it_lasts(given_up).await, Some(7));
        assert_eq!(lease.lost_to(), None);
    }

    #[tokio::test]
    async fn a_lock_taken_on_the_way_limits_the_rest() {
        let lease = holding_for(TTL);
        lease.forget();
        let work = async {
            lease.right.send_replace(Some(right_for(MOMENT)));
            for_ever().await;
        };
        assert_eq!(lease.while_it_lasts(work).await, None);
    }

    #[tokio::test]
    async fn the_end_of_a_hold_follows_its_renewals() {
        let lease = holding_for(MOMENT);
        let renew = async {
            tokio::time::sleep(MOMENT / 2).await;
            lease.right.send_replace(Some(right_for(MOMENT * 4)));
        };
        let begun = Boottime::now();
        tokio::join!(lease.expired(), renew);
        assert!(Boottime::now().since(begun) >= MOMENT * 4);
        lease.forget();
        lease.expired().await;
    }

    #[tokio::test]
    async fn an_answer_that_comes_after_giving_up_changes_nothing() {
        let fence = Arc::new(Armed::default());
        let member = Store::system().member("a", TTL);
        let lease = Lease::new(Arc::new(member), Arc::clone(&fence) as Arc<dyn Fence>, None);
        assert!(lease.note(Lock::Held(hold_for(TTL)), 0));
        assert!(fence.until().is_some() && lease.fence_left().is_some());
        lease.forget();
        assert!(
            !lease.note(Lock::Held(hold_for(TTL)), 0),
            "asked before forgetting"
        );
        assert!(fence.until().is_none() && lease.hold().is_none());
        assert!(lease.note(Lock::Held(hold_for(TTL)), 1), "asked afterwards");
    }

    #[tokio::test]
    async fn a_renewal_does_not_move_the_deadline_of_a_lock_that_is_not_kept() {
        let store = Store::system();
        let lease = Lease::new(Arc::new(store.member("a", TTL)), Arc::new(Armed::default()), None);
        assert!(lease.acquire().await.expect("reachable"));
        let hold = lease.hold();
        lease.set_keep(false);
        lease.attempt(&hold.expect("acquired"), &mut None).await;
        assert_eq!(lease.hold(), hold);
    }

    #[tokio::test]
    async fn releasing_clears_the_hold_and_the_fence_whatever_the_store_says() {
        let store = Store::system();
        let fence = Arc::new(Armed::default());
        let dyn_fence = Arc::clone(&fence) as Arc<dyn Fence>;
        let lease = Lease::new(Arc::new(store.member("a", TTL)), dyn_fence, None);
        assert!(lease.acquire().await.expect("reachable"));
        store.set_outage(Some(Outage::Unreachable));
        assert!(lease.release(None).await.is_err());
        assert!(lease.left_to_expire() && lease.hold().is_none() && fence.until().is_none());
        store.set_outage(None);
        assert!(lease.renew().await.expect("reachable"));
        assert!(!lease.left_to_expire());
    }

    #[tokio::test]
    async fn releasing_does_not_wait_for_a_request_that_hangs() {
        let lease = holding_for(TTL);
        let _hanging = lease.turn.lock().await;
        assert!(lease.release(None).await.is_err());
        assert!(lease.left_to_expire() && lease.hold().is_none());
    }

    #[tokio::test]
    async fn nothing_is_renewed_for_a_loop_that_does_not_turn() {
        let ttl = Duration::from_secs(3);
        let lease = Lease::new(
            Arc::new(Store::system().member("a", ttl)),
            Arc::new(Armed::default()),
            None,
        );
        assert!(lease.acquire().await.expect("reachable"));
        let first = lease.hold().expect("acquired").sent_at;
        lease.beat.store(first.minus(ttl).0, Ordering::Relaxed);
        let keeper = tokio::spawn(Arc::clone(&lease).keep());
        tokio::time::sleep(interval(ttl) * 2).await;
        assert_eq!(lease.hold().expect("not yet lost").sent_at, first);
        lease.beat();
        let renewed = async {
            while lease.hold().expect("held").sent_at == first {
                tokio::time::sleep(MOMENT).await;
            }
        };
        timeout(Duration::from_secs(1), renewed)
            .await
            .expect("renewed again");
        keeper.abort();
    }

    #[tokio::test]
    async fn no_error_of_the_store_is_a_loss() {
        let store = Store::system();
        let lease = Lease::new(Arc::new(store.member("a", TTL)), Arc::new(Armed::default()), None);
        assert!(lease.acquire().await.expect("reachable"));
        let hold = lease.hold().expect("acquired");
        for outage in [Outage::Unreachable, Outage::Credentials, Outage::AnswersLost] {
            store.set_outage(Some(outage));
            lease.attempt(&hold, &mut None).await;
            assert_eq!(lease.hold(), Some(hold));
            assert!(lease.extend(Boottime::now()), "and consent counts");
            lease.right.send_replace(Some(Right::Lease(hold)));
        }
    }

    fn question(number: u64) -> Question {
        Question { round: 1, number }
    }

    #[tokio::test]
    async fn a_promise_and_a_request_for_the_lock_exclude_each_other() {
        let store = Store::system();
        let lease = Lease::new(Arc::new(store.member("b", TTL)), Arc::new(Armed::default()), None);
        lease
            .promise("a".into(), question(1), TTL)
            .expect("free to promise");
        assert_eq!(lease.promised().map(|promise| promise.to), Some("a".into()));
        assert!(lease.acquire().await.is_err() && lease.renew().await.is_err());
        assert!(
            lease.hold().is_none() && !lease.may_be_ours(),
            "nothing was asked"
        );
        lease.take_promise_back(&"a".into(), question(1));
        {
            let _asking = lease.begin_asking().expect("free to ask");
            assert_eq!(lease.promise("a".into(), question(2), TTL), Err(Unpromised));
        }
        assert!(lease.acquire().await.expect("reachable"));
        assert_eq!(lease.promise("a".into(), question(3), TTL), Err(Unpromised));
        // What cannot lead any more can promise, and then does not come back with a late renewal.
        lease.right.send_replace(Some(right_for(Duration::ZERO)));
        lease.promise("a".into(), question(4), TTL).expect("expired");
        let expired = lease.hold().expect("not proven lost");
        lease.attempt(&expired, &mut None).await;
        assert_eq!(lease.hold(), Some(expired));
    }

    #[tokio::test]
    async fn a_promise_of_the_former_role_ends_with_the_lock_in_the_next() {
        let store = Store::system();
        let lease = Lease::new(Arc::new(store.member("b", TTL)), Arc::new(Armed::default()), None);
        lease
            .promise("a".into(), question(1), MOMENT)
            .expect("free to promise");
        tokio::time::sleep(MOMENT * 2).await;
        assert!(lease.acquire().await.expect("reachable"));
        assert_eq!(lease.book().promises, Promises::default());
    }

    #[tokio::test]
    async fn consent_moves_the_deadline_like_a_renewal_sent_when_it_was_asked_for() {
        let store = Store::system();
        let fence = Arc::new(Armed::default());
        let dyn_fence = Arc::clone(&fence) as Arc<dyn Fence>;
        let lease = Lease::new(Arc::new(store.member("a", TTL)), dyn_fence, None);
        assert!(!lease.extend(Boottime::now()), "no right to extend");
        assert!(lease.acquire().await.expect("reachable"));
        let first = lease.hold().expect("acquired");
        assert!(!lease.extend(first.sent_at.minus(MOMENT)), "an older question");
        let asked_at = first.sent_at + MOMENT;
        assert!(lease.extend(asked_at));
        let hold = Hold {
            sent_at: asked_at,
            ..first
        };
        assert_eq!(lease.hold(), Some(hold));
        assert!(matches!(lease.right(), Some(Right::Consent { .. })));
        assert_eq!(fence.until(), Some(deadlines(&hold).fence_at));
        // A renewal ends it, also if it was sent before the question.
        assert!(lease.note(Lock::Held(first), 0));
        assert_eq!(lease.right(), Some(Right::Lease(first)));
        assert_eq!(fence.until(), Some(deadlines(&first).fence_at));
        // A loop that does not turn, a right that is let go, a loss that is proven.
        lease.beat.store(first.sent_at.minus(TTL).0, Ordering::Relaxed);
        assert!(!lease.extend(asked_at), "the loop does not turn");
        lease.beat();
        lease.set_keep(false);
        assert!(!lease.extend(asked_at), "let go");
        lease.set_keep(true);
        lease.note(Lock::Lost(Some("b".into())), 0);
        assert!(!lease.extend(asked_at), "proven lost");
    }

    #[tokio::test]
    async fn a_paused_node_is_not_fenced_and_a_resumed_one_by_its_present_right() {
        let store = Store::system();
        let fence = Arc::new(Armed::default());
        let dyn_fence = Arc::clone(&fence) as Arc<dyn Fence>;
        let lease = Lease::new(Arc::new(store.member("a", TTL)), dyn_fence, None);
        assert!(lease.acquire().await.expect("reachable"));
        assert!(fence.until().is_some());
        lease.set_fenced(false);
        assert!(fence.until().is_none() && lease.fence_left().is_none());
        assert!(lease.renew().await.expect("reachable"));
        assert!(fence.until().is_none(), "not by a renewal either");
        lease.set_fenced(true);
        assert_eq!(fence.until(), lease.hold().map(|hold| deadlines(&hold).fence_at));
    }

    /// A signal drops the turn that asked for the lock; what the store did must be known all the same.
    #[tokio::test]
    async fn the_answer_to_a_request_nobody_waits_for_is_noted() {
        let lease = holding_for(Duration::ZERO);
        lease.forget();
        assert!(!lease.may_be_ours());
        {
            let mut asked = Box::pin(lease.acquire());
            let once =
                std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending()));
            assert!(once.await, "the request has only begun");
        }
        let mut hold = lease.right.subscribe();
        // The value borrows the channel: it must be gone before the release.
        let noted = timeout(Duration::from_secs(5), hold.wait_for(Option::is_some))
            .await
            .is_ok();
        assert!(noted && lease.may_be_ours());
        assert!(lease.release(None).await.is_ok());
        assert!(!lease.may_be_ours() && !lease.outlives_us());
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
