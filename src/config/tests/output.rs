use super::*;

#[test]
fn check_shows_every_value_with_its_origin_and_no_secret() {
    let env = MapEnv::new(&[
        ("POSTGRES_PASSWORD_FILE", "/run/secrets/pw"),
        ("HOWDAH_SCOPE", "demo"),
        ("PATRONI_TTL", "20"),
        ("PATRONI_TYPO", "1"),
        (
            "HOWDAH_POSTGRESQL_RECOVERY_CONF",
            "primary_conninfo: password=hunter2",
        ),
    ])
    .file("/run/secrets/pw", "hunter2\n");
    let loaded = load_env(&env).expect("valid");
    let text = check::render(&loaded);
    let derived = loaded
        .config
        .postgresql
        .authentication
        .rewind
        .password
        .reveal()
        .to_owned();
    assert!(!text.contains("hunter2") && !text.contains(&derived), "{text}");
    let debug = format!("{loaded:?}");
    assert!(!debug.contains(&derived), "{debug}");
    insta::assert_snapshot!(text);
}

#[test]
fn the_table_for_the_documentation_follows_the_settings() {
    insta::assert_snapshot!(markdown::render_markdown());
}

#[test]
fn a_reload_tells_what_changed_and_whether_it_is_enough() {
    let (before, after) = (
        good(&[]),
        good(&[
            ("HOWDAH_SCOPE", "x"),
            ("HOWDAH_POSTGRESQL_PARAMETERS", "work_mem: 1MB"),
        ]),
    );
    let changes: Vec<(&str, Effect)> = before
        .changes(&after)
        .iter()
        .map(|c| (c.suffix, c.effect))
        .collect();
    assert_eq!(
        changes,
        [
            ("SCOPE", Effect::Start),
            ("POSTGRESQL_PARAMETERS", Effect::Reload)
        ]
    );
    assert_eq!(before.changes(&before).len(), 0);
}
