//! Where a command's view of the cluster comes from: the DCS, else the REST API of the member on this host.

use std::time::Duration;

use serde_json::Value;

use super::{
    Context,
    members::{self, Look},
    ui::Ui,
};
use crate::{
    api::cluster::ClusterView,
    model::{Cluster, HistoryRow},
};

const REST_WITHIN: Duration = Duration::from_secs(5);
/// A store that is there answers within milliseconds.
const DCS_WITHIN: Duration = Duration::from_secs(3);

/// The cluster as a command sees it.
#[derive(Debug)]
pub(super) struct Source {
    /// What `list` shows.
    pub(super) view: ClusterView,
    /// Content of `/initialize`.
    pub(super) identity: Option<String>,
}

impl Source {
    pub(super) async fn load(context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Self> {
        if let Some(cluster) = from_dcs(context, ui).await {
            return Ok(Self {
                view: ClusterView::of(&context.scope, &cluster),
                identity: cluster.initialize,
            });
        }
        let view = remembered(context).await?;
        if let Some(age) = view.seen_ago {
            ui.warn(&format!(
                "{} cannot ask the DCS either; this is the cluster as it was seen there {} s ago",
                context.local_api,
                age.as_secs()
            ));
        }
        let status = from_rest(context, "/patroni").await;
        let identity = status
            .ok()
            .and_then(|status| status["database_system_identifier"].as_str().map(str::to_owned));
        Ok(Self { view, identity })
    }

    pub(super) fn table(&self, look: Look) -> String {
        members::render(&self.view, self.identity.as_deref(), look)
    }
}

/// The rows of `/history`.
pub(super) async fn history(context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Vec<HistoryRow>> {
    if let Some(cluster) = from_dcs(context, ui).await {
        return Ok(cluster.history.unwrap_or_default());
    }
    let document = from_rest(context, "/history").await?;
    Ok(document
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(HistoryRow::from_json)
        .collect())
}

/// The dynamic configuration, if there is one.
pub(super) async fn config(context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Option<Value>> {
    if let Some(cluster) = from_dcs(context, ui).await {
        return Ok(cluster.config.map(Value::Object));
    }
    Ok(Some(from_rest(context, "/config").await?))
}

/// Members by name, and whether each knows that the cluster is paused.
pub(super) async fn members(context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Vec<(String, bool)>> {
    if let Some(cluster) = from_dcs(context, ui).await {
        let known =
            |member: &crate::model::Member| (member.name.to_string(), member.data.pause == Some(true));
        return Ok(cluster.members.iter().map(known).collect());
    }
    let view = remembered(context).await?;
    let mut members = Vec::new();
    for member in &view.members {
        // Who does not answer does not know.
        let status = context.ask_status(&member.api_url).await.unwrap_or_default();
        members.push((member.name.to_string(), status["pause"] == true));
    }
    Ok(members)
}

async fn from_dcs(context: &Context, ui: &mut dyn Ui) -> Option<Cluster> {
    let dcs = context.dcs.as_ref()?;
    if context.silent.lasts() {
        return None;
    }
    let reason = match tokio::time::timeout(DCS_WITHIN, dcs.cluster()).await {
        Ok(Ok(cluster)) => return Some(cluster),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {DCS_WITHIN:?}"),
    };
    context.silent.begin();
    ui.warn(&format!(
        "the DCS cannot be asked ({reason}); asking {} instead",
        context.local_api
    ));
    None
}

/// The cluster as the member on this host shows it. A view too old to act on comes with an error status, and is still
/// worth showing.
async fn remembered(context: &Context) -> anyhow::Result<ClusterView> {
    let url = format!("{}/cluster", context.local_api);
    let answer = context.local.get(&url, REST_WITHIN).await?;
    let view = answer.json().as_ref().and_then(ClusterView::from_json);
    match (view, answer.status) {
        (Some(view), _) => Ok(view),
        (None, 200) => anyhow::bail!("{url} answered something else than a cluster"),
        (None, status) => anyhow::bail!("{url} answered {status}: {}", answer.text()),
    }
}

async fn from_rest(context: &Context, path: &str) -> anyhow::Result<Value> {
    let url = format!("{}{path}", context.local_api);
    let answer = context.local.get(&url, REST_WITHIN).await?;
    if answer.status != 200 {
        anyhow::bail!("{url} answered {}: {}", answer.status, answer.text());
    }
    answer
        .json()
        .ok_or_else(|| anyhow::anyhow!("{url} answered something else than JSON"))
}
