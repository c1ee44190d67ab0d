//! From a configuration to a running agent: looks at the host, opens what it needs, puts the parts together, and
//! takes them apart again in order. Every refusal names the thing and the fix, and has its exit status.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Agent, Identity, Namesake, Parts, Reread, first_snapshot,
    handle::{AgentHandle, VERSION},
    instance::{Instance, Settings, chain},
    keep_dynamic,
    lease::{Fence, Lease},
    member_tls,
    signals::{Early, Signals},
    stores, voter,
};
use crate::{
    api,
    client::{Client, Credentials},
    clock::Boottime,
    config::{self, Config, DcsConfig, Loaded, MemberRole, ProcessEnv, ThisHost, bin_dir, bracketed},
    dcs::{Dcs, embedded, etcd},
    exit::Exit,
    guard::Guard,
    ha::lease::hold_of_record,
    metrics::{self, Metrics, calls::Timed},
    postgres::{
        binaries::Binaries,
        datadir::{self, DataDir},
        guc::Known,
        listen,
        postmaster::{Home, Postmaster, State, StopLadder, StopMode},
        staging,
    },
    telemetry::LevelHandle,
    tls::{self, server::InForce},
    watchdog::Watchdog,
};

/// A reason not to start, for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub(super) exit: Exit,
    message: String,
}

pub(super) fn refuse(exit: Exit, message: impl Into<String>) -> Refusal {
    Refusal {
        exit,
        message: message.into(),
    }
}

/// Requests of the REST API that may wait for the loop.
const REQUESTS: usize = 64;
/// etcd ends within this or is killed. With the limits of releasing the lock (2 s), of removing the member key (1 s) and
/// of the API (beside etcd) it leaves postgres two of the eight seconds that fit into Docker's ten.
pub(super) const ETCD_STOP: Duration = Duration::from_secs(3);
/// Callbacks that still run at the end, per lane.
const CALLBACK_STOP: Duration = Duration::from_secs(1);
/// Requests in flight end within this or are abandoned.
pub(super) const API_STOP: Duration = Duration::from_millis(800);

impl Fence for Guard {
    fn arm(&self, until: Boottime, lease: i64) {
        if let Err(error) = Self::arm(self, until, lease) {
            // What init knows is the older, earlier deadline: safe, and visible when it fences.
            error!(
                error = chain(&error),
                "could not extend the fence deadline in init"
            );
        }
    }

    fn disarm(&self) {
        if let Err(error) = Self::disarm(self) {
            warn!(error = chain(&error), "could not disarm the fence in init");
        }
    }
}

/// Init and the watchdog device are told the same.
#[derive(Debug)]
struct Fences(Arc<Guard>, Arc<Watchdog>);

impl Fence for Fences {
    fn arm(&self, until: Boottime, lease: i64) {
        Fence::arm(&*self.0, until, lease);
        self.1.arm(until, lease);
    }

    fn disarm(&self) {
        Fence::disarm(&*self.0);
        self.1.disarm();
    }
}

/// Runs the agent to its end.
pub async fn run(loaded: Loaded, guard: Guard, level: LevelHandle) -> Exit {
    // First of all: until then these signals end the process, and a reload sent to a starting container would.
    let early = match Early::install() {
        Ok(early) => early,
        Err(error) => {
            error!(%error, "cannot install signal handlers");
            return Exit::Os;
        }
    };
    let config = &loaded.config;
    info!(version = VERSION, member = %config.name, scope = config.scope, "howdah starts");
    if config.role == MemberRole::Voter {
        return voter::run(config, guard, level, early).await;
    }
    match Box::pin(assemble(loaded, guard, level, early)).await {
        Ok(running) => Box::pin(running.run()).await,
        Err(refusal) => {
            error!(status = refusal.exit.code(), "cannot start: {refusal}");
            refusal.exit
        }
    }
}

struct Running {
    agent: Agent,
    signals: Signals,
    lease: Arc<Lease>,
    fences: Fences,
    instance: Arc<Instance>,
    listeners: Vec<tokio::net::TcpListener>,
    handle: AgentHandle,
    options: api::Options,
    certificate: (
        watch::Receiver<Option<tls::server::Settings>>,
        watch::Sender<Option<InForce>>,
    ),
    embedded: Option<embedded::Embedded>,
}

