use std::time::Duration;

use super::*;
use crate::model::RoleScope;

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
  create_replica_methods: [basebackup]
  use_pg_rewind: true
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
fn any_leaf_can_be_a_variable_by_its_path() {
    let loaded = good(&[
        (
            "HOWDAH_CONFIGURATION",
            "postgresql: {parameters: {work_mem: 1MB, log_min_messages: info}}",
        ),
        ("HOWDAH__POSTGRESQL__PARAMETERS__WORK_MEM", "64MB"),
        ("HOWDAH__BOOTSTRAP__DCS__TTL", "40"),
        ("HOWDAH__BOOTSTRAP__DCS__SLOTS__BACKUP", "{type: physical}"),
        ("HOWDAH__TAGS__ZONE", "a"),
        ("HOWDAH__RESTAPI__LISTEN", "*:8009"),
        // A name of its own is stronger.
        ("HOWDAH_SCOPE", "named"),
        ("HOWDAH__SCOPE", "leaf"),
    ]);
    let config = &loaded.config;
    assert_eq!(config.postgresql.parameters["work_mem"], "64MB");
    assert_eq!(config.postgresql.parameters["log_min_messages"], "info");
    assert_eq!(config.bootstrap.timing.ttl, Duration::from_secs(40));
    assert_eq!(config.bootstrap.dcs["slots"]["backup"]["type"], "physical");
    assert_eq!(config.tags.0["zone"], "a");
    assert_eq!(config.restapi.listen.port, 8009);
    assert_eq!(config.scope, "named");
    assert_eq!(origin(&loaded, "restapi.listen"), "HOWDAH__RESTAPI__LISTEN");
}

#[test]
fn a_leaf_that_is_none_is_a_mistake() {
    let mistakes = bad(&[
        ("HOWDAH__RESTAPI__LISSTEN", "*:8009"),
        ("HOWDAH__BOOTSTRAP__DCS__TTL", "soon"),
    ]);
    assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
    assert!(
        mistakes
            .iter()
            .any(|line| line.contains("HOWDAH__RESTAPI__LISSTEN") && line.contains("listen")),
        "{mistakes:#?}"
    );
    assert!(
        mistakes
            .iter()
            .any(|line| line.contains("HOWDAH__BOOTSTRAP__DCS__TTL")),
        "{mistakes:#?}"
    );
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
        "HOWDAH_CONFIGURATION: bootstrap.dcs.ttl: \"soon\" is not a number of seconds (allowed: 3 to 86400)",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "restapi: 5")],
        "HOWDAH_CONFIGURATION: restapi: the value is not a mapping but a number (allowed: name: value)",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "a: {b")],
        "HOWDAH_CONFIGURATION: the value is not readable as YAML or JSON in line 2 column 1 (allowed: a mapping in Patroni's shape)",
    );
}

#[test]
fn methods_of_ones_own_are_read_with_their_sections() {
    let loaded = good(&[(
        "HOWDAH_CONFIGURATION",
        "{bootstrap: {method: clone, clone: {command: /clone, recovery_conf: {restore_command: x}}}, postgresql: \
         {create_replica_methods: [wal_e, basebackup], wal_e: {command: /restore, no_leader: true}}}",
    )]);
    assert_eq!(loaded.warnings, [""; 0]);
    let method = loaded.config.bootstrap.method.expect("a method");
    assert_eq!(
        (method.name.as_str(), method.command.as_str()),
        ("clone", "/clone")
    );
    let postgresql = loaded.config.postgresql;
    assert_eq!(postgresql.create_replica_methods, ["wal_e", "basebackup"]);
    assert_eq!(postgresql.method_sections["wal_e"]["command"], "/restore");
}

#[test]
fn a_method_that_cannot_be_used_is_refused() {
    for (document, mistake) in [
        (
            "bootstrap: {method: clone}",
            "HOWDAH_CONFIGURATION: bootstrap.method: bootstrap.clone: there is no section clone",
        ),
        (
            "bootstrap: {method: clone, clone: {no_params: true}}",
            "HOWDAH_CONFIGURATION: bootstrap.method: bootstrap.clone: section clone has no command",
        ),
        (
            "postgresql: {create_replica_methods: [m], m: {command: x, keep_data: perhaps}}",
            "HOWDAH_CONFIGURATION: postgresql.create_replica_methods: postgresql.m: keep_data: \"perhaps\" is neither yes nor no",
        ),
        (
            "bootstrap: {dcs: {standby_cluster: {primary_slot_name: x}}}",
            "HOWDAH_CONFIGURATION: bootstrap.dcs: standby_cluster has no source (host, port or restore_command)",
        ),
    ] {
        refused(&[("HOWDAH_CONFIGURATION", document)], mistake);
    }
}

