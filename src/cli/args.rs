//! The command line (contract: ctl §3). The cluster may always be left out: it is the one of the environment.

use clap::{Args, Subcommand, ValueEnum};

use super::complete::{clusters, keys, members, settings};

/// Output formats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A drawn table.
    #[default]
    Pretty,
    /// Tab-separated values with a header line.
    Tsv,
    /// A list of objects.
    Json,
    /// A list of objects.
    Yaml,
    /// The same as yaml.
    Yml,
}

/// Which members a command means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum RoleFilter {
    /// Holder of the lock.
    Leader,
    /// Holder of the lock, unless it leads a standby cluster.
    Primary,
    /// Holder of the lock of a standby cluster.
    StandbyLeader,
    /// Everyone else.
    Replica,
    /// Everyone else.
    Standby,
    /// All.
    #[default]
    Any,
}

/// Commands for people and scripts; each one talks to the DCS or to members' REST APIs and ends.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show the members of the cluster
    List(ListArgs),
    /// Show who follows whom
    Topology(TopologyArgs),
    /// Hand the leader's role over, now or at a given time
    Switchover(SwitchoverArgs),
    /// Make a member the leader although there is none, or over a broken one
    Failover(FailoverArgs),
    /// Restart postgres on members
    Restart(RestartArgs),
    /// Throw a replica's data away and clone it again
    Reinit(ReinitArgs),
    /// Show the replication slots, whose they are and how much WAL they hold back
    Slots(SlotsArgs),
    /// Show when and why the cluster changed its timeline
    History(HistoryArgs),
    /// Show for every member whether it could lead now, and which rule says no
    Why(HistoryArgs),
    /// Show the version of this program and of members
    Version(VersionArgs),
    /// Exit with 0 if the member on this host is alive, else with 1
    Health(HealthArgs),
    /// Read the configuration again on members
    Reload(ReloadArgs),
    /// Switch automatic failover off (maintenance mode)
    Pause(PauseArgs),
    /// Switch automatic failover on again
    Resume(PauseArgs),
    /// Make the cluster follow another one: its leader becomes a replica
    DemoteCluster(DemoteClusterArgs),
    /// Make a cluster that follows another one stand on its own
    PromoteCluster(PromoteClusterArgs),
    /// Show the dynamic configuration
    ShowConfig(ClusterArg),
    /// Change the dynamic configuration: by pairs, from a file, or in an editor
    #[command(
        after_help = "Examples:\n  howdah edit-config -s ttl=20 -s synchronous_mode=quorum\n  \
                            howdah edit-config -p work_mem=64MB -p max_connections=200\n  \
                            howdah edit-config -s slots.backup.type=physical\n  \
                            howdah edit-config --apply changes.yml --force"
    )]
    EditConfig(EditConfigArgs),
    /// Say where the value of a setting comes from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print where to connect to: host and port of a member
    Dsn(DsnArgs),
    /// Run SQL on a member
    #[command(after_help = "Examples:\n  howdah query -c 'SELECT now()'\n  \
                            howdah query -r replica -c 'SELECT pg_last_wal_replay_lsn()' -W")]
    Query(QueryArgs),
    /// Call off what is scheduled: `flush [CLUSTER] [MEMBER...] restart` or `flush [CLUSTER] switchover`
    Flush(FlushArgs),
    /// Make the DCS forget a cluster; its data stays
    Remove(RemoveArgs),
    /// Replace the pods of a StatefulSet that are not up to date: replicas first, the leader last
    #[cfg(feature = "kubernetes")]
    #[command(
        after_help = "For a StatefulSet with the update strategy OnDelete; the Helm chart runs it after an upgrade. It needs \
                            the rights to get the StatefulSet, and to list and delete its pods."
    )]
    Rollout(RolloutArgs),
}

/// Only the cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct ClusterArg {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
}

/// `pause` and `resume`.
#[derive(Debug, Clone, Default, Args)]
pub struct PauseArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Return when all members know
    #[arg(long)]
    pub wait: bool,
}

