//! The dialogues of `switchover` and `failover` (contract: ctl §4).

use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};
use serde_json::{Map, Value};

use super::{
    CliError, Context, FailoverArgs, SwitchoverArgs,
    members::Look,
    source::Source,
    ui::{Ui, ask, confirm},
    when,
};
use crate::{
    agent::{
        handle::SyncMode,
        handover::{self, Side},
    },
    api::cluster::{ClusterView, MemberRole, configured_sync},
    client::{Answer, ClientError},
    dcs::{Key, When},
    exit::Exit,
    model::{FailoverKey, MemberName},
};

/// A member answers after 2*max(10, loop_wait) s at the latest; this is for loop_wait up to a minute.
const ANSWER_WITHIN: Duration = Duration::from_secs(130);

/// A promotion is over within this, or nobody waits for its phases.
const PHASES_WITHIN: Duration = Duration::from_secs(5);

/// What was agreed on.
#[derive(Debug)]
struct Wish {
    switchover: bool,
    leader: Option<String>,
    candidate: Option<String>,
    at: Option<Timestamp>,
}

impl Wish {
    const fn verb(&self) -> &'static str {
        if self.switchover { "switchover" } else { "failover" }
    }

    fn body(&self) -> Value {
        let mut body = Map::new();
        let names = [("leader", &self.leader), ("candidate", &self.candidate)];
        for (key, name) in names
            .into_iter()
            .filter(|(key, _)| self.switchover || *key != "leader")
        {
            if let Some(name) = name {
                body.insert(key.into(), name.clone().into());
            }
        }
        if let Some(at) = self.at {
            body.insert("scheduled_at".into(), when::iso(at).into());
        }
        Value::Object(body)
    }

    fn key(&self) -> FailoverKey {
        let name = |name: &Option<String>| name.clone().map(MemberName);
        FailoverKey {
            leader: if self.switchover { name(&self.leader) } else { None },
            candidate: name(&self.candidate),
            scheduled_at: self.at,
        }
    }
}

pub(super) async fn switchover(
    context: &Context,
    ui: &mut dyn Ui,
    args: SwitchoverArgs,
) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = show(context, ui).await?;
    let wish = ask_switchover(&source.view, ui, args, Timestamp::now())?;
    Box::pin(carry_out(context, ui, &source.view, &wish)).await
}

fn ask_switchover(
    view: &ClusterView,
    ui: &mut dyn Ui,
    args: SwitchoverArgs,
    now: Timestamp,
) -> Result<Wish, CliError> {
    let scope = &view.scope;
    let leader = view
        .leader()
        .ok_or_else(|| CliError::refused("This cluster has no leader"))?;
    let named = match args.leader {
        Some(name) => name,
        None if args.force => leader.name.to_string(),
        None => {
            let standby = leader.role == MemberRole::StandbyLeader;
            ask(
                ui,
                if standby { "Standby Leader" } else { "Primary" },
                Some(leader.name.as_str()),
            )?
        }
    };
    if named != leader.name.as_str() {
        return Err(CliError::refused(format!(
            "Member {named} is not the leader of cluster {scope}"
        )));
    }
    let candidate = ask_candidate(view, ui, args.candidate, args.force, "switchover")?;
    check_candidate(view, candidate.as_deref(), "switchover")?;
    let zone = TimeZone::system();
    let scheduled = match args.scheduled {
        Some(text) => text,
        None if args.force => "now".to_owned(),
        None => {
            let example = when::example(now, &zone);
            ask(
                ui,
                &format!("When should the switchover take place (e.g. {example} ) "),
                Some("now"),
            )?
        }
    };
    let at = when::read(&scheduled, &zone, now)?;
    if at.is_some() && view.pause {
        return Err(CliError::refused("Can't schedule switchover in the paused state"));
    }
    if !args.force {
        let question = match at {
            None => format!(
                "Are you sure you want to switchover cluster {scope}, demoting current leader {named}?"
            ),
            Some(at) => format!(
                "Are you sure you want to schedule switchover of cluster {scope} at {}, demoting current leader {named}?",
                when::iso(at)
            ),
        };
        agreed(ui, &question, "switchover")?;
    }
    Ok(Wish {
        switchover: true,
        leader: Some(named),
        candidate,
        at,
    })
}

