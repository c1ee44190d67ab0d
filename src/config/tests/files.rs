use super::*;

#[test]
fn every_variable_can_point_to_a_file() {
    let env = MapEnv::new(&[
        ("POSTGRES_PASSWORD_FILE", "/run/secrets/pw"),
        ("HOWDAH_TTL_FILE", "/ttl"),
        ("PATRONI_CONFIGURATION_FILE", "/patroni.yml"),
    ])
    .file("/run/secrets/pw", "two words \n")
    .file("/ttl", "45\r\n")
    .file("/patroni.yml", "scope: demo\n");
    let loaded = load_env(&env).expect("valid");
    assert_eq!(
        loaded
            .config
            .postgresql
            .authentication
            .superuser
            .password
            .reveal(),
        "two words "
    );
    assert_eq!(loaded.config.scope, "demo");
    assert_eq!(origin(&loaded, "bootstrap.dcs.ttl"), "HOWDAH_TTL_FILE (/ttl)");
    assert_eq!(origin(&loaded, "scope"), "PATRONI_CONFIGURATION_FILE: scope");
}

#[test]
fn only_one_line_break_is_cut_off() {
    let env = MapEnv::new(&[("POSTGRES_PASSWORD_FILE", "/pw")]).file("/pw", "secret\n\n");
    let mistakes = load_env(&env)
        .expect_err("a line break in the password")
        .to_string();
    assert_eq!(
        mistakes,
        "POSTGRES_PASSWORD_FILE (/pw): the value is not usable as a password (allowed: one line of text)"
    );
}

#[test]
fn an_unreadable_file_is_one_mistake() {
    let env = MapEnv::new(&[("POSTGRES_PASSWORD_FILE", "/nowhere")]);
    let mistakes = load_env(&env).expect_err("unreadable").to_string();
    assert_eq!(
        mistakes,
        "POSTGRES_PASSWORD_FILE: cannot read /nowhere: no such file"
    );
}

#[test]
fn an_empty_file_gives_nothing_and_says_so() {
    let env = MapEnv::new(&[("POSTGRES_PASSWORD", "x"), ("HOWDAH_SCOPE_FILE", "/e")]).file("/e", "\n");
    let loaded = load_env(&env).expect("valid");
    assert_eq!(loaded.config.scope, "howdah");
    assert_eq!(
        loaded.warnings,
        ["HOWDAH_SCOPE_FILE: /e is empty and counts as not given"]
    );
}

#[test]
fn value_and_file_must_agree() {
    let env = |text: &str| {
        MapEnv::new(&[("POSTGRES_PASSWORD", "a"), ("POSTGRES_PASSWORD_FILE", "/pw")]).file("/pw", text)
    };
    assert!(load_env(&env("a\n")).is_ok());
    let mistakes = load_env(&env("b\n")).expect_err("differ").to_string();
    assert_eq!(
        mistakes,
        "POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE (/pw) are both set and differ; remove one of them"
    );
}
