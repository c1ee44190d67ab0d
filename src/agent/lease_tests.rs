//! The lock as the agent holds it: what runs within its time, what is renewed, promised and given up.

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

/// The lease is renewed again within two of its own intervals.
async fn renewed_in_time(lease: &Lease, ttl: Duration) {
    let before = lease.hold().expect("held").sent_at;
    let renewed = async {
        while lease.hold().expect("not lost").sent_at == before {
            tokio::time::sleep(MOMENT).await;
        }
    };
    timeout(interval(ttl) * 2, renewed).await.expect("renewed");
}

#[tokio::test]
async fn a_shorter_ttl_hurries_the_next_renewal_too() {
    let member = Arc::new(Store::system().member("a", Duration::from_secs(30)));
    let dcs = Arc::clone(&member) as Arc<dyn Dcs>;
    let lease = Lease::new(dcs, Arc::new(Armed::default()), None);
    assert!(lease.acquire().await.expect("reachable"));
    let keeper = tokio::spawn(Arc::clone(&lease).keep());
    // It waits for the end of a long interval by now.
    tokio::time::sleep(MOMENT).await;
    let ttl = Duration::from_secs(3);
    member.set_timing(ttl, ttl).await;
    assert!(lease.renew().await.expect("reachable"));
    renewed_in_time(&lease, ttl).await;
    keeper.abort();
}

#[tokio::test]
async fn a_record_of_a_longer_lease_does_not_put_the_renewal_off() {
    let ttl = Duration::from_secs(3);
    let member = Arc::new(Store::system().member("a", ttl));
    let until = Boottime::now() + Duration::from_secs(60);
    let lease = Lease::new(
        member,
        Arc::new(Armed::default()),
        Some(crate::ha::lease::hold_of_record(until, 1, ttl)),
    );
    let keeper = tokio::spawn(Arc::clone(&lease).keep());
    renewed_in_time(&lease, ttl).await;
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
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending()));
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