impl Running {
    /// Runs the loop, the lease keeper and the REST API to the end of the loop. The other two end before it only by a
    /// bug: then this agent is of no use, and init starts another one, which goes on with postgres and lease.
    async fn run(self) -> Exit {
        let shutdown = CancellationToken::new();
        let serving = api::serve(self.listeners, self.handle, self.options, shutdown.clone());
        let mut api = tokio::spawn(serving);
        let (settings, in_force) = self.certificate;
        let certificate = tokio::spawn(tls::server::keep(settings, in_force, shutdown.clone()));
        let mut keeper = tokio::spawn(Arc::clone(&self.lease).keep());
        let watchdog = Arc::clone(&self.fences.1);
        let timer = tokio::spawn(async move { watchdog.keep().await });
        // Cancel-safe: nothing goes on with any of them after the first end.
        let exit = tokio::select! {
            exit = Box::pin(self.agent.run(self.signals)) => exit,
            ended = &mut keeper => unexpected("the lease keeper", &ended),
            ended = &mut api => unexpected("the REST API", &ended),
        };
        keeper.abort();
        timer.abort();
        certificate.abort();
        if exit == Exit::Internal {
            // Postgres goes on, and so do the fence and etcd, for the agent that init starts next.
            if let Some(embedded) = self.embedded {
                embedded.leave();
            }
            return exit;
        }
        // What may still write is to be ended in time, by whoever does it.
        if matches!(self.instance.postmaster().state(), State::Stopped { .. }) {
            self.fences.disarm();
        } else if self.lease.fence_left().is_some() {
            warn!("postgres is not down yet, the fence stays armed");
        }
        shutdown.cancel();
        let api = async {
            if !api.is_finished() && tokio::time::timeout(API_STOP * 2, api).await.is_err() {
                debug!("the REST API did not end in time");
            }
        };
        let etcd = async {
            if let Some(embedded) = self.embedded
                && !embedded.stop(ETCD_STOP).await
            {
                warn!("etcd had to be killed");
            }
        };
        let callbacks = self.instance.settle_callbacks(CALLBACK_STOP);
        tokio::join!(api, etcd, callbacks);
        exit
    }
}

fn unexpected(what: &str, ended: &Result<(), tokio::task::JoinError>) -> Exit {
    error!(?ended, "{what} ended by itself, this is a bug");
    Exit::Internal
}

