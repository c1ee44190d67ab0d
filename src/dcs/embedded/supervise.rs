//! Keeps one etcd running until told to stop.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Plan, log,
    process::{self, Handle, Process, ProcessError},
    rejoin,
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A run of this length makes earlier crashes forgotten.
const SETTLED: Duration = Duration::from_secs(10);
/// So many quick ends in a row are no accident.
const QUICK_ENDS: u32 = 3;
/// Time for an etcd with outdated flags to end before it is replaced.
const REPLACE_PATIENCE: Duration = Duration::from_secs(5);

/// What is running.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) pid: Option<u32>,
    pub(super) adopted: bool,
    pub(super) killed: bool,
    pub(super) handle: Option<Handle>,
}

impl State {
    fn of(process: &Process, adopted: bool) -> Self {
        Self {
            pid: Some(process.pid),
            adopted,
            killed: false,
            handle: Some(process.handle.clone()),
        }
    }
}

type Stop = watch::Receiver<Option<Duration>>;

pub(super) async fn start(
    plan: Plan,
    stop: Stop,
) -> Result<(watch::Receiver<State>, JoinHandle<()>), ProcessError> {
    process::prepare(&plan.dir)?;
    let (process, adopted) = match Process::find(&plan) {
        Some((process, true)) => {
            tracing::info!(pid = process.pid, "going on with the running etcd");
            (Some(process), true)
        }
        Some((process, false)) => {
            tracing::info!(
                pid = process.pid,
                because = "its flags changed",
                "replacing the running etcd"
            );
            end(process, REPLACE_PATIENCE).await;
            (launch(&plan).await?, false)
        }
        None => (launch(&plan).await?, false),
    };
    let first = process.as_ref();
    let (state, receiver) = watch::channel(first.map(|p| State::of(p, adopted)).unwrap_or_default());
    let task = tokio::spawn(async move {
        let fifo = process::fifo(&plan.dir);
        let (identity, said) = watch::channel(None);
        let log = async {
            let result = log::forward(&fifo, &identity).await;
            // etcd itself goes on, until the FIFO is full: somebody should look.
            tracing::error!(?result, fifo = %fifo.display(), "lost the log of etcd");
            std::future::pending::<()>().await;
        };
        let announced = async {
            rejoin::announce(&plan).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = keep_running(&plan, process, &state, &said, stop) => {}
            () = log => {}
            () = announced => {}
        }
    });
    Ok((receiver, task))
}

/// Starts etcd; `None` if its cluster is not ready for it yet.
async fn launch(plan: &Plan) -> Result<Option<Process>, ProcessError> {
    let more = match rejoin::membership(plan).await {
        Ok(more) => more,
        Err(because) => {
            tracing::info!(because, "etcd waits to be accepted by its peers");
            return Ok(None);
        }
    };
    let process = Process::start(plan, &more)?;
    tracing::info!(pid = process.pid, "started etcd");
    Ok(Some(process))
}

async fn keep_running(
    plan: &Plan,
    mut current: Option<Process>,
    state: &watch::Sender<State>,
    identity: &watch::Receiver<Option<log::Identity>>,
    mut stop: Stop,
) {
    let mut backoff = FIRST_BACKOFF;
    let mut quick_ends = 0;
    loop {
        if let Some(mut process) = current.take() {
            let since = Instant::now();
            tokio::select! {
                // Cancel-safe: a stop request stays in the channel.
                patience = requested(&mut stop) => {
                    let killed = end(process, patience).await;
                    state.send_replace(State { killed, ..State::default() });
                    return;
                }
                how = process.ended() => {
                    state.send_replace(State::default());
                    tracing::warn!(pid = process.pid, because = %how, "etcd ended, starting it again");
                }
            }
            quick_ends += 1;
            if since.elapsed() > SETTLED {
                backoff = FIRST_BACKOFF;
                quick_ends = 0;
            }
        }
        tokio::select! {
            _ = requested(&mut stop) => return,
            () = sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
        let us = *identity.borrow();
        if let (true, Some(us)) = (quick_ends >= QUICK_ENDS, us) {
            quick_ends = 0;
            if let Err(error) = rejoin::put_aside_if_removed(plan, us).await {
                tracing::error!(%error, "cannot join the etcd cluster anew");
            }
        }
        match launch(plan).await {
            Ok(Some(process)) => {
                state.send_replace(State::of(&process, false));
                current = Some(process);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "etcd does not start"),
        }
    }
}

async fn requested(stop: &mut Stop) -> Duration {
    let patience = stop.wait_for(Option::is_some).await.map(|patience| *patience);
    match patience {
        Ok(patience) => patience.unwrap_or_default(),
        // The owner is gone without a word; its drop ends this task.
        Err(_) => std::future::pending().await,
    }
}

/// SIGTERM, then SIGKILL; whether it came to that.
async fn end(mut process: Process, patience: Duration) -> bool {
    process.handle.terminate();
    if let Ok(how) = timeout(patience, process.ended()).await {
        tracing::info!(pid = process.pid, because = %how, "stopped etcd");
        return false;
    }
    tracing::warn!(pid = process.pid, ?patience, "etcd ignored SIGTERM, killing it");
    process.handle.kill();
    // Only a process stuck in the kernel survives this; nobody can wait for that.
    let _ = timeout(REPLACE_PATIENCE, process.ended()).await;
    true
}
