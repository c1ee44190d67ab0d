//! An orderly stop that waits for nobody but a successor, and gives the lock away as soon as that is safe (contract: HA
//! rules §10, common steps).
//!
//! A fast shutdown goes through these states, which pg_control tells (PostgreSQL: `PostmasterStateMachine` in
//! `postmaster.c`, `ShutdownXLOG` and `CreateCheckPoint` in `xlog.c`):
//!
//! | pg_control    | what still runs                               | what it waits for                               |
//! |---------------|-----------------------------------------------|-------------------------------------------------|
//! | in production | backends, then only walsenders, archiver      | the end of the backends, walsenders to stand by |
//! | shutting down | the same; the checkpointer writes             | its own shutdown checkpoint                     |
//! | shut down     | walsenders and archiver                       | receivers to acknowledge, `archive_command`     |
//!
//! Nobody can write once it says "shut down". The checkpointer is told to begin only after the last process that may
//! write WAL has ended (`PM_WAIT_BACKENDS`); walsenders are barred from it before (`WalSndWaitStopping`), and any WAL
//! beside the shutdown checkpoint would be a PANIC. No backend is started any more: a shutdown cannot be taken back
//! (`canAcceptConnections`). The state is on disk only after the record of the checkpoint is. So from there on
//!
//! * the end of everything ever acknowledged is known, and a member that has it can lead although this postmaster lives:
//!   the lock is released while only walsenders and archiver are left;
//! * an immediate stop, SIGKILL and a loss of power are all the same: the directory stays "shut down", needs no crash
//!   recovery, and no rewind if the successor had everything. So what is left is not waited for long.
//!
//! Only a "shut down" that came during this stop counts: a server that starts from a clean directory shows the one of the
//! stop before, and may yet write. An agent that adopts a stopping postmaster cannot tell, so it releases the lock when
//! that has ended. If this agent dies after the release, the next one finds a stopping postmaster and no hold, and ends it.

use std::{pin::pin, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    handover::{self, Phase},
    instance::Instance,
    jobs::{Context, FORCED_STOP, Until, forced, release, stop_by_force},
    stuck_senders::Senders,
};
use crate::{
    client::probe_peers,
    clock::Boottime,
    ha::heirs::{End, Heirs, Progress},
    model::{ControlData, DbState, MemberName, PeerStatus},
    postgres::postmaster::{StopLadder, StopMode, sent_by},
};

/// How often pg_control is looked at; a look reads twenty bytes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Every how many looks the walsenders are looked at too.
const SENDERS_EVERY: u32 = 10;
/// Patience with the server before it is stopped.
const SENDERS_LIMIT: Duration = Duration::from_millis(200);
/// A shutdown that nothing holds up is over within this time of its checkpoint. Asking earlier would only cost.
const MOMENT: Duration = Duration::from_millis(100);
/// Patience with one answer of a member, and the pause before it is asked again.
const ASK_LIMIT: Duration = Duration::from_millis(500);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Nobody has received anything more for this long: what is missing will not come, or not soon.
const STALLED: Duration = Duration::from_secs(2);
/// What receivers that need not be waited for have to take the rest in, all the same.
const RECEIVERS: Duration = Duration::from_secs(1);
/// What the archiver has for one file where nobody waits for this server any more: as a replica it archives nothing, and
/// its successor does not archive what this one wrote.
const ARCHIVER: Duration = Duration::from_secs(10);

/// What becomes of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Somebody else is to lead.
    GivenAway,
    /// Postgres is started again under it.
    Kept,
    /// It is not ours to touch, and there is no time.
    Untouched,
}

/// A stop that ended.
#[derive(Debug)]
pub(super) struct Stopped {
    /// What ended postgres, for the log.
    pub(super) ended_by: String,
    /// When the lock was released, if that was before the end.
    pub(super) released: Option<Boottime>,
    /// Until then.
    pub(super) phases: Vec<Phase>,
}

impl Stopped {
    /// With the lock as it was.
    pub(super) const fn by(ended_by: String) -> Self {
        Self {
            ended_by,
            released: None,
            phases: Vec::new(),
        }
    }
}

