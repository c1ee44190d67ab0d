//! From replica to primary, and what has to be true before and after.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    super::{
        handover::{self, Handover, Side},
        instance::{PromoteFailed, chain},
        job::Outcome,
    },
    Context, Until, bounded, may_lead, stop_by_force,
};
use crate::{
    dcs::{Dcs, DcsError, Key, When},
    ha,
    model::{HistoryRow, Lsn},
};

/// Logical slots at the moment of a promotion.
#[derive(Debug, Default)]
pub(in crate::agent) struct FinalAdvance {
    /// Slot, database, and how far its consumer had come on the last leader.
    pub(in crate::agent) slots: Vec<(String, String, Lsn)>,
    /// Those that may need rows which are gone.
    pub(in crate::agent) unready: Vec<String>,
}

/// How long a promotion may be held up for the sake of logical slots, all of them.
const FINAL_ADVANCE_LIMIT: Duration = Duration::from_secs(1);

/// A promotion has as long as the lease is renewed and a start of a primary may take, within these bounds: all the WAL
/// received has to be replayed first, and giving up would leave a request behind that cannot be taken back.
const PROMOTE_LEAST: Duration = Duration::from_secs(60);

const PROMOTE_MOST: Duration = Duration::from_secs(3600);

/// Reading the new timeline after a promotion.
const HISTORY_LIMIT: Duration = Duration::from_secs(2);

pub(super) async fn promote(context: &Context, cancel: &CancellationToken) -> Outcome {
    may_lead(context, cancel)?;
    context.instance.reserve_timelines(&context.history)?;
    // The others follow as soon as they see the lock taken; a slot that is not there yet would cost them a retry.
    for slot in &context.slots {
        if let Err(error) = context.instance.create_slot(slot).await {
            warn!(
                slot,
                error = chain(&error),
                "could not create the replication slot of a member yet"
            );
        }
    }
    advance_logical_slots(context).await;
    may_lead(context, cancel)?;
    let limit = context
        .dynamic
        .primary_start_timeout
        .clamp(PROMOTE_LEAST, PROMOTE_MOST);
    let until = Until::of(context, cancel);
    let wanted = cancel.child_token();
    let mut promotion = std::pin::pin!(context.instance.promote(limit, &wanted));
    // The lease comes first: it is looked at before every step, also before the request itself.
    let promoted = tokio::select! {
        biased;
        because = until.over() => {
            info!(because, "the promotion is not wanted any more");
            wanted.cancel();
            promotion.await
        }
        promoted = &mut promotion => promoted,
    };
    let phases = match promoted {
        Ok(phases) if context.lease.counts() => phases,
        Ok(_) => {
            let error = "promoted too late, the lock is lost".to_owned();
            return Err(stopped_after(context, error).await.into());
        }
        Err(PromoteFailed::NotRequested(error)) => return Err(error),
        // It could become primary at any moment, whoever leads by then.
        Err(PromoteFailed::Requested(error)) => return Err(stopped_after(context, error).await.into()),
    };
    // At once and before anybody is told: a leader that dies now must not be forgotten by a cold start later.
    write_history(context).await;
    info!(
        from = "replica",
        to = "primary",
        because = "promoted while holding the lock",
        asked_ms = phases.prepared.as_millis(),
        requested_ms = phases.requested.as_millis(),
        recovered_ms = phases.recovered.as_millis(),
        "role changed"
    );
    // The whole of it is known when the loop hears of it.
    let promotion = vec![
        (handover::ASKED, phases.prepared),
        (handover::REQUESTED, phases.requested),
        (handover::PROMOTED, phases.recovered),
    ];
    context
        .instance
        .note_handover(Handover::now(Side::Took, promotion));
    Ok(())
}

/// What consumers had confirmed on the last leader they need not get again. After a planned hand-over `/status` has the
/// very last of it.
async fn advance_logical_slots(context: &Context) {
    for slot in &context.final_advance.unready {
        warn!(
            slot,
            "this logical slot may need catalog rows that are gone: decoding can fail after this promotion"
        );
    }
    let slots = &context.final_advance.slots;
    if slots.is_empty() {
        return;
    }
    let advance = async {
        for (slot, database, to) in slots {
            let limit = FINAL_ADVANCE_LIMIT;
            let done = context
                .instance
                .advance_logical_slot(slot, database, *to, limit)
                .await;
            if let Err(error) = done {
                warn!(
                    slot,
                    error = chain(&error),
                    "its consumer will see some changes again"
                );
            }
        }
    };
    bounded(
        "moving logical slots before the promotion",
        FINAL_ADVANCE_LIMIT,
        advance,
    )
    .await;
}

/// Stops a postgres that is or may become a primary without the right to be one; returns what to say.
async fn stopped_after(context: &Context, error: String) -> String {
    warn!(error, "the promotion failed, stopping postgres by force");
    match stop_by_force(context).await {
        Ok(_) => error,
        Err(stop) => format!("{error}; and postgres could not be stopped: {stop}"),
    }
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
pub(in crate::agent) async fn store_history(dcs: &dyn Dcs, rows: &[HistoryRow]) -> Result<(), DcsError> {
    let text = serde_json::Value::Array(rows.iter().map(HistoryRow::to_json).collect()).to_string();
    dcs.write(Key::History, &text, When::Always).await.map(drop)
}