async fn assemble(
    loaded: Loaded,
    guard: Guard,
    level: LevelHandle,
    early: Early,
) -> Result<Running, Refusal> {
    let cancel = CancellationToken::new();
    let mut config = loaded.config.clone();
    let data_dir = &config.postgresql.data_dir.clone();
    let binaries = look_at_data(&config, &cancel).await?;
    info!(postgres = %binaries.dir.display(), version = ?binaries.version, data_dir = %data_dir.display(), "found");
    let (initial, known_before) = keep_dynamic::at_start(data_dir, &config.bootstrap.dcs);
    config.bootstrap.timing = initial.timing;
    let known = Known::ask(&binaries, None, &cancel)
        .await
        .unwrap_or_else(|error| {
            warn!(
                error = chain(&error),
                "cannot ask postgres for its parameters, writing them unchecked"
            );
            Known::default()
        });
    let postmaster = Postmaster::own(Home {
        data_dir: data_dir.clone(),
        run_as: None,
    })
    .map_err(|error| {
        refuse(
            Exit::Io,
            format!("cannot read {}/postmaster.pid: {error}", data_dir.display()),
        )
    })?;
    match postmaster.state().pid() {
        Some(pid) => {
            info!(pid, "adopted the running postmaster");
            end_if_half_made(&postmaster, data_dir).await?;
        }
        None => port_is_free(&config)?,
    }
    let identity = Identity::of(&config);
    let http = Client::new(credentials(config.ctl.authentication.as_ref()).as_ref());
    http.set_tls(member_tls::between_members(&config));
    let namesake = match guard.adopted() {
        Some(_) => Namesake::None,
        None => Namesake::before_listening(&http, &identity.api_url, &identity.member, &identity.scope).await,
    };
    let listen = &config.restapi.listen;
    let listeners = api::bind_all(&listen.hosts, listen.port)
        .await
        .map_err(|error| refuse(Exit::Permission, format!("{error} (HOWDAH_RESTAPI_LISTEN)")))?;
    let Store { dcs, ttl, embedded } = store(&config).await?;
    let metrics = Metrics::new(&config.scope, &config.name)
        .map_err(|error| refuse(Exit::Internal, format!("metrics: {error}")))?;
    metrics::volume::watch(&metrics, config.postgresql.data_dir.clone())
        .map_err(|error| refuse(Exit::Os, format!("cannot start a thread: {error}")))?;
    let dcs = Timed::around(dcs, Arc::clone(&metrics));
    let guard = Arc::new(guard);
    let adopted = guard
        .adopted()
        .map(|record| hold_of_record(record.until, record.token, ttl));
    if let Some(hold) = &adopted {
        info!(lease = hold.lease, "going on with the lease of the agent before");
        dcs.adopt(hold.lease).await;
    }
    let watchdog = Arc::new(Watchdog::new(
        config.watchdog.clone(),
        config.bootstrap.timing.ttl,
    ));
    let fence: Arc<dyn Fence> = Arc::new(Fences(Arc::clone(&guard), Arc::clone(&watchdog)));
    if let Some(record) = guard.adopted() {
        // The device of the agent before was left running; this one has to be able to switch it off.
        Fence::arm(&*watchdog, record.until, record.token);
    }
    let lease = Lease::new(Arc::clone(&dcs), fence, adopted);
    let instance = Arc::new(Instance::new(
        Settings::from_config(&config),
        binaries,
        known,
        postmaster,
    ));
    let published = watch::Sender::new(Arc::new(first_snapshot(&identity, &initial)));
    let (sender, requests) = mpsc::channel(REQUESTS);
    let handle = AgentHandle::new(
        published.subscribe(),
        sender,
        Arc::clone(&dcs),
        Arc::clone(&lease),
        Arc::clone(&metrics),
    );
    let level = Arc::new(level);
    let signals = Signals::install(early, Arc::clone(&guard), Arc::clone(&level), handle.clone())
        .map_err(|error| refuse(Exit::Os, format!("cannot install signal handlers: {error}")))?;
    let (access, current) = watch::channel(api::Access::load(&config.restapi).await);
    let (tls_settings, settings) = watch::channel(config.restapi.tls.clone());
    let in_force = watch::Sender::new(first_certificate(&config)?);
    let options = api::Options {
        access: current,
        tls: in_force.subscribe(),
        client: http.clone(),
        levels: Arc::clone(&level),
        limits: api::Limits {
            drain_within: API_STOP,
            ..api::Limits::default()
        },
    };
    let client = http.clone();
    let reread = Reread {
        load: Box::new(|| Config::load(&ProcessEnv, &ThisHost).map_err(|mistakes| mistakes.to_string())),
        apply: Box::new(move |config| {
            level.set(&config.log.directives());
            client.set_credentials(credentials(config.ctl.authentication.as_ref()).as_ref());
            client.set_tls(member_tls::between_members(config));
            tls_settings.send_replace(config.restapi.tls.clone());
            let (access, restapi) = (access.clone(), config.restapi.clone());
            // Looks names up, which the loop must not wait for.
            tokio::spawn(async move { access.send_replace(api::Access::load(&restapi).await) });
        }),
    };
    let mut agent = Agent::new(Parts {
        identity,
        initial,
        dcs,
        lease: Arc::clone(&lease),
        instance: Arc::clone(&instance),
        http,
        requests,
        published,
        started: loaded,
        reread,
        guard: Arc::clone(&guard),
        namesake,
        watchdog: Arc::clone(&watchdog),
        metrics,
    });
    if known_before {
        agent.believe_copy();
    }
    Ok(Running {
        agent,
        signals,
        lease,
        fences: Fences(guard, watchdog),
        instance,
        listeners,
        handle,
        options,
        certificate: (settings, in_force),
        embedded,
    })
}

/// A certificate that cannot be used keeps a member from starting: nobody could ask it anything.
pub(super) fn first_certificate(config: &Config) -> Result<Option<InForce>, Refusal> {
    let loaded = config.restapi.tls.as_ref().map(tls::server::Settings::load);
    loaded.transpose().map_err(|error| {
        refuse(
            Exit::Config,
            format!("the REST API cannot speak TLS: {error} (HOWDAH_RESTAPI_CERTFILE and those beside it)"),
        )
    })
}

/// A bootstrap whose agent was killed leaves a postgres behind that runs in a half-made directory. Nobody may take it
/// for a member: stopped, the directory counts as empty.
async fn end_if_half_made(postmaster: &Postmaster, data_dir: &Path) -> Result<(), Refusal> {
    if !matches!(datadir::classify(data_dir, None), DataDir::Incomplete(_)) {
        return Ok(());
    }
    warn!(data_dir = %data_dir.display(), "the data directory is half made, stopping the postgres that runs in it");
    let ladder = StopLadder {
        smart: Duration::ZERO,
        fast: Duration::ZERO,
        immediate: Duration::from_secs(3),
    };
    let stopped = postmaster.stop(StopMode::Immediate, ladder).await;
    stopped.map(drop).map_err(|error| {
        refuse(
            Exit::Os,
            format!(
                "cannot stop the postgres of an unfinished bootstrap in {}: {}",
                data_dir.display(),
                chain(&error)
            ),
        )
    })
}

