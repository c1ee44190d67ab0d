//! The shell around the decision: one task that turns the crank. It observes, asks `ha::decide`, and has the answer
//! carried out. Nothing is decided here.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | loop ([`Agent::run`]) | signals, job ends, lock losses, postmaster states, DCS changes, requests, time | plans carried out, snapshots | a plan that says exit |
//! | lease keeper ([`lease::Lease::keep`]) | hold, decision to keep | renewals, fence deadlines | the loop's end |
//! | job ([`job`]) | one plan's job | its outcome | itself, or its token |
//! | slots ([`slots`]) | changes of one turn | what failed | its last step, or the next job |
//!
//! An event only ever wakes the loop; what it means is seen by looking. So a lost event costs at most `loop_wait`.

pub(crate) mod canvass;
mod duties;
mod execute;
pub mod handle;
pub mod handover;
pub mod instance;
mod job;
mod jobs;
mod keep_dynamic;
pub mod lease;
mod leaving;
pub mod member_tls;
mod namesake;
mod observe;
mod orderly_stop;
mod publish;
mod reconfigure;
mod reload;
mod requests;
mod second_primary;
mod seen;
pub mod signals;
mod slots;
pub mod start;
mod stores;
mod stuck_senders;
mod sync;
mod voter;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    client::Client,
    clock::Boottime,
    config::{Address, Config, Loaded, bracketed},
    dcs::Dcs,
    exit::Exit,
    guard::Guard,
    ha::{self, DcsView, Finished, Job, Local, Memory, Plan, Shutdown, View},
    metrics::{Metrics, Takeover},
    model::{Cluster, Dynamic, MemberName, PgState, Role, SystemId, Tags, Version},
    postgres::{postmaster::State, query::LocalView},
    watchdog::Watchdog,
};
use handle::{Request, RestartOutcome, ScheduledRestart, Snapshot};
use handover::Side;
use instance::{Instance, Progress};
use job::JobSlot;
use lease::Lease;
pub use namesake::Namesake;
pub use reload::Reread;

/// Rounds of questions one turn may take.
const ROUNDS: usize = 4;
/// While the DCS does not answer, it is asked again this often at least.
const DCS_RETRY: Duration = Duration::from_millis(500);
/// Next look after something was refused.
const REFUSED_AGAIN: Duration = Duration::from_millis(100);
/// How often a line about waiting is repeated.
const REPEAT: Duration = Duration::from_secs(10);

/// Who this member is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub member: MemberName,
    /// The cluster's name.
    pub scope: String,
    /// Its tags.
    pub tags: Tags,
    /// `postgres://host:port/database`.
    pub conn_url: String,
    /// `http://host:port/patroni`, `https` with TLS.
    pub api_url: String,
    /// Address of a pooler.
    pub proxy_url: Option<String>,
}

impl Identity {
    /// As the configuration has it.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let at = |address: &Address| format!("{}:{}", bracketed(&address.host), address.port);
        let postgresql = &config.postgresql;
        let url = |address: &Address| format!("postgres://{}/{}", at(address), postgresql.database);
        Self {
            member: config.name.clone(),
            scope: config.scope.clone(),
            tags: config.tags.clone(),
            conn_url: url(&postgresql.connect_address),
            api_url: format!(
                "{}://{}/patroni",
                config.restapi.scheme(),
                at(&config.restapi.connect_address)
            ),
            proxy_url: postgresql.proxy_address.as_ref().map(url),
        }
    }
}

/// One look at the local postgres.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    at: Boottime,
    local: Local,
    answer: Option<LocalView>,
    postmaster: State,
}

/// The last good read of the store.
#[derive(Debug, Clone)]
struct Seen {
    cluster: Arc<Cluster>,
    /// When it was asked for.
    asked_at: Boottime,
    at: Boottime,
    epoch_s: u64,
}

/// What follows from a plan.
enum Step {
    DecideAgain,
    LookAgain,
    Wait,
    Exit(Exit),
}

