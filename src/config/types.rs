//! The configuration as the rest of the program sees it: typed, complete, and not able to be invalid.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use super::{Address, Allowed, Listen, Secret};
use crate::{
    logfile,
    model::{BootstrapMethod, MemberName, RoleScope, Tags, Timing},
    tls,
};

/// What this process is here for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemberRole {
    /// It has data and may lead.
    #[default]
    Member,
    /// It runs the image's etcd and has no PostgreSQL.
    Voter,
}

/// The configuration of one member.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of this member.
    pub name: MemberName,
    /// Name of the cluster.
    pub scope: String,
    /// First part of the keys in the DCS, without slashes around it.
    pub namespace: String,
    /// What it is here for.
    pub role: MemberRole,
    /// Tags of this member.
    pub tags: Tags,
    /// The log.
    pub log: Log,
    /// The REST API.
    pub restapi: RestApi,
    /// Requests to the REST API of other members.
    pub ctl: Ctl,
    /// The store of the cluster.
    pub dcs: DcsConfig,
    /// The watchdog device.
    pub watchdog: Watchdog,
    /// What only the creation of the cluster needs.
    pub bootstrap: Bootstrap,
    /// PostgreSQL.
    pub postgresql: Postgresql,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Least level that is logged.
    pub level: LogLevel,
    /// Form of a line.
    pub format: LogFormat,
    /// Levels of single modules (`howdah::dcs`).
    pub loggers: BTreeMap<String, LogLevel>,
    /// Where the agent writes it; `None`: to standard error.
    pub file: Option<logfile::Settings>,
    /// Members of every line in JSON.
    pub static_fields: Map<String, Value>,
}

impl Log {
    /// The levels in the syntax of tracing's `EnvFilter`.
    #[must_use]
    pub fn directives(&self) -> String {
        // Details of the libraries are for those who name them in `loggers`.
        let mut directives = match self.level {
            LogLevel::Debug | LogLevel::Trace => {
                let level = self.level.as_str();
                format!("info,howdah={level},program={level},etcd={level}")
            }
            level => level.as_str().to_owned(),
        };
        for (module, level) in &self.loggers {
            directives.push_str(&format!(",{module}={}", level.as_str()));
        }
        directives
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what a human must look at.
    Error,
    /// And what was unexpected.
    Warn,
    /// And each change of state.
    Info,
    /// And each turn of the loop.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// As `EnvFilter` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Reads Patroni's names, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "critical" | "error" => Some(Self::Error),
            "warning" | "warn" => Some(Self::Warn),
            "info" => Some(Self::Info),
            "debug" => Some(Self::Debug),
            "trace" => Some(Self::Trace),
            _ => None,
        }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object per line.
    Json,
}

/// A user and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// The REST API of this member.
#[derive(Debug, Clone, PartialEq)]
pub struct RestApi {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: Address,
    /// What requests that change something must show.
    pub authentication: Option<Credentials>,
    /// Who may send requests that change something: hosts, addresses, networks. Empty: everybody.
    pub allowlist: Vec<Allowed>,
    /// Members of the cluster may, too.
    pub allowlist_include_members: bool,
    /// Headers of every answer.
    pub extra_headers: BTreeMap<String, String>,
    /// With TLS, what it shows and asks for.
    pub tls: Option<tls::server::Settings>,
}

impl RestApi {
    /// `http` or `https`.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// Requests to the REST API of other members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ctl {
    /// What they show; that of our own REST API unless given.
    pub authentication: Option<Credentials>,
    /// Certificates are not verified.
    pub insecure: bool,
    /// PEM file with the authorities of the members' certificates; that of our own REST API unless given.
    pub cacert: Option<PathBuf>,
    /// Certificate to show to them.
    pub identity: Option<tls::files::Identity>,
}

/// The store of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DcsConfig {
    /// An etcd of its own.
    Etcd3(Etcd3),
    /// The image's etcd, run by the agent.
    Embedded(Embedded),
    /// The Kubernetes API.
    Kubernetes(Box<Kubernetes>),
    /// A Consul agent.
    Consul(Consul),
    /// A ZooKeeper ensemble.
    ZooKeeper(ZooKeeper),
}

/// Consul as the store (contract: DCS layout §7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consul {
    /// The agent, `host:port`.
    pub host: String,
    /// TLS, if it is spoken.
    pub tls: Option<tls::client::Tls>,
    /// ACL token.
    pub token: Option<Secret>,
    /// Datacenter; `None`: the agent's own.
    pub dc: Option<String>,
    /// Whether a look at the cluster needs a quorum.
    pub consistent: bool,
    /// Health checks of the agent's node that end the session when they fail.
    pub checks: Vec<String>,
    /// How the member is registered as a service, if it is.
    pub service: Option<ConsulService>,
}

