//! The commands people and scripts type: `list`, `switchover`, `restart` … (contract: ctl).
//!
//! A command looks at the cluster (the DCS, or a member's REST API where the DCS cannot be asked), asks what it must
//! ask, and sends REST requests to members. It never touches postgres or a data directory. Tables are pure
//! functions in `table` and `members`; everything printed goes through `ui`.
//!
//! Exit status: 0 done, 1 not done (also where `patronictl` says 0: a failed switchover, restart …), 2 usage,
//! 64 mistakes in the configuration.

mod args;
pub mod complete;
mod config;
mod dsn;
mod edit;
mod environment;
mod explain;
mod flush;
mod lead;
mod member_jobs;
mod members;
mod progress;
mod remove;
#[cfg(feature = "kubernetes")]
mod rollout;
mod slots;
mod source;
mod standby;
mod table;
mod targets;
mod ui;
mod when;
mod why;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Zoned;
use serde_json::Value;
use tokio::time::Instant;

#[cfg(feature = "kubernetes")]
pub use args::RolloutArgs;
pub use args::{
    ClusterArg, Command, DemoteClusterArgs, DsnArgs, EditConfigArgs, ExplainArgs, FailoverArgs, FlushArgs,
    Format, HealthArgs, HistoryArgs, PauseArgs, PromoteClusterArgs, QueryArgs, ReinitArgs, ReloadArgs,
    RemoveArgs, RestartArgs, RoleFilter, SlotsArgs, SwitchoverArgs, VersionArgs,
};
pub use environment::{Named, environment};
use members::{Look, Shape};
use source::Source;
use table::{Column, Table};
use ui::{Console, Ui};

use crate::{
    agent::handle::VERSION, client::Client, config::Loaded, dcs::Dcs, exit::Exit, model::HistoryRow,
    postgres::query::Target,
};

/// What a command works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Name of the cluster.
    pub scope: String,
    /// The store, if one is configured and could be opened.
    pub dcs: Option<Arc<dyn Dcs>>,
    /// For members' REST APIs, with the credentials they ask for.
    pub client: Client,
    /// For the REST API on this host, whatever name its certificate has.
    pub local: Client,
    /// Base URL of the REST API on this host, e.g. `http://127.0.0.1:8008`.
    pub local_api: String,
    /// How the superuser logs in at a member, whichever; `None` where no cluster is configured.
    pub login: Option<Target>,
    /// The configuration of this member, with its origins; `None` where none is configured.
    pub loaded: Option<Arc<Loaded>>,
    /// When the store last gave no answer.
    pub silent: Silence,
}

/// Remembers that the store did not answer: one command asks it several times, and must wait for it only once.
#[derive(Debug, Clone, Default)]
pub struct Silence(Arc<Mutex<Option<Instant>>>);

impl Silence {
    fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// A command that shows the cluster again and again finds out some time that the store is back.
    fn lasts(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < Duration::from_secs(30))
    }
}

/// Why a command ends without having done its work. The texts are part of the contract.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The input ended, or the terminal went away, at a question.
    #[error("Aborted!")]
    Aborted,
    /// A rule, a "no" at a confirmation, or a wrong name.
    #[error("{0}")]
    Refused(String),
}

impl CliError {
    fn refused(text: impl Into<String>) -> Self {
        Self::Refused(text.into())
    }
}

/// Runs a command to its end. An error is to be printed as `Error: <text>` and ends with [`Exit::Failed`].
pub async fn run(command: Command, context: Context) -> anyhow::Result<Exit> {
    run_with(command, &context, &mut Console::default()).await
}

