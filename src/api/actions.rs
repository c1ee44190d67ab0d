//! The handlers that change something: the cluster through the DCS, this member through the agent.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    refusal::Refusal,
    reply::{self, Reply},
    restart,
    server::Api,
    switchover::{self, Action, Plan},
};
use crate::{
    agent::handle::{Request, RestartOutcome, ScheduledRestart},
    client::probe_peers,
    dcs::{Key, When, Written},
    model::{Cluster, Dynamic, MemberName, merge_patch, new_remarks},
};

/// How long candidates may take to answer (contract: REST API §14).
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// A restart is bounded by the agent's own deadlines; this only ends waiting for an agent that lost it.
const RESTART_WITHIN: Duration = Duration::from_secs(3600);
/// Short requests to the agent.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// Reading the store.
const STORE_WITHIN: Duration = Duration::from_secs(3);
/// A PATCH is a merge, so losing a race only means merging again.
const PATCH_ATTEMPTS: usize = 3;

/// The cluster as stored now. A store that is away must not keep the client waiting for as long as it is away.
async fn stored(api: &Api) -> Result<Cluster, Refusal> {
    match tokio::time::timeout(STORE_WITHIN, api.handle.dcs().cluster()).await {
        Ok(cluster) => Ok(cluster?),
        Err(_) => Err(Refusal::unavailable(format!(
            "cannot reach the DCS: no answer within {STORE_WITHIN:?}"
        ))),
    }
}

/// Writes to the store. After a timeout it may have been written or not.
async fn write(api: &Api, key: Key, value: &str, when: When) -> Result<Written, Refusal> {
    match tokio::time::timeout(REPLY_WITHIN, api.handle.dcs().write(key, value, when)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Refusal::unavailable(format!(
            "cannot reach the DCS: no answer within {REPLY_WITHIN:?}"
        ))),
    }
}

async fn wake(api: &Api) {
    if let Err(error) = api.handle.tell(Request::WakeUp).await {
        tracing::debug!(%error, "the agent was not woken");
    }
}

async fn reply_within<T>(
    limit: Duration,
    reply: impl Future<Output = Result<T, crate::agent::handle::AskError>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(limit, reply).await {
        Ok(reply) => Ok(reply?),
        Err(_) => Err(crate::agent::handle::AskError::Busy.into()),
    }
}

/// Refuses what is wrong with a document and was not wrong with the one before, unless the client insists: a tool that
/// changes one thing does not have to mend the rest.
fn checked(before: &Map<String, Value>, after: &Map<String, Value>, force: bool) -> Result<(), Refusal> {
    let remarks = new_remarks(before, after);
    if remarks.is_empty() || force {
        return Ok(());
    }
    let list: Vec<String> = remarks.iter().map(ToString::to_string).collect();
    Err(Refusal::new(
        422,
        format!(
            "not stored (?force=true stores it all the same):\n{}",
            list.join("\n")
        ),
    ))
}

pub(super) async fn patch_config(
    api: &Api,
    patch: &Map<String, Value>,
    force: bool,
) -> Result<Reply, Refusal> {
    for _ in 0..PATCH_ATTEMPTS {
        let cluster = stored(api).await?;
        let (Some(mut config), Some(version)) = (cluster.config, cluster.config_version) else {
            return Err(Refusal::unavailable("there is no valid configuration in the DCS"));
        };
        let before = config.clone();
        if merge_patch(&mut config, patch) {
            checked(&before, &config, force)?;
            let text = Value::Object(config.clone()).to_string();
            match write(api, Key::Config, &text, When::Version(version)).await {
                Ok(Written::Yes(_)) => {}
                Ok(Written::Refused) => continue,
                Err(error) => {
                    return Err(Refusal::new(409, format!("the DCS did not take it: {error}")));
                }
            }
            let keys: Vec<&String> = patch.keys().collect();
            tracing::info!(?keys, "dynamic configuration changed through the REST API");
        }
        wake(api).await;
        return Ok(reply::object(200, &config));
    }
    Err(Refusal::new(
        409,
        "the configuration was changed by others at the same time",
    ))
}

pub(super) async fn put_config(
    api: &Api,
    config: &Map<String, Value>,
    force: bool,
) -> Result<Reply, Refusal> {
    let not_taken = |error: &Refusal| Refusal::new(502, format!("the DCS did not take it: {error}"));
    let cluster = stored(api).await.map_err(|error| not_taken(&error))?;
    checked(cluster.config.as_ref().unwrap_or(&Map::new()), config, force)?;
    let text = Value::Object(config.clone()).to_string();
    let stored = cluster.config.map(|stored| Value::Object(stored).to_string());
    if stored.as_deref() != Some(text.as_str()) {
        match write(api, Key::Config, &text, When::Always).await {
            Ok(Written::Yes(_)) => {
                tracing::info!("dynamic configuration replaced through the REST API");
            }
            Ok(Written::Refused) => return Err(Refusal::new(502, "the DCS did not take it")),
            Err(error) => return Err(not_taken(&error)),
        }
    }
    Ok(reply::object(200, config))
}