/// A member as a service in Consul's catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsulService {
    /// Tags besides the role.
    pub tags: Vec<String>,
    /// Time between two health checks, as Consul reads it.
    pub check_interval: String,
    /// Name to expect in the REST API's certificate.
    pub check_tls_server_name: Option<String>,
}

/// ZooKeeper as the store (contract: DCS layout §8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZooKeeper {
    /// `host:port` each. Never empty.
    pub hosts: Vec<String>,
    /// What is put in front of all paths; empty, or with a slash in front.
    pub chroot: String,
    /// TLS, if it is spoken.
    pub tls: Option<tls::client::Tls>,
    /// Credentials by scheme (`digest`: `user:password`).
    pub auth: Vec<(String, Secret)>,
    /// Scheme, id and permission bits of every node that is made; empty: everybody may do everything.
    pub acls: Vec<(String, String, u32)>,
}

/// The Kubernetes API as the store (contract: DCS layout §9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// In which objects the cluster is kept.
    pub mode: KubernetesMode,
    /// Namespace; `None`: the pod's own.
    pub namespace: Option<String>,
    /// Labels of the cluster's objects and pods.
    pub labels: BTreeMap<String, String>,
    /// Label with the scope.
    pub scope_label: String,
    /// Label of pods with the role.
    pub role_label: String,
    /// Its value at the leader.
    pub leader_label_value: String,
    /// Its value at a replica.
    pub follower_label_value: String,
    /// Its value at the leader of a standby cluster.
    pub standby_leader_label_value: String,
    /// A second label with the role.
    pub tmp_role_label: Option<String>,
    /// Address of the pod; `None`: as the API has it.
    pub pod_ip: Option<String>,
    /// Ports of the leader's Service.
    pub ports: Vec<KubernetesPort>,
    /// Authorities of the API server's certificate; `None`: those of the service account or kubeconfig.
    pub cacert: Option<PathBuf>,
    /// The kubeconfig; `None`: the service account, else the usual places.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    pub context: Option<String>,
    /// Ask the API servers themselves.
    pub bypass_api_service: bool,
    /// Further statuses after which a request is repeated.
    pub retriable_http_codes: Vec<u16>,
    /// Labels of the pod while the member is being made.
    pub bootstrap_labels: BTreeMap<String, String>,
}

/// In which objects a cluster is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubernetesMode {
    /// ConfigMaps.
    ConfigMaps,
    /// Endpoints.
    Endpoints,
    /// A Lease, an EndpointSlice and ConfigMaps.
    Leases,
}

impl KubernetesMode {
    /// As in the setting.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMaps => "configmaps",
            Self::Endpoints => "endpoints",
            Self::Leases => "leases",
        }
    }
}

/// A port of the leader's Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesPort {
    /// Number.
    pub port: u16,
    /// Name.
    pub name: Option<String>,
    /// `TCP` unless given.
    pub protocol: String,
}

/// An etcd of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd3 {
    /// URLs (`http://etcd1:2379`). Never empty.
    pub endpoints: Vec<String>,
    /// User and password.
    pub credentials: Option<Credentials>,
    /// Authorities of the servers' certificate; `None`: those of the system.
    pub cacert: Option<PathBuf>,
    /// Certificate and key to show to the servers.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

impl Etcd3 {
    /// Whether the endpoints speak TLS.
    #[must_use]
    pub fn tls(&self) -> bool {
        self.endpoints.iter().any(|url| url.starts_with("https://"))
    }
}

/// The image's own etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Host or address it listens on.
    pub listen: String,
    /// This member as the others see it.
    pub this: Peer,
    /// All members, this one included, in the order given; only this one for a cluster of one.
    pub peers: Vec<Peer>,
}

/// A member of the embedded etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name of the member.
    pub name: MemberName,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port for the other members' etcd.
    pub peer_port: u16,
    /// Port for clients.
    pub client_port: u16,
}

impl Peer {
    /// URL for the other members' etcd.
    #[must_use]
    pub fn peer_url(&self) -> String {
        format!("http://{}:{}", super::bracketed(&self.host), self.peer_port)
    }

    /// URL for clients.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("http://{}:{}", super::bracketed(&self.host), self.client_port)
    }
}

/// A watchdog device: hardware, or a kernel's stand-in, that resets the host when nobody speaks to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Whether it is used.
    pub mode: WatchdogMode,
    /// The device.
    pub device: PathBuf,
    /// It resets the host this long before ttl is over; `None`: when half of ttl is over.
    pub safety_margin: Option<Duration>,
    /// How it is spoken to.
    pub driver: WatchdogDriver,
}

