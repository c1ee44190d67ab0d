//! Shell completions and the manual page, made from the same description of the command line as `--help`.

use std::{ffi::OsStr, time::Duration};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::{
    client::Client,
    config::{Config, ProcessEnv, ThisHost, bracketed, vars},
    model::dynamic_names,
};

/// A shell that waits longer than this for names is worse than one that knows none.
const WITHIN: Duration = Duration::from_millis(1500);

/// Completes with the names of the cluster's members, and the cluster's own.
#[must_use]
pub fn members() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, true))
}

/// Completes with the cluster's name.
#[must_use]
pub fn clusters() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, false))
}

/// Completes `key=` with the keys of the dynamic configuration.
#[must_use]
pub fn keys() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let names = dynamic_names().map(|name| format!("{name}="));
        names
            .filter(|name| name.starts_with(&*typed))
            .map(CompletionCandidate::new)
            .collect()
    })
}

/// Completes with settings: variables, paths, keys of the dynamic configuration.
#[must_use]
pub fn settings() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let names = vars::all().flat_map(|var| [var.name(), var.path.to_owned()]);
        names
            .chain(dynamic_names())
            .filter(|name| !name.is_empty() && name.starts_with(&*typed))
            .map(CompletionCandidate::new)
            .collect()
    })
}

fn candidates(typed: &OsStr, with_members: bool) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    names(with_members)
        .into_iter()
        .filter(|name| name.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

/// Asked of the member on this host, which answers at once also while the DCS is away. Nobody is told of mistakes.
fn names(with_members: bool) -> Vec<String> {
    let Ok(loaded) = Config::load(&ProcessEnv, &ThisHost) else {
        return Vec::new();
    };
    let config = loaded.config;
    let mut names = vec![config.scope.clone()];
    if !with_members {
        return names;
    }
    let host = config.restapi.listen.specific().unwrap_or("127.0.0.1");
    let url = format!(
        "{}://{}:{}/cluster",
        config.restapi.scheme(),
        bracketed(host),
        config.restapi.listen.port
    );
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return names;
    };
    let answer = runtime.block_on(async {
        let client = Client::new(None);
        client.set_tls(crate::agent::member_tls::towards_this_host(&config));
        client.get(&url, WITHIN).await
    });
    let view = answer.ok().and_then(|answer| answer.json());
    let members = view.as_ref().and_then(|view| view["members"].as_array());
    let members = members.into_iter().flatten();
    names.extend(members.filter_map(|member| Some(member["name"].as_str()?.to_owned())));
    names
}
