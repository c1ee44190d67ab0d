//! What the instance needs of the configuration, in its own types.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    config::{self, Config},
    model::{BootstrapMethod, MemberName, RoleScope},
    postgres::{
        login::Login,
        query::{Address, Target, TlsOptions},
    },
};

/// A role and the libpq options of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Name and password.
    pub login: Login,
    /// libpq keywords (`sslmode` …).
    pub options: BTreeMap<String, String>,
}

/// Everything about this member's postgres that configuration decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Name of this member.
    pub member: MemberName,
    /// Name of the cluster.
    pub scope: String,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// Port.
    pub port: u16,
    /// Directory of the Unix socket that we connect to.
    pub socket_dir: PathBuf,
    /// Others that postgres puts a socket into.
    pub further_socket_dirs: Vec<PathBuf>,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Directory of the configuration files.
    pub config_dir: PathBuf,
    /// Name of `postgresql.conf` without its end.
    pub config_base_name: String,
    /// Included instead of the original file.
    pub custom_conf: Option<PathBuf>,
    /// Password file for connections to other members.
    pub passfile: PathBuf,
    /// Database of our own connections.
    pub database: String,
    /// The superuser.
    pub superuser: Account,
    /// For streaming.
    pub replication: Account,
    /// For rewinding and looking at the leader.
    pub rewind: Account,
    /// Kerberos service name.
    pub krbsrvname: Option<String>,
    /// Parameters of this member.
    pub parameters: Map<String, Value>,
    /// Lines of pg_hba.conf; empty: those of the cluster's configuration, else our own.
    pub pg_hba: Vec<String>,
    /// Lines added to our own at bootstrap.
    pub bootstrap_pg_hba: Vec<String>,
    /// Lines of pg_ident.conf.
    pub pg_ident: Vec<String>,
    /// What holds in one role only.
    pub by_role: BTreeMap<RoleScope, config::RoleSettings>,
    /// Recovery parameters.
    pub recovery_conf: Map<String, Value>,
    /// How the data of a new cluster is made; `None`: by initdb.
    pub bootstrap_method: Option<BootstrapMethod>,
    /// Arguments of initdb.
    pub initdb: Vec<String>,
    /// Ways to make a replica; empty: as the cluster's configuration says.
    pub create_replica_methods: Vec<String>,
    /// Sections that describe such ways.
    pub method_sections: Map<String, Value>,
    /// Arguments of pg_basebackup.
    pub basebackup: Vec<String>,
    /// Arguments of pg_rewind.
    pub rewind_args: Vec<String>,
    /// Database to create.
    pub create_database: String,
    /// Directory of init scripts.
    pub scripts_dir: PathBuf,
    /// Command after bootstrap.
    pub post_bootstrap: Option<String>,
    /// Commands to run when something happened.
    pub callbacks: config::Callbacks,
    /// Command to run before a promotion; its failure prevents it.
    pub pre_promote: Option<String>,
    /// Command to run before a stop.
    pub before_stop: Option<String>,
    /// Other names of programs.
    pub bin_names: BTreeMap<String, String>,
    /// Complete environment of postgres.
    pub child_env: Vec<(String, String)>,
}

impl Settings {
    /// How this account connects to `database` of a server.
    pub(super) fn target(&self, account: &Account, address: Address, port: u16, database: &str) -> Target {
        Target {
            address,
            port,
            user: account.login.username.clone(),
            password: account.login.password.as_ref().map(|p| p.reveal().to_owned()),
            dbname: database.to_owned(),
            application_name: format!("Howdah {}", self.member),
            tls: TlsOptions::from_options(&account.options),
        }
    }

    /// Our own connection to the local server.
    pub(super) fn local_target(&self, database: &str) -> Target {
        let socket = Address::Socket(self.socket_dir.clone());
        self.target(&self.superuser, socket, self.port, database)
    }

