//! Life of the process: which part of Howdah it is, its log, its exit status.
//!
//! Without a command it is init, which runs this same binary as the agent. The other commands are the CLI.

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use howdah::{
    agent::{instance::Settings, member_tls, start},
    cli,
    client::Client,
    config::{Config, LogFormat, ProcessEnv, ThisHost, bracketed, check},
    exit::Exit,
    guard::Guard,
    init::{
        self,
        log::LogWriter,
        privileges::{self, Part},
    },
    logfile::LogFile,
    priorities::{self, Ordinary},
    telemetry,
};

/// PostgreSQL high availability in one container image.
///
/// Without a command: run a member of the cluster, configured by the environment (see `howdah check`).
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    cluster: Which,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which cluster the commands for people talk to; without any of these, that of the environment.
#[derive(Debug, Clone, Default, clap::Args)]
struct Which {
    /// Read the configuration of this file too, in Patroni's YAML shape; the environment overrides it
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "PATRONICTL_CONFIG_FILE",
        hide_env_values = true
    )]
    config_file: Option<PathBuf>,
    /// The DCS: scheme://host:port/namespace, with the scheme etcd3 or etcd
    #[arg(
        short,
        long,
        visible_alias = "dcs",
        value_name = "URL",
        env = "DCS_URL",
        hide_env_values = true
    )]
    dcs_url: Option<String>,
    /// Do not verify the certificates of members' REST APIs
    #[arg(short = 'k', long)]
    insecure: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run a member: init, agent and postgres (the default).
    Run,
    /// The agent; started by init.
    #[command(hide = true)]
    Agent,
    /// Print completions for a shell: eval "$(howdah completions bash)"
    ///
    /// They complete commands, options, and the names of members, clusters and settings.
    Completions {
        /// bash, zsh or fish
        #[arg(value_parser = ["bash", "zsh", "fish"])]
        shell: String,
    },
    /// Print the manual page: howdah man | man -l -
    Man,
    /// Check the environment and print every setting with where it comes from; secrets are hidden.
    Check,
    /// Run any program under Howdah's init: reaped, signalled, restarted when it crashes.
    Init {
        /// Become the program instead of running init; used by init itself.
        #[arg(long, hide = true)]
        exec: bool,
        /// The program and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    #[command(flatten)]
    Cli(cli::Command),
}

/// First argument of what `run` becomes: init alone. The second has the directives of the log, the third its format, the
/// fourth the priorities of what it starts. Nobody types it, and it is read without the parser of the command line, which would stay in memory for it.
const SUPERVISE: &str = "supervise";

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some(SUPERVISE) {
        let level = given.next().unwrap_or_default();
        let json = given.next().as_deref() == Some("json");
        let ordinary = given.next().and_then(|text| text.parse().ok());
        return supervise(&level, json, ordinary).into();
    }
    // A shell that asks for completions gets them, and this process ends here.
    if std::env::var_os(COMPLETE).is_some() {
        clap_complete::CompleteEnv::with_factory(Arguments::command).complete();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error).into(),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Completions { shell } => print_completions(&shell),
        Command::Man => print_manual(),
        Command::Run => run_member(),
        Command::Agent => run_agent(),
        Command::Check => run_check(),
        Command::Init { exec: true, command } => become_program(&command),
        Command::Init { exec: false, command } => {
            let arguments = ["init", "--exec", "--"]
                .into_iter()
                .map(Into::into)
                .chain(command);
            run_init(arguments.collect(), "info", telemetry::Format::Plain)
        }
        Command::Cli(command) => run_cli(command, &arguments.cluster),
    }
    .into()
}

/// `--help` and `--version` are no mistakes.
fn usage(error: &clap::Error) -> Exit {
    // Nobody to tell when standard error is gone.
    let _unprinted = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Ok }
}