pub(super) async fn failover(context: &Context, ui: &mut dyn Ui, args: FailoverArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = show(context, ui).await?;
    let config = super::source::config(context, ui).await.ok().flatten();
    let sync = config
        .as_ref()
        .and_then(Value::as_object)
        .map_or(SyncMode::Off, configured_sync);
    let wish = ask_failover(&source.view, ui, args, sync)?;
    Box::pin(carry_out(context, ui, &source.view, &wish)).await
}

fn ask_failover(
    view: &ClusterView,
    ui: &mut dyn Ui,
    args: FailoverArgs,
    sync: SyncMode,
) -> Result<Wish, CliError> {
    let scope = &view.scope;
    let candidate = ask_candidate(view, ui, args.candidate, args.force, "failover")?;
    let candidate = candidate
        .ok_or_else(|| CliError::refused("Failover could be performed only to a specific candidate"))?;
    check_candidate(view, Some(&candidate), "failover")?;
    let asynchronous = view
        .member(&candidate)
        .is_some_and(|member| member.role == MemberRole::Replica);
    if !args.force {
        if sync != SyncMode::Off && asynchronous {
            let question = format!("Are you sure you want to failover to the asynchronous node {candidate}?");
            agreed(ui, &question, "failover")?;
        }
        let demoting = view.leader().map_or_else(String::new, |leader| {
            format!(", demoting current leader {}", leader.name)
        });
        agreed(
            ui,
            &format!("Are you sure you want to failover cluster {scope}{demoting}?"),
            "failover",
        )?;
    }
    let leader = view.leader().map(|leader| leader.name.to_string());
    Ok(Wish {
        switchover: false,
        leader,
        candidate: Some(candidate),
        at: None,
    })
}

fn agreed(ui: &mut dyn Ui, question: &str, verb: &str) -> Result<(), CliError> {
    if confirm(ui, question)? {
        Ok(())
    } else {
        Err(CliError::refused(format!("Aborting {verb}")))
    }
}