/// The programs that fit the data that is there; data that cannot be used is refused before anything happens.
async fn look_at_data(config: &Config, cancel: &CancellationToken) -> Result<Binaries, Refusal> {
    let data_dir = &config.postgresql.data_dir;
    let shown = data_dir.display();
    match staging::finish_interrupted(data_dir) {
        Ok(true) => info!(%shown, "finished putting a copied data directory in place"),
        Ok(false) => {}
        Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(refuse(Exit::Permission, no_access(data_dir, &chain(&error))));
        }
        Err(error) => {
            return Err(refuse(
                Exit::Io,
                format!("data directory {shown}: {}", chain(&error)),
            ));
        }
    }
    let major = match datadir::classify(data_dir, None) {
        DataDir::Unusable(reason) => {
            return Err(refuse(
                Exit::Permission,
                format!("data directory {shown}: {reason}. Nothing was changed"),
            ));
        }
        DataDir::Valid(major) => Some(major),
        DataDir::Empty | DataDir::Incomplete(_) => None,
    };
    let folder = bin_folder(config, major.map(|major| u32::from(major.0)));
    let binaries = Binaries::find(folder.as_deref(), cancel)
        .await
        .map_err(|error| refuse(Exit::Os, format!("PostgreSQL's programs: {}", chain(&error))))?;
    match major {
        Some(major) if major != binaries.major() => Err(refuse(
            Exit::ForeignData,
            format!(
                "data directory {shown} was made by PostgreSQL {}, the programs in {} are version {}. Nothing was \
                 changed; install version {} or set HOWDAH_POSTGRESQL_BIN_DIR",
                major.0,
                binaries.dir.display(),
                binaries.major().0,
                major.0
            ),
        )),
        _ => Ok(binaries),
    }
}

fn no_access(data_dir: &Path, error: &str) -> String {
    format!(
        "user {}, group {} cannot use the data directory {}: {error}. Nothing was changed; run as the owner of the \
         volume, or as any user with group 0 where the image made it (docker run --user {}:0)",
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
        data_dir.display(),
        nix::unistd::geteuid()
    )
}

fn bin_folder(config: &Config, data_major: Option<u32>) -> Option<std::path::PathBuf> {
    let listing = std::fs::read_dir(bin_dir::DEBIAN_ROOT)
        .into_iter()
        .flatten()
        .flatten();
    let installed: Vec<String> = listing
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let path = std::env::var("PATH").ok();
    let names = installed.iter().map(String::as_str);
    let folders = bin_dir::candidates(
        config.postgresql.bin_dir.as_deref(),
        path.as_deref(),
        names,
        data_major,
    );
    // A lone `postgres` in PATH is a wrapper; the server's own folder has the rest too.
    let complete = |folder: &&std::path::PathBuf| {
        ["postgres", "initdb", "pg_controldata"]
            .iter()
            .all(|program| folder.join(program).exists())
    };
    folders.iter().find(complete).or(folders.first()).cloned()
}

/// Better now and in one sentence than later in a start that fails again and again.
fn port_is_free(config: &Config) -> Result<(), Refusal> {
    let wanted = &config.postgresql.listen;
    match listen::taken(wanted.hosts.iter().map(String::as_str), wanted.port) {
        None => Ok(()),
        Some(address) => Err(refuse(
            Exit::Permission,
            format!(
                "PostgreSQL cannot listen on {address}: another process already does; stop it or set \
                 HOWDAH_POSTGRESQL_LISTEN"
            ),
        )),
    }
}

/// The store as opened.
pub(super) struct Store {
    pub(super) dcs: Arc<dyn Dcs>,
    /// What the store counts with for the ttl configured.
    ttl: Duration,
    /// The image's etcd, if it is that.
    pub(super) embedded: Option<embedded::Embedded>,
}

