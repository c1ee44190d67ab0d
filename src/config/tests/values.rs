use super::*;

#[test]
fn each_refusal_names_variable_value_and_what_is_allowed() {
    for (name, value, expected) in [
        (
            "HOWDAH_TTL",
            "soon",
            "HOWDAH_TTL: \"soon\" is not a number of seconds (allowed: 3 to 86400)",
        ),
        (
            "HOWDAH_TTL",
            "2",
            "HOWDAH_TTL: \"2\" is not a number of seconds (allowed: 3 to 86400)",
        ),
        (
            "PATRONI_NAME",
            "a/b",
            "PATRONI_NAME: \"a/b\" is not usable as a name (allowed: up to 255 bytes without slash or white space)",
        ),
        (
            "HOWDAH_SCOPE",
            "a b",
            "HOWDAH_SCOPE: \"a b\" is not usable as a name (allowed: up to 255 bytes without slash or white space)",
        ),
        (
            "HOWDAH_RESTAPI_LISTEN",
            "x:99999",
            "HOWDAH_RESTAPI_LISTEN: \"x:99999\" is not an address to listen on (allowed: host:port, host,host:port, [IPv6]:port, *:8008)",
        ),
        (
            "HOWDAH_RESTAPI_CONNECT_ADDRESS",
            "0.0.0.0:8008",
            "HOWDAH_RESTAPI_CONNECT_ADDRESS: \"0.0.0.0:8008\" is not an address others can connect to (allowed: host:port, [IPv6]:port; not 0.0.0.0, :: or *)",
        ),
        (
            "HOWDAH_LOG_TYPE",
            "xml",
            "HOWDAH_LOG_TYPE: \"xml\" is not one of the values known here (allowed: plain, json)",
        ),
        (
            "HOWDAH_TAGS",
            "- a",
            "HOWDAH_TAGS: \"- a\" is not a mapping (allowed: {name: value} or name: value, name: value)",
        ),
        (
            "PGPORT",
            "none",
            "PGPORT: \"none\" is not a whole number in range (allowed: 1 to 65535)",
        ),
    ] {
        refused(&[(name, value)], expected);
    }
}

#[test]
fn all_mistakes_are_reported_at_once_and_no_secret_with_them() {
    let env = MapEnv::new(&[
        ("HOWDAH_TTL", "soon"),
        ("HOWDAH_POSTGRESQL_LISTEN", "nowhere:0"),
        ("HOWDAH_NAME", "__patroni_strict_sync_replica_placeholder__"),
        ("POSTGRES_PASSWORD", "hunter2\nhunter2"),
        ("HOWDAH_ETCD3_PASSWORD", "hunter2"),
        ("HOWDAH_LOPO_WAIT", "1"),
        ("PATRONI_RAFT_SELF_ADDR", "x"),
        ("HOWDAH_RESTAPI_USERNAME", "admin"),
        (
            "HOWDAH_CONFIGURATION",
            "postgresql: {data_dir: data, parameters: [hunter2]}\nscop: x\n",
        ),
    ]);
    let mistakes = load_env(&env).expect_err("many").to_string();
    assert!(!mistakes.contains("hunter2\\n"), "{mistakes}");
    insta::assert_snapshot!(mistakes);
}

#[test]
fn times_that_were_given_must_fit() {
    refused(
        &[
            ("HOWDAH_TTL", "20"),
            ("HOWDAH_LOOP_WAIT", "10"),
            ("HOWDAH_RETRY_TIMEOUT", "10"),
        ],
        "HOWDAH_TTL, HOWDAH_LOOP_WAIT, HOWDAH_RETRY_TIMEOUT: loop_wait + 2*retry_timeout must not be more than ttl, but 10 + 2*10 = 30 > 20",
    );
    refused(
        &[("HOWDAH_RETRY_TIMEOUT", "15")],
        "HOWDAH_TTL, HOWDAH_LOOP_WAIT, HOWDAH_RETRY_TIMEOUT: loop_wait + 2*retry_timeout must not be more than ttl, but 1 + 2*15 = 31 > 30",
    );
}