/// `config`.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Every place a setting can be given, which one holds, and when a change takes effect
    #[command(
        after_help = "Examples:\n  howdah config explain work_mem\n  howdah config explain ttl\n  \
                            howdah config explain HOWDAH_RESTAPI_LISTEN"
    )]
    Explain(ExplainArgs),
}

/// `config explain`.
#[derive(Debug, Clone, Default, Args)]
pub struct ExplainArgs {
    /// A parameter of PostgreSQL, a setting with dots (restapi.listen), or a variable
    #[arg(add = settings())]
    pub name: String,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `edit-config`.
#[derive(Debug, Clone, Default, Args)]
pub struct EditConfigArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Do not show what changes
    #[arg(short, long)]
    pub quiet: bool,
    /// Set this key (dots for levels) to this value (YAML; null removes)
    #[arg(short, long, value_name = "KEY=VALUE", add = keys())]
    pub set: Vec<String>,
    /// Set this parameter of PostgreSQL
    #[arg(short, long, value_name = "PARAMETER=VALUE")]
    pub pg: Vec<String>,
    /// Merge this YAML file (- for standard input; null removes)
    #[arg(long, value_name = "FILE")]
    pub apply: Option<String>,
    /// Replace everything by this YAML file (- for standard input)
    #[arg(long, value_name = "FILE")]
    pub replace: Option<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `dsn`.
#[derive(Debug, Clone, Default, Args)]
pub struct DsnArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Any member with this role (the leader unless given)
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// This member
    #[arg(short, long, add = members())]
    pub member: Option<String>,
}

/// `query`.
#[derive(Debug, Clone, Default, Args)]
pub struct QueryArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Tsv)]
    pub format: Format,
    /// Run the statements of this file (- for standard input)
    #[arg(short, long)]
    pub file: Option<String>,
    /// Ask for the password
    #[arg(long)]
    pub password: bool,
    /// Log in as this role (the superuser unless given)
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// Run it again every two seconds
    #[arg(short = 'W')]
    pub watch2: bool,
    /// Run it again every so many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
    /// On any member with this role
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// On this member
    #[arg(short, long, add = members())]
    pub member: Option<String>,
    /// Between columns, with the format tsv
    #[arg(long, default_value = "\t")]
    pub delimiter: String,
    /// Run this
    #[arg(short, long, value_name = "SQL")]
    pub command: Option<String>,
    /// Database
    #[arg(short, long, default_value = "postgres")]
    pub dbname: String,
}

/// `flush`.
#[derive(Debug, Clone, Default, Args)]
pub struct FlushArgs {
    /// Members, after the cluster if that is named too (all if none is named); last, `restart` or `switchover`
    #[arg(value_name = "MEMBER... restart|switchover", required = true, add = members())]
    pub words: Vec<String>,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value_t)]
    pub role: RoleFilter,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `remove`.
#[derive(Debug, Clone, Default, Args)]
pub struct RemoveArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: String,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `rollout`.
#[cfg(feature = "kubernetes")]
#[derive(Debug, Clone, Default, Args)]
pub struct RolloutArgs {
    /// Name of the StatefulSet
    pub statefulset: String,
    /// Its namespace; that of this pod unless given
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Give up when nothing has happened for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
}

/// `list`.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Names of clusters
    pub clusters: Vec<String>,
    /// Show all columns
    #[arg(short, long)]
    pub extended: bool,
    /// Print the time first
    #[arg(short, long)]
    pub timestamp: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Show again every two seconds
    #[arg(short = 'W')]
    pub watch2: bool,
    /// Show again every so many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
}

/// `topology`.
#[derive(Debug, Clone, Default, Args)]
pub struct TopologyArgs {
    /// Names of clusters
    pub clusters: Vec<String>,
    /// Show again every two seconds
    #[arg(short = 'W')]
    pub watch2: bool,
    /// Show again every so many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
}

