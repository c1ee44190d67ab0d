//! A setting that nothing reads is a promise that is not kept: whoever adds a row to the table names its reader here.

use std::path::Path;

use super::{vars::Var, *};

/// (beginning of the suffix, file below `src`, what stands there). The longest beginning counts.
#[rustfmt::skip]
const READERS: &[(&str, &str, &str)] = &[
    ("CONFIGURATION", "config/gather.rs", "document::read("),
    ("NAME", "agent/start.rs", "config.name"),
    ("SCOPE", "agent/start.rs", "config.scope"),
    ("NAMESPACE", "agent/start.rs", "config.namespace"),
    ("TAGS", "agent/start.rs", "config.tags"),
    ("POSTGRESQL_LISTEN", "agent/instance/settings.rs", "postgresql.listen.addresses()"),
    ("POSTGRESQL_CONNECT_ADDRESS", "agent/start.rs", "postgresql.connect_address"),
    ("POSTGRESQL_PROXY_ADDRESS", "agent/start.rs", "postgresql.proxy_address"),
    ("POSTGRESQL_DATA_DIR", "agent/instance/settings.rs", "postgresql.data_dir"),
    ("POSTGRESQL_CONFIG_DIR", "agent/instance/settings.rs", "postgresql.config_dir"),
    ("POSTGRESQL_CONFIG_BASE_NAME", "agent/instance/settings.rs", "postgresql.config_base_name"),
    ("POSTGRESQL_CUSTOM_CONF", "agent/instance/settings.rs", "postgresql.custom_conf"),
    ("POSTGRESQL_BIN_DIR", "agent/start.rs", "config.postgresql.bin_dir"),
    ("POSTGRESQL_DATABASE", "agent/instance/settings.rs", "postgresql.database"),
    ("POSTGRESQL_PGPASS", "agent/instance/settings.rs", ".pgpass"),
    ("POSTGRESQL_KRBSRVNAME", "agent/instance/settings.rs", "postgresql.krbsrvname"),
    ("POSTGRESQL_PARAMETERS", "agent/instance/settings.rs", "postgresql.parameters"),
    ("POSTGRESQL_PG_HBA", "agent/instance/settings.rs", "postgresql.pg_hba"),
    ("POSTGRESQL_PG_IDENT", "agent/instance/settings.rs", "postgresql.pg_ident"),
    ("POSTGRESQL_RECOVERY_CONF", "agent/instance/settings.rs", "postgresql.recovery_conf"),
    ("POSTGRESQL_BASEBACKUP", "agent/instance/settings.rs", "postgresql.basebackup"),
    ("POSTGRESQL_REWIND", "agent/instance/settings.rs", "postgresql.rewind"),
    ("POSTGRESQL_CREATE_REPLICA_METHODS", "config/build/postgresql.rs", "refuse_other_replica_methods"),
    ("SUPERUSER_", "agent/instance/settings.rs", "authentication.superuser"),
    ("REPLICATION_", "agent/instance/settings.rs", "authentication.replication"),
    ("REWIND_", "agent/instance/settings.rs", "authentication.rewind"),
    ("RESTAPI_LISTEN", "agent/start.rs", "config.restapi.listen"),
    ("RESTAPI_CONNECT_ADDRESS", "agent/start.rs", "config.restapi.connect_address"),
    ("RESTAPI_USERNAME", "api/access.rs", "config.authentication"),
    ("RESTAPI_PASSWORD", "api/access.rs", "config.authentication"),
    ("RESTAPI_ALLOWLIST", "api/access.rs", "config.allowlist"),
    ("RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "api/access.rs", "config.allowlist_include_members"),
    ("RESTAPI_HTTP_EXTRA_HEADERS", "api/access.rs", "config.extra_headers"),
    ("CTL_USERNAME", "agent/start.rs", "config.ctl.authentication"),
    ("CTL_PASSWORD", "agent/start.rs", "config.ctl.authentication"),
    ("ETCD3_HOST", "agent/start.rs", "etcd3.endpoints"),
    ("ETCD3_URL", "agent/start.rs", "etcd3.endpoints"),
    ("ETCD3_PROXY", "agent/start.rs", "etcd3.endpoints"),
    ("ETCD3_PROTOCOL", "agent/start.rs", "etcd3.tls()"),
    ("ETCD3_USERNAME", "agent/start.rs", "etcd3.credentials"),
    ("ETCD3_PASSWORD", "agent/start.rs", "etcd3.credentials"),
    ("ETCD3_CACERT", "agent/start.rs", "etcd3.cacert"),
    ("ETCD3_CERT", "agent/start.rs", "etcd3.client_certificate"),
    ("ETCD3_KEY", "agent/start.rs", "etcd3.client_certificate"),
    ("EMBEDDED_PEERS", "agent/start.rs", "own.peers"),
    ("EMBEDDED_DATA_DIR", "agent/start.rs", "own.data_dir"),
    ("EMBEDDED_CLIENT_PORT", "agent/start.rs", "own.this.client_port"),
    ("EMBEDDED_PEER_PORT", "agent/start.rs", "peer.peer_port"),
    ("LOG_LEVEL", "main.rs", "config.log.directives()"),
    ("LOG_LOGGERS", "main.rs", "config.log.directives()"),
    ("LOG_TYPE", "main.rs", "config.log.format"),
];

/// Rows without a reader of their own, and why that is right.
const WITHOUT: &[(&str, &str)] = &[
    (
        "POSTGRESQL_CALLBACKS_",
        "read where the instance starts and stops",
    ),
    ("POSTGRESQL_PRE_PROMOTE", "read by the promotion"),
    ("POSTGRESQL_BEFORE_STOP", "read by the stop"),
    ("POSTGRESQL_BIN_", "read where the programs are looked for"),
    ("EMBEDDED_LISTEN", "read by the embedded etcd"),
];

fn longest<'a, T>(rows: &'a [T], var: &Var, start: impl Fn(&T) -> &'static str) -> Option<&'a T> {
    let fits = rows.iter().filter(|row| var.suffix.starts_with(start(row)));
    fits.max_by_key(|row| start(row).len())
}

#[test]
fn every_setting_that_takes_effect_has_a_reader() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let effective = vars::all().filter(|var| matches!(var.effect, Effect::Start | Effect::Reload));
    for var in effective {
        let excused = longest(WITHOUT, var, |row| row.0).map_or(0, |row| row.0.len());
        match longest(READERS, var, |row| row.0) {
            Some((start, file, token)) if start.len() >= excused => {
                let text = std::fs::read_to_string(source.join(file)).expect(file);
                let dense: String = text.split_whitespace().collect();
                assert!(
                    dense.contains(&token.replace(' ', "")),
                    "{}: {file} has no {token} any more",
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