#[test]
fn times_that_were_not_given_bend() {
    for (vars, expected) in [
        (&[][..], (30, 10, 10)),
        (&[("HOWDAH_TTL", "5")], (5, 1, 2)),
        (&[("HOWDAH_TTL", "3")], (3, 1, 1)),
        (&[("HOWDAH_LOOP_WAIT", "20")], (30, 20, 5)),
        (&[("HOWDAH_TTL", "20"), ("HOWDAH_LOOP_WAIT", "5")], (20, 5, 7)),
        (&[("HOWDAH_TTL", "20"), ("HOWDAH_RETRY_TIMEOUT", "9")], (20, 2, 9)),
        (
            &[("HOWDAH_BOOTSTRAP_DCS", "{ttl: 60}"), ("HOWDAH_LOOP_WAIT", "4")],
            (60, 4, 10),
        ),
    ] {
        let bootstrap = good(vars).config.bootstrap;
        let times = ["ttl", "loop_wait", "retry_timeout"].map(|key| bootstrap.dcs[key].as_i64().unwrap_or(0));
        assert_eq!((times[0], times[1], times[2]), expected, "{vars:?}");
        assert_eq!(bootstrap.timing.ttl.as_secs(), expected.0.unsigned_abs());
        assert_eq!(
            bootstrap.timing.retry_timeout.as_secs(),
            expected.2.unsigned_abs()
        );
    }
}

#[test]
fn contradicting_tags_are_a_warning() {
    let loaded = good(&[("HOWDAH_TAGS", "nofailover: true, failover_priority: 2")]);
    assert_eq!(
        loaded.warnings,
        ["HOWDAH_TAGS: nofailover and failover_priority say the same thing twice; nofailover wins"]
    );
    assert!(loaded.config.tags.nofailover());
}

#[test]
fn a_tag_that_cannot_be_read_is_no_tag_that_is_off() {
    const MAP: &str = "is not a mapping (allowed: {name: value} or name: value, name: value)";
    for (text, expected) in [
        ("nofailover", format!("HOWDAH_TAGS: \"nofailover\" {MAP}")),
        (
            "nofailover=true",
            format!("HOWDAH_TAGS: \"nofailover=true\" {MAP}"),
        ),
        (
            "zone: a, nofailover",
            format!("HOWDAH_TAGS: \"zone: a, nofailover\" {MAP}"),
        ),
        (
            "nofailover: maybe",
            "HOWDAH_TAGS: nofailover: \"maybe\" is not a yes or no".into(),
        ),
        (
            "nosync: [on]",
            "HOWDAH_TAGS: nosync: [\"on\"] is not a yes or no".into(),
        ),
        (
            "failover_priority: high",
            "HOWDAH_TAGS: failover_priority: \"high\" is not a whole number".into(),
        ),
        (
            "replicatefrom: 1",
            "HOWDAH_TAGS: replicatefrom: 1 is not the name of a member".into(),
        ),
    ] {
        refused(&[("HOWDAH_TAGS", text)], &expected);
    }
    let loaded = good(&[(
        "HOWDAH_TAGS",
        "nofailover: 'yes', failover_priority: '0', zone: a",
    )]);
    assert!(loaded.config.tags.nofailover());
    let loaded = good(&[("HOWDAH_TAGS", "nofailver: true")]);
    assert_eq!(
        loaded.warnings,
        ["HOWDAH_TAGS: nofailver is a tag of your own; did you mean nofailover?"]
    );
}

#[test]
fn times_have_an_upper_end_and_no_number_ends_the_process() {
    for name in ["HOWDAH_TTL", "HOWDAH_LOOP_WAIT", "HOWDAH_RETRY_TIMEOUT"] {
        for text in [
            "86401",
            "2d",
            "--9223372036854775808",
            "-9223372036854775808",
            "9223372036854775807",
        ] {
            let mistakes = bad(&[(name, text)]);
            assert!(mistakes[0].ends_with(" to 86400)"), "{mistakes:?}");
        }
    }
    assert!(load(&[("HOWDAH_TTL", "1d")]).is_ok());
}

#[test]
fn who_may_change_something_is_checked_when_it_is_read() {
    refused(
        &[("HOWDAH_RESTAPI_ALLOWLIST", "10.0.0.0/8, 10.0.0.0/99")],
        "HOWDAH_RESTAPI_ALLOWLIST: \"10.0.0.0/99\" is not an address, network or host (allowed: 10.0.0.1, 10.0.0.0/8, fd00::/8, name)",
    );
    refused(
        &[("HOWDAH_RESTAPI_HTTP_EXTRA_HEADERS", "Content-Length: 5")],
        "HOWDAH_RESTAPI_HTTP_EXTRA_HEADERS: \"Content-Length\" with this value is no HTTP header that can be added",
    );
}

