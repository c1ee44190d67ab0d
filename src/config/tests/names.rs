use super::*;

#[test]
fn all_names_of_a_setting_lead_to_it() {
    for (vars, path, expected) in [
        (&[("HOWDAH_SCOPE", "a")][..], "scope", "a"),
        (&[("PATRONI_SCOPE", "a")], "scope", "a"),
        (&[("SCOPE", "a")], "scope", "a"),
        (
            &[("POSTGRES_USER", "app")],
            "postgresql.authentication.superuser.username",
            "app",
        ),
        (
            &[("PGUSER_STANDBY", "standby")],
            "postgresql.authentication.replication.username",
            "standby",
        ),
        (&[("PGDATA", "/pgdata")], "postgresql.data_dir", "/pgdata"),
        (&[("PGPORT", "5433")], "postgresql.listen", "0.0.0.0:5433"),
        (&[("APIPORT", "8009")], "restapi.listen", "0.0.0.0:8009"),
        (&[("PATRONI_LOGLEVEL", "debug")], "log.level", "DEBUG"),
        (
            &[("PATRONI_SUPERUSER_SSLMODE", "require")],
            "postgresql.authentication.superuser.sslmode",
            "require",
        ),
    ] {
        assert_eq!(
            good(vars).origins.text(path).as_deref(),
            Some(expected),
            "{vars:?}"
        );
    }
}

#[test]
fn the_official_image_s_names_work_together() {
    let bootstrap = good(&[
        ("POSTGRES_USER", "app"),
        ("POSTGRES_INITDB_ARGS", "--locale=C -k"),
    ])
    .config
    .bootstrap;
    assert_eq!(bootstrap.database, "app");
    assert_eq!(bootstrap.initdb, ["--locale=C", "-k"]);
    assert_eq!(
        good(&[("POSTGRES_USER", "app"), ("POSTGRES_DB", "shop")])
            .config
            .bootstrap
            .database,
        "shop"
    );
}

#[test]
fn equal_values_under_two_names_agree() {
    let loaded = good(&[
        ("PATRONI_TTL", "60"),
        ("HOWDAH_TTL", "1min"),
        ("POSTGRES_PASSWORD", "secret"),
    ]);
    assert_eq!(origin(&loaded, "bootstrap.dcs.ttl"), "HOWDAH_TTL");
}

#[test]
fn different_values_under_two_names_are_a_mistake() {
    refused(
        &[("HOWDAH_TTL", "60"), ("PATRONI_TTL", "30")],
        "HOWDAH_TTL and PATRONI_TTL are both set and differ; remove one of them",
    );
    refused(
        &[("POSTGRES_PASSWORD", "other")],
        "HOWDAH_SUPERUSER_PASSWORD and POSTGRES_PASSWORD are both set and differ; remove one of them",
    );
    refused(
        &[("POSTGRES_USER", "a"), ("PGUSER_SUPERUSER", "b")],
        "POSTGRES_USER and PGUSER_SUPERUSER are both set and differ; remove one of them",
    );
}

#[test]
fn what_an_image_sets_for_itself_yields() {
    let loaded = good(&[("PGDATA", "/a"), ("HOWDAH_POSTGRESQL_DATA_DIR", "/b")]);
    assert_eq!(
        origin(&loaded, "postgresql.data_dir"),
        "HOWDAH_POSTGRESQL_DATA_DIR"
    );
    let loaded = good(&[
        ("PGDATA", "/a"),
        ("HOWDAH_CONFIGURATION", "postgresql: {data_dir: /c}"),
    ]);
    assert_eq!(loaded.config.postgresql.data_dir.to_string_lossy(), "/c");
}

#[test]
fn spilo_s_folder_is_found_again_unless_somebody_chose_another() {
    let data_dir = |vars: &[(&str, &str)]| good(vars).config.postgresql.data_dir;
    let root = ("PGROOT", "/home/postgres/pgdata/pgroot");
    let expected = std::path::Path::new("/home/postgres/pgdata/pgroot/data");
    assert_eq!(data_dir(&[root]), expected);
    // The image sets the default itself.
    assert_eq!(
        data_dir(&[root, ("PGDATA", "/var/lib/postgresql/data")]),
        expected
    );
    assert_eq!(data_dir(&[root, ("PGDATA", "/b")]), std::path::Path::new("/b"));
    assert_eq!(
        data_dir(&[root, ("HOWDAH_POSTGRESQL_DATA_DIR", "/c")]),
        std::path::Path::new("/c")
    );
}

