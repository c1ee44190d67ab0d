//! The long work itself: each job is one function over the local instance and the lock. It runs in the job slot and
//! honours its cancellation token; what it decides nothing about was decided in `ha`.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    instance::{Instance, Progress},
    job::Outcome,
    lease::Lease,
};
use crate::{
    clock::Boottime,
    dcs::{Dcs, DcsError, Key, When, Written},
    ha::{self, DemoteMode, Job, StartAs},
    model::{Dynamic, HistoryRow, Lsn, MemberName, StatusKey},
    postgres::postmaster::{StopLadder, StopMode},
};

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
    /// Slots the other members will stream from once we lead.
    pub(super) slots: Vec<String>,
    /// Our name.
    pub(super) me: MemberName,
    /// For people who watch.
    pub(super) progress: watch::Sender<Option<Progress>>,
}

/// Replicas may replay for a long time before they accept connections; the primary's patience is configured.
const REPLICA_START_LIMIT: Duration = Duration::from_secs(3600);
/// A promotion that takes longer than this has failed.
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);

/// Reading the new timeline after a promotion.
const HISTORY_LIMIT: Duration = Duration::from_secs(2);

/// Runs one job to its end.
pub(super) async fn run(job: Job, context: Context, cancel: CancellationToken) -> Outcome {
    match job {
        Job::Bootstrap => bootstrap(&context, &cancel).await,
        Job::Clone(from) => {
            stop_for_repair(&context).await?;
            context
                .instance
                .copy_from(&from, &context.dynamic, &context.progress, &cancel)
                .await
        }
        Job::Rewind(to) => {
            stop_for_repair(&context).await?;
            context.instance.rewind(&to, &context.dynamic, &cancel).await
        }
        Job::Start(start_as) => start(&context, &start_as, &cancel).await,
        Job::Restart => restart(&context, &cancel).await,
        Job::Promote => promote(&context, &cancel).await,
        Job::Demote { mode, deadline } => demote(&context, mode, deadline).await,
    }
}

/// A new cluster: data, roles and scripts first, then the identity goes into the store. The lock is taken by the next
/// turn, as after any other stop: until then postgres was reachable through its Unix socket only.
async fn bootstrap(context: &Context, cancel: &CancellationToken) -> Outcome {
    let made = context
        .instance
        .bootstrap(&context.dynamic, &context.progress, cancel)
        .await;
    let id = match made {
        Ok(id) => id,
        Err(error) => {
            if let Err(error) = context.dcs.delete(Key::Initialize, When::Always).await {
                warn!(%error, "could not remove the claim to bootstrap, others will wait for ttl");
            }
            return Err(error);
        }
    };
    let config = serde_json::Value::Object(context.dynamic.raw.clone()).to_string();
    let writes = [
        (Key::Initialize, id.0.as_str(), When::Always),
        (Key::Config, config.as_str(), When::Absent),
    ];
    for (key, value, when) in writes {
        match context.dcs.write(key, value, when).await {
            Ok(Written::Yes(_)) => {}
            Ok(Written::Refused) => info!(key = key.path(), "is there already, keeping it"),
            // The leader writes what is missing as one of its duties.
            Err(error) => warn!(key = key.path(), %error, "could not be written yet"),
        }
    }
    info!(system_id = %id, "initialized a new cluster");
    Ok(())
}

/// Before the directory is worked on.
async fn stop_for_repair(context: &Context) -> Outcome {
    let ladder = StopLadder {
        smart: Duration::ZERO,
        fast: Duration::from_secs(10),
        immediate: Duration::from_secs(5),
    };
    context.instance.stop(StopMode::Fast, ladder).await.map(drop)
}

async fn start(context: &Context, start_as: &StartAs, cancel: &CancellationToken) -> Outcome {
    let limit = match start_as {
        StartAs::Primary => context.dynamic.primary_start_timeout.max(Duration::from_secs(1)),
        StartAs::Replica(_) => REPLICA_START_LIMIT,
    };
    context
        .instance
        .start(start_as, &context.dynamic, limit, cancel)
        .await
}

async fn restart(context: &Context, cancel: &CancellationToken) -> Outcome {
    let start_as = context.instance.begin_restart().await;
    if start_as == StartAs::Primary {
        context.instance.checkpoint(Duration::from_secs(10)).await;
    }
    let bound = context.dynamic.primary_stop_timeout.max(Duration::from_secs(30));
    let ladder = StopLadder {
        smart: Duration::ZERO,
        fast: bound,
        immediate: Duration::from_secs(5),
    };
    context.instance.stop(StopMode::Fast, ladder).await?;
    start(context, &start_as, cancel).await
}