    /// How the superuser logs in at a member; where it is has to be filled in.
    #[must_use]
    pub fn superuser_target(&self) -> Target {
        let nowhere = Address::Tcp(String::new());
        self.target(&self.superuser, nowhere, self.port, "postgres")
    }

    /// From the configuration; the environment of postgres comes from our own.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let postgresql = &config.postgresql;
        let parent = postgresql.data_dir.parent().unwrap_or(Path::new("/"));
        let child_env = config::child_environment(std::env::vars_os())
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let (socket_dir, further_socket_dirs) = socket_dirs(&postgresql.parameters, parent);
        Self {
            member: config.name.clone(),
            scope: config.scope.clone(),
            listen_addresses: postgresql.listen.addresses(),
            port: postgresql.listen.port,
            socket_dir,
            further_socket_dirs,
            data_dir: postgresql.data_dir.clone(),
            config_dir: postgresql.config_dir.clone(),
            config_base_name: postgresql.config_base_name.clone(),
            custom_conf: postgresql.custom_conf.clone(),
            passfile: postgresql
                .pgpass
                .clone()
                .unwrap_or_else(|| parent.join(".howdah-pgpass")),
            database: postgresql.database.clone(),
            superuser: account(&postgresql.authentication.superuser),
            replication: account(&postgresql.authentication.replication),
            rewind: account(&postgresql.authentication.rewind),
            krbsrvname: postgresql.krbsrvname.clone(),
            parameters: postgresql.parameters.clone(),
            pg_hba: postgresql.pg_hba.clone(),
            bootstrap_pg_hba: config.bootstrap.pg_hba.clone(),
            pg_ident: postgresql.pg_ident.clone(),
            by_role: postgresql.by_role.clone(),
            recovery_conf: postgresql.recovery_conf.clone(),
            bootstrap_method: config.bootstrap.method.clone(),
            initdb: config.bootstrap.initdb.clone(),
            create_replica_methods: postgresql.create_replica_methods.clone(),
            method_sections: postgresql.method_sections.clone(),
            basebackup: postgresql.basebackup.clone(),
            rewind_args: postgresql.rewind.clone(),
            create_database: config.bootstrap.database.clone(),
            scripts_dir: config.bootstrap.scripts_dir.clone(),
            post_bootstrap: config.bootstrap.post_bootstrap.clone(),
            callbacks: postgresql.callbacks.clone(),
            pre_promote: postgresql.pre_promote.clone(),
            before_stop: postgresql.before_stop.clone(),
            bin_names: postgresql.bin_names.clone(),
            child_env,
        }
    }
}

fn account(login: &config::Login) -> Account {
    let mut options = login.options.clone();
    if let Some(password) = &login.sslpassword {
        options.insert("sslpassword".to_owned(), password.reveal().to_owned());
    }
    Account {
        login: Login::new(login.username.clone(), login.password.reveal()),
        options,
    }
}

/// The configured directories, else the first usual one that can be written, else one beside the data: a read-only
/// root file system without a tmpfs must not keep postgres from starting. The first, and the others.
fn socket_dirs(parameters: &Map<String, Value>, beside_data: &Path) -> (PathBuf, Vec<PathBuf>) {
    let configured = parameters.get("unix_socket_directories").and_then(Value::as_str);
    let mut listed = configured
        .into_iter()
        .flat_map(|list| list.split(',').map(str::trim))
        .filter(|dir| dir.starts_with('/'))
        .map(PathBuf::from);
    if let Some(first) = listed.next() {
        return (first, listed.collect());
    }
    let writable =
        |dir: &&Path| nix::unistd::access(*dir, nix::unistd::AccessFlags::W_OK).is_ok() && dir.is_dir();
    let usual = [
        Path::new("/var/run/postgresql"),
        Path::new("/run/howdah"),
        Path::new("/tmp"),
    ];
    (
        usual.into_iter().find(writable).unwrap_or(beside_data).to_owned(),
        Vec::new(),
    )
}