/// Mistakes go to standard error as they are: there is no log configuration yet that could be trusted.
#[expect(
    clippy::print_stderr,
    reason = "the only channel before the log is configured"
)]
fn load() -> Result<howdah::config::Loaded, Exit> {
    Config::load(&ProcessEnv, &ThisHost).map_err(|mistakes| {
        eprintln!("howdah: the configuration has mistakes, nothing was started:\n{mistakes}");
        Exit::Config
    })
}

fn format(config: &Config) -> telemetry::Format {
    match config.log.format {
        LogFormat::Plain => telemetry::Format::Plain,
        LogFormat::Json => telemetry::Format::Json,
    }
}

/// Init: directories, privileges, then the loop. The loop runs for the life of the container and needs a fraction of
/// the code that a configuration does; so the process becomes itself anew, and what only the beginning needed does
/// not stay in memory.
fn run_member() -> Exit {
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let config = loaded.config;
    // While this process may.
    let ordinary = priorities::raise();
    let prepared = drop_root(&config);
    let level = config.log.directives();
    if prepared.is_ok() {
        let format = match config.log.format {
            LogFormat::Plain => "plain",
            LogFormat::Json => "json",
        };
        let arguments = [SUPERVISE, &level, format, &ordinary.to_string()].map(OsString::from);
        // Returns only when that is not possible; then this process does it as it is.
        let _not_possible = init::become_this_binary(&arguments);
    }
    run_init_with(
        vec!["agent".into()],
        &level,
        format(&config),
        prepared,
        Some(ordinary),
    )
}

fn supervise(level: &str, json: bool, ordinary: Option<Ordinary>) -> Exit {
    init::call_this_process(c"howdah");
    let format = if json {
        telemetry::Format::Json
    } else {
        telemetry::Format::Plain
    };
    run_init_with(vec!["agent".into()], level, format, Ok(()), ordinary)
}

fn drop_root(config: &Config) -> Result<(), privileges::PrivilegeError> {
    let data_dir = &config.postgresql.data_dir;
    let directory = |path: &Path, mode, part| privileges::Directory {
        path: path.to_owned(),
        mode,
        part,
    };
    let around = data_dir
        .parent()
        .map(|parent| directory(parent, 0o755, Part::Around));
    let own = [
        directory(data_dir, 0o700, Part::Own),
        directory(Path::new("/run/postgresql"), 0o775, Part::Own),
    ];
    let directories: Vec<_> = around.into_iter().chain(own).collect();
    privileges::prepare("postgres", &directories).map(drop)
}

fn run_init(arguments: Vec<OsString>, level: &str, format: telemetry::Format) -> Exit {
    run_init_with(arguments, level, format, Ok(()), None)
}

fn run_init_with(
    arguments: Vec<OsString>,
    level: &str,
    format: telemetry::Format,
    prepared: Result<(), privileges::PrivilegeError>,
    ordinary: Option<Ordinary>,
) -> Exit {
    let Ok(writer) = LogWriter::stderr() else {
        return Exit::Os;
    };
    let handle = telemetry::install_with(level, format, writer.clone());
    let exit = match prepared {
        Ok(()) => {
            let mut options = init::Options::this_binary(arguments);
            if let Some(ordinary) = ordinary {
                let locked = priorities::lock_memory();
                tracing::debug!("init: {}", priorities::granted(Some(ordinary), &locked));
                options
                    .environment
                    .push((priorities::ORDINARY, ordinary.to_string()));
            }
            options.toggle_debug = Some(Box::new(move || {
                handle.toggle_debug();
            }));
            init::run(options)
        }
        Err(error) => {
            tracing::error!("cannot start: {error}");
            Exit::Permission
        }
    };
    writer.flush(Duration::from_millis(200));
    exit
}

fn become_program(command: &[OsString]) -> Exit {
    let Some((program, arguments)) = command.split_first() else {
        return Exit::Config;
    };
    let error = init::exec(program, arguments);
    let _level = telemetry::install("info", telemetry::Format::Plain);
    tracing::error!(?program, %error, "cannot start the program");
    Exit::Os
}

