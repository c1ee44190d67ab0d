use super::*;

const PATRONI: &str = "
name: n1
scope: demo
namespace: /db/
log: {level: DEBUG, dateformat: null}
restapi:
  listen: 0.0.0.0:8008
  connect_address: 10.9.0.1:8008
  authentication: {username: u, password: p}
etcd3: {hosts: [e1:2379, e2:2379]}
bootstrap:
  dcs:
    ttl: 45
    master_start_timeout: 60
    postgresql: {use_pg_rewind: false, parameters: {max_connections: 300}}
  initdb: [data-checksums, {encoding: UTF8}]
  pg_hba: [host all all 0.0.0.0/0 scram-sha-256]
  post_init: /setup
  users: {admin: {password: x}}
postgresql:
  listen: 127.0.0.1,10.9.0.1:5433
  connect_address: 10.9.0.1:5433
  data_dir: /pgdata
  authentication:
    superuser: {username: root, password: 12345, sslmode: require}
    replication: {username: rep, password: rep-password}
  parameters: {work_mem: 8MB, log_min_messages: info}
  create_replica_methods: [wal_e, basebackup]
  wal_e: {command: /restore, no_leader: 1, threshold: 10}
  basebackup: [{max-rate: 100M}]
  callbacks: {on_role_change: /notify}
  bin_name: {postgres: postgres-18}
watchdog: {mode: automatic}
tags: {nofailover: false, zone: a}
";

#[test]
fn a_patroni_configuration_is_understood() {
    let env = MapEnv::new(&[("PATRONI_CONFIGURATION", PATRONI)]);
    let loaded = load_env(&env).expect("valid");
    insta::assert_debug_snapshot!(loaded.config);
    insta::assert_snapshot!(check::render(&loaded));
}

#[test]
fn json_is_yaml() {
    let loaded = good(&[(
        "SPILO_CONFIGURATION",
        r#"{"scope": "demo", "bootstrap": {"dcs": {"ttl": 40}}}"#,
    )]);
    assert_eq!(loaded.config.scope, "demo");
    assert_eq!(
        origin(&loaded, "bootstrap.dcs.ttl"),
        "SPILO_CONFIGURATION: bootstrap.dcs.ttl"
    );
}

#[test]
fn single_variables_override_and_mappings_merge() {
    let loaded = good(&[
        (
            "HOWDAH_CONFIGURATION",
            "{scope: a, bootstrap: {dcs: {ttl: 40, x: 1, y: 1}}, postgresql: {parameters: {a: 1, b: 1}, pg_hba: [one, two]}}",
        ),
        ("HOWDAH_SCOPE", "b"),
        ("HOWDAH_BOOTSTRAP_DCS", "{ttl: 50, y: 2}"),
        ("HOWDAH_TTL", "60"),
        ("HOWDAH_POSTGRESQL_PARAMETERS", "b: 2"),
        ("HOWDAH_POSTGRESQL_PG_HBA", "three"),
    ]);
    let config = &loaded.config;
    assert_eq!(config.scope, "b");
    assert_eq!(config.bootstrap.dcs["ttl"], 60);
    assert_eq!(
        (&config.bootstrap.dcs["x"], &config.bootstrap.dcs["y"]),
        (&1.into(), &2.into())
    );
    assert_eq!(
        serde_json::Value::from(config.postgresql.parameters.clone()),
        serde_json::json!({"a": 1, "b": 2})
    );
    assert_eq!(config.postgresql.pg_hba, ["three"]);
    assert_eq!(
        origin(&loaded, "postgresql.parameters"),
        "HOWDAH_CONFIGURATION: postgresql.parameters, HOWDAH_POSTGRESQL_PARAMETERS"
    );
}

#[test]
fn unknown_keys_are_found() {
    refused(
        &[("HOWDAH_CONFIGURATION", "scop: x")],
        "HOWDAH_CONFIGURATION: scop: there is no such setting; did you mean scope?",
    );
    refused(
        &[("PATRONI_CONFIGURATION", "scop: x")],
        "PATRONI_CONFIGURATION: scop: there is no such setting; did you mean scope?",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "restapi: {listn: 'x:1'}")],
        "HOWDAH_CONFIGURATION: restapi.listn: there is no such setting; did you mean restapi.listen?",
    );
    let loaded = good(&[("PATRONI_CONFIGURATION", "{restapi: {listn: 'x:1'}, ttl: 5}")]);
    assert_eq!(
        loaded.warnings,
        [
            "PATRONI_CONFIGURATION: ttl: has no effect here; it belongs below bootstrap.dcs",
            "PATRONI_CONFIGURATION: restapi.listn: there is no such setting; did you mean restapi.listen?",
        ]
    );
}

#[test]
fn wrong_values_are_named_by_their_place() {
    refused(
        &[("HOWDAH_CONFIGURATION", "bootstrap: {dcs: {ttl: soon}}")],
        "HOWDAH_CONFIGURATION: bootstrap.dcs.ttl: \"soon\" is not a number of seconds (allowed: 3 or more)",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "restapi: 5")],
        "HOWDAH_CONFIGURATION: restapi: \"5\" is not a mapping (allowed: name: value)",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "a: {b")],
        "HOWDAH_CONFIGURATION: the value is not readable as YAML or JSON in line 2 column 1 (allowed: a mapping in Patroni's shape)",
    );
    refused(
        &[(
            "HOWDAH_CONFIGURATION",
            "postgresql: {create_replica_methods: [wal_e]}",
        )],
        "HOWDAH_CONFIGURATION: postgresql.create_replica_methods: there is no section postgresql.wal_e that says how to run this method",
    );
}

#[test]
fn a_password_refused_in_the_document_is_not_called_missing() {
    let env = MapEnv::new(&[(
        "HOWDAH_CONFIGURATION",
        "postgresql: {authentication: {superuser: {password: [x]}}}",
    )]);
    let mistakes = load_env(&env).expect_err("a list").to_string();
    assert_eq!(
        mistakes,
        "HOWDAH_CONFIGURATION: postgresql.authentication.superuser.password: the value is not usable as a password (allowed: one line of text)"
    );
}
