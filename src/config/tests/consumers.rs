//! A setting that nothing reads is a promise that is not kept: whoever adds a row to the table names its reader here.

use std::{fs, path::Path};

use super::{vars::Var, *};

/// (beginning of the suffix, what stands where it is read). The longest beginning counts.
#[rustfmt::skip]
const READERS: &[(&str, &str)] = &[
    ("NAME", "config.name"),
    ("SCOPE", "config.scope"),
    ("NAMESPACE", "config.namespace"),
    ("TAGS", "config.tags"),
    ("POSTGRESQL_LISTEN", "postgresql.listen.addresses()"),
    ("POSTGRESQL_CONNECT_ADDRESS", "postgresql.connect_address"),
    ("POSTGRESQL_PROXY_ADDRESS", "postgresql.proxy_address"),
    ("POSTGRESQL_DATA_DIR", "postgresql.data_dir"),
    ("POSTGRESQL_CONFIG_DIR", "postgresql.config_dir"),
    ("POSTGRESQL_CONFIG_BASE_NAME", "postgresql.config_base_name"),
    ("POSTGRESQL_CUSTOM_CONF", "postgresql.custom_conf"),
    ("POSTGRESQL_BIN_DIR", "config.postgresql.bin_dir"),
    ("POSTGRESQL_DATABASE", "postgresql.database"),
    ("POSTGRESQL_PGPASS", ".pgpass"),
    ("POSTGRESQL_KRBSRVNAME", "postgresql.krbsrvname"),
    ("POSTGRESQL_PARAMETERS", "postgresql.parameters"),
    ("POSTGRESQL_PG_HBA", "postgresql.pg_hba"),
    ("POSTGRESQL_PG_IDENT", "postgresql.pg_ident"),
    ("POSTGRESQL_RECOVERY_CONF", "postgresql.recovery_conf"),
    ("POSTGRESQL_BASEBACKUP", "postgresql.basebackup"),
    ("POSTGRESQL_REWIND", "postgresql.rewind"),
    ("SUPERUSER_", "authentication.superuser"),
    ("REPLICATION_", "authentication.replication"),
    ("REWIND_", "authentication.rewind"),
    ("RESTAPI_LISTEN", "config.restapi.listen"),
    ("RESTAPI_CONNECT_ADDRESS", "config.restapi.connect_address"),
    ("RESTAPI_USERNAME", "config.authentication"),
    ("RESTAPI_PASSWORD", "config.authentication"),
    ("RESTAPI_ALLOWLIST", "config.allowlist"),
    ("RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "config.allowlist_include_members"),
    ("RESTAPI_HTTP_EXTRA_HEADERS", "config.extra_headers"),
    ("RESTAPI_HTTPS_EXTRA_HEADERS", "config.extra_headers"),
    ("RESTAPI_CERTFILE", "restapi.tls"),
    ("RESTAPI_KEYFILE", "restapi.tls"),
    ("RESTAPI_KEYFILE_PASSWORD", "restapi.tls"),
    ("RESTAPI_CAFILE", "restapi.tls"),
    ("RESTAPI_CIPHERS", "restapi.tls"),
    ("RESTAPI_VERIFY_CLIENT", "restapi.tls"),
    ("ROLE", "config.role"),
    ("CTL_INSECURE", "config.ctl.insecure"),
    ("CTL_CACERT", "config.ctl.cacert"),
    ("CTL_CERTFILE", "config.ctl.identity"),
    ("CTL_KEYFILE", "config.ctl.identity"),
    ("CTL_KEYFILE_PASSWORD", "config.ctl.identity"),
    ("CTL_USERNAME", "config.ctl.authentication"),
    ("CTL_PASSWORD", "config.ctl.authentication"),
    ("ETCD3_HOST", "etcd3.endpoints"),
    ("ETCD3_URL", "etcd3.endpoints"),
    ("ETCD3_PROXY", "etcd3.endpoints"),
    ("ETCD3_PROTOCOL", "etcd3.tls()"),
    ("ETCD3_USERNAME", "etcd3.credentials"),
    ("ETCD3_PASSWORD", "etcd3.credentials"),
    ("ETCD3_CACERT", "etcd3.cacert"),
    ("ETCD3_CERT", "etcd3.client_certificate"),
    ("ETCD3_KEY", "etcd3.client_certificate"),
    ("EMBEDDED_PEERS", "own.peers"),
    ("EMBEDDED_DATA_DIR", "own.data_dir"),
    ("EMBEDDED_CLIENT_PORT", "own.this.client_port"),
    ("EMBEDDED_PEER_PORT", "peer.peer_port"),
    ("KUBERNETES_MODE", "settings.mode"),
    ("KUBERNETES_NAMESPACE", "settings.namespace"),
    ("KUBERNETES_LABELS", "settings.labels"),
    ("KUBERNETES_SCOPE_LABEL", "settings.scope_label"),
    ("KUBERNETES_ROLE_LABEL", "settings.role_label"),
    ("KUBERNETES_LEADER_LABEL_VALUE", "settings.leader_label_value"),
    ("KUBERNETES_FOLLOWER_LABEL_VALUE", "settings.follower_label_value"),
    ("KUBERNETES_STANDBY_LEADER_LABEL_VALUE", "settings.standby_leader_label_value"),
    ("KUBERNETES_TMP_ROLE_LABEL", "settings.tmp_role_label"),
    ("KUBERNETES_BOOTSTRAP_LABELS", "settings.bootstrap_labels"),
    ("KUBERNETES_POD_IP", "settings.pod_ip"),
    ("KUBERNETES_PORTS", "settings.ports"),
    ("KUBERNETES_CACERT", "settings.cacert"),
    ("KUBERNETES_BYPASS_API_SERVICE", "settings.bypass_api_service"),
    ("KUBERNETES_RETRIABLE_HTTP_CODES", "settings.retriable_http_codes"),
    ("KUBERNETES_KUBECONFIG", "settings.kubeconfig"),
    ("KUBERNETES_CONTEXT", "settings.context"),
    ("CONSUL_HOST", "settings.host"),
    ("CONSUL_URL", "settings.host"),
    ("CONSUL_PORT", "settings.host"),
    ("CONSUL_SCHEME", "settings.tls"),
    ("CONSUL_TOKEN", "settings.token"),
    ("CONSUL_VERIFY", "settings.tls"),
    ("CONSUL_CACERT", "settings.tls"),
    ("CONSUL_CERT", "settings.tls"),
    ("CONSUL_KEY", "settings.tls"),
    ("CONSUL_DC", "settings.dc"),
    ("CONSUL_CONSISTENCY", "settings.consistent"),
    ("CONSUL_CHECKS", "settings.checks"),
    ("CONSUL_REGISTER_SERVICE", "settings.service"),
    ("CONSUL_SERVICE_TAGS", "service.tags"),
    ("CONSUL_SERVICE_CHECK_INTERVAL", "service.check_interval"),
    ("CONSUL_SERVICE_CHECK_TLS_SERVER_NAME", "service.check_tls_server_name"),
    ("ZOOKEEPER_HOSTS", "settings.hosts"),
    ("ZOOKEEPER_USE_SSL", "settings.tls"),
    ("ZOOKEEPER_CACERT", "settings.tls"),
    ("ZOOKEEPER_CERT", "settings.tls"),
    ("ZOOKEEPER_KEY", "settings.tls"),
    ("ZOOKEEPER_KEY_PASSWORD", "settings.tls"),
    ("ZOOKEEPER_VERIFY", "settings.tls"),
    ("ZOOKEEPER_AUTH_DATA", "settings.auth"),
    ("ZOOKEEPER_SET_ACLS", "settings.acls"),
    (
        "POSTGRESQL_CREATE_REPLICA_METHODS",
        "postgresql.create_replica_methods",
    ),
    ("LOG_LEVEL", "config.log.directives()"),
    ("LOG_LOGGERS", "config.log.directives()"),
    ("LOG_TYPE", "config.log.format"),
    ("LOG_STATIC_FIELDS", "config.log.static_fields"),
    ("LOG_DIR", "log.file"),
    ("LOG_MODE", "log.file"),
    ("LOG_FILE_SIZE", "log.file"),
    ("LOG_FILE_NUM", "log.file"),
    ("WATCHDOG_MODE", "settings.mode"),
    ("WATCHDOG_DEVICE", "settings.device"),
    ("WATCHDOG_SAFETY_MARGIN", "settings.safety_margin"),
    ("WATCHDOG_DRIVER", "settings.driver"),
    ("POSTGRESQL_PARAMETERS_", "postgresql.by_role"),
    ("POSTGRESQL_PG_HBA_", "postgresql.by_role"),
    ("POSTGRESQL_PG_IDENT_", "postgresql.by_role"),
];

/// Rows without a reader of their own, and why that is right.
const WITHOUT: &[(&str, &str)] = &[
    ("CONFIGURATION", "taken apart into the other settings"),
    (
        "POSTGRESQL_CALLBACKS_",
        "read where the instance starts and stops",
    ),
    ("POSTGRESQL_PRE_PROMOTE", "read by the promotion"),
    ("POSTGRESQL_BEFORE_STOP", "read by the stop"),
    ("POSTGRESQL_BIN_", "read where the programs are looked for"),
    ("EMBEDDED_LISTEN", "read by the embedded etcd"),
    ("KUBERNETES_ENABLED", "chooses the store"),
    ("KUBERNETES_USE_", "names of a mode"),
];

fn longest<'a>(
    rows: &'a [(&'static str, &'static str)],
    var: &Var,
) -> Option<&'a (&'static str, &'static str)> {
    let fits = rows.iter().filter(|row| var.suffix.starts_with(row.0));
    fits.max_by_key(|row| row.0.len())
}

/// All code without white space, but for tests and for the configuration itself.
fn code_below(folder: &Path, code: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "tests" | "config") {
                code_below(&path, code);
            }
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            code.extend(fs::read_to_string(&path).expect("text").split_whitespace());
        }
    }
}

#[test]
fn every_setting_that_takes_effect_has_a_reader() {
    let mut code = String::new();
    code_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    let effective = vars::all().filter(|var| matches!(var.effect, Effect::Start | Effect::Reload));
    for var in effective {
        let excused = longest(WITHOUT, var).map_or(0, |row| row.0.len());
        match longest(READERS, var) {
            Some((start, token)) if start.len() >= excused => {
                assert!(
                    code.contains(&token.replace(' ', "")),
                    "{}: {token} is nowhere any more",
                    var.suffix
                );
            }
            _ => assert!(excused > 0, "{} takes effect but nothing reads it", var.suffix),
        }
    }
}

#[test]
fn every_row_about_readers_is_about_a_setting() {
    let starts = READERS
        .iter()
        .map(|row| row.0)
        .chain(WITHOUT.iter().map(|row| row.0));
    for start in starts {
        assert!(vars::all().any(|var| var.suffix.starts_with(start)), "{start}");
    }
}
