//! The long work itself: each job is one function over the local instance and the lock. It runs in the job slot and
//! honours its cancellation token; what it decides nothing about was decided in `ha`.

mod bootstrap;
mod promotion;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    handover::{self, Handover, Side},
    instance::{Instance, Progress, Replacement},
    job::Outcome,
    lease::Lease,
    orderly_stop::{self, Lock},
};
use crate::{
    client::Client,
    clock::Boottime,
    dcs::{Dcs, Key, When},
    ha::{DemoteMode, Failure, Job, StartAs, Upstream, heirs::Heirs},
    model::{Dynamic, HistoryRow, Lsn, MemberName, StatusKey, SystemId, Version},
    postgres::{
        postmaster::{StopLadder, StopMode},
        query::{WalSender, Where},
        replslot::{self, SlotFile},
    },
    watchdog::Watchdog,
};

use bootstrap::bootstrap;
use promotion::promote;
pub(super) use promotion::{FinalAdvance, store_history};

/// What jobs work with.
#[derive(Debug)]
pub(super) struct Context {
    /// The local postgres.
    pub(super) instance: Arc<Instance>,
    /// The lock.
    pub(super) lease: Arc<Lease>,
    /// The store.
    pub(super) dcs: Arc<dyn Dcs>,
    /// Dynamic configuration at the begin.
    pub(super) dynamic: Dynamic,
    /// `/status` as last read.
    pub(super) status: StatusKey,
    /// `/history` as last read.
    pub(super) history: Option<Vec<HistoryRow>>,
    /// `/failsafe` as last read, if it names anybody.
    pub(super) failsafe: Option<Version>,
    /// Slots the other members will stream from once we lead.
    pub(super) slots: Vec<String>,
    /// What a promotion does for logical slots before.
    pub(super) final_advance: FinalAdvance,
    /// Our name.
    pub(super) me: MemberName,
    /// Members that may lead after us.
    pub(super) successors: Vec<MemberName>,
    /// Those of them to be asked whether they have everything, once a primary is shut down.
    pub(super) heirs: Heirs,
    /// For asking them.
    pub(super) http: Client,
    /// For people who watch.
    pub(super) progress: watch::Sender<Option<Progress>>,
    /// The version of `/initialize` that our claim to bootstrap has.
    pub(super) claim: Option<Version>,
    /// Identity of the cluster, once it has one.
    pub(super) expected: Option<SystemId>,
    /// A copy is made by `pg_basebackup`, whatever the configured ways are.
    pub(super) basebackup_only: bool,
    /// Patience with a start that somebody asked for; `None`: the usual one.
    pub(super) start_limit: Option<Duration>,
    /// Commits wait for us: the leader has to look for another first.
    pub(super) leaves_sync: bool,
    /// This process was asked to stop fast.
    pub(super) hurried: CancellationToken,
    /// The watchdog device.
    pub(super) watchdog: Arc<Watchdog>,
}

/// Replicas may replay for a long time before they accept connections; the primary's patience is configured.
const REPLICA_START_LIMIT: Duration = Duration::from_secs(3600);
/// How long a leader that hands over waits for a successor to stream from it, and the pause between two looks.
const RECEIVER_WAIT: Duration = Duration::from_secs(2);
const RECEIVER_EVERY: Duration = Duration::from_millis(50);
/// Telling the others that nobody is primary without the DCS.
const CLEAR_LIMIT: Duration = Duration::from_secs(1);
/// Stopping by force where no fence deadline says how much time there is.
pub(super) const FORCED_STOP: Duration = Duration::from_secs(3);

/// How long a synchronous standby waits to be released, and the pause between two looks. The leader looks every second.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
const LEAVE_EVERY: Duration = Duration::from_millis(50);

/// Runs one job to its end.
pub(super) async fn run(job: Job, context: Context, cancel: CancellationToken) -> Outcome {
    let done = carry_out(job, &context, &cancel).await;
    // What a step says of itself that was broken off is not why it ended.
    done.map_err(|failure| match cancel.is_cancelled() {
        true => Failure::Cancelled(failure.to_string()),
        false => failure,
    })
}

