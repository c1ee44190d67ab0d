//! Promotion of a standby: `promote` file, SIGUSR1 to the postmaster, then watching it happen over an open connection
//! (PostgreSQL: `CheckPromoteSignal` in `xlogrecovery.c`; the same that `pg_ctl promote` does, without its polling).
//! Not here: whether to promote.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    postmaster::{Postmaster, SignalError},
    query::{Monitor, QueryError},
};

/// How often the end of recovery is asked for. One round trip over a Unix socket costs far less than this.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A promotion that happened, with the time each phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// Opening the connection (if it was not open) and asking whether there is anything to promote.
    pub prepared: Duration,
    /// Writing the request and the signal.
    pub requested: Duration,
    /// From the signal until postgres accepts writes.
    pub recovered: Duration,
    /// It was a primary already; nothing was done.
    pub already: bool,
}

/// Why there is no new primary.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The request file cannot be written.
    #[error("cannot write {}", path.display())]
    Request {
        /// Its path.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The postmaster cannot be signalled.
    #[error("cannot ask the postmaster to promote")]
    Signal(#[source] SignalError),
    /// The server cannot be asked; nothing was requested.
    #[error("cannot ask whether the server is a standby")]
    Ask(#[source] QueryError),
    /// Still in recovery when the time was up. The request stands: it may yet be promoted, so stop it if it must not.
    #[error("still in recovery {waited:?} after the request")]
    Deadline {
        /// How long was waited since the signal.
        waited: Duration,
        /// Last trouble with asking, if any.
        #[source]
        last: Option<QueryError>,
    },
    /// Postgres ended after the request.
    #[error("postgres ended {waited:?} after the request")]
    Ended {
        /// How long was waited since the signal.
        waited: Duration,
    },
    /// Nobody wanted the promotion any more before it was requested.
    #[error("cancelled before the request")]
    Withdrawn,
    /// Nobody wants the promotion any more. The request stands, as with a deadline.
    #[error("cancelled {waited:?} after the request")]
    Cancelled {
        /// How long was waited since the signal.
        waited: Duration,
    },
}

impl PromoteError {
    /// Postgres was asked: it may be promoted at any later moment, even where the request file could be removed again
    /// (its startup process may just have looked).
    #[must_use]
    pub const fn requested(&self) -> bool {
        match self {
            Self::Request { .. } | Self::Signal(_) | Self::Ask(_) | Self::Withdrawn => false,
            Self::Deadline { .. } | Self::Ended { .. } | Self::Cancelled { .. } => true,
        }
    }
}

/// Promotes and waits at most `limit` in all until writes are accepted. A dropped future takes back nothing, and
/// neither does the token: it only ends the waiting.
///
/// # Errors
/// See [`PromoteError`].
pub async fn promote(
    postmaster: &Postmaster,
    monitor: &Monitor,
    limit: Duration,
    cancel: &CancellationToken,
) -> Result<Promotion, PromoteError> {
    let begun = Instant::now();
    let deadline = begun + limit;
    // Cancel-safe: nothing was asked for yet.
    let standby = tokio::select! {
        standby = monitor.in_recovery(limit) => standby.map_err(PromoteError::Ask)?,
        () = cancel.cancelled() => return Err(PromoteError::Withdrawn),
    };
    let prepared = begun.elapsed();
    if !standby {
        return Ok(Promotion {
            prepared,
            requested: Duration::ZERO,
            recovered: Duration::ZERO,
            already: true,
        });
    }
    // The answer may have taken a while: from here on there is no way back.
    if cancel.is_cancelled() {
        return Err(PromoteError::Withdrawn);
    }
    let path = request_path(&postmaster.home().data_dir);
    fs::write(&path, "").map_err(|source| PromoteError::Request {
        path: path.clone(),
        source,
    })?;
    if let Err(error) = postmaster.signal_promote().await {
        remove_stale_request(&postmaster.home().data_dir);
        return Err(PromoteError::Signal(error));
    }
    let requested = begun.elapsed().saturating_sub(prepared);
    let signalled = Instant::now();
    let mut last = None;
    let mut state = postmaster.watch();
    loop {
        let waited = signalled.elapsed();
        if cancel.is_cancelled() {
            return Err(PromoteError::Cancelled { waited });
        }
        if state.borrow_and_update().pid().is_none() {
            return Err(PromoteError::Ended { waited });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PromoteError::Deadline { waited, last });
        }
        // Both arms are cancel-safe: a dropped question costs its connection, the watch keeps what it has seen.
        let answer = tokio::select! {
            answer = monitor.in_recovery(left) => answer,
            () = cancel.cancelled() => continue,
            changed = state.changed() => match changed {
                Ok(()) => continue,
                // The owner of the process is gone, and with it everything that could still be said.
                Err(_) => return Err(PromoteError::Ended { waited: signalled.elapsed() }),
            },
        };
        match answer {
            Ok(false) => {
                return Ok(Promotion {
                    prepared,
                    requested,
                    recovered: signalled.elapsed(),
                    already: false,
                });
            }
            Ok(true) => {}
            Err(error) => last = Some(error),
        }
        sleep(LOOK_EVERY.min(left)).await;
    }
}

/// Removes a request nobody consumed, so that a later start as a standby is not a promotion. PostgreSQL does the
/// same when it starts; a second lock on this door costs nothing.
pub(super) fn remove_stale_request(data_dir: &Path) {
    let path = request_path(data_dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a stale promotion request");
        }
        _ => {}
    }
}

fn request_path(data_dir: &Path) -> PathBuf {
    data_dir.join("promote")
}
