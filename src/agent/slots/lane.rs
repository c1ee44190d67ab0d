//! Work on slots beside the loop: at most one batch per lane, each statement with a limit of its own.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | batch | changes of one turn | [`Report`] | its last step, its token, or the agent's end |

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::super::instance::{Instance, chain};
use crate::{
    ha::{
        Upstream,
        slots::{Change, LeaderSlots, Op},
    },
    model::SlotKind,
    postgres::query::QueryError,
};

/// A logical slot begins where all transactions of that moment have ended.
const CREATE_LOGICAL: Duration = Duration::from_secs(30);
/// Moving a logical slot reads all the WAL in between.
const ADVANCE_LOGICAL: Duration = Duration::from_secs(20);
/// One question to the leader.
const ASK_LEADER: Duration = Duration::from_secs(2);

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Slot and error of what could not be done.
    failed: Vec<(String, String)>,
    /// Logical slots that cannot be moved any more: to be copied again.
    pub(super) unusable: Vec<String>,
    /// What the leader said.
    pub(super) leader: Option<LeaderSlots>,
}

/// One batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) instance: Arc<Instance>,
    pub(super) changes: Vec<Change>,
    /// To be asked what it protects for us.
    pub(super) leader: Option<Upstream>,
}

/// At most one batch at a time.
#[derive(Debug, Default)]
pub(super) struct Lane {
    running: Option<Running>,
    /// Failures as last logged: what fails with every turn is said once.
    said: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Running {
    task: JoinHandle<Report>,
    cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lane {
    pub(super) const fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Begins a batch; one that has nothing to do is none.
    pub(super) fn begin(&mut self, batch: Batch) {
        if !self.is_idle() || (batch.changes.is_empty() && batch.leader.is_none()) {
            return;
        }
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run(batch, cancel.clone()));
        self.running = Some(Running { task, cancel });
    }

    /// The end of a batch, if it has come. Does not wait.
    pub(super) async fn collect(&mut self) -> Option<Report> {
        if !self.running.as_ref()?.task.is_finished() {
            return None;
        }
        let mut running = self.running.take()?;
        // A panic has been reported where it happened; the next turn tries again.
        let report = (&mut running.task).await.ok()?;
        self.say(&report);
        Some(report)
    }

    /// Nothing further is begun by the running batch.
    pub(super) fn cancel(&self) {
        if let Some(running) = &self.running {
            running.cancel.cancel();
        }
    }

    fn say(&mut self, report: &Report) {
        let failed: BTreeMap<String, String> = report.failed.iter().cloned().collect();
        for (slot, error) in &failed {
            if self.said.get(slot) != Some(error) {
                warn!(slot, error, "could not tend a replication slot, trying again");
            }
        }
        self.said = failed;
    }
}

async fn run(batch: Batch, cancel: CancellationToken) -> Report {
    let mut report = Report::default();
    for change in &batch.changes {
        if cancel.is_cancelled() {
            return report;
        }
        let Err(error) = one(&batch.instance, change).await else {
            continue;
        };
        if is_unusable(change, &error) {
            report.unusable.push(change.slot.clone());
        }
        // Whatever has to wait for a server that does not answer waits for the next turn.
        let silent = matches!(
            error,
            QueryError::ConnectFailed { .. } | QueryError::NotAccepting { .. }
        );
        report.failed.push((change.slot.clone(), chain(&error)));
        if silent {
            return report;
        }
    }
    if let Some(leader) = &batch.leader {
        match batch.instance.leader_slots(leader, ASK_LEADER).await {
            Ok(answer) => report.leader = Some(answer),
            Err(error) => debug!(error, "could not ask the leader for its slots"),
        }
    }
    report
}

/// The WAL or the rows the slot needs are gone here: 58P01 undefined file, 55000 object not in prerequisite state.
fn is_unusable(change: &Change, error: &QueryError) -> bool {
    matches!(
        change.op,
        Op::Advance {
            database: Some(_),
            ..
        }
    ) && matches!(error.code(), Some("58P01" | "55000"))
}

async fn one(instance: &Instance, change: &Change) -> Result<(), QueryError> {
    let Change { slot, op, because } = change;
    match op {
        Op::Create(SlotKind::Physical) => {
            if instance.create_slot(slot).await? {
                info!(slot, because, "created a physical replication slot");
            }
        }
        Op::Create(SlotKind::Logical { database, plugin }) => {
            instance
                .create_logical_slot(slot, database, plugin, CREATE_LOGICAL)
                .await?;
            info!(
                slot,
                database, plugin, because, "created a logical replication slot"
            );
        }
        Op::Drop => {
            if instance.drop_slot(slot).await? {
                info!(slot, because, "dropped a replication slot");
            }
        }
        Op::Advance { database: None, to } => {
            instance.advance_slot(slot, *to).await?;
            debug!(slot, %to, because, "moved a physical replication slot forward");
        }
        Op::Advance {
            database: Some(database),
            to,
        } => {
            instance
                .advance_logical_slot(slot, database, *to, ADVANCE_LOGICAL)
                .await?;
            debug!(slot, %to, because, "moved a logical replication slot forward");
        }
        // A job, begun by the decision.
        Op::Copy { .. } => {}
    }
    Ok(())
}
