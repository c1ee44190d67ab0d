//! `restart`, `reinit` and `reload`: the same request to one member after the other (contract: ctl §3, §5).

use std::time::Duration;

use http::Method;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use super::{
    CliError, Context, ReinitArgs, ReloadArgs, RestartArgs, RoleFilter,
    members::Look,
    progress::Copied,
    source::Source,
    targets::{confirmed, named},
    ui::{Ui, ask, confirm},
    when,
};
use crate::{
    api::{cluster::MemberView, restart::version},
    client::{Answer, ClientError},
    exit::Exit,
    model::{Dynamic, PgState},
};

/// A restart answers when it is over.
const RESTART_WITHIN: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(15);
/// A member that was restarted streams again within this.
const WELL_WITHIN: Duration = Duration::from_secs(300);
/// A line of progress where lines are kept.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A clone of a large database takes hours.
const CLONE_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) async fn call(
    context: &Context,
    member: &MemberView,
    method: Method,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let base = member.api_base().ok_or_else(|| ClientError::Url {
        url: member.api_url.clone(),
    })?;
    context
        .client
        .send(method, &format!("{base}/{path}"), body, timeout)
        .await
}

/// The contract's words for "no".
pub(super) fn failed(
    ui: &mut dyn Ui,
    action: &str,
    member: &MemberView,
    answer: &Result<Answer, ClientError>,
) {
    ui.say(&match answer {
        Ok(answer) => format!(
            "Failed: {action} for member {}, status code={}, ({})",
            member.name,
            answer.status,
            answer.text()
        ),
        Err(error) => format!("Failed: {action} for member {}, {error}", member.name),
    });
}