#[test]
fn a_first_configuration_may_follow_another_cluster() {
    let loaded = good(&[(
        "HOWDAH_CONFIGURATION",
        "{bootstrap: {dcs: {standby_cluster: {host: a, create_replica_methods: [m]}}}, postgresql: {m: {command: x}}}",
    )]);
    assert_eq!(loaded.warnings, [""; 0]);
    assert_eq!(loaded.config.bootstrap.dcs["standby_cluster"]["host"], "a");
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

/// The tree of the contract (environment §3) with its defaults, as generators of such documents write it.
const DEFAULTS: &str = "
name: n1
scope: demo
namespace: service
thread_pool_size: 5
thread_stack_size: 512kB
log: {type: plain, level: INFO, traceback_level: ERROR, format: '', dateformat: null, static_fields: {},
      max_queue_size: 1000, dir: null, mode: null, file_num: 4, file_size: 25000000, loggers: {}, deduplicate_heartbeat_logs: false}
restapi:
  listen: ':8008'
  connect_address: 10.1.0.1:8008
  thread_pool_size: 5
  request_queue_size: 5
  authentication: {}
  certfile: ''
  keyfile: ''
  keyfile_password: null
  cafile: ''
  ciphers: ''
  verify_client: none
  allowlist: []
  allowlist_include_members: false
  http_extra_headers: {}
  https_extra_headers: {}
  server_tokens: original
ctl: {authentication: {}, insecure: false, cacert: '', certfile: '', keyfile: ''}
etcd3: {hosts: [e1:2379], use_proxies: false, srv: ''}
consul: {}
citus: {}
bootstrap:
  dcs: {ttl: 30, loop_wait: 10, retry_timeout: 10, slots: {}, ignore_slots: [], standby_cluster: {}}
  method: initdb
  initdb: []
  pg_hba: []
  post_bootstrap: ''
postgresql:
  listen: ':5432'
  connect_address: 10.1.0.1:5432
  proxy_address: null
  data_dir: /pgdata
  config_base_name: postgresql
  custom_conf: ''
  bin_dir: ''
  bin_name: {}
  database: postgres
  pgpass: ''
  use_unix_socket: false
  use_unix_socket_repl: false
  krbsrvname: null
  authentication: {superuser: {}, replication: {}, rewind: {}}
  parameters: {}
  parameters_primary: {}
  pg_hba: []
  pg_hba_replica: []
  pg_ident: []
  recovery_conf: {}
  create_replica_methods: [basebackup]
  basebackup: {}
  wal_e: {}
  use_pg_rewind: false
  rewind: []
  remove_data_directory_on_rewind_failure: false
  remove_data_directory_on_diverged_timelines: false
  pg_ctl_timeout: 60
  callbacks: {}
  pre_promote: ''
watchdog: {mode: automatic, device: /dev/watchdog, safety_margin: 5, driver: default}
tags: {nofailover: false, failover_priority: 1, noloadbalance: false, clonefrom: false, nosync: false, sync_priority: 1,
       replicatefrom: null, nostream: false}
";

#[test]
fn a_document_that_spells_out_every_default_is_valid() {
    let loaded = good(&[("PATRONI_CONFIGURATION", DEFAULTS)]);
    let config = &loaded.config;
    assert_eq!(config.restapi.listen.to_string(), "*:8008");
    assert_eq!(config.postgresql.listen.addresses(), "*");
    assert_eq!(config.postgresql.bin_dir, None);
    assert!(!config.tags.0.contains_key("replicatefrom"));
    assert_eq!(config.bootstrap.dcs["postgresql"]["use_pg_rewind"], false);
    assert_eq!(config.bootstrap.dcs["slots"], serde_json::json!({}));
}

#[test]
fn misspelt_sections_are_found_too() {
    refused(
        &[("HOWDAH_CONFIGURATION", "postgresql: {paramters: {work_mem: 1MB}}")],
        "HOWDAH_CONFIGURATION: postgresql.paramters: there is no such setting; did you mean postgresql.parameters?",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "bootstrap: {dsc: {ttl: 40}}")],
        "HOWDAH_CONFIGURATION: bootstrap.dsc: there is no such setting; did you mean bootstrap.dcs?",
    );
    let loaded = good(&[(
        "HOWDAH_BOOTSTRAP_DCS",
        "{loopwait: 5, retry_timout: 5, own: 1, postgresql: {use_pgrewind: off, parameters_replica: {a: 1}, mine: 1}}",
    )]);
    assert_eq!(
        loaded.warnings,
        [
            "HOWDAH_BOOTSTRAP_DCS: loopwait = 5: has no effect: there is no such key; did you mean loop_wait?",
            "HOWDAH_BOOTSTRAP_DCS: retry_timout = 5: has no effect: there is no such key; did you mean retry_timeout?",
            "HOWDAH_BOOTSTRAP_DCS: own = 1: has no effect: there is no such key",
            "HOWDAH_BOOTSTRAP_DCS: postgresql.use_pgrewind = \"off\": has no effect: there is no such key; did you mean use_pg_rewind?",
        ]
    );
}

