//! The single slot for long work: clone, rewind, start, stop, promote. The loop goes on while it runs.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    clock::Boottime,
    ha::{Failure, Finished, Job, RunningJob},
};

/// What a job says at its end.
pub(super) type Outcome = Result<(), Failure>;

/// At most one job.
#[derive(Debug, Default)]
pub(super) struct JobSlot {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    job: Job,
    since: Boottime,
    handle: JoinHandle<Outcome>,
    cancel: CancellationToken,
}

impl JobSlot {
    /// Begins a job. The future gets a token it has to honour within seconds.
    /// Returns whether it was begun; a busy slot refuses.
    pub(super) fn begin<F>(
        &mut self,
        job: Job,
        now: Boottime,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> bool
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        if self.running.is_some() {
            return false;
        }
        info!(job = job.name(), "begins");
        let cancel = CancellationToken::new();
        let handle = tokio::spawn(run(cancel.clone()));
        self.running = Some(Running {
            job,
            since: now,
            handle,
            cancel,
        });
        true
    }

    /// What runs.
    #[must_use]
    pub(super) fn view(&self) -> Option<RunningJob> {
        self.running.as_ref().map(|running| RunningJob {
            job: running.job.clone(),
            since: running.since,
        })
    }

    /// Asks the running job to end.
    pub(super) fn cancel(&self) {
        if let Some(running) = &self.running {
            running.cancel.cancel();
        }
    }

    /// Waits for the end of the running job; for ever if there is none. Cancel-safe: the slot keeps the job until
    /// this returns its end.
    pub(super) async fn finished(&mut self) -> Finished {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let outcome = match (&mut running.handle).await {
            Ok(outcome) => outcome,
            Err(failure) if failure.is_panic() => {
                error!(job = running.job.name(), "panicked");
                Err(Failure::Failed("it panicked, this is a bug".to_owned()))
            }
            Err(_) => Err(Failure::Failed("it was aborted".to_owned())),
        };
        let job = running.job.clone();
        let seconds = Boottime::now().since(running.since).as_secs_f32();
        self.running = None;
        match &outcome {
            Ok(()) => info!(job = job.name(), seconds, "done"),
            Err(Failure::Cancelled(reason)) => info!(job = job.name(), seconds, reason, "called off"),
            Err(reason) => warn!(job = job.name(), seconds, %reason, "failed"),
        }
        Finished { job, outcome }
    }
}