/// Fast shutdown; the ladder bounds it whatever happens. When the time is over on the way, by force and before init
/// has to.
pub(super) async fn stop(
    context: &Context,
    ladder: StopLadder,
    until: &Until<'_>,
    lock: Lock,
) -> Result<Stopped, String> {
    let instance = &*context.instance;
    // Before anything is asked of postgres: see above.
    let before = instance.peek();
    let senders = match lock {
        Lock::GivenAway | Lock::Kept => senders(context).await,
        Lock::Untouched => Senders::default(),
    };
    let begun = Boottime::now();
    let mut stopping = pin!(instance.stop(StopMode::Fast, ladder));
    // Cancel-safe, here and below: the owner of the process goes on with a stop nobody waits for, everything else looks.
    let control = tokio::select! {
        biased;
        ended = &mut stopping => return Ok(Stopped::by(ended?)),
        because = until.over() => return by_force(context, because).await,
        control = shut_down(instance, before, senders) => control,
    };
    let shut_down = Boottime::now().since(begun);
    let shut_down_ms = shut_down.as_millis();
    let gives = lock == Lock::GivenAway && control.state == DbState::ShutDown && context.lease.may_be_ours();
    let mut rest = Rest::of(gives);
    let mut released = None;
    let mut phases = Vec::new();
    if gives && !context.heirs.0.is_empty() {
        let heir = tokio::select! {
            biased;
            ended = &mut stopping => return Ok(Stopped::by(ended?)),
            because = until.over() => return by_force(context, because).await,
            heir = heir(context, &control) => heir,
        };
        match heir {
            Some(heir) => {
                let received = Boottime::now().since(begun);
                // Not in a select: a release that has begun is seen to its end.
                release(context).await;
                released = Some(Boottime::now());
                phases = vec![
                    (handover::SHUT_DOWN, shut_down),
                    (handover::RECEIVED, received.saturating_sub(shut_down)),
                    (
                        handover::RELEASED,
                        Boottime::now().since(begun).saturating_sub(received),
                    ),
                ];
                // Otherwise it is left to expire, as was said.
                if !context.lease.left_to_expire() {
                    info!(
                        from = "holding the lock",
                        to = "not holding it",
                        because = format!("postgres is shut down and '{heir}' has everything it wrote"),
                        shut_down_ms,
                        released_ms = Boottime::now().since(begun).as_millis(),
                        "released the leader lock before the end of postgres"
                    );
                }
            }
            // The cluster waits for the lock.
            None => rest = Rest::Nothing,
        }
    }
    // The lease has done its part: what is left cannot write.
    let until = Until {
        lease: None,
        cancel: until.cancel,
    };
    let because = tokio::select! {
        biased;
        ended = &mut stopping => return Ok(Stopped { ended_by: ended?, released, phases }),
        because = until.over() => because,
        because = rest.over(instance) => because,
    };
    let unarchived = instance.unarchived();
    info!(
        because,
        unarchived, "postgres is shut down but does not end, ending what is left of it"
    );
    if unarchived > 0 && gives {
        warn!(
            files = unarchived,
            "WAL was not archived before the end of this primary: archive_command is too slow or hangs. It is kept in \
             pg_wal as long as this server stays as it is; as a replica PostgreSQL does not archive it"
        );
    }
    // Joins the stop under way, which goes on being waited for.
    drop(
        instance
            .postmaster()
            .begin_stop(StopMode::Immediate, forced(FORCED_STOP)),
    );
    let ended_by = stopping.await?;
    Ok(Stopped {
        ended_by,
        released,
        phases,
    })
}

async fn by_force(context: &Context, because: &str) -> Result<Stopped, String> {
    warn!(because, "stopping postgres by force");
    stop_by_force(context).await.map(Stopped::by)
}

/// The walsenders before the stop. Without an answer there is nothing to compare them with later.
async fn senders(context: &Context) -> Senders {
    let Heirs(heirs) = &context.heirs;
    match context.instance.monitor().observe(SENDERS_LIMIT).await {
        Ok(view) => Senders::of(&view, heirs, Boottime::now()),
        Err(error) => {
            debug!(%error, "cannot look at the walsenders before the stop");
            Senders::default()
        }
    }
}