fn candidates(view: &ClusterView) -> Vec<&str> {
    let mut names: Vec<&str> = view
        .members
        .iter()
        .filter(|member| !member.role.leads() && !member.nofailover())
        .map(|member| member.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

fn ask_candidate(
    view: &ClusterView,
    ui: &mut dyn Ui,
    given: Option<String>,
    force: bool,
    verb: &str,
) -> Result<Option<String>, CliError> {
    let names = candidates(view);
    if names.is_empty() {
        return Err(CliError::refused(format!("No candidates found to {verb} to")));
    }
    let answer = match given {
        Some(name) => name,
        None if force => String::new(),
        None => {
            let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
            ask(ui, &format!("Candidate [{}]", quoted.join(", ")), Some(""))?
        }
    };
    Ok(Some(answer).filter(|name| !name.is_empty()))
}

fn check_candidate(view: &ClusterView, candidate: Option<&str>, verb: &str) -> Result<(), CliError> {
    let Some(name) = candidate else {
        return Ok(());
    };
    let scope = &view.scope;
    if view.leader().is_some_and(|leader| leader.name.as_str() == name) {
        return Err(CliError::refused(if verb == "switchover" {
            "Switchover target and source are the same.".to_owned()
        } else {
            format!("Member {name} is already the leader of cluster {scope}")
        }));
    }
    if candidates(view).contains(&name) {
        return Ok(());
    }
    Err(CliError::refused(format!(
        "Member {name} does not exist in cluster {scope} or is tagged as nofailover"
    )))
}

async fn show(context: &Context, ui: &mut dyn Ui) -> anyhow::Result<Source> {
    let source = Source::load(context, ui).await?;
    ui.say("Current cluster topology");
    ui.say(&source.table(Look::PLAIN));
    Ok(source)
}

async fn carry_out(
    context: &Context,
    ui: &mut dyn Ui,
    view: &ClusterView,
    wish: &Wish,
) -> anyhow::Result<Exit> {
    let receiver = wish.leader.as_deref().or(wish.candidate.as_deref());
    let base = receiver
        .and_then(|name| view.member(name))
        .and_then(|member| member.api_base());
    let verb = wish.verb();
    let begun = Timestamp::now();
    let answer = match &base {
        Some(base) => post(context, base, wish).await,
        None => Err(ClientError::Url { url: String::new() }),
    };
    let exit = match answer {
        Ok(answer) if matches!(answer.status, 200 | 202) => {
            ui.say(&format!(
                "{} {}",
                Zoned::now().strftime("%Y-%m-%d %H:%M:%S%.5f"),
                answer.text()
            ));
            Exit::Ok
        }
        Ok(answer) => {
            let body = answer.text();
            let unknown = body.contains("status unknown");
            let title = if wish.switchover { "Switchover" } else { "Failover" };
            let result = if unknown { "result unknown" } else { "failed" };
            ui.say(&format!("{title} {result}, details: {}, {body}", answer.status));
            return Ok(Exit::Failed);
        }
        Err(ClientError::Timeout { url, waited }) => {
            ui.say(&format!(
                "{verb} result unknown: no answer from {url} within {waited:?}"
            ));
            return Ok(Exit::Failed);
        }
        Err(error) => {
            tracing::debug!(%error, "asking the member failed");
            ui.warn(&format!(
                "Could not {verb} using Patroni api, falling back to DCS"
            ));
            fall_back(context, wish).await?;
            ui.say(&format!("{verb} request written to the DCS"));
            Exit::Ok
        }
    };
    let after = Source::load(context, ui).await?;
    ui.say(&after.table(Look::PLAIN));
    if wish.at.is_none() {
        show_phases(context, ui, &after.view, wish.leader.as_deref(), begun).await;
    }
    Ok(exit)
}

/// Where the time went, as far as the members know: software other than this does not.
///
/// The answer to the request comes as soon as the lock has changed hands, and the promotion takes a moment more.
async fn show_phases(
    context: &Context,
    ui: &mut dyn Ui,
    view: &ClusterView,
    old: Option<&str>,
    begun: Timestamp,
) {
    let mut words = Vec::new();
    for (member, side, last) in [
        (
            old.and_then(|name| view.member(name)),
            Side::Gave,
            handover::RELEASED,
        ),
        (view.leader(), Side::Took, handover::TAKEN),
    ] {
        let Some(member) = member else { continue };
        let looked = tokio::time::Instant::now();
        loop {
            let status = context.ask_status(&member.api_url).await.unwrap_or_default();
            let ours = status["howdah"].is_object();
            let handover = &status["howdah"]["handover"];
            let known = phases(handover, side, begun);
            let complete = !known.is_empty() && !handover["milliseconds"][last].is_null();
            if complete || !ours || looked.elapsed() >= PHASES_WITHIN {
                words.extend(known);
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    if !words.is_empty() {
        ui.say(&format!("Phases of the hand-over: {}", words.join(", ")));
    }
}

/// Each phase with its milliseconds, if this member was on that side of a hand-over since then.
fn phases(handover: &Value, side: Side, since: Timestamp) -> Vec<String> {
    // Clocks of hosts differ somewhat; an earlier hand-over was longer ago.
    const APART: SignedDuration = SignedDuration::from_secs(2);
    let at = handover["at"]
        .as_str()
        .and_then(|at| at.parse::<Timestamp>().ok());
    if handover["side"] != side.as_str() || at.is_none_or(|at| at < since - APART) {
        return Vec::new();
    }
    let phases = handover["milliseconds"].as_object().into_iter().flatten();
    phases
        .map(|(name, took)| format!("{} {took} ms", name.replace('_', " ")))
        .collect()
}

async fn post(context: &Context, base: &str, wish: &Wish) -> Result<Answer, ClientError> {
    let body = wish.body();
    let send = async |path: &str| {
        context
            .client
            .send(
                Method::POST,
                &format!("{base}/{path}"),
                Some(&body),
                ANSWER_WITHIN,
            )
            .await
    };
    let answer = send(wish.verb()).await?;
    // Software older than the switchover endpoint knows the same request as a failover.
    let old = answer.status == 501
        && wish.switchover
        && answer.text().contains("Server does not support this operation");
    if old { send("failover").await } else { Ok(answer) }
}

async fn fall_back(context: &Context, wish: &Wish) -> anyhow::Result<()> {
    let Some(dcs) = &context.dcs else {
        anyhow::bail!("neither the member's REST API nor a DCS can be reached");
    };
    let key = wish.key().render();
    let written = dcs.write(Key::Failover, &key, When::Always);
    tokio::time::timeout(ANSWER_WITHIN / 10, written)
        .await
        .map_err(|_| {
            anyhow::anyhow!("the DCS does not answer; the request may have been written or not")
        })??;
    Ok(())
}

#[cfg(test)]
#[path = "lead_tests.rs"]
mod tests;
