//! Making a new, empty cluster with `initdb`, in a side directory.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    binaries::Binaries,
    command, files,
    login::Login,
    options::{self, Options},
    username::{Temporary, with_user_name},
    version::Major,
};

/// Options this program sets itself (contract: bootstrap and images §6).
const FORBIDDEN: &[&str] = &[
    "pgdata",
    "nosync",
    "no-sync",
    "pwfile",
    "pwprompt",
    "sync-only",
    "version",
    "username",
];
/// initdb takes a second; a quarter of an hour means the disk is dead.
const DEADLINE: Duration = Duration::from_secs(900);

/// Why there is no new cluster. Nothing but the side directory was touched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's options cannot be used.
    #[error("initdb options: {0}")]
    Options(options::Error),
    /// The disk is full; the message of initdb is attached.
    #[error("the disk is full, initdb could not write {}", dir.display())]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// What initdb said.
        #[source]
        source: command::Error,
    },
    /// initdb failed.
    #[error("create a new cluster in {}", dir.display())]
    Run {
        /// The directory.
        dir: PathBuf,
        /// What initdb said.
        #[source]
        source: command::Error,
    },
    /// A file beside it could not be handled.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// What the new cluster is to be.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Empty directory to fill.
    pub dir: &'a Path,
    /// The superuser and its password.
    pub superuser: &'a Login,
    /// `bootstrap.initdb`: a list or a map; null for none.
    pub options: &'a Value,
    /// Words of `POSTGRES_INITDB_ARGS`.
    pub args: &'a [String],
    /// User and group to run as, when we are root.
    pub identity: Option<(u32, u32)>,
}

/// The arguments of initdb without directory and password file; defaults fill what the user left open: UTF-8, a
/// locale that does not change with the C library, and data checksums (without them nothing can be rewound unless
/// wal_log_hints is on, and damage stays unseen).
///
/// # Errors
/// An option that is refused.
pub fn arguments(major: Major, input: &Input<'_>) -> Result<Vec<String>, Error> {
    let mut given = Options::read(input.options, FORBIDDEN);
    given.args.extend(checked_args(input.args)?);
    if let Some(error) = given.errors.into_iter().next() {
        return Err(Error::Options(error));
    }
    let options = Options {
        args: given.args,
        errors: Vec::new(),
    };
    let mut args = vec![format!("--username={}", input.superuser.username)];
    let mut unless = |names: &[&str], arg: &str| {
        if !options.has(names) {
            args.push(arg.to_owned());
        }
    };
    unless(&["encoding", "E"], "--encoding=UTF8");
    unless(
        &[
            "locale",
            "no-locale",
            "lc-collate",
            "lc-ctype",
            "locale-provider",
            "builtin-locale",
            "icu-locale",
        ],
        "--locale=C.UTF-8",
    );
    unless(&["data-checksums", "no-data-checksums", "k"], "--data-checksums");
    if input.superuser.password.is_some() {
        unless(&["auth", "auth-local", "A"], "--auth-local=scram-sha-256");
        unless(&["auth", "auth-host", "A"], "--auth-host=scram-sha-256");
    }
    if major.initdb_has_no_instructions() {
        unless(&["no-instructions"], "--no-instructions");
    }
    // Synced in one go afterwards, which is quicker than a thousand single files.
    args.push("--no-sync".to_owned());
    args.extend(
        options
            .args
            .into_iter()
            .filter(|arg| arg != "--no-data-checksums" || major.initdb_defaults_to_checksums()),
    );
    Ok(args)
}

/// Words of a command line keep their shape (`-E UTF8` is two words), only forbidden ones are refused.
fn checked_args(words: &[String]) -> Result<Vec<String>, Error> {
    const SHORT: &[(&str, &str)] = &[
        ("-D", "pgdata"),
        ("-N", "no-sync"),
        ("-S", "sync-only"),
        ("-U", "username"),
        ("-V", "version"),
        ("-W", "pwprompt"),
    ];
    const WITH_VALUE: &[(&str, &str)] = &[
        ("-E", "encoding"),
        ("-A", "auth"),
        ("-X", "waldir"),
        ("-T", "text-search-config"),
        ("-L", ""),
    ];
    let mut args = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.trim_start_matches('-').split('=').next().unwrap_or_default();
        let short = SHORT
            .iter()
            .find(|(short, _)| word.starts_with(short) && !word.starts_with("--"));
        if let Some((_, name)) = short {
            return Err(Error::Options(options::Error::Forbidden((*name).to_owned())));
        }
        if FORBIDDEN.contains(&name) || !word.starts_with('-') {
            return Err(Error::Options(options::Error::Forbidden(word.clone())));
        }
        let valued = WITH_VALUE
            .iter()
            .find(|(short, _)| word.starts_with(short) && !word.starts_with("--"));
        let long_alone = word.starts_with("--") && !word.contains('=') && takes_value(name);
        let missing = || Error::Options(options::Error::Item(word.clone()));
        if let Some((short, long)) = valued {
            let value = match word.strip_prefix(short).filter(|rest| !rest.is_empty()) {
                Some(value) => value.to_owned(),
                None => words.next().ok_or_else(missing)?.clone(),
            };
            args.push(if long.is_empty() {
                format!("{short}{value}")
            } else {
                format!("--{long}={value}")
            });
        } else if long_alone {
            args.push(format!("{word}={}", words.next().ok_or_else(missing)?));
        } else if word == "-k" {
            args.push("--data-checksums".to_owned());
        } else if word == "-g" {
            args.push("--allow-group-access".to_owned());
        } else {
            args.push(word.clone());
        }
    }
    Ok(args)
}