/// Whether a watchdog device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogMode {
    /// No.
    Off,
    /// If there is one that can be used.
    Automatic,
    /// Nobody is a primary here without it.
    Required,
}

/// How a watchdog device is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogDriver {
    /// As Linux wants it: requests about the timeout, and writes.
    Linux,
    /// Writes only, to any file: for trying it out.
    Testing,
}

/// What only the creation of the cluster needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// First dynamic configuration, complete with ttl, `loop_wait` and `retry_timeout`.
    pub dcs: Map<String, Value>,
    /// The timing in it, for use until the cluster's own configuration is known.
    pub timing: Timing,
    /// How the data is made; `None`: by initdb.
    pub method: Option<BootstrapMethod>,
    /// Arguments of initdb.
    pub initdb: Vec<String>,
    /// Lines added to initdb's `pg_hba.conf`.
    pub pg_hba: Vec<String>,
    /// Command to run once the new cluster is up.
    pub post_bootstrap: Option<String>,
    /// Database to create; may exist anyway (`postgres`).
    pub database: String,
    /// Folder of scripts to run once in the new cluster; need not exist.
    pub scripts_dir: PathBuf,
}

/// PostgreSQL on this member.
#[derive(Debug, Clone, PartialEq)]
pub struct Postgresql {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: Address,
    /// Where others reach the pooler in front of it.
    pub proxy_address: Option<Address>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Folder of the configuration files.
    pub config_dir: PathBuf,
    /// Name of `postgresql.conf` without the end.
    pub config_base_name: String,
    /// Included instead of the original `postgresql.conf`.
    pub custom_conf: Option<PathBuf>,
    /// Folder of the programs; `None`: see [`super::bin_dir::candidates`].
    pub bin_dir: Option<PathBuf>,
    /// Other names of programs (`pg_ctl` → …).
    pub bin_names: BTreeMap<String, String>,
    /// Database the agent connects to.
    pub database: String,
    /// Password file for connections between members.
    pub pgpass: Option<PathBuf>,
    /// Kerberos service name.
    pub krbsrvname: Option<String>,
    /// Server parameters of this member, without those that only the cluster's configuration may set.
    pub parameters: Map<String, Value>,
    /// All lines of `pg_hba.conf`; empty: the agent's own.
    pub pg_hba: Vec<String>,
    /// All lines of `pg_ident.conf`.
    pub pg_ident: Vec<String>,
    /// What holds in one role only.
    pub by_role: BTreeMap<RoleScope, RoleSettings>,
    /// Recovery parameters of a replica.
    pub recovery_conf: Map<String, Value>,
    /// The roles.
    pub authentication: Authentication,
    /// Ways to make a replica, in the order in which they are tried; empty: as the cluster's configuration says.
    pub create_replica_methods: Vec<String>,
    /// Sections that describe such ways, by name.
    pub method_sections: Map<String, Value>,
    /// Arguments of `pg_basebackup`.
    pub basebackup: Vec<String>,
    /// Arguments of `pg_rewind`.
    pub rewind: Vec<String>,
    /// Commands to run when something happened.
    pub callbacks: Callbacks,
    /// Command to run before promoting.
    pub pre_promote: Option<String>,
    /// Command to run before stopping.
    pub before_stop: Option<String>,
}

/// Settings of this member for one role of its postgres.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoleSettings {
    /// Server parameters, stronger than those for all roles.
    pub parameters: Map<String, Value>,
    /// All lines of `pg_hba.conf` instead of those for all roles.
    pub pg_hba: Vec<String>,
    /// All lines of `pg_ident.conf` instead of those for all roles.
    pub pg_ident: Vec<String>,
}

impl RoleSettings {
    /// Nothing is different in this role.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.pg_hba.is_empty() && self.pg_ident.is_empty()
    }
}

/// The roles the agents use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// The superuser.
    pub superuser: Login,
    /// For streaming.
    pub replication: Login,
    /// For `pg_rewind`.
    pub rewind: Login,
}

/// A role and how to connect as it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the role.
    pub username: String,
    /// Its password.
    pub password: Secret,
    /// libpq's `sslpassword`.
    pub sslpassword: Option<Secret>,
    /// Other connection options by libpq's keyword (`sslmode` …).
    pub options: BTreeMap<String, String>,
}

/// Commands to run when something happened; each gets action, role and scope as arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Callbacks {
    /// After a start.
    pub on_start: Option<String>,
    /// After a stop.
    pub on_stop: Option<String>,
    /// After a restart.
    pub on_restart: Option<String>,
    /// After a reload.
    pub on_reload: Option<String>,
    /// After a promotion or demotion.
    pub on_role_change: Option<String>,
}