/// Resolves once pg_control says that the server which runs now has shut down; never, if it said so before. Meanwhile
/// it ends walsenders that hold the shutdown up.
async fn shut_down(instance: &Instance, before: Option<DbState>, mut senders: Senders) -> ControlData {
    if before.is_none_or(DbState::is_clean) {
        return std::future::pending().await;
    }
    let mut looks = 0_u32;
    loop {
        sleep(LOOK_EVERY).await;
        match instance.peek() {
            Some(state) if state.is_clean() => match instance.control().await {
                Ok(control) if control.state.is_clean() => return control,
                Ok(control) => debug!(state = ?control.state, "pg_control was seen while it was written"),
                Err(error) => debug!(error, "cannot read pg_control"),
            },
            // Later they hold nothing up any more.
            Some(DbState::InProduction) => {
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(SENDERS_EVERY) {
                    end_stuck(instance, &mut senders).await;
                }
            }
            _ => {}
        }
    }
}

/// Asked again with every look, until it is gone: the first request may end in an attempt to tell the receiver about
/// it, which waits like everything else; the second breaks that off (PostgreSQL: `ProcessClientWriteInterrupt`).
async fn end_stuck(instance: &Instance, senders: &mut Senders) {
    for pid in senders.stuck(sent_by, Boottime::now()) {
        info!(
            pid,
            "a walsender cannot get rid of its data and holds up the shutdown, ending it"
        );
        if let Err(error) = instance.postmaster().end_sender(pid).await {
            debug!(%error, pid, "cannot end a walsender");
        }
    }
}

/// A member that has everything and may lead. `None`: nobody has it, and nobody is on the way to it.
async fn heir(context: &Context, control: &ControlData) -> Option<MemberName> {
    let Heirs(heirs) = &context.heirs;
    let (lsn, ()) = tokio::join!(context.instance.checkpoint_end(control), sleep(MOMENT));
    let end = End {
        timeline: control.timeline,
        // Without the end of the record nobody can prove to have it.
        lsn: lsn?,
    };
    let ask = async |heir, pause| {
        sleep(pause).await;
        let answers = probe_peers(&context.http, std::slice::from_ref(heir), ASK_LIMIT).await;
        let answer: Option<PeerStatus> = answers.into_values().flatten().next();
        (heir, answer)
    };
    // Each on its own: one that does not answer delays nobody.
    let mut asked: FuturesUnordered<_> = heirs.iter().map(|heir| ask(heir, Duration::ZERO)).collect();
    let mut progress = Progress::new(end, Boottime::now());
    loop {
        let left = (progress.stalled_since() + STALLED).since(Boottime::now());
        let Ok(Some((heir, answer))) = timeout(left, asked.next()).await else {
            warn!(
                because = progress.because(),
                end = %end.lsn,
                "nobody has everything that was written here; the lock is released once postgres is down"
            );
            return None;
        };
        let (name, _) = heir;
        if progress.hear(name, answer.as_ref(), Boottime::now()) {
            return Some(name.clone());
        }
        asked.push(ask(heir, ASK_EVERY));
    }
}

/// What is still waited for once nothing more can be written.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// Receivers, and the archiver as long as it gets something done.
    Archiver,
    /// Receivers. The archiver goes on after the next start.
    Receivers,
    /// Nothing.
    Nothing,
}

impl Rest {
    const fn of(gives_the_lock_away: bool) -> Self {
        if gives_the_lock_away {
            Self::Archiver
        } else {
            Self::Receivers
        }
    }

    /// Resolves with why it is over.
    async fn over(self, instance: &Instance) -> &'static str {
        match self {
            Self::Nothing => return "nothing that is left is worth waiting for",
            Self::Receivers => sleep(RECEIVERS).await,
            Self::Archiver => {
                sleep(RECEIVERS).await;
                let mut left = instance.unarchived();
                let mut since = Boottime::now();
                while left > 0 {
                    if Boottime::now().since(since) >= ARCHIVER {
                        return "archive_command does not get a file done";
                    }
                    sleep(LOOK_EVERY).await;
                    let now = instance.unarchived();
                    if now < left {
                        (left, since) = (now, Boottime::now());
                    }
                }
            }
        }
        "receivers do not acknowledge the end"
    }
}