/// Everything an agent is made of.
#[derive(Debug)]
pub struct Parts {
    /// Who we are.
    pub identity: Identity,
    /// Dynamic configuration until the store has one.
    pub initial: Dynamic,
    /// The store.
    pub dcs: Arc<dyn Dcs>,
    /// The lock.
    pub lease: Arc<Lease>,
    /// The local postgres.
    pub instance: Arc<Instance>,
    /// For asking other members.
    pub http: Client,
    /// What others may ask of us.
    pub requests: mpsc::Receiver<Request>,
    /// Where snapshots go.
    pub published: watch::Sender<Arc<Snapshot>>,
    /// The configuration this process was started with.
    pub started: Loaded,
    /// Reads the configuration again.
    pub reread: Reread,
    /// Init, to be told when we stop.
    pub guard: Arc<Guard>,
    /// Whether another process may run under our name.
    pub namesake: Namesake,
    /// The watchdog device.
    pub watchdog: Arc<Watchdog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Requests of others, in the order they came.
#[derive(Debug)]
struct Inbox {
    channel: mpsc::Receiver<Request>,
    /// Taken out of the channel in the middle of a turn, to be dealt with after it.
    waiting: VecDeque<Request>,
}

impl Inbox {
    /// Cancel-safe: a request is only taken out to be returned.
    async fn next(&mut self) -> Option<Request> {
        match self.waiting.pop_front() {
            Some(request) => Some(request),
            None => self.channel.recv().await,
        }
    }
}

/// The agent's loop and what it remembers between turns.
#[derive(Debug)]
pub struct Agent {
    identity: Identity,
    dcs: Arc<dyn Dcs>,
    lease: Arc<Lease>,
    instance: Arc<Instance>,
    http: Client,
    inbox: Inbox,
    published: watch::Sender<Arc<Snapshot>>,
    started: Loaded,
    reread: Reread,
    guard: Arc<Guard>,
    namesake: Namesake,
    watchdog: Arc<Watchdog>,
    metrics: Arc<Metrics>,
    /// When WAL was last seen to come from a leader.
    last_wal: Option<Boottime>,
    /// The lock has been taken, and the promotion is to come.
    takeover: Option<Takeover>,
    second_primary: second_primary::Watch,
    /// Why the watchdog that is required cannot be used, as far as it was told.
    no_watchdog: Option<String>,
    progress: watch::Sender<Option<Progress>>,
    jobs: JobSlot,
    canvass: canvass::Canvass,
    dynamic: Dynamic,
    config_version: Option<Version>,
    /// Postgres has not been given the present dynamic configuration yet.
    unapplied: bool,
    /// That configuration is new, and the operator's command is to be told.
    reload_due: bool,
    /// Postgres takes a moment to read its files again: until then its answers are looked at more often.
    settling: Option<Boottime>,
    /// What in the cluster's configuration is not used as it was written.
    remarks: Vec<String>,
    /// Settings read while a job ran, which works with those of its begin.
    deferred: Option<instance::Settings>,
    memory: Memory,
    sight: Sight,
    /// When a new connection to postgres was last answered.
    probed: AtomicU64,
    /// Start (`f64` bits of its epoch) of the postmaster that was seen to have replayed all its own WAL.
    replayed_own: AtomicU64,
    last_cluster: Option<Seen>,
    dcs_down_since: Option<Boottime>,
    /// A write of this turn got no answer.
    store_silent: AtomicBool,
    shutdown: Option<Shutdown>,
    /// Cancelled once a fast stop is asked for.
    hurried: CancellationToken,
    /// Why this process ends, if it is not because it was asked to.
    verdict: Option<Exit>,
    finished: Option<Finished>,
    /// Our claim to bootstrap the cluster.
    claim: Option<Version>,
    /// A new copy was asked for (of the leader's data: true); it begins when the job that runs has ended.
    reinit_wanted: Option<bool>,
    /// The copy that begins next is to be made by `pg_basebackup`, whatever the configured ways are.
    basebackup_only: bool,
    slots: slots::Slots,
    system_id: Option<SystemId>,
    pending_restart: Map<String, Value>,
    scheduled_restart: Option<ScheduledRestart>,
    /// The last record written for standbys to confirm.
    sync_mark: Option<ha::sync::Mark>,
    /// A write of `/sync`, perhaps our predecessor's, may still take place.
    sync_unsure: bool,
    restart_replies: Vec<oneshot::Sender<RestartOutcome>>,
    touched: Option<(crate::model::MemberData, Boottime, String)>,
    announced: (Role, PgState),
    copies: handle::Copies,
    said: Option<(String, Boottime)>,
    /// The last turn ended with something refused.
    refused: bool,
    /// Since when this member neither streams nor is a primary, and why.
    idle: Option<(Boottime, ha::Reason)>,
    outlook: handle::Outlook,
    dynamic_copy: keep_dynamic::Copy,
}

/// A snapshot for the time before the first turn.
#[must_use]
pub fn first_snapshot(identity: &Identity, initial: &Dynamic) -> Snapshot {
    let now = Boottime::now();
    Snapshot {
        observed_at: Boottime(0),
        member: identity.member.clone(),
        scope: identity.scope.clone(),
        tags: identity.tags.clone(),
        local: handle::Local {
            role: Role::Uninitialized,
            state: PgState::Stopped,
            postmaster_alive: false,
            answer: None,
            system_id: None,
            pending_restart: Map::new(),
            scheduled_restart: None,
            copies: handle::Copies::default(),
            copying: None,
            handover: None,
            trouble: None,
            remarks: Vec::new(),
            watchdog_failed: false,
            split_brain_suspected: false,
            slots: Vec::new(),
        },
        dcs: None,
        dcs_last_seen_epoch_s: 0,
        leader_until: None,
        failsafe_until: None,
        next_run: now,
        dynamic: initial.clone(),
        sync_mode: handle::SyncMode::Off,
        standby_cluster: false,
        outlook: handle::Outlook::unknown(),
    }
}

impl Agent {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            identity,
            initial,
            dcs,
            lease,
            instance,
            http,
            requests,
            published,
            started,
            reread,
            guard,
            namesake,
            watchdog,
            metrics,
        } = parts;
        let postmaster = instance.postmaster().state();
        instance.note_dynamic(&initial);
        Self {
            identity,
            dcs,
            lease,
            instance,
            http,
            inbox: Inbox {
                channel: requests,
                waiting: VecDeque::new(),
            },
            published,
            started,
            reread,
            guard,
            namesake,
            watchdog,
            metrics,
            last_wal: None,
            takeover: None,
            second_primary: second_primary::Watch::default(),
            no_watchdog: None,
            progress: watch::Sender::new(None),
            jobs: JobSlot::default(),
            canvass: canvass::Canvass::default(),
            dynamic: initial,
            config_version: None,
            memory: Memory::default(),
            unapplied: false,
            reload_due: false,
            settling: None,
            remarks: Vec::new(),
            deferred: None,
            sight: Sight {
                at: Boottime(0),
                local: Local::Stopping {
                    since: Boottime(0),
                    crashed: false,
                },
                answer: None,
                postmaster,
            },
            probed: AtomicU64::new(0),
            replayed_own: AtomicU64::new(0),
            last_cluster: None,
            dcs_down_since: None,
            store_silent: AtomicBool::new(false),
            shutdown: None,
            hurried: CancellationToken::new(),
            verdict: None,
            finished: None,
            claim: None,
            reinit_wanted: None,
            basebackup_only: false,
            slots: slots::Slots::default(),
            system_id: None,
            pending_restart: Map::new(),
            scheduled_restart: None,
            sync_mark: None,
            sync_unsure: true,
            restart_replies: Vec::new(),
            touched: None,
            announced: (Role::Uninitialized, PgState::Stopped),
            copies: handle::Copies::default(),
            said: None,
            refused: false,
            idle: None,
            outlook: handle::Outlook::unknown(),
            dynamic_copy: keep_dynamic::Copy::unknown(),
        }
    }

    /// Turns until a plan says exit. Nothing that is awaited here outlasts the right to be primary
    /// ([`Lease::while_it_lasts`]): what is cut short is done again by a later turn, a primary that is stopped too late
    /// is killed by init with everything else.
    pub async fn run(mut self, mut signals: signals::Signals) -> Exit {
        let lease = Arc::clone(&self.lease);
        let mut losses = lease.losses();
        let mut postmaster = self.instance.postmaster().watch();
        let mut changes = self.dcs.changes();
        loop {
            lease.beat();
            // Cancel-safe: a signal is kept until it is returned, and a turn that is cut short is done again.
            let turned = tokio::select! {
                biased;
                signal = signals.next() => {
                    lease.while_it_lasts(Box::pin(self.signal(signal))).await;
                    continue;
                }
                turned = lease.while_it_lasts(Box::pin(self.turn())) => turned,
            };
            let wait = match turned {
                Some(Ok(wait)) => wait,
                Some(Err(exit)) => return exit,
                None => {
                    info!("a turn was cut short: the lease has run out or was lost");
                    continue;
                }
            };
            let counts = lease.counts();
            let mut timer = std::pin::pin!(tokio::time::sleep(wait));
            // Requests that need no turn are answered without one.
            loop {
                lease.beat();
                // Every arm is cancel-safe: it only waits for a change, or its owner keeps what it waited for.
                tokio::select! {
                    biased;
                    signal = signals.next() => { lease.while_it_lasts(Box::pin(self.signal(signal))).await; }
                    () = lease.expired(), if counts => {}
                    finished = self.jobs.finished() => self.job_ended(finished),
                    changed = losses.changed() => if changed.is_err() { return Exit::Internal },
                    changed = postmaster.changed() => if changed.is_err() { return Exit::Internal },
                    Some(request) = self.inbox.next() => {
                        if lease.while_it_lasts(Box::pin(self.request(request))).await == Some(false) { continue; }
                    }
                    changed = changes.changed() => if changed.is_err() { return Exit::Internal },
                    () = &mut timer => {}
                }
                break;
            }
        }
    }

    /// One turn: look, decide, do, publish. Returns how long to wait for the next without an event.
    async fn turn(&mut self) -> Result<Duration, Exit> {
        let begun = Boottime::now();
        let turned = self.look_and_act().await;
        self.metrics.turned(Boottime::now().since(begun));
        turned
    }

    async fn look_and_act(&mut self) -> Result<Duration, Exit> {
        self.step_down_for_a_namesake();
        self.due_restart();
        self.due_reinitialize();
        self.store_silent.store(false, Ordering::Relaxed);
        let mut view = self.observe().await;
        self.note_wal();
        if let Some(exit) = self.verdict.filter(|_| self.shutdown.is_none()) {
            self.leave(exit, "see above").await;
            return Err(exit);
        }
        let mut last = None;
        for _ in 0..ROUNDS {
            let plan = ha::decide(&view, Boottime::now());
            self.note_plan(&plan, &mut view);
            let step = self.execute(&plan, &mut view).await;
            let because = plan.because.clone();
            last = Some((plan, matches!(step, Step::LookAgain)));
            match step {
                Step::DecideAgain => {}
                Step::LookAgain | Step::Wait => break,
                Step::Exit(exit) => {
                    let exit = self.final_status(exit);
                    self.leave(exit, &because).await;
                    return Err(exit);
                }
            }
        }
        let (plan, again) = last.unwrap_or_else(|| (Plan::idle(), true));
        // Whether it is away the next look tells.
        let again = again || self.is_store_silent();
        self.refused = again;
        let wait = self.wait_after(&plan, again);
        self.after(&view, &plan, wait).await;
        Ok(self.sooner(wait))
    }

    fn note_plan(&mut self, plan: &Plan, view: &mut View) {
        if let Some(memory) = &plan.memory {
            self.memory = memory.clone();
            view.memory = memory.clone();
        }
        // An end is told once.
        view.finished = None;
        self.finished = None;
        if self.lease.hold().is_some() {
            self.lease.set_keep(plan.keep_lock);
        }
        self.say(plan);
    }

    /// One line per decision that does something or says something new; waiting is repeated every ten seconds.
    fn say(&mut self, plan: &Plan) {
        // A question is no decision; what follows from its answer is said.
        let asks = |action: &ha::Action| {
            matches!(action, ha::Action::ProbePeers { .. } | ha::Action::ProbeLeader(_))
        };
        if plan.actions.iter().any(asks) {
            debug!("{}", plan.because);
            return;
        }
        let quiet =
            |action: &ha::Action| matches!(action, ha::Action::LeaderDuties | ha::Action::AskConsent(_));
        let shape: String = plan.because.chars().filter(|c| !c.is_ascii_digit()).collect();
        let now = Boottime::now();
        let healthy = matches!(&self.sight.local, Local::Running(running)
            if running.is_primary() || matches!(running.standing, ha::Standing::Replica { streaming: true, .. }));
        let (new, due) = match &self.said {
            Some((said, at)) => (
                *said != shape,
                now.since(*at) >= REPEAT && (!healthy || self.refused),
            ),
            None => (true, true),
        };
        // What is refused again and again is said as seldom as a wait is.
        let acts = !self.refused && plan.actions.iter().any(|action| !quiet(action));
        if acts || new || due {
            info!("{}", plan.because);
            self.said = Some((shape, now));
        } else {
            debug!("{}", plan.because);
        }
    }

    fn wait_after(&self, plan: &Plan, again: bool) -> Duration {
        let mut wait = plan
            .again_in
            .unwrap_or(self.dynamic.timing.loop_wait)
            .min(self.dynamic.timing.loop_wait);
        if self.dcs_down_since.is_some() {
            wait = wait.min(DCS_RETRY);
        }
        if again {
            // Nor sooner: who refuses once may refuse for hours, and does so at once.
            wait = REFUSED_AGAIN;
        }
        // While a job runs its end comes first, and wakes the loop.
        if let Some(restart) = self
            .scheduled_restart
            .as_ref()
            .filter(|_| self.jobs.view().is_none() && !self.dynamic.pause)
        {
            let left = restart.at.duration_since(jiff::Timestamp::now());
            wait = wait.min(left.try_into().unwrap_or(Duration::ZERO));
        }
        wait.max(Duration::from_millis(5))
    }

    /// What every turn ends with.
    async fn after(&mut self, view: &View, plan: &Plan, wait: Duration) {
        self.note_scope();
        if let DcsView::Known { cluster } = &view.dcs {
            self.note_feedback(cluster);
        }
        self.apply_dynamic().await;
        self.keep_dynamic();
        self.note_pending_restart().await;
        self.note_reason(view);
        self.note_second_primary(view);
        self.outlook = publish::outlook(view, Boottime::now());
        self.publish(&plan.because, wait);
        self.disarm_when_harmless();
        if self.shutdown == Some(Shutdown::HandOver) && self.leaves_sync_duty() && self.is_sync_standby() {
            // The leader is to see it while the job waits for that.
            self.touch_member().await;
        }
        if self.shutdown.is_none() && self.dcs_down_since.is_none() && !self.is_store_silent() {
            self.touch_member().await;
            if let DcsView::Known { cluster } = &view.dcs {
                Box::pin(self.tend_slots(cluster)).await;
            }
        }
    }

    /// The fence is for a postgres that might write. When there certainly is none, and no right to start one, there
    /// is nothing for init to end.
    fn disarm_when_harmless(&self) {
        let job_may_write = self.jobs.view().is_some();
        let hold = self.lease.hold();
        let expired = hold
            .as_ref()
            .is_none_or(|hold| Boottime::now() >= ha::lease::deadlines(hold).demote_at);
        let certain = matches!(
            self.sight.local,
            Local::Empty | Local::Leftover | Local::Down(_) | Local::Running(_)
        );
        if certain && !self.sight.local.may_write() && !job_may_write && expired {
            self.lease.forget();
        }
    }

    fn job_ended(&mut self, finished: Finished) {
        if finished.job == Job::Restart {
            let outcome = if finished.outcome.is_ok() {
                RestartOutcome::Done
            } else {
                RestartOutcome::Failed
            };
            for reply in self.restart_replies.drain(..) {
                // An asker that has gone away does not want to know.
                let _gone = reply.send(outcome.clone());
            }
        }
        match (&finished.job, &finished.outcome) {
            (Job::Bootstrap | Job::BootstrapStandby, _) => self.claim = None,
            (Job::CopySlots { slots, .. }, Ok(())) => self.slots.copied(slots),
            (Job::Promote, Ok(())) => self.note_promoted(),
            (Job::Clone { .. } | Job::Restore, Ok(())) => self.copies.made += 1,
            (Job::Clone { .. } | Job::Restore, Err(_)) => self.copies.failed += 1,
            _ => {}
        }
        if let Some(gave) = self
            .instance
            .last_handover()
            .filter(|last| last.side == Side::Gave)
        {
            self.metrics.handed_over(&gave);
        }
        self.progress.send_replace(None);
        // The directory may be another one now.
        self.dynamic_copy.due = true;
        self.finished = Some(finished);
    }
}
