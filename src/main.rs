//! Life of the process: which part of Howdah it is, its log, its exit status.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use howdah::exit::Exit;
use howdah::init::{self, Options, log::LogWriter};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run any program under Howdah's init: reaped, signalled, restarted when it crashes.
    Init {
        /// Become the program instead of running init; used by init itself.
        #[arg(long, hide = true)]
        exec: bool,
        /// The program and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Init {
            exec: true,
            command,
        } => become_program(&command),
        Command::Init {
            exec: false,
            command,
        } => run_init(command),
    }
    .into()
}

fn become_program(command: &[OsString]) -> Exit {
    let Some((program, arguments)) = command.split_first() else {
        return Exit::Config;
    };
    let error = init::exec(program, arguments);
    fmt().with_writer(std::io::stderr).init();
    tracing::error!(?program, %error, "cannot start the program");
    Exit::Os
}

fn run_init(command: Vec<OsString>) -> Exit {
    let Ok(writer) = LogWriter::stderr() else {
        return Exit::Os;
    };
    let (level, handle) = reload::Layer::new(LevelFilter::INFO);
    tracing_subscriber::registry()
        .with(level)
        .with(fmt::layer().with_writer(writer.clone()).with_ansi(false))
        .init();
    let mut options = Options::this_binary(
        ["init", "--exec", "--"]
            .into_iter()
            .map(Into::into)
            .chain(command)
            .collect(),
    );
    options.toggle_debug = Some(Box::new(move || {
        // It fails only when the subscriber is gone, and then there is no log to change.
        let _: Result<(), reload::Error> = handle.modify(|level| {
            *level = if *level == LevelFilter::DEBUG {
                LevelFilter::INFO
            } else {
                LevelFilter::DEBUG
            };
        });
    }));
    let exit = init::run(options);
    writer.flush(Duration::from_millis(200));
    exit
}