async fn run_with(command: Command, context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Exit> {
    let done = match command {
        Command::List(args) => {
            let look = Look {
                shape: Shape::Flat,
                format: args.format,
                extended: args.extended,
            };
            let every = interval(args.watch2, args.watch);
            Box::pin(list(context, ui, &args.clusters, look, args.timestamp, every)).await
        }
        Command::Topology(args) => {
            let look = Look {
                shape: Shape::Tree,
                ..Look::PLAIN
            };
            let every = interval(args.watch2, args.watch);
            Box::pin(list(context, ui, &args.clusters, look, false, every)).await
        }
        Command::Switchover(args) => Box::pin(lead::switchover(context, ui, args)).await,
        Command::Failover(args) => Box::pin(lead::failover(context, ui, args)).await,
        Command::Restart(args) => Box::pin(member_jobs::restart(context, ui, args)).await,
        Command::Reinit(args) => Box::pin(member_jobs::reinit(context, ui, args)).await,
        Command::Reload(args) => Box::pin(member_jobs::reload(context, ui, args)).await,
        Command::Slots(args) => Box::pin(slots::slots(context, ui, &args)).await,
        Command::History(args) => history(context, ui, &args).await,
        Command::Why(args) => Box::pin(why::why(context, ui, &args)).await,
        Command::Version(args) => Box::pin(version(context, ui, args)).await,
        Command::Health(args) => Ok(health(context, ui, args).await),
        Command::Pause(args) => Box::pin(config::set_pause(context, ui, &args, true)).await,
        Command::Resume(args) => Box::pin(config::set_pause(context, ui, &args, false)).await,
        Command::DemoteCluster(args) => Box::pin(standby::demote(context, ui, args)).await,
        Command::PromoteCluster(args) => Box::pin(standby::promote(context, ui, args)).await,
        Command::ShowConfig(args) => config::show(context, ui, &args).await,
        Command::EditConfig(args) => Box::pin(edit::edit(context, ui, args)).await,
        Command::Dsn(args) => Box::pin(dsn::dsn(context, ui, args)).await,
        Command::Query(args) => Box::pin(dsn::query(context, ui, args)).await,
        Command::Config(args::ConfigCommand::Explain(args)) => {
            Box::pin(explain::explain(context, ui, args)).await
        }
        Command::Flush(args) => Box::pin(flush::flush(context, ui, args)).await,
        Command::Remove(args) => Box::pin(remove::remove(context, ui, args)).await,
        #[cfg(feature = "kubernetes")]
        Command::Rollout(args) => Box::pin(rollout::rollout(context, ui, args)).await,
    };
    match done {
        Err(error) if matches!(error.downcast_ref(), Some(CliError::Aborted)) => {
            ui.warn("Aborted!");
            Ok(Exit::Failed)
        }
        done => done,
    }
}

fn interval(two: bool, given: Option<f64>) -> Option<Duration> {
    let seconds = given.or(two.then_some(2.0))?;
    Some(
        Duration::try_from_secs_f64(seconds)
            .unwrap_or(Duration::from_secs(2))
            .max(Duration::from_millis(100)),
    )
}

async fn list(
    context: &Context,
    ui: &mut dyn Ui,
    clusters: &[String],
    look: Look,
    timestamp: bool,
    every: Option<Duration>,
) -> anyhow::Result<Exit> {
    for name in clusters {
        context.must_be_ours(Some(name))?;
    }
    loop {
        let source = Source::load(context, ui).await?;
        let mut text = source.table(look);
        if timestamp {
            text = format!("{}\n{text}", Zoned::now().strftime("%Y-%m-%d %H:%M:%S"));
        }
        let Some(every) = every else {
            ui.say(&text);
            return Ok(Exit::Ok);
        };
        ui.redraw(&text);
        if ui.is_gone() {
            return Ok(Exit::Ok);
        }
        tokio::time::sleep(every).await;
    }
}

async fn history(context: &Context, ui: &mut dyn Ui, args: &HistoryArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let rows = source::history(context, ui).await?;
    ui.say(&history_table(&rows).render(args.format));
    Ok(Exit::Ok)
}

fn history_table(rows: &[HistoryRow]) -> Table {
    let optional = |text: &Option<String>| Value::from(text.clone().unwrap_or_default());
    let row = |row: &HistoryRow| {
        vec![
            row.timeline.0.into(),
            row.lsn.0.into(),
            row.reason.clone().into(),
            optional(&row.timestamp),
            optional(&row.new_leader),
        ]
    };
    Table {
        title: None,
        columns: vec![
            Column::right("TL"),
            Column::right("LSN"),
            Column::left("Reason"),
            Column::left("Timestamp"),
            Column::left("New Leader"),
        ],
        rows: rows.iter().map(row).collect(),
    }
}

async fn version(context: &Context, ui: &mut dyn Ui, args: VersionArgs) -> anyhow::Result<Exit> {
    ui.say(&format!("howdah version {VERSION}"));
    if args.members.is_empty() {
        return Ok(Exit::Ok);
    }
    let source = Source::load(context, ui).await?;
    let members = targets::named(&source.view, &context.member_names(args.members), RoleFilter::Any)?;
    ui.say("");
    let mut exit = Exit::Ok;
    for member in members {
        match context.ask_status(&member.api_url).await {
            Ok(status) => ui.say(&version_line(member.name.as_str(), &status)),
            Err(reason) => {
                ui.say(&format!("{}: failed to get version: {reason}", member.name));
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

fn version_line(name: &str, status: &Value) -> String {
    let wire = status["patroni"]["version"].as_str().unwrap_or("unknown");
    let postgres = match status["server_version"].as_u64() {
        Some(number) if number >= 100_000 => {
            format!(" PostgreSQL {}.{}", number / 10_000, number % 10_000)
        }
        Some(number) => format!(
            " PostgreSQL {}.{}.{}",
            number / 10_000,
            number / 100 % 100,
            number % 100
        ),
        None => String::new(),
    };
    format!("{name}: Patroni {wire}{postgres}")
}

async fn health(context: &Context, ui: &mut dyn Ui, args: HealthArgs) -> Exit {
    let (path, word) = if args.ready {
        ("readiness", "ready")
    } else {
        ("liveness", "alive")
    };
    let url = format!("{}/{path}", context.local_api);
    match context.local.get(&url, Duration::from_secs(3)).await {
        Ok(answer) if answer.status == 200 => {
            ui.say(word);
            Exit::Ok
        }
        Ok(answer) => {
            ui.say(&format!("not {word}: {url} answered {}", answer.status));
            Exit::Failed
        }
        Err(error) => {
            ui.say(&format!("not {word}: {error}"));
            Exit::Failed
        }
    }
}

impl Context {
    /// A cluster named on the command line must be the one of the environment.
    fn must_be_ours(&self, cluster: Option<&String>) -> Result<(), CliError> {
        match cluster {
            Some(name) if *name != self.scope => Err(CliError::refused(format!(
                "cluster {name} is not the one configured here, which is {}",
                self.scope
            ))),
            _ => Ok(()),
        }
    }

    /// `[CLUSTER] [MEMBER]…`: the first name may be the cluster's.
    fn member_names(&self, mut names: Vec<String>) -> Vec<String> {
        if names.first() == Some(&self.scope) {
            names.remove(0);
        }
        names
    }

    /// GET `api_url` of a member.
    async fn ask_status(&self, api_url: &str) -> Result<Value, String> {
        let answer = self.client.get(api_url, Duration::from_secs(5)).await;
        let answer = answer.map_err(|error| error.to_string())?;
        answer
            .json()
            .ok_or_else(|| format!("{api_url} answered {} and no JSON", answer.status))
    }
}

#[cfg(test)]
mod tests;