#[test]
fn what_spilo_would_do_is_not_left_out_in_silence() {
    for (name, value) in [
        ("CLONE_METHOD", "CLONE_WITH_WALE"),
        ("STANDBY_HOST", "other"),
        ("STANDBY_WALE_S3_PREFIX", "s3://x"),
        ("CLONE_WAL_S3_BUCKET", "x"),
    ] {
        refused(
            &[(name, value)],
            &format!("{name}: making the cluster from another one is not supported in this build"),
        );
    }
    for name in [
        "PGVERSION",
        "INITDB_LOCALE",
        "ALLOW_NOSSL",
        "SSL_CERTIFICATE_FILE",
        "CALLBACK_SCRIPT",
        "PGPASSWORD_ADMIN",
        "CRONTAB",
        "WAL_S3_BUCKET",
        "WALG_S3_PREFIX",
        "WALE_S3_PREFIX",
        "USE_WALG_BACKUP",
        "CLONE_WAL_BUCKET_SCOPE_PREFIX",
    ] {
        let warnings = good(&[(name, "secret-ish")]).warnings;
        assert_eq!(
            warnings,
            [format!(
                "{name}: without effect; Spilo has it, this build does not"
            )]
        );
    }
    assert_eq!(
        good(&[("STANDBY_CLUSTER", "false")]).warnings,
        Vec::<String>::new()
    );
    // OpenSSL's own, and nobody's.
    assert_eq!(
        good(&[("SSL_CERT_FILE", "/x"), ("WALDO", "x")]).warnings,
        Vec::<String>::new()
    );
}

#[test]
fn an_empty_value_is_no_value() {
    let loaded = good(&[("HOWDAH_SCOPE", ""), ("PATRONI_SCOPE", "a"), ("HOWDAH_TTTL", "")]);
    assert_eq!(loaded.config.scope, "a");
}

#[test]
fn unknown_names_of_ours_are_mistakes_and_patroni_s_are_warnings() {
    refused(
        &[("HOWDAH_TTTL", "30")],
        "HOWDAH_TTTL: there is no such setting; did you mean HOWDAH_TTL?",
    );
    refused(
        &[("HOWDAH_FROBNICATE", "1")],
        "HOWDAH_FROBNICATE: there is no such setting",
    );
    let loaded = good(&[
        ("PATRONI_TTTL", "30"),
        ("HOWDAH_INIT", "x"),
        ("HOWDAH_SERVICE_HOST", "10.0.0.1"),
    ]);
    assert_eq!(
        loaded.warnings,
        ["PATRONI_TTTL: there is no such setting; did you mean HOWDAH_TTL?"]
    );
}

#[test]
fn what_this_build_cannot_do_is_said() {
    refused(
        &[("PATRONI_RAFT_SELF_ADDR", "r:2222")],
        "PATRONI_RAFT_SELF_ADDR: Raft as DCS is not supported in this build",
    );
    refused(
        &[("EXHIBITOR_HOSTS", "x")],
        "EXHIBITOR_HOSTS: Exhibitor as DCS is not supported in this build",
    );
    refused(
        &[("HOWDAH_ETCD3_HOSTS", "e1"), ("HOWDAH_ETCD3_SRV", "example.com")],
        "HOWDAH_ETCD3_SRV: etcd discovery by DNS SRV is not supported in this build",
    );
    refused(
        &[("HOWDAH_CONFIGURATION", "raft: {self_addr: a}")],
        "HOWDAH_CONFIGURATION: raft: Raft as DCS is not supported in this build",
    );
    let loaded = good(&[
        ("HOWDAH_RESTAPI_HTTPS_EXTRA_HEADERS", "{}"),
        ("PATRONI_RESTAPI_VERIFY_CLIENT", "none"),
        ("PATRONI_LOG_DATEFORMAT", "%s"),
        (
            "HOWDAH_BOOTSTRAP_DCS",
            "{synchronous_mode: on, standby_cluster: {host: h}}",
        ),
    ]);
    assert_eq!(
        loaded.warnings,
        ["PATRONI_LOG_DATEFORMAT: accepted, but has no effect"]
    );
}

#[test]
fn what_only_the_official_image_knows_is_pointed_out() {
    let loaded = good(&[("POSTGRES_HOST_AUTH_METHOD", "trust")]);
    assert_eq!(
        loaded.warnings,
        [
            "POSTGRES_HOST_AUTH_METHOD: has no effect; give the lines of pg_hba.conf with HOWDAH_POSTGRESQL_PG_HBA"
        ]
    );
}
