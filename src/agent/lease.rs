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
            // Another lease, or one of another ttl, has a time of its own; what only moves the deadline does not begin the
            // wait anew, or a stream of consents would keep the renewal away.
            let another = |right: &Option<Right>| {
                let hold = right.map(|right| right.hold());
                hold.is_none_or(|hold| hold.ttl != current.ttl || hold.lease != current.lease)
            };
            // Cancel-safe: a sleep that is cut short only means an earlier look at the hold.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = right.wait_for(another) => {
                    if changed.is_err() { return }
                    continue;
                }
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
    // A record of init's does not say which ttl it was made with: it can seem to lie in the future.
    (hold.sent_at + every).since(now).min(every)
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
#[path = "lease_tests.rs"]
mod tests;