/// The agent: two threads are enough, and a third party that blocks one must not stop the loop.
fn run_agent() -> Exit {
    init::call_this_process(c"howdah-agent");
    // First of all: children inherit the mask.
    let mask = init::reset_signal_mask();
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    // Standard error is often a pipe to a collector; when that hangs, the lease must go on being renewed.
    let config = &loaded.config;
    let writer = match log_writer(config) {
        Ok(writer) => writer,
        Err(exit) => return exit,
    };
    let level = telemetry::install_with(&config.log.directives(), format(config), writer.clone());
    let exit = run_configured(loaded, mask, level);
    writer.flush(Duration::from_millis(200));
    exit
}

#[expect(clippy::print_stderr, reason = "there is no log yet")]
fn log_writer(config: &Config) -> Result<LogWriter, Exit> {
    let writer = match &config.log.file {
        None => LogWriter::stderr().map_err(|_| Exit::Os)?,
        Some(settings) => LogFile::open(settings.clone())
            .and_then(LogWriter::file)
            .map_err(|error| {
                let dir = settings.dir.display();
                eprintln!("howdah: HOWDAH_LOG_DIR: cannot write a log file in {dir}: {error}");
                Exit::Io
            })?,
    };
    Ok(writer.with_fields(&config.log.static_fields))
}

fn run_configured(
    loaded: howdah::config::Loaded,
    mask: std::io::Result<()>,
    level: telemetry::LevelHandle,
) -> Exit {
    if let Err(error) = mask {
        tracing::error!(%error, "cannot reset the signal mask");
        return Exit::Os;
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    priorities::remember();
    tracing::info!("priorities {}", priorities::describe(&priorities::lock_memory()));
    let guard = match Guard::from_stdin() {
        Ok(guard) => guard,
        Err(error) => {
            tracing::error!(%error, "cannot take over the socket of init");
            return Exit::Os;
        }
    };
    match runtime(2) {
        Ok(runtime) => {
            let exit = runtime.block_on(Box::pin(start::run(loaded, guard, level)));
            // Nothing left behind may hold the end up.
            runtime.shutdown_timeout(Duration::from_millis(500));
            exit
        }
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            Exit::Os
        }
    }
}

/// Threads for what blocks are made when needed and end after a while. Looking up the name of a member that has
/// vanished takes one for seconds: a few such names must not keep the look-up of a living one waiting.
fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(32)
        .enable_all()
        .build()
}

fn run_check() -> Exit {
    match load() {
        Ok(loaded) => {
            // A reader that went away (`| head`) has seen what it wanted.
            let _closed = std::io::stdout().write_all(check::render(&loaded).as_bytes());
            Exit::Ok
        }
        Err(exit) => exit,
    }
}

/// How a shell says that it asks for completions; the engine's default.
const COMPLETE: &str = "COMPLETE";

/// The engine writes what registers it with the shell.
fn print_completions(shell: &str) -> Exit {
    let shells = clap_complete::env::Shells::builtins();
    let Some(shell) = shells.completer(shell) else {
        return Exit::Usage;
    };
    let program = std::env::current_exe().unwrap_or_else(|_| "howdah".into());
    let mut script = Vec::new();
    let program = program.to_string_lossy();
    let written = shell.write_registration(COMPLETE, "howdah", "howdah", &program, &mut script);
    match written.and_then(|()| std::io::stdout().write_all(&script)) {
        Ok(()) => Exit::Ok,
        Err(_) => Exit::Failed,
    }
}