async fn carry_out(job: Job, context: &Context, cancel: &CancellationToken) -> Outcome {
    match job {
        Job::Bootstrap => Ok(bootstrap(context, None, cancel).await?),
        Job::BootstrapStandby => {
            let standby = context.dynamic.standby.as_ref();
            let remote = standby
                .map(Upstream::remote)
                .ok_or_else(|| "no remote cluster is configured any more".to_owned())?;
            Ok(bootstrap(context, Some(&remote), cancel).await?)
        }
        Job::Restore => replace(context, None, false, cancel).await,
        Job::Clone { from, keep } => {
            stop_for_repair(context).await?;
            replace(context, Some(&from), keep, cancel).await
        }
        Job::Rewind(to) => {
            stop_for_repair(context).await?;
            context.instance.rewind(&to, &context.dynamic, cancel).await
        }
        Job::CopySlots { from, slots } => context.instance.copy_slots(&from, &slots, cancel).await,
        Job::Start(start_as) => start(context, &start_as, false, cancel).await,
        Job::Restart => restart(context, cancel).await,
        Job::Promote => promote(context, cancel).await,
        Job::Demote { mode, deadline } => Ok(demote(context, mode, deadline, cancel).await?),
    }
}

/// Makes a new copy and puts it in the place of what is there.
async fn replace(
    context: &Context,
    from: Option<&Upstream>,
    keep: bool,
    cancel: &CancellationToken,
) -> Outcome {
    let replacement = Replacement {
        from,
        keep,
        basebackup_only: context.basebackup_only,
        expected: context.expected.as_ref(),
    };
    let made = context
        .instance
        .make_replica(&replacement, &context.dynamic, &context.progress, cancel);
    Ok(made.await?)
}

/// Before the directory is worked on.
async fn stop_for_repair(context: &Context) -> Result<(), String> {
    let ladder = StopLadder {
        smart: Duration::ZERO,
        fast: Duration::from_secs(10),
        immediate: Duration::from_secs(5),
    };
    context.instance.stop(StopMode::Fast, ladder).await.map(drop)
}

/// `free`: what was a primary becomes one again also without the lock.
async fn start(context: &Context, start_as: &StartAs, free: bool, cancel: &CancellationToken) -> Outcome {
    let usual = match start_as {
        StartAs::Primary => {
            if !free {
                may_lead(context, cancel)?;
            }
            context.dynamic.primary_start_timeout.max(Duration::from_secs(1))
        }
        StartAs::Replica(_) => REPLICA_START_LIMIT,
    };
    let limit = context.start_limit.unwrap_or(usual);
    context
        .instance
        .start(start_as, &context.dynamic, limit, cancel)
        .await
}

/// The last look before something that makes a primary, on the same clock as the fence.
fn may_lead(context: &Context, cancel: &CancellationToken) -> Result<(), String> {
    if cancel.is_cancelled() {
        return Err("cancelled".to_owned());
    }
    if let Some(why) = context.watchdog.failed() {
        return Err(format!("a watchdog is required and cannot be used: {why}"));
    }
    if let Some(standby) = &context.dynamic.standby {
        return Err(format!(
            "this cluster follows another one ({standby:?}), nobody in it is a primary"
        ));
    }
    match context.lease.hold() {
        None => Err("the lock is not held".to_owned()),
        Some(_) if context.lease.counts() => Ok(()),
        Some(_) => Err("the lease is about to run out".to_owned()),
    }
}

