//! The one table of settings. Reading the environment, reading a document, `howdah check`, the detection of
//! unknown names and the table in the README all come from it.

mod table;

pub use table::SECTIONS;

use super::Kind;

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Var {
    /// Name after `HOWDAH_` or `PATRONI_`.
    pub suffix: &'static str,
    /// Place in Patroni's YAML tree, with dots (contract: environment §3). Empty for the document itself.
    pub path: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// What holds if nobody gives it.
    pub default: Default,
    /// When a new value takes effect.
    pub effect: Effect,
    /// What it is, in one line.
    pub help: &'static str,
}

impl Var {
    /// The canonical name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("HOWDAH_{}", self.suffix)
    }
}

/// What holds if nobody gives a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Nothing.
    Unset,
    /// This text, read as if it had been given.
    Fixed(&'static str),
    /// Found out at start, in the way described.
    Computed(&'static str),
    /// There is none: the setting must be given.
    Required,
}

/// When a new value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// With the next start of the container.
    Start,
    /// With the next reload.
    Reload,
    /// Only when the cluster is created; later the cluster's own configuration holds it.
    Bootstrap,
    /// Never: accepted so that configurations written for Patroni work.
    Nothing,
    /// It cannot be honoured, so giving it is a mistake. The text says what, with its verb.
    Unsupported(&'static str),
}

/// Settings that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// Its settings.
    pub vars: &'static [Var],
}

/// All settings in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Var> {
    SECTIONS.iter().flat_map(|section| section.vars)
}

/// The setting with this suffix.
#[must_use]
pub fn by_suffix(suffix: &str) -> Option<&'static Var> {
    all().find(|var| var.suffix == suffix)
}

/// The setting at this path.
#[must_use]
pub fn by_path(path: &str) -> Option<&'static Var> {
    all().find(|var| var.path == path && !path.is_empty())
}

