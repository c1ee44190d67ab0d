//! `show-config`, `pause` and `resume` (contract: ctl §3).

use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};

use tokio::time::Instant;

use super::{CliError, ClusterArg, Context, PauseArgs, source, source::Source, ui::Ui};
use crate::{api::cluster::ClusterView, client::Answer, exit::Exit, model::Dynamic};

const PATCH_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at who knows.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn show(context: &Context, ui: &mut dyn Ui, args: &ClusterArg) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let mut config = source::config(context, ui)
        .await?
        .unwrap_or_else(|| Value::Object(Map::new()));
    config.sort_all_objects();
    ui.say(serde_yaml_ng::to_string(&config)?.trim_end());
    Ok(Exit::Ok)
}

/// Asks the leader, then the others, until one of them takes it.
pub(super) async fn set_pause(
    context: &Context,
    ui: &mut dyn Ui,
    args: &PauseArgs,
    pause: bool,
) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = Source::load(context, ui).await?;
    if source.view.pause == pause {
        let text = if pause {
            "Cluster is already paused"
        } else {
            "Cluster is not paused"
        };
        return Err(CliError::refused(text).into());
    }
    let body = json!({"pause": if pause { Value::Bool(true) } else { Value::Null }});
    let answer = patch(context, &source.view, &body).await?;
    if answer.status == 200 {
        let done = if pause { "paused" } else { "resumed" };
        if args.wait {
            recognized(context, ui, pause).await?;
        }
        ui.say(&format!("Success: cluster management is {done}"));
        return Ok(Exit::Ok);
    }
    let verb = if pause { "pause" } else { "resume" };
    ui.say(&format!(
        "Failed: {verb} cluster management status code={}, ({})",
        answer.status,
        answer.text()
    ));
    Ok(Exit::Failed)
}

/// Waits for all members to publish that they know; who does not in time is named.
async fn recognized(context: &Context, ui: &mut dyn Ui, pause: bool) -> anyhow::Result<()> {
    let verb = if pause { "pause" } else { "resume" };
    ui.say(&format!(
        "'{verb}' request sent, waiting until it is recognized by all nodes"
    ));
    let config = source::config(context, ui).await?;
    let empty = Map::new();
    let document = config.as_ref().and_then(Value::as_object).unwrap_or(&empty);
    let patience = Dynamic::from_map(document).timing.loop_wait + Duration::from_secs(1);
    let deadline = Instant::now() + patience;
    loop {
        let members = source::members(context, ui).await?;
        let late: Vec<String> = members
            .iter()
            .filter(|(_, paused)| *paused != pause)
            .map(|(name, _)| name.clone())
            .collect();
        if late.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            ui.say(&format!(
                "{} members didn't recognized pause state after {} seconds",
                late.join(", "),
                patience.as_secs()
            ));
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Changes the cluster's configuration through the leader, or else whichever member answers; its answer.
pub(super) async fn patch(context: &Context, view: &ClusterView, body: &Value) -> Result<Answer, CliError> {
    let mut members: Vec<_> = view.members.iter().collect();
    members.sort_by_key(|member| !member.role.leads());
    for base in members.iter().filter_map(|member| member.api_base()) {
        let url = format!("{base}/config");
        let sent = context.client.send(Method::PATCH, &url, Some(body), PATCH_WITHIN);
        match sent.await {
            Ok(answer) => return Ok(answer),
            Err(error) => tracing::debug!(%error, "asking the next member"),
        }
    }
    Err(CliError::refused("Can not find accessible cluster member"))
}