async fn restart(context: &Context, cancel: &CancellationToken) -> Outcome {
    let start_as = context.instance.begin_restart(&context.dynamic).await;
    let primary = start_as == StartAs::Primary;
    if primary {
        checkpoint(context, Duration::from_secs(10), &Until::of(context, cancel)).await;
    }
    if !primary {
        leave_sync_duty(context, cancel).await;
    }
    let bound = context.dynamic.primary_stop_timeout.max(Duration::from_secs(30));
    let ladder = StopLadder {
        smart: Duration::ZERO,
        fast: bound,
        immediate: Duration::from_secs(5),
    };
    // Who cancels a restart wants postgres down, which is under way, and in order. A replica needs no lock.
    let never = CancellationToken::new();
    let until = Until {
        lease: Until::of(context, cancel).lease.filter(|_| primary),
        cancel: &never,
    };
    orderly_stop::stop(context, ladder, &until, Lock::Kept).await?;
    if cancel.is_cancelled() {
        context.instance.end_restart();
        if primary {
            release(context).await;
        }
        return Err(Failure::Cancelled("cancelled; postgres is stopped".to_owned()));
    }
    // A person asks for it, and a paused primary needs no lock.
    start(context, &start_as, context.dynamic.pause, cancel).await
}

/// What makes a gentle step too slow.
pub(super) struct Until<'a> {
    /// Only of a hold that counted at the begin: without one there is nothing to wait for.
    pub(super) lease: Option<&'a Lease>,
    pub(super) cancel: &'a CancellationToken,
}

impl<'a> Until<'a> {
    fn of(context: &'a Context, cancel: &'a CancellationToken) -> Self {
        Self {
            lease: context.lease.counts().then_some(&*context.lease),
            cancel,
        }
    }

    /// Resolves with why there is no time left. Cancel-safe: it only waits.
    pub(super) async fn over(&self) -> &'static str {
        let expired = async {
            match self.lease {
                Some(lease) => lease.expired().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => "cancelled",
            () = expired => "the lease has run out",
        }
    }
}

/// CHECKPOINT, as far as there is time for it.
async fn checkpoint(context: &Context, limit: Duration, until: &Until<'_>) {
    // Cancel-safe: the server goes on with a checkpoint nobody waits for.
    tokio::select! {
        () = context.instance.checkpoint(limit) => {}
        because = until.over() => info!(because, "not waiting for the checkpoint"),
        () = context.hurried.cancelled() => info!("asked to stop fast, not waiting for the checkpoint"),
    }
}

/// A stop sends everything to whoever streams, so nothing is lost with it if a successor does. Right after a change of
/// leader, or of the network, there may be none for a moment; that moment is waited for.
async fn await_receiver(context: &Context, limit: Duration, until: &Until<'_>) {
    if context.successors.is_empty() {
        return;
    }
    let there = async {
        loop {
            match context.instance.monitor().observe(limit).await {
                // A replica has nothing to hand over.
                Ok(view) if !matches!(view.place, Where::Primary(_)) => return,
                Ok(view)
                    if view
                        .senders
                        .iter()
                        .any(|sender| is_successor(sender, &context.successors)) =>
                {
                    return;
                }
                Ok(_) => tokio::time::sleep(RECEIVER_EVERY).await,
                // A server that cannot be asked has nothing to be waited for.
                Err(_) => return,
            }
        }
    };
    // Cancel-safe: it only looks.
    tokio::select! {
        done = timeout(limit, there) => if done.is_err() {
            warn!(successors = ?context.successors, ?limit, "handing over although no other member streams from here");
        },
        because = until.over() => info!(because, "not waiting for a replica that streams"),
        () = context.hurried.cancelled() => info!("asked to stop fast, not waiting for a replica that streams"),
    }
}

fn is_successor(sender: &WalSender, successors: &[MemberName]) -> bool {
    sender.state.as_deref() == Some("streaming")
        && successors.iter().any(|name| name.0 == sender.application_name)
}

/// Before init has to. Returns what ended it.
pub(super) async fn stop_by_force(context: &Context) -> Result<String, String> {
    let left = context.lease.fence_left().unwrap_or(FORCED_STOP).min(FORCED_STOP);
    context.instance.stop(StopMode::Immediate, forced(left)).await
}