/// `switchover`.
#[derive(Debug, Clone, Default, Args)]
pub struct SwitchoverArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// The current leader
    #[arg(long, visible_alias = "primary", add = members())]
    pub leader: Option<String>,
    /// The member that is to take over
    #[arg(long, add = members())]
    pub candidate: Option<String>,
    /// When (ISO 8601; local time zone unless given), or `now`
    #[arg(long)]
    pub scheduled: Option<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `failover`.
#[derive(Debug, Clone, Default, Args)]
pub struct FailoverArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// The member that is to take over
    #[arg(long, add = members())]
    pub candidate: Option<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `restart`.
#[derive(Debug, Clone, Default, Args)]
pub struct RestartArgs {
    /// Members, after the cluster if that is named too; all if none is named
    #[arg(value_name = "MEMBER", add = members())]
    pub members: Vec<String>,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value_t)]
    pub role: RoleFilter,
    /// One of them, whichever
    #[arg(long)]
    pub any: bool,
    /// When (ISO 8601; local time zone unless given), or `now`
    #[arg(long)]
    pub scheduled: Option<String>,
    /// Only if PostgreSQL is older than this
    #[arg(long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// Only members with settings that wait for a restart
    #[arg(long)]
    pub pending: bool,
    /// Time postgres may take to start
    #[arg(long)]
    pub timeout: Option<String>,
    /// With each member, wait until it leads or streams again before the next one's turn
    #[arg(long)]
    pub wait: bool,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `reinit`.
#[derive(Debug, Clone, Default, Args)]
pub struct ReinitArgs {
    /// Members, after the cluster if that is named too
    #[arg(value_name = "MEMBER", add = members())]
    pub members: Vec<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
    /// Clone from the leader only
    #[arg(long)]
    pub from_leader: bool,
    /// Return when the data is there again
    #[arg(long)]
    pub wait: bool,
}

/// `demote-cluster`.
#[derive(Debug, Clone, Default, Args)]
pub struct DemoteClusterArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Host of the cluster to follow, or several separated by commas
    #[arg(long)]
    pub host: Option<String>,
    /// Its port
    #[arg(long)]
    pub port: Option<u16>,
    /// Command that fetches WAL from an archive
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<String>,
    /// Slot to use there
    #[arg(long, value_name = "SLOT")]
    pub primary_slot_name: Option<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `promote-cluster`.
#[derive(Debug, Clone, Default, Args)]
pub struct PromoteClusterArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// `history`.
#[derive(Debug, Clone, Default, Args)]
pub struct HistoryArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `slots`.
#[derive(Debug, Clone, Default, Args)]
pub struct SlotsArgs {
    /// Name of the cluster
    #[arg(add = clusters())]
    pub cluster: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `version`.
#[derive(Debug, Clone, Default, Args)]
pub struct VersionArgs {
    /// The cluster, members or both; without any, only the version of this program
    #[arg(value_name = "MEMBER", add = members())]
    pub members: Vec<String>,
}

/// `health`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct HealthArgs {
    /// Only if it is ready too: leads, or streams from the leader and is not far behind. Without this a member that is
    /// still being made, or waits for the DCS, is well
    #[arg(long)]
    pub ready: bool,
}

impl Command {
    /// Whether the command asks the store of the cluster. To open it costs connections and a watch, which a health
    /// check every few seconds must not.
    #[must_use]
    pub fn needs_store(&self) -> bool {
        match self {
            Self::Health(_) => false,
            #[cfg(feature = "kubernetes")]
            Self::Rollout(_) => false,
            Self::Version(args) => !args.members.is_empty(),
            _ => true,
        }
    }
}

/// `reload`.
#[derive(Debug, Clone, Default, Args)]
pub struct ReloadArgs {
    /// Members, after the cluster if that is named too; all if none is named
    #[arg(value_name = "MEMBER", add = members())]
    pub members: Vec<String>,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value_t)]
    pub role: RoleFilter,
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}
