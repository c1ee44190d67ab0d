//! `demote-cluster` and `promote-cluster` (contract: ctl §3, §5): put `standby_cluster` into the cluster's configuration,
//! or take it out, and watch until the leader has done what follows from it.

use std::time::Duration;

use jiff::Zoned;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    CliError, Context, DemoteClusterArgs, PromoteClusterArgs, config,
    members::Look,
    source::Source,
    ui::{Ui, confirm},
};
use crate::{
    api::cluster::{ClusterView, MemberRole},
    exit::Exit,
    model::{PgState, Role, StandbyCluster},
};

/// A leader that has to be rewound, or to replay much, takes its time; longer than this nobody looks on.
const WITHIN: Duration = Duration::from_secs(3600);
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn demote(
    context: &Context,
    ui: &mut dyn Ui,
    args: DemoteClusterArgs,
) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let section = section(&args)?;
    change(context, ui, Target::Demoted(section), args.force).await
}

pub(super) async fn promote(
    context: &Context,
    ui: &mut dyn Ui,
    args: PromoteClusterArgs,
) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    change(context, ui, Target::Promoted, args.force).await
}

fn section(args: &DemoteClusterArgs) -> Result<Map<String, Value>, CliError> {
    let given = [
        ("host", args.host.clone().map(Value::from)),
        ("port", args.port.map(Value::from)),
        (
            "primary_slot_name",
            args.primary_slot_name.clone().map(Value::from),
        ),
        ("restore_command", args.restore_command.clone().map(Value::from)),
    ];
    let given = given
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let section: Map<String, Value> = given.collect();
    let document = Map::from_iter([("standby_cluster".to_owned(), Value::Object(section.clone()))]);
    // An empty host, or port 0, is none.
    match StandbyCluster::from_map(&document) {
        Some(_) => Ok(section),
        None => Err(CliError::refused(
            "At least --host, --port or --restore-command should be specified",
        )),
    }
}

/// What the cluster is to become.
enum Target {
    Demoted(Map<String, Value>),
    Promoted,
}

impl Target {
    const fn noun(&self) -> &'static str {
        match self {
            Self::Demoted(_) => "demotion",
            Self::Promoted => "promotion",
        }
    }

    const fn verb(&self) -> &'static str {
        match self {
            Self::Demoted(_) => "demote",
            Self::Promoted => "promote",
        }
    }

    const fn role(&self) -> Role {
        match self {
            Self::Demoted(_) => Role::StandbyLeader,
            Self::Promoted => Role::Primary,
        }
    }

    fn body(&self) -> Value {
        match self {
            Self::Demoted(section) => json!({"standby_cluster": section}),
            Self::Promoted => json!({"standby_cluster": null}),
        }
    }
}

async fn change(context: &Context, ui: &mut dyn Ui, target: Target, force: bool) -> anyhow::Result<Exit> {
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look::PLAIN));
    let scope = &source.view.scope;
    let leader = source.view.leader().ok_or_else(|| {
        CliError::refused(format!(
            "Cluster has no leader, {} is not possible",
            target.noun()
        ))
    })?;
    let follows = leader.role == MemberRole::StandbyLeader;
    if follows == matches!(target, Target::Demoted(_)) {
        return Err(CliError::refused("Cluster is already in the required state").into());
    }
    let question = format!("Are you sure you want to {} cluster {scope}?", target.verb());
    if !force && !confirm(ui, &question)? {
        return Err(CliError::refused(format!("Aborted cluster {}", target.noun())).into());
    }
    let answer = config::patch(context, &source.view, &target.body()).await?;
    if answer.status != 200 {
        ui.say(&format!(
            "Failed: cluster {} status code={}, ({})",
            target.noun(),
            answer.status,
            answer.text()
        ));
        return Ok(Exit::Failed);
    }
    watch(context, ui, &target, leader.name.as_str()).await
}

/// Until the leader runs in its new role, and after a demotion also the member that led before.
async fn watch(context: &Context, ui: &mut dyn Ui, target: &Target, before: &str) -> anyhow::Result<Exit> {
    let begun = Instant::now();
    while begun.elapsed() < WITHIN {
        let source = Source::load(context, ui).await?;
        let now = Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        match progress(context, &source.view, target, before).await {
            Ok(()) => {
                ui.say(&format!("{now} cluster is successfully {}d", target.verb()));
                ui.say(&source.table(Look::PLAIN));
                return Ok(Exit::Ok);
            }
            Err(state) => ui.say(&format!("{now} {state}")),
        }
        if ui.is_gone() {
            return Ok(Exit::Failed);
        }
        sleep(LOOK_EVERY).await;
    }
    Err(CliError::refused(format!(
        "the cluster was not {}d within {} s",
        target.verb(),
        WITHIN.as_secs()
    ))
    .into())
}

async fn progress(
    context: &Context,
    view: &ClusterView,
    target: &Target,
    before: &str,
) -> Result<(), String> {
    let leader = view.leader().ok_or("cluster is unlocked")?;
    let status = context.ask_status(&leader.api_url).await?;
    let (role, state) = (&status["role"], &status["state"]);
    let running = PgState::Running.as_str();
    if role != target.role().as_str() || state != running {
        return Err(format!("leader: {}, role: {role}, state: {state}", leader.name));
    }
    let old = view.members.iter().find(|member| member.name.as_str() == before);
    let old = old.filter(|old| matches!(target, Target::Demoted(_)) && old.name != leader.name);
    let Some(old) = old else { return Ok(()) };
    let status = context.ask_status(&old.api_url).await?;
    match status["state"] == running {
        true => Ok(()),
        false => Err(format!(
            "leader: {}, previous leader {before}: {}",
            leader.name, status["state"]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demotion_needs_a_source() {
        let args = DemoteClusterArgs {
            primary_slot_name: Some("s".into()),
            ..DemoteClusterArgs::default()
        };
        assert!(section(&args).is_err());
        let args = DemoteClusterArgs {
            host: Some("h".into()),
            port: Some(5433),
            ..args
        };
        let body = Target::Demoted(section(&args).expect("a source")).body();
        assert_eq!(
            body,
            json!({"standby_cluster": {"host": "h", "port": 5433, "primary_slot_name": "s"}})
        );
        assert_eq!(Target::Promoted.body(), json!({"standby_cluster": null}));
    }
}