pub(super) async fn change_leader(
    api: &Api,
    action: Action,
    body: &Map<String, Value>,
) -> Result<Reply, Refusal> {
    let cluster = stored(api).await?;
    let dynamic = cluster.config.as_ref().map(Dynamic::from_map).unwrap_or_default();
    let plan = switchover::validate(action, body, Timestamp::now(), dynamic.pause)?;
    if plan.key.scheduled_at.is_none() {
        let sync = api.handle.current().sync_mode;
        let names = switchover::candidates(&plan, &cluster, sync)?;
        let members: Vec<(MemberName, String)> = cluster
            .members
            .iter()
            .filter(|member| names.contains(&member.name))
            .map(|member| (member.name.clone(), member.data.api_url.clone()))
            .collect();
        let answers = probe_peers(&api.options.client, &members, PROBE_WITHIN).await;
        switchover::judge(&plan, &answers)?;
    }
    // Subscribed before the write, so that the change it leads to cannot be missed.
    let changes = api.handle.dcs().changes();
    match write(api, Key::Failover, &plan.key.render(), When::Always).await {
        Ok(Written::Yes(_)) => {}
        Ok(Written::Refused) => {
            return Err(Refusal::unavailable("failed to write failover key into DCS"));
        }
        Err(error) => {
            tracing::warn!(%error, "failover key not written");
            return Err(Refusal::unavailable("failed to write failover key into DCS"));
        }
    }
    tracing::info!(request = %plan.key.render(), "change of leader requested through the REST API");
    wake(api).await;
    if plan.key.scheduled_at.is_some() {
        return Ok(reply::text(202, "Switchover scheduled"));
    }
    let old_leader = cluster.leader.map(|leader| leader.name);
    let patience_s = 2 * dynamic.timing.loop_wait.as_secs().max(10);
    follow(api, &plan, old_leader.as_ref(), patience_s, changes).await
}

/// Looks at the cluster whenever it changes, and every second, until the plan's fate is known.
async fn follow(
    api: &Api,
    plan: &Plan,
    old_leader: Option<&MemberName>,
    patience_s: u64,
    mut changes: tokio::sync::watch::Receiver<u64>,
) -> Result<Reply, Refusal> {
    let tick = Duration::from_secs(1);
    let begun = tokio::time::Instant::now();
    while begun.elapsed().as_secs() < patience_s {
        match tokio::time::timeout(tick, changes.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // No more news from the watch: the clock has to do.
            Ok(Err(_)) => tokio::time::sleep(tick).await,
        }
        match stored(api).await {
            Ok(cluster) => {
                if let Some(outcome) = switchover::outcome(plan, old_leader, &cluster) {
                    return outcome.map(|text| reply::text(200, text));
                }
            }
            Err(error) => tracing::debug!(%error, "cannot follow the change of leader"),
        }
    }
    Err(switchover::undecided(plan, patience_s))
}

pub(super) async fn unschedule_switchover(api: &Api) -> Result<Reply, Refusal> {
    let cluster = stored(api).await?;
    let scheduled = cluster.failover.is_some_and(|key| key.scheduled_at.is_some());
    let (true, Some(version)) = (scheduled, cluster.failover_version) else {
        return Err(Refusal::new(404, "no switchover is scheduled"));
    };
    match write(api, Key::Failover, "{}", When::Version(version)).await? {
        Written::Yes(_) => {
            wake(api).await;
            Ok(reply::text(200, "scheduled switchover deleted"))
        }
        Written::Refused => Err(Refusal::new(
            409,
            "the scheduled switchover was changed at the same time",
        )),
    }
}

pub(super) async fn restart(api: &Api, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let paused = api.handle.current().paused();
    let request = restart::parse(body, Timestamp::now(), paused)?;
    let filters = request.filters;
    if let Some(at) = request.at {
        let restart = ScheduledRestart {
            at,
            filters,
            postmaster_start_time: None,
        };
        let asked = api
            .handle
            .ask(|reply| Request::ScheduleRestart { restart, reply });
        return if reply_within(REPLY_WITHIN, asked).await? {
            Ok(reply::text(202, "Restart scheduled"))
        } else {
            Err(Refusal::new(409, "Another restart is already scheduled"))
        };
    }
    let asked = api.handle.ask(|reply| Request::Restart { filters, reply });
    let text = match reply_within(RESTART_WITHIN, asked).await? {
        RestartOutcome::Done => return Ok(reply::text(200, "restarted successfully")),
        RestartOutcome::ConditionsNotMet => "restart conditions are not satisfied".to_owned(),
        RestartOutcome::Busy(action) => format!("{action} already in progress"),
        RestartOutcome::StillStarting => "postgres is still starting".to_owned(),
        RestartOutcome::Failed => "restart failed".to_owned(),
    };
    Err(Refusal::unavailable(text))
}

pub(super) async fn cancel_restart(api: &Api) -> Result<Reply, Refusal> {
    if reply_within(REPLY_WITHIN, api.handle.ask(Request::CancelRestart)).await? {
        Ok(reply::text(200, "scheduled restart deleted"))
    } else {
        Err(Refusal::new(404, "no restarts are scheduled"))
    }
}

pub(super) async fn reload(api: &Api) -> Result<Reply, Refusal> {
    api.handle.tell(Request::Reload).await?;
    Ok(reply::text(202, "reload scheduled"))
}

pub(super) async fn reinitialize(api: &Api, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let flag = |key: &str| body.get(key).and_then(crate::model::read_bool).unwrap_or(false);
    // The contract's own documentation spells it with a hyphen, its code with an underscore.
    let (force, from_leader) = (flag("force"), flag("from_leader") || flag("from-leader"));
    let asked = api.handle.ask(|reply| Request::Reinitialize {
        force,
        from_leader,
        reply,
    });
    match reply_within(REPLY_WITHIN, asked).await? {
        Ok(()) => Ok(reply::text(200, "reinitialize started")),
        Err(refused) => Err(Refusal::unavailable(refused.to_string())),
    }
}