pub(super) async fn store(config: &Config) -> Result<Store, Refusal> {
    let (options, embedded) = match &config.dcs {
        DcsConfig::Etcd3(etcd3) => (remote(config, etcd3), None),
        DcsConfig::Embedded(own) => {
            let embedded = start_embedded(config, own).await?;
            let options = etcd::Options {
                endpoints: embedded.endpoints().to_vec(),
                ..base(config)
            };
            (options, Some(embedded))
        }
        DcsConfig::Kubernetes(_) | DcsConfig::Consul(_) | DcsConfig::ZooKeeper(_) => {
            let dcs = stores::open(config, stores::For::Member)
                .map_err(|error| refuse(Exit::Config, error.to_string()))?;
            return Ok(Store {
                dcs,
                ttl: config.bootstrap.timing.ttl,
                embedded: None,
            });
        }
    };
    info!(endpoints = ?options.endpoints, "the DCS is etcd");
    let dcs = etcd::Etcd::new(options).map_err(|error| refuse(Exit::Config, format!("etcd: {error}")))?;
    let peers = matches!(&config.dcs, DcsConfig::Embedded(own) if own.peers.len() > 1);
    let dcs = if peers { dcs.beside_postgres() } else { dcs };
    Ok(Store {
        ttl: dcs.lease_ttl(config.bootstrap.timing.ttl),
        dcs: Arc::new(dcs),
        embedded,
    })
}

async fn start_embedded(config: &Config, own: &config::Embedded) -> Result<embedded::Embedded, Refusal> {
    let peer = |peer: &config::Peer| embedded::Peer {
        name: peer.name.0.clone(),
        host: peer.host.clone(),
        peer_port: peer.peer_port,
        client_port: peer.client_port,
    };
    let options = embedded::Options {
        program: Path::new("etcd").to_owned(),
        data_dir: own.data_dir.clone(),
        peers: own.peers.iter().map(peer).collect(),
        name: own.this.name.0.clone(),
        listen: own.listen.clone(),
        token: config.scope.clone(),
    };
    info!(data_dir = %own.data_dir.display(), members = own.peers.len(), "starting the embedded etcd");
    embedded::Embedded::start(options).await.map_err(|error| {
        let exit = if error.is_full() { Exit::Io } else { Exit::Os };
        refuse(exit, format!("embedded etcd: {}", chain(&error)))
    })
}

fn base(config: &Config) -> etcd::Options {
    etcd::Options {
        endpoints: Vec::new(),
        protocol: etcd::Protocol::Http,
        username: None,
        password: None,
        cacert: None,
        cert: None,
        key: None,
        namespace: config.namespace.clone(),
        scope: config.scope.clone(),
        name: config.name.0.clone(),
        ttl: config.bootstrap.timing.ttl,
        retry_timeout: config.bootstrap.timing.retry_timeout,
    }
}

fn remote(config: &Config, etcd3: &config::Etcd3) -> etcd::Options {
    let (cert, key) = etcd3.client_certificate.clone().unzip();
    etcd::Options {
        endpoints: etcd3.endpoints.clone(),
        protocol: if etcd3.tls() {
            etcd::Protocol::Https
        } else {
            etcd::Protocol::Http
        },
        username: etcd3.credentials.as_ref().map(|c| c.username.clone()),
        password: etcd3.credentials.as_ref().map(|c| c.password.reveal().to_owned()),
        cacert: etcd3.cacert.clone(),
        cert,
        key,
        ..base(config)
    }
}

/// A client of the store for the command line: the member's own settings, without running anything.
///
/// # Errors
/// When the settings cannot work.
pub fn store_client(config: &Config) -> Result<Arc<dyn Dcs>, crate::dcs::DcsError> {
    let options = match &config.dcs {
        DcsConfig::Etcd3(etcd3) => remote(config, etcd3),
        DcsConfig::Embedded(own) => {
            let local = format!("127.0.0.1:{}", own.this.client_port);
            let peers = own
                .peers
                .iter()
                .map(|peer| format!("{}:{}", bracketed(&peer.host), peer.client_port));
            etcd::Options {
                endpoints: std::iter::once(local).chain(peers).collect(),
                ..base(config)
            }
        }
        DcsConfig::Kubernetes(_) | DcsConfig::Consul(_) | DcsConfig::ZooKeeper(_) => {
            return stores::open(config, stores::For::CommandLine);
        }
    };
    Ok(Arc::new(etcd::Etcd::new(options)?))
}

/// User and password for our own HTTP client.
#[must_use]
pub fn credentials(given: Option<&config::Credentials>) -> Option<Credentials> {
    given.map(|c| Credentials {
        username: c.username.clone(),
        password: c.password.reveal().to_owned(),
    })
}
