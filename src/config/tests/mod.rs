//! The configuration as a whole: environment in, [`Config`] or mistakes out.

mod consumers;
mod defaults;
mod documents;
mod files;
mod names;
mod output;
mod stores;
mod tls;
mod values;

use super::{vars::Effect, *};

fn host() -> FixedHost {
    FixedHost {
        hostname: Some("pg1".into()),
        address: Some(std::net::Ipv4Addr::new(10, 1, 0, 1).into()),
    }
}

/// Loads with a superuser password on top of the variables given.
fn load(vars: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    load_env(&MapEnv::new(vars).var("HOWDAH_SUPERUSER_PASSWORD", "secret"))
}

fn load_env(env: &MapEnv) -> Result<Loaded, Mistakes> {
    Config::load(env, &host())
}

#[track_caller]
fn good(vars: &[(&str, &str)]) -> Loaded {
    load(vars).unwrap_or_else(|mistakes| unreachable!("{mistakes}"))
}

#[track_caller]
fn bad(vars: &[(&str, &str)]) -> Vec<String> {
    let mistakes = load(vars).expect_err("a mistake");
    mistakes.to_string().lines().map(str::to_owned).collect()
}

/// One wrong variable, one line.
#[track_caller]
fn refused(vars: &[(&str, &str)], expected: &str) {
    assert_eq!(bad(vars), [expected]);
}

fn origin(loaded: &Loaded, path: &str) -> String {
    loaded.origins.origin(path)
}