pub(super) async fn restart(context: &Context, ui: &mut dyn Ui, args: RestartArgs) -> anyhow::Result<Exit> {
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look::PLAIN));
    let names = context.member_names(args.members);
    let mut members = named(&source.view, &names, args.role)?;
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let scheduled = match args.scheduled {
        Some(text) => text,
        None if args.force => "now".to_owned(),
        None => {
            let example = when::example(now, &zone);
            ask(
                ui,
                &format!("When should the restart take place (e.g. {example}) "),
                Some("now"),
            )?
        }
    };
    let at = when::read(&scheduled, &zone, now)?;
    if args.pending && at.is_none() {
        members.retain(|member| member.pending_restart);
        if members.is_empty() {
            ui.say("No members are waiting for a restart");
            return Ok(Exit::Ok);
        }
    }
    if args.any && members.len() > 1 {
        let index = any_of(members.len());
        members = vec![members.swap_remove(index)];
    }
    confirmed(ui, "restart", &members, args.force)?;
    let pg_version = match args.pg_version {
        Some(text) => text,
        None if args.force => String::new(),
        None => ask(
            ui,
            "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ",
            Some(""),
        )?,
    };
    let mut body = Map::new();
    if args.pending {
        body.insert("restart_pending".into(), true.into());
    }
    if !pg_version.is_empty() {
        version(&pg_version).map_err(|refusal| CliError::refused(refusal.text))?;
        body.insert("postgres_version".into(), pg_version.into());
    }
    if let Some(at) = at {
        if source.view.pause {
            return Err(CliError::refused("Can't schedule restart in the paused state").into());
        }
        body.insert("schedule".into(), when::iso(at).into());
    }
    if let Some(timeout) = args.timeout {
        body.insert("timeout".into(), timeout.into());
    }
    let body = Value::Object(body);
    let mut exit = Exit::Ok;
    for member in members {
        if at.is_some() && args.force && member.scheduled_restart.is_some() {
            // The new schedule replaces the old one; if that cannot be deleted the POST below says so.
            let _old = call(context, member, Method::DELETE, "restart", None, SHORT).await;
        }
        let answer = call(
            context,
            member,
            Method::POST,
            "restart",
            Some(&body),
            RESTART_WITHIN,
        )
        .await;
        match &answer {
            Ok(answer) if answer.status == 200 => {
                ui.say(&format!("Success: restart on member {}", member.name));
                if args.wait && !is_well_again(context, ui, member).await {
                    // The next one might be the last that is well.
                    return Ok(Exit::Failed);
                }
            }
            Ok(answer) if answer.status == 202 => {
                ui.say(&format!("Success: restart scheduled on member {}", member.name));
            }
            Ok(answer) if answer.status == 409 => {
                ui.say(&format!(
                    "Failed: another restart is already scheduled on member {}",
                    member.name
                ));
                exit = Exit::Failed;
            }
            _ => {
                failed(ui, "restart", member, &answer);
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

/// Waits until a member that was restarted leads, or streams again; says which, or that it does not.
async fn is_well_again(context: &Context, ui: &mut dyn Ui, member: &MemberView) -> bool {
    let begun = tokio::time::Instant::now();
    loop {
        let status = context.ask_status(&member.api_url).await;
        let said = match &status {
            Ok(status) => match well(status) {
                Some(what) => {
                    ui.say(&format!(
                        "{} {what} after {:.1} s",
                        member.name,
                        begun.elapsed().as_secs_f32()
                    ));
                    return true;
                }
                None => format!("its state is {}", status["state"].as_str().unwrap_or("unknown")),
            },
            Err(error) => error.clone(),
        };
        if begun.elapsed() >= WELL_WITHIN {
            ui.say(&format!(
                "Failed: {} neither leads nor streams after {} s: {said}",
                member.name,
                WELL_WITHIN.as_secs()
            ));
            return false;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a member does that is well.
fn well(status: &Value) -> Option<&'static str> {
    let running = status["state"] == PgState::Running.as_str();
    match status["role"].as_str()? {
        "primary" | "master" if running => Some("leads"),
        _ if running && status["replication_state"] == "streaming" => Some("streams"),
        _ => None,
    }
}

/// Any index below `count`. The standard library seeds its hashers anew for each process; that is chance enough.
fn any_of(count: usize) -> usize {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(count);
    usize::try_from(random % count.max(1) as u64).unwrap_or(0)
}

pub(super) async fn reinit(context: &Context, ui: &mut dyn Ui, args: ReinitArgs) -> anyhow::Result<Exit> {
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look::PLAIN));
    let replicas = named(&source.view, &[], RoleFilter::Replica)?;
    let mut names = context.member_names(args.members);
    if names.is_empty() {
        if args.force {
            return Err(CliError::refused("no member given to reinitialize").into());
        }
        let known: Vec<&str> = replicas.iter().map(|member| member.name.as_str()).collect();
        names.push(ask(
            ui,
            &format!("Which member do you want to reinitialize [{}]?", known.join(", ")),
            None,
        )?);
    }
    let members = named(&source.view, &names, RoleFilter::Replica)?;
    confirmed(ui, "reinitialize", &members, args.force)?;
    let mut exit = Exit::Ok;
    let mut started = Vec::new();
    for member in members {
        let before = copies(context, member).await;
        let ask_member = async |force: bool| {
            let body = json!({"force": force, "from_leader": args.from_leader});
            call(context, member, Method::POST, "reinitialize", Some(&body), SHORT).await
        };
        let mut answer = ask_member(false).await;
        let busy = matches!(&answer, Ok(answer) if answer.text().ends_with(" already in progress"));
        if busy {
            failed(ui, "reinitialize", member, &answer);
            if args.force || confirm(ui, "Do you want to cancel it and reinitialize anyway?")? {
                answer = ask_member(true).await;
            } else {
                exit = Exit::Failed;
                continue;
            }
        }
        if matches!(&answer, Ok(answer) if answer.status == 200) {
            ui.say(&format!("Success: reinitialize for member {}", member.name));
            started.push((member, before));
        } else {
            failed(ui, "reinitialize", member, &answer);
            exit = Exit::Failed;
        }
    }
    if args.wait {
        for (member, before) in started {
            if !wait_for_clone(context, ui, member, before).await? {
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

/// Copies of data a member has made and given up on, by its own count; `None` if it does not say.
type Copies = Option<(u64, u64)>;

fn copies_of(status: &Value) -> Copies {
    status["state"].as_str()?;
    let count = |key: &str| status["copies"][key].as_u64().unwrap_or(0);
    Some((count("made"), count("failed")))
}

async fn copies(context: &Context, member: &MemberView) -> Copies {
    let status = context.ask_status(&member.api_url).await;
    status.ok().as_ref().and_then(copies_of)
}

/// How the copy that was asked for went: `None` while it goes on.
fn outcome(before: Copies, status: &Value) -> Option<bool> {
    let state = status["state"].as_str()?;
    let counted = status.get("copies").is_some();
    match (before, copies_of(status)) {
        (Some((made, _)), Some((now, _))) if now > made => Some(true),
        (Some((_, failed)), Some((_, now))) if now > failed => Some(false),
        // It counts, and nothing has ended; the counts of an agent that was started again mean nothing.
        (Some(before), Some(now)) if counted && now == before => None,
        // Other software does not count: there, what is not being made is done, unless it does not run.
        _ if state == PgState::CreatingReplica.as_str() => None,
        _ => (state == PgState::Running.as_str()).then_some(true),
    }
}

/// Whether the copy was made.
async fn wait_for_clone(
    context: &Context,
    ui: &mut dyn Ui,
    member: &MemberView,
    before: Copies,
) -> Result<bool, CliError> {
    let begun = tokio::time::Instant::now();
    ui.say(&format!(
        "Waiting for reinitialize to complete on: {}",
        member.name
    ));
    // On a terminal the line changes with every look; elsewhere each is one to keep.
    let pause = if ui.is_terminal() {
        Duration::from_secs(1)
    } else {
        Duration::from_secs(2)
    };
    let mut told: Option<(Copied, tokio::time::Instant)> = None;
    while begun.elapsed() < CLONE_WITHIN {
        tokio::time::sleep(pause).await;
        let status = context.ask_status(&member.api_url).await.ok();
        if let Some(copied) = status.as_ref().and_then(Copied::of) {
            let due = told.is_none_or(|(_, at)| ui.is_terminal() || at.elapsed() >= TELL_EVERY);
            if due {
                let line = copied.line(told.map(|(before, at)| (before, at.elapsed())));
                ui.progress(&format!("{}: {line}", member.name));
                told = Some((copied, tokio::time::Instant::now()));
            }
        }
        match status.and_then(|status| outcome(before, &status)) {
            Some(true) => {
                ui.say(&format!("Reinitialize is completed on: {}", member.name));
                return Ok(true);
            }
            Some(false) => {
                ui.say(&format!(
                    "Failed: reinitialize did not work on: {}; its log says why",
                    member.name
                ));
                return Ok(false);
            }
            None => {}
        }
    }
    Err(CliError::refused(format!(
        "reinitialize did not end on: {}",
        member.name
    )))
}

pub(super) async fn reload(context: &Context, ui: &mut dyn Ui, args: ReloadArgs) -> anyhow::Result<Exit> {
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look::PLAIN));
    let members = named(&source.view, &context.member_names(args.members), args.role)?;
    confirmed(ui, "reload", &members, args.force)?;
    let config = super::source::config(context, ui).await?;
    let dynamic = config
        .as_ref()
        .and_then(Value::as_object)
        .map(Dynamic::from_map)
        .unwrap_or_default();
    let mut exit = Exit::Ok;
    for member in members {
        let answer = call(context, member, Method::POST, "reload", None, SHORT).await;
        match answer.as_ref().map(|answer| answer.status) {
            Ok(202) => ui.say(&format!(
                "Reload request received for member {} and will be processed within {} seconds",
                member.name,
                dynamic.timing.loop_wait.as_secs()
            )),
            Ok(200) => ui.say(&format!("No changes to apply on member {}", member.name)),
            _ => {
                failed(ui, "reload", member, &answer);
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_failed_is_not_taken_for_the_old_data_that_runs_again() {
        let status = |state: &str, copies: Option<(u64, u64)>| {
            let mut status = json!({"state": state});
            if let Some((made, failed)) = copies {
                status["copies"] = json!({"made": made, "failed": failed});
            }
            status
        };
        for (before, state, copies, expected) in [
            (Some((0, 0)), "creating replica", None, None),
            (Some((0, 0)), "running", Some((1, 0)), Some(true)),
            (Some((0, 0)), "starting", Some((1, 0)), Some(true)),
            (Some((0, 0)), "running", Some((0, 1)), Some(false)),
            (Some((2, 1)), "stopped", Some((2, 2)), Some(false)),
            (Some((2, 1)), "running", Some((2, 1)), None),
            (Some((2, 1)), "running", None, Some(true)),
            (None, "creating replica", None, None),
            (None, "stopped", None, None),
            (None, "running", None, Some(true)),
        ] {
            let got = outcome(before, &status(state, copies));
            assert_eq!(got, expected, "{before:?} {state} {copies:?}");
        }
    }

    #[test]
    fn a_member_is_well_when_it_leads_or_streams() {
        for (status, expected) in [
            (json!({"state": "running", "role": "primary"}), Some("leads")),
            (json!({"state": "running", "role": "master"}), Some("leads")),
            (
                json!({"state": "running", "role": "replica", "replication_state": "streaming"}),
                Some("streams"),
            ),
            (
                json!({"state": "running", "role": "replica", "replication_state": "in archive recovery"}),
                None,
            ),
            (json!({"state": "starting", "role": "primary"}), None),
            (json!({"state": "running"}), None),
        ] {
            assert_eq!(well(&status), expected, "{status}");
        }
    }

    #[test]
    fn any_means_any() {
        let chosen: std::collections::BTreeSet<usize> = (0..200).map(|_| any_of(3)).collect();
        assert_eq!(chosen, (0..3).collect());
    }
}