fn takes_value(name: &str) -> bool {
    name.starts_with("lc-")
        || name.starts_with("auth")
        || matches!(
            name,
            "encoding"
                | "locale"
                | "locale-provider"
                | "icu-locale"
                | "icu-rules"
                | "builtin-locale"
                | "waldir"
                | "wal-segsize"
                | "text-search-config"
                | "set"
                | "sync-method"
        )
}

/// Runs initdb and writes everything to disk.
///
/// # Errors
/// See [`Error`]. The directory may then hold a part of a cluster; discarding it is the caller's decision.
pub async fn run(binaries: &Binaries, input: &Input<'_>, cancel: &CancellationToken) -> Result<(), Error> {
    let args = arguments(binaries.major(), input)?;
    let mut command = binaries.command("initdb").args(&args).arg("-D").arg(input.dir);
    // Beside, not inside: initdb wants an empty directory. Hidden, because "beside" may be the data directory.
    let beside = input.dir.parent().unwrap_or(Path::new("."));
    let mut temporary = Temporary::default();
    if let Some(password) = &input.superuser.password {
        let content = format!("{}\n", password.reveal());
        let file = temporary.write(&beside.join(".howdah-pw"), &content, 0o600, input.identity)?;
        command = command.arg(format!("--pwfile={}", file.display()));
    }
    command = with_user_name(command, beside, input.identity, &mut temporary)?;
    let result = command
        .identity(input.identity)
        .deadline(DEADLINE)
        .run(cancel)
        .await;
    drop(temporary);
    let dir = input.dir.to_owned();
    match result {
        Ok(_) => {}
        Err(source) if source.is_disk_full() => return Err(Error::DiskFull { dir, source }),
        Err(source) => return Err(Error::Run { dir, source }),
    }
    let synced = tokio::task::spawn_blocking(move || files::sync_file_system(&dir)).await;
    Ok(synced.unwrap_or(Ok(()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(options: Value, words: &str) -> Result<Vec<String>, Error> {
        let superuser = Login::new("postgres", "secret");
        let words = options::split_words(words).expect("well-formed");
        let input = Input {
            dir: Path::new("/d"),
            superuser: &superuser,
            options: &options,
            args: &words,
            identity: None,
        };
        arguments(Major(15), &input)
    }

    #[test]
    fn defaults_are_safe() {
        insta::assert_snapshot!(args(Value::Null, "").expect("valid").join("\n"), @r"
        --username=postgres
        --encoding=UTF8
        --locale=C.UTF-8
        --data-checksums
        --auth-local=scram-sha-256
        --auth-host=scram-sha-256
        --no-instructions
        --no-sync
        ");
    }

    #[test]
    fn the_users_options_win() {
        let args = args(
            json!([{"locale": "de_DE.UTF-8"}, {"encoding": "LATIN1"}, {"auth-host": "md5"}]),
            "-k -X /wal --wal-segsize 64 --lc-messages=C",
        )
        .expect("valid");
        insta::assert_snapshot!(args.join("\n"), @r"
        --username=postgres
        --auth-local=scram-sha-256
        --no-instructions
        --no-sync
        --locale=de_DE.UTF-8
        --encoding=LATIN1
        --auth-host=md5
        --data-checksums
        --waldir=/wal
        --wal-segsize=64
        --lc-messages=C
        ");
    }

    #[test]
    fn forbidden_options_stop_it() {
        for options in [json!({"pwfile": "/x"}), json!(["nosync"]), json!("text")] {
            assert!(args(options, "").is_err());
        }
        for words in [
            "-D /x",
            "--pgdata=/x",
            "-U me",
            "--no-sync",
            "-E",
            "stray",
            "--encoding",
        ] {
            assert!(args(Value::Null, words).is_err(), "{words}");
        }
    }
}