/// Whether there are settings below this path.
#[must_use]
pub fn is_section(path: &str) -> bool {
    all().any(|var| {
        var.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn no_suffix_and_no_path_is_there_twice() {
        let mut suffixes = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for var in all() {
            assert!(suffixes.insert(var.suffix), "{}", var.suffix);
            assert!(paths.insert(var.path), "{}", var.path);
        }
        assert!(suffixes.len() > 100);
    }

    #[test]
    fn every_fixed_default_is_a_valid_value() {
        for var in all() {
            if let Default::Fixed(text) = var.default {
                let read = var.kind.normalise(&Value::from(text));
                assert!(read.is_ok(), "{}: {read:?}", var.suffix);
            }
        }
    }

    #[test]
    fn every_variable_patroni_reads_for_what_exists_here_is_known() {
        let login = [
            "USERNAME",
            "PASSWORD",
            "SSLMODE",
            "SSLCERT",
            "SSLKEY",
            "SSLPASSWORD",
            "SSLROOTCERT",
            "SSLCRL",
            "SSLCRLDIR",
            "GSSENCMODE",
            "CHANNEL_BINDING",
            "SSLNEGOTIATION",
        ];
        let users = ["SUPERUSER", "REPLICATION", "REWIND"];
        let logins = users
            .iter()
            .flat_map(|user| login.iter().map(move |name| format!("{user}_{name}")));
        let others = [
            "CONFIGURATION",
            "NAME",
            "SCOPE",
            "NAMESPACE",
            "THREAD_POOL_SIZE",
            "THREAD_STACK_SIZE",
            "LOG_TYPE",
            "LOG_LEVEL",
            "LOG_TRACEBACK_LEVEL",
            "LOG_FORMAT",
            "LOG_DATEFORMAT",
            "LOG_STATIC_FIELDS",
            "LOG_MAX_QUEUE_SIZE",
            "LOG_DIR",
            "LOG_MODE",
            "LOG_FILE_SIZE",
            "LOG_FILE_NUM",
            "LOG_LOGGERS",
            "LOG_DEDUPLICATE_HEARTBEAT_LOGS",
            "CTL_USERNAME",
            "CTL_PASSWORD",
            "CTL_INSECURE",
            "CTL_CACERT",
            "CTL_CERTFILE",
            "CTL_KEYFILE",
            "CTL_KEYFILE_PASSWORD",
            "RESTAPI_LISTEN",
            "RESTAPI_CONNECT_ADDRESS",
            "RESTAPI_USERNAME",
            "RESTAPI_PASSWORD",
            "RESTAPI_CERTFILE",
            "RESTAPI_KEYFILE",
            "RESTAPI_KEYFILE_PASSWORD",
            "RESTAPI_CAFILE",
            "RESTAPI_CIPHERS",
            "RESTAPI_VERIFY_CLIENT",
            "RESTAPI_ALLOWLIST",
            "RESTAPI_ALLOWLIST_INCLUDE_MEMBERS",
            "RESTAPI_HTTP_EXTRA_HEADERS",
            "RESTAPI_HTTPS_EXTRA_HEADERS",
            "RESTAPI_REQUEST_QUEUE_SIZE",
            "RESTAPI_SERVER_TOKENS",
            "POSTGRESQL_LISTEN",
            "POSTGRESQL_CONNECT_ADDRESS",
            "POSTGRESQL_PROXY_ADDRESS",
            "POSTGRESQL_DATA_DIR",
            "POSTGRESQL_CONFIG_DIR",
            "POSTGRESQL_BIN_DIR",
            "POSTGRESQL_PGPASS",
            "POSTGRESQL_BIN_PG_CTL",
            "POSTGRESQL_BIN_INITDB",
            "POSTGRESQL_BIN_PG_CONTROLDATA",
            "POSTGRESQL_BIN_PG_BASEBACKUP",
            "POSTGRESQL_BIN_POSTGRES",
            "POSTGRESQL_BIN_PG_ISREADY",
            "POSTGRESQL_BIN_PG_REWIND",
            "ETCD3_HOST",
            "ETCD3_HOSTS",
            "ETCD3_URL",
            "ETCD3_PROXY",
            "ETCD3_SRV",
            "ETCD3_SRV_SUFFIX",
            "ETCD3_USE_PROXIES",
            "ETCD3_PROTOCOL",
            "ETCD3_USERNAME",
            "ETCD3_PASSWORD",
            "ETCD3_CACERT",
            "ETCD3_CERT",
            "ETCD3_KEY",
            "CONSUL_HOST",
            "CONSUL_URL",
            "CONSUL_PORT",
            "CONSUL_TOKEN",
            "CONSUL_VERIFY",
            "CONSUL_CACERT",
            "CONSUL_CERT",
            "CONSUL_KEY",
            "CONSUL_DC",
            "CONSUL_CONSISTENCY",
            "CONSUL_CHECKS",
            "CONSUL_REGISTER_SERVICE",
            "CONSUL_SERVICE_TAGS",
            "CONSUL_SERVICE_CHECK_INTERVAL",
            "CONSUL_SERVICE_CHECK_TLS_SERVER_NAME",
            "ZOOKEEPER_HOSTS",
            "ZOOKEEPER_USE_SSL",
            "ZOOKEEPER_CACERT",
            "ZOOKEEPER_CERT",
            "ZOOKEEPER_KEY",
            "ZOOKEEPER_KEY_PASSWORD",
            "ZOOKEEPER_VERIFY",
            "ZOOKEEPER_SET_ACLS",
            "ZOOKEEPER_AUTH_DATA",
            "KUBERNETES_NAMESPACE",
            "KUBERNETES_LABELS",
            "KUBERNETES_SCOPE_LABEL",
            "KUBERNETES_ROLE_LABEL",
            "KUBERNETES_LEADER_LABEL_VALUE",
            "KUBERNETES_FOLLOWER_LABEL_VALUE",
            "KUBERNETES_STANDBY_LEADER_LABEL_VALUE",
            "KUBERNETES_TMP_ROLE_LABEL",
            "KUBERNETES_USE_ENDPOINTS",
            "KUBERNETES_POD_IP",
            "KUBERNETES_PORTS",
            "KUBERNETES_CACERT",
            "KUBERNETES_BYPASS_API_SERVICE",
            "KUBERNETES_RETRIABLE_HTTP_CODES",
            "KUBERNETES_BOOTSTRAP_LABELS",
            "KUBERNETES_CONTEXT",
            "CITUS_GROUP",
            "CITUS_DATABASE",
        ];
        for suffix in logins.chain(others.map(str::to_owned)) {
            assert!(by_suffix(&suffix).is_some(), "{suffix}");
        }
    }
}