async fn promote(context: &Context, cancel: &CancellationToken) -> Outcome {
    let Some(hold) = context.lease.hold() else {
        return Err("the lock is not held".to_owned());
    };
    // The last look before the point of no return, on the same clock as the fence.
    if Boottime::now() >= ha::lease::deadlines(&hold).demote_at {
        return Err("the lease is about to run out".to_owned());
    }
    context.instance.reserve_timelines(&context.history)?;
    // The others follow as soon as they see the lock taken; a slot that is not there yet would cost them a retry.
    for slot in &context.slots {
        if let Err(error) = context.instance.create_slot(slot).await {
            warn!(
                slot,
                error, "could not create the replication slot of a member yet"
            );
        }
    }
    let phases = context.instance.promote(PROMOTE_LIMIT, cancel).await?;
    // At once and before anybody is told: a leader that dies now must not be forgotten by a cold start later.
    write_history(context).await;
    info!(
        from = "replica",
        to = "primary",
        because = "promoted while holding the lock",
        phases,
        "role changed"
    );
    Ok(())
}

async fn write_history(context: &Context) {
    let timeline = match context.instance.monitor().observe(HISTORY_LIMIT).await {
        Ok(view) => view.timeline(),
        Err(error) => {
            warn!(%error, "could not read the new timeline, /history follows with the next turn");
            return;
        }
    };
    let (local, started) = context.instance.history(timeline);
    let max_rows = context.dynamic.max_timelines_history;
    let stored = context.history.as_deref();
    let Some(rows) = ha::history::update(stored, &local, timeline, &context.me, &started, max_rows) else {
        return;
    };
    if let Err(error) = store_history(&*context.dcs, &rows).await {
        warn!(%error, "could not write /history, it follows with the next turn");
    }
}

/// Writes the rows of `/history`.
pub(super) async fn store_history(dcs: &dyn Dcs, rows: &[HistoryRow]) -> Result<(), DcsError> {
    let text = serde_json::Value::Array(rows.iter().map(HistoryRow::to_json).collect()).to_string();
    dcs.write(Key::History, &text, When::Always).await.map(drop)
}

async fn demote(context: &Context, mode: DemoteMode, deadline: Boottime) -> Outcome {
    let begun = Boottime::now();
    if mode == DemoteMode::Graceful {
        // A short checkpoint now makes the one of the shutdown short; clients go on meanwhile.
        context.instance.checkpoint(deadline.since(begun) / 2).await;
    }
    let checkpoint_done = Boottime::now();
    let left = deadline.since(checkpoint_done);
    let stop_mode = match mode {
        DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Offline => StopMode::Fast,
        DemoteMode::Immediate | DemoteMode::ImmediateNoLock => StopMode::Immediate,
    };
    let stopped = context.instance.stop(stop_mode, ladder(left)).await?;
    let stop_done = Boottime::now();
    match mode {
        DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate => release(context).await,
        // The lock is another's or will expire; ours is not to touch it.
        DemoteMode::ImmediateNoLock | DemoteMode::Offline => context.lease.forget(),
    }
    info!(
        from = "running",
        to = "stopped",
        ended_by = stopped,
        checkpoint_ms = ms(checkpoint_done.since(begun)),
        stop_ms = ms(stop_done.since(checkpoint_done)),
        release_ms = ms(Boottime::now().since(stop_done)),
        "postgres stopped"
    );
    Ok(())
}

/// Only called once postgres is down.
async fn release(context: &Context) {
    let end = context.instance.clean_end().await;
    let text = end.and_then(|end| status_at(&context.status, &context.me, end));
    if context.lease.hold().is_none() {
        context.lease.forget();
        return;
    }
    if let Err(error) = context.lease.release(text.as_deref()).await {
        warn!(%error, "could not release the lock, it will expire by itself");
    }
}

fn status_at(last: &StatusKey, me: &MemberName, end: Lsn) -> Option<String> {
    let mut status = StatusKey {
        optime: end,
        ..last.clone()
    };
    if let Some(slots) = &mut status.slots {
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
            let ladder = ladder(left);
            assert!(ladder.fast + ladder.immediate <= left);
        }
    }

    #[test]
    fn the_released_status_carries_the_last_position() {
        let last = StatusKey {
            optime: Lsn(1),
            slots: Some([("a".into(), Lsn(1))].into()),
            retain_slots: None,
        };
        let text = status_at(&last, &"a".into(), Lsn(9)).expect("plain data");
        assert_eq!(text, r#"{"optime":9,"slots":{"a":9}}"#);
    }
}