/// One page: the program, then each of its commands.
fn print_manual() -> Exit {
    let mut command = Arguments::command();
    command.build();
    let mut page = Vec::new();
    let mut write = || -> std::io::Result<()> {
        let manual = clap_mangen::Man::new(command.clone());
        manual.render_title(&mut page)?;
        manual.render_name_section(&mut page)?;
        manual.render_synopsis_section(&mut page)?;
        manual.render_description_section(&mut page)?;
        manual.render_options_section(&mut page)?;
        for sub in command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        {
            let mut one = Vec::new();
            let manual = clap_mangen::Man::new(sub.clone());
            manual.render_description_section(&mut one)?;
            manual.render_options_section(&mut one)?;
            manual.render_extra_section(&mut one)?;
            // Of the sections of a page of its own, this one's heading is the command.
            let text = String::from_utf8_lossy(&one);
            let text = text
                .replace(
                    ".SH DESCRIPTION",
                    &format!(".SH HOWDAH {}", sub.get_name().to_uppercase()),
                )
                .replace(".SH OPTIONS", ".SS Options")
                .replace(".SH EXTRA", ".SS Examples");
            page.extend_from_slice(text.as_bytes());
        }
        Ok(())
    };
    match write().and_then(|()| std::io::stdout().write_all(&page)) {
        Ok(()) => Exit::Ok,
        Err(_) => Exit::Failed,
    }
}

#[expect(clippy::print_stderr, reason = "the command line's own errors")]
fn run_cli(command: cli::Command, which: &Which) -> Exit {
    let level = [
        "LOGLEVEL",
        "PATRONI_LOGLEVEL",
        "PATRONI_LOG_LEVEL",
        "HOWDAH_LOG_LEVEL",
    ]
    .iter()
    .rev()
    .find_map(|name| std::env::var(name).ok().filter(|level| !level.is_empty()));
    // The words of the contract are upper case, and `warning` is not ours.
    let level = level.map_or_else(
        || "warn".to_owned(),
        |level| level.to_ascii_lowercase().replace("warning", "warn"),
    );
    let _level = telemetry::install(&level, telemetry::Format::Plain);
    let env = match cli::environment(which.config_file.as_deref(), which.dcs_url.as_deref()) {
        Ok(env) => env,
        Err(error) => {
            eprintln!("Error: {error}");
            return Exit::Failed;
        }
    };
    let Ok(runtime) = runtime(1) else { return Exit::Os };
    // What needs no cluster must work where none is configured.
    let alone = matches!(command, cli::Command::Version(_) | cli::Command::Health(_));
    let needs_store = command.needs_store();
    let done = runtime.block_on(Box::pin(async {
        let given = Config::load(&env, &ThisHost);
        let loaded = given.or_else(|_| Config::load(&env.without_password(), &ThisHost));
        let context = match loaded {
            Ok(loaded) => context(loaded, needs_store, which.insecure),
            Err(_) if alone => cli::Context {
                scope: String::new(),
                dcs: None,
                client: Client::new(None),
                local: Client::new(None),
                local_api: "http://127.0.0.1:8008".to_owned(),
                login: None,
                loaded: None,
                silent: cli::Silence::default(),
            },
            Err(mistakes) => {
                eprintln!("howdah: the configuration has mistakes:\n{mistakes}");
                return Ok(Exit::Config);
            }
        };
        cli::run(command, context).await
    }));
    done.unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        Exit::Failed
    })
}

fn context(loaded: howdah::config::Loaded, needs_store: bool, insecure: bool) -> cli::Context {
    let config = &loaded.config;
    let host = config.restapi.listen.specific().unwrap_or("127.0.0.1");
    let credentials = start::credentials(config.ctl.authentication.as_ref());
    let client = Client::new(credentials.as_ref());
    client.set_tls(member_tls::of_command_line(config, insecure));
    // What this host says of itself needs no name in a certificate.
    let local = Client::new(credentials.as_ref());
    local.set_tls(member_tls::towards_this_host(config));
    cli::Context {
        scope: config.scope.clone(),
        dcs: needs_store.then(|| start::store_client(config).ok()).flatten(),
        client,
        local,
        local_api: format!(
            "{}://{}:{}",
            config.restapi.scheme(),
            bracketed(host),
            config.restapi.listen.port
        ),
        login: Some(Settings::from_config(config).superuser_target()),
        loaded: Some(Arc::new(loaded)),
        silent: cli::Silence::default(),
    }
}