async fn demote(
    context: &Context,
    mode: DemoteMode,
    deadline: Boottime,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let begun = Boottime::now();
    let until = Until::of(context, cancel);
    if mode == DemoteMode::Fast {
        leave_sync_duty(context, cancel).await;
    }
    if mode == DemoteMode::Graceful {
        await_receiver(context, RECEIVER_WAIT.min(deadline.since(begun) / 4), &until).await;
        // A short checkpoint now makes the one of the shutdown short; clients go on meanwhile.
        checkpoint(context, deadline.since(begun) / 2, &until).await;
    }
    let checkpoint_done = Boottime::now();
    let left = deadline.since(checkpoint_done);
    let orderly = async |lock| orderly_stop::stop(context, ladder(left), &until, lock).await;
    let stopped = match mode {
        DemoteMode::Graceful | DemoteMode::Fast => orderly(Lock::GivenAway).await?,
        DemoteMode::Offline | DemoteMode::Cluster => orderly(Lock::Untouched).await?,
        DemoteMode::Immediate | DemoteMode::ImmediateNoLock => {
            let by_force = context.instance.stop(StopMode::Immediate, ladder(left));
            orderly_stop::Stopped::by(by_force.await?)
        }
    };
    let stop_done = Boottime::now();
    match mode {
        DemoteMode::Graceful | DemoteMode::Fast if stopped.released.is_some() => {}
        DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate => release(context).await,
        DemoteMode::Cluster if context.instance.archive_end(&context.dynamic, cancel).await => {
            info!("WAL is archived, so this member has all there is: it keeps the lock");
        }
        DemoteMode::Cluster => release(context).await,
        // The lock is another's or will expire; ours is not to touch it.
        DemoteMode::ImmediateNoLock | DemoteMode::Offline => context.lease.forget(),
    }
    if matches!(mode, DemoteMode::Graceful | DemoteMode::Fast) {
        let mut phases = vec![(handover::CHECKPOINT, checkpoint_done.since(begun))];
        if stopped.released.is_none() {
            phases.push((handover::SHUT_DOWN, stop_done.since(checkpoint_done)));
            phases.push((handover::RELEASED, Boottime::now().since(stop_done)));
        }
        phases.extend(stopped.phases);
        context.instance.note_handover(Handover::now(Side::Gave, phases));
    }
    info!(
        from = "running",
        to = "stopped",
        ended_by = stopped.ended_by,
        checkpoint_ms = ms(checkpoint_done.since(begun)),
        released_early_ms = stopped.released.map(|at| ms(at.since(checkpoint_done))),
        stop_ms = ms(stop_done.since(checkpoint_done)),
        release_ms = ms(Boottime::now().since(stop_done)),
        "postgres stopped"
    );
    Ok(())
}

/// A synchronous standby that stops lets the leader choose another first, so that no commit waits for it. That it is
/// leaving is in its member key only while this job runs ([`super::Agent::leaves_sync_duty`]); an agent that dies leaves
/// a key behind that its successor writes anew, or that expires.
async fn leave_sync_duty(context: &Context, cancel: &CancellationToken) {
    if !context.leaves_sync {
        return;
    }
    let released = async {
        loop {
            match context.dcs.cluster().await {
                Ok(cluster) if cluster.sync.has_standby(&context.me) => tokio::time::sleep(LEAVE_EVERY).await,
                Ok(_) => return,
                Err(error) => {
                    info!(%error, "the DCS does not answer, not waiting to be released from synchronous replication");
                    return;
                }
            }
        }
    };
    // Cancel-safe: it only looks.
    tokio::select! {
        done = timeout(LEAVE_WAIT, released) => if done.is_err() {
            info!(limit = ?LEAVE_WAIT, "stopping as a synchronous standby: there is no other");
        },
        () = cancel.cancelled() => {}
        () = context.hurried.cancelled() => {}
    }
}