#[test]
fn parameters_that_must_be_alike_go_to_the_cluster() {
    let loaded = good(&[
        (
            "HOWDAH_POSTGRESQL_PARAMETERS",
            "{Max_Connections: 200, work_mem: 32MB, port: 1, wal_level: logical}",
        ),
        (
            "HOWDAH_BOOTSTRAP_DCS",
            "postgresql: {parameters: {wal_level: replica}}",
        ),
    ]);
    let config = loaded.config;
    assert_eq!(
        serde_json::Value::from(config.postgresql.parameters),
        serde_json::json!({"work_mem": "32MB"})
    );
    assert_eq!(
        config.bootstrap.dcs["postgresql"],
        serde_json::json!({
        "parameters": {"max_connections": 200, "wal_level": "replica"}, "use_pg_rewind": true})
    );
    assert_eq!(loaded.warnings.len(), 2);
}

#[test]
fn initdb_options_that_are_ours_are_refused() {
    refused(
        &[("POSTGRES_INITDB_ARGS", "--pgdata=/x")],
        "POSTGRES_INITDB_ARGS: --pgdata is given by Howdah itself; leave it out",
    );
}

#[test]
fn log_levels_become_directives() {
    let log = good(&[
        ("HOWDAH_LOG_LEVEL", "WARNING"),
        ("HOWDAH_LOG_LOGGERS", "{howdah::dcs: debug, etcd.client: ERROR}"),
    ])
    .config
    .log;
    assert_eq!(log.directives(), "warn,etcd::client=error,howdah::dcs=debug");
    refused(
        &[("HOWDAH_LOG_LOGGERS", "{a: loud}")],
        "HOWDAH_LOG_LOGGERS: a: \"loud\" is not a level (allowed: TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL)",
    );
}

#[test]
fn no_text_whatsoever_is_too_much() {
    let nasty = [
        "\0",
        "\u{fffd}",
        "[",
        "]",
        "[[[[",
        "{",
        "}",
        "'",
        "\"",
        "- ",
        "-",
        ":",
        "=",
        ",",
        "/",
        "//",
        "a=b/c",
        "%",
        "::",
        "[]",
        "{}",
        "[::1",
        "é=ü:1/2",
        "&a [*a]",
        "!!x y",
        "? a",
        "-1",
        "1e308",
        "0x",
        "99999999999999999999",
        "{a: {b: [c]}}",
        "~",
    ];
    for section in vars::SECTIONS {
        for text in nasty {
            let names: Vec<String> = section.vars.iter().map(vars::Var::name).collect();
            let vars: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), text)).collect();
            // Either answer will do; an end of the process would not.
            match load(&vars) {
                Ok(loaded) => assert!(!check::render(&loaded).is_empty()),
                Err(mistakes) => assert!(!mistakes.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn what_a_member_says_about_rewinding_becomes_the_cluster_s() {
    let loaded = good(&[
        ("HOWDAH_POSTGRESQL_USE_PG_REWIND", "off"),
        ("HOWDAH_POSTGRESQL_REMOVE_DATA_DIRECTORY_ON_REWIND_FAILURE", "on"),
        (
            "HOWDAH_POSTGRESQL_REMOVE_DATA_DIRECTORY_ON_DIVERGED_TIMELINES",
            "on",
        ),
        (
            "HOWDAH_BOOTSTRAP_DCS",
            "postgresql: {remove_data_directory_on_diverged_timelines: false}",
        ),
    ]);
    assert_eq!(
        loaded.config.bootstrap.dcs["postgresql"],
        serde_json::json!({
            "use_pg_rewind": false,
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": false,
        })
    );
    assert_eq!(loaded.warnings.len(), 3, "{:?}", loaded.warnings);
    assert_eq!(
        good(&[("HOWDAH_POSTGRESQL_USE_PG_REWIND", "on")]).warnings,
        Vec::<String>::new()
    );
}

#[test]
fn a_log_file_has_a_mode_and_bounds() {
    let file = |vars: &[(&str, &str)]| good(vars).config.log.file;
    assert_eq!(
        file(&[("HOWDAH_LOG_MODE", "0640")]),
        None,
        "without a folder there is none"
    );
    let found = file(&[("PATRONI_LOG_DIR", "/log")]).expect("a file");
    assert_eq!((found.mode, found.bytes_max, found.keep), (None, 25_000_000, 4));
    for (text, mode) in [("0640", 0o640), ("0o600", 0o600), ("420", 0o644)] {
        let found = file(&[("HOWDAH_LOG_DIR", "/log"), ("HOWDAH_LOG_MODE", text)]).expect("a file");
        assert_eq!(found.mode, Some(mode), "{text}");
    }
    refused(
        &[("HOWDAH_LOG_DIR", "/log"), ("HOWDAH_LOG_MODE", "rw-")],
        "HOWDAH_LOG_MODE: \"rw-\" is no mode of a file (allowed: 0600, 0640, 0644 …)",
    );
}