/// Its default would hold instead: a cluster that was to be synchronous would not be.
#[test]
fn what_a_new_cluster_cannot_read_of_its_configuration_is_refused() {
    refused(
        &[("HOWDAH_BOOTSTRAP_DCS", "{synchronous_mode: maybe}")],
        "HOWDAH_BOOTSTRAP_DCS: synchronous_mode: \"maybe\" is not usable (allowed: true, false or quorum)",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "bootstrap: {dcs: {slots: [a]}}")],
        "HOWDAH_CONFIGURATION: bootstrap.dcs: slots: [\"a\"] is not usable (allowed: a mapping (name: value))",
    );
}

#[test]
fn settings_for_one_role_are_kept_apart() {
    let document = "postgresql: {parameters_primary: {work_mem: 1MB}, pg_hba_replica: [local all all trust]}";
    let loaded = good(&[
        ("HOWDAH_CONFIGURATION", document),
        ("HOWDAH_POSTGRESQL_PG_IDENT_STANDBY_LEADER", "a b c"),
    ]);
    let by_role = &loaded.config.postgresql.by_role;
    assert_eq!(by_role[&RoleScope::Primary].parameters["work_mem"], "1MB");
    assert!(by_role[&RoleScope::Primary].pg_hba.is_empty());
    assert_eq!(by_role[&RoleScope::Replica].pg_hba, ["local all all trust"]);
    assert_eq!(by_role[&RoleScope::StandbyLeader].pg_ident, ["a b c"]);
    assert!(loaded.config.postgresql.parameters.is_empty());
}

#[test]
fn a_watchdog_has_a_mode_a_device_and_a_margin() {
    let default = good(&[]).config.watchdog;
    assert_eq!(
        (default.mode, default.safety_margin),
        (WatchdogMode::Automatic, Some(Duration::from_secs(5)))
    );
    let document = "watchdog: {mode: required, device: /dev/wd, safety_margin: -1, driver: testing}";
    let given = good(&[("PATRONI_CONFIGURATION", document)]).config.watchdog;
    assert_eq!(
        (given.mode, given.driver),
        (WatchdogMode::Required, WatchdogDriver::Testing)
    );
    assert_eq!(
        (given.device.to_str(), given.safety_margin),
        (Some("/dev/wd"), None)
    );
    assert_eq!(
        good(&[("HOWDAH_WATCHDOG_MODE", "false")]).config.watchdog.mode,
        WatchdogMode::Off
    );
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    for document in [
        "restapi: {authentication: 'admin:s3cret'}",
        "postgresql: {authentication: {superuser: 'admin:s3cret'}}",
        "postgresql: {authentication: {superuser: {username: [s3cret]}}}",
        "restapi: s3cret",
        "etcd3: {host: 'root:s3cret@e1:2379'}",
        "etcd3: {hosts: ['http://s3cret@e1:2379']}",
        "postgresql: {recovery_conf: 'password=s3cret'}",
        "postgresql: {parameters: {a: {b: s3cret}}}",
    ] {
        let mistakes = bad(&[("HOWDAH_CONFIGURATION", document)]).join("\n");
        assert!(!mistakes.contains("s3cret"), "{document}: {mistakes}");
    }
    refused(
        &[(
            "HOWDAH_CONFIGURATION",
            "restapi: {authentication: 'admin:s3cret'}",
        )],
        "HOWDAH_CONFIGURATION: restapi.authentication: the value is not a mapping but a text (allowed: name: value)",
    );
}

#[test]
fn a_number_as_password_must_keep_its_spelling() {
    let document = |password: &str| {
        let text = format!("postgresql: {{authentication: {{replication: {{password: {password}}}}}}}");
        load(&[("HOWDAH_CONFIGURATION", &text)])
    };
    for password in ["1e5", "1.50", "true"] {
        let mistakes = document(password).expect_err("its spelling is lost").to_string();
        assert!(mistakes.ends_with("(allowed: the same in quotes)"), "{mistakes}");
        let quoted = document(&format!("'{password}'")).expect("quoted");
        assert_eq!(
            quoted
                .config
                .postgresql
                .authentication
                .replication
                .password
                .reveal(),
            password
        );
    }
    assert!(document("12345").is_ok());
}