/// Only called once postgres is down, or shut down so far that it cannot write any more ([`orderly_stop`]).
pub(super) async fn release(context: &Context) {
    let end = context.instance.handed_over_at().await;
    let left = replslot::read_all(context.instance.data_dir());
    let text = end.and_then(|end| status_at(&context.status, &context.me, end, &left));
    if !context.lease.may_be_ours() {
        context.lease.forget();
        return;
    }
    // At once, so that the next leader waits for neither; whichever comes first.
    let (released, ()) = tokio::join!(context.lease.release(text.as_deref()), clear_failsafe(context));
    if let Err(error) = released {
        warn!(%error, "could not release the lock, it will expire by itself");
    }
}

/// A leader that has ended is no primary without the DCS: nobody has to ask it, nobody is bound by what it was promised,
/// and whoever it had lost sight of may lead. Later leaders write the key anew.
async fn clear_failsafe(context: &Context) {
    let Some(version) = context.failsafe else { return };
    let write = context.dcs.write(Key::Failsafe, "{}", When::Version(version));
    match timeout(CLEAR_LIMIT, write).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => info!(%error, "could not empty /failsafe"),
        Err(_) => info!("could not empty /failsafe: no answer within {CLEAR_LIMIT:?}"),
    }
}

/// `left`: the slots as the stopped server has them, which is later than anything `/status` has heard of.
fn status_at(last: &StatusKey, me: &MemberName, end: Lsn, left: &[SlotFile]) -> Option<String> {
    let mut status = StatusKey {
        // The checkpoint record may lie before a segment's end that was published already.
        optime: end.max(last.optime),
        ..last.clone()
    };
    if let Some(slots) = &mut status.slots {
        for file in left.iter().filter(|file| file.logical) {
            if let Some(known) = slots.get_mut(&file.name) {
                *known = file.confirmed.max(*known);
            }
        }
        slots.insert(me.slot(), end);
    }
    serde_json::to_string(&status).ok()
}

/// Fast for most of the time there is, immediate for the rest; the last bit belongs to SIGKILL.
fn ladder(left: Duration) -> StopLadder {
    StopLadder {
        smart: Duration::ZERO,
        fast: left * 6 / 10,
        immediate: left * 3 / 10,
    }
}

/// No time for gentleness: immediate for most of it, the last bit belongs to SIGKILL.
pub(super) fn forced(left: Duration) -> StopLadder {
    StopLadder {
        smart: Duration::ZERO,
        fast: Duration::ZERO,
        immediate: left * 6 / 10,
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bounds a step that may hang with its server.
pub(super) async fn bounded<T>(what: &str, limit: Duration, step: impl Future<Output = T>) -> Option<T> {
    let done = timeout(limit, step).await;
    if done.is_err() {
        warn!(what, ?limit, "took too long, going on without it");
    }
    done.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_leaves_time_for_the_last_rung() {
        for left in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(8)] {
            for ladder in [ladder(left), forced(left)] {
                assert!(ladder.fast + ladder.immediate <= left);
            }
        }
    }

    #[test]
    fn the_released_status_carries_the_last_position() {
        let last = StatusKey {
            optime: Lsn(1),
            slots: Some([("a".into(), Lsn(1))].into()),
            retain_slots: None,
        };
        let text = status_at(&last, &"a".into(), Lsn(9), &[]).expect("plain data");
        assert_eq!(text, r#"{"optime":9,"slots":{"a":9}}"#);
        let logical = |name: &str, confirmed: u64| SlotFile {
            name: name.into(),
            logical: true,
            restart: Lsn(1),
            confirmed: Lsn(confirmed),
        };
        let last = StatusKey {
            slots: Some([("l".into(), Lsn(5)), ("m".into(), Lsn(8))].into()),
            ..last
        };
        // Never back, and nothing that was not published before.
        let left = [logical("l", 7), logical("m", 2), logical("x", 7)];
        let text = status_at(&last, &"a".into(), Lsn(9), &left).expect("plain data");
        assert_eq!(text, r#"{"optime":9,"slots":{"a":9,"l":7,"m":8}}"#);
    }
}
