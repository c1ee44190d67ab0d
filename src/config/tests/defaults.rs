use super::*;

#[test]
fn a_password_alone_is_a_whole_configuration() {
    let env = MapEnv::new(&[("POSTGRES_PASSWORD", "secret")]);
    let loaded = load_env(&env).expect("valid");
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let config = loaded.config;
    assert_eq!(config.name.as_str(), "pg1");
    assert_eq!(
        (config.scope.as_str(), config.namespace.as_str()),
        ("howdah", "service")
    );
    assert_eq!(config.postgresql.listen.to_string(), "0.0.0.0:5432");
    assert_eq!(config.postgresql.connect_address.to_string(), "10.1.0.1:5432");
    assert_eq!(config.restapi.connect_address.to_string(), "10.1.0.1:8008");
    assert_eq!(
        config.postgresql.data_dir.to_string_lossy(),
        "/var/lib/postgresql/data"
    );
    assert_eq!(config.postgresql.config_dir, config.postgresql.data_dir);
    assert_eq!(config.postgresql.authentication.superuser.username, "postgres");
    assert_eq!(config.bootstrap.database, "postgres");
    assert_eq!(
        config.bootstrap.timing,
        crate::model::Timing::adjusted(30, 10, 10)
    );
    let DcsConfig::Embedded(embedded) = config.dcs else {
        unreachable!("no DCS was configured");
    };
    assert_eq!(embedded.data_dir.to_string_lossy(), "/var/lib/postgresql/etcd");
    assert_eq!(embedded.listen, "127.0.0.1");
    assert_eq!(embedded.peers, [embedded.this]);
}

#[test]
fn without_a_password_there_is_one_clear_mistake() {
    let mistakes = load_env(&MapEnv::default()).expect_err("no password");
    insta::assert_snapshot!(mistakes, @"HOWDAH_SUPERUSER_PASSWORD or POSTGRES_PASSWORD, or either with _FILE, must be set: there is no default password for the superuser");
}

#[test]
fn passwords_of_the_other_roles_are_derived_alike_on_all_members() {
    let roles = |loaded: Loaded| loaded.config.postgresql.authentication;
    let first = roles(good(&[]));
    assert_eq!(first, roles(good(&[("HOWDAH_NAME", "pg2")])));
    assert_eq!(
        first.replication.password,
        Secret::new("secret").derive("replicator")
    );
    assert_ne!(first.replication.password, first.rewind.password);
    let given = roles(good(&[("HOWDAH_REPLICATION_PASSWORD", "own")]));
    assert_eq!(given.replication.password.reveal(), "own");
    assert_eq!(given.rewind, first.rewind);
}

#[test]
fn one_role_for_two_purposes_has_one_password() {
    let roles = good(&[("HOWDAH_REWIND_USERNAME", "postgres")])
        .config
        .postgresql
        .authentication;
    assert_eq!(roles.rewind.password.reveal(), "secret");
    refused(
        &[
            ("HOWDAH_REWIND_USERNAME", "postgres"),
            ("HOWDAH_REWIND_PASSWORD", "other"),
        ],
        "HOWDAH_SUPERUSER_PASSWORD, HOWDAH_REWIND_PASSWORD: both are for the role \"postgres\", but differ",
    );
}

#[test]
fn a_specific_listen_address_is_the_one_advertised() {
    let config = good(&[
        ("HOWDAH_POSTGRESQL_LISTEN", "127.0.0.1:5433"),
        ("HOWDAH_RESTAPI_LISTEN", "[::]:9008"),
    ])
    .config;
    assert_eq!(config.postgresql.connect_address.to_string(), "127.0.0.1:5433");
    assert_eq!(config.restapi.connect_address.to_string(), "10.1.0.1:9008");
}

#[test]
fn a_host_without_address_or_name_says_so() {
    let env = MapEnv::new(&[("POSTGRES_PASSWORD", "secret"), ("HOWDAH_NAME", "a")]);
    let loaded = Config::load(&env, &FixedHost::default()).expect("valid");
    assert!(
        loaded.warnings[0].contains("no address but its loopback"),
        "{:?}",
        loaded.warnings
    );
    let env = MapEnv::new(&[("POSTGRES_PASSWORD", "secret")]);
    let mistakes = Config::load(&env, &FixedHost::default()).expect_err("no name");
    assert_eq!(
        mistakes.to_string(),
        "HOWDAH_NAME must be set: this host has no usable name"
    );
}
