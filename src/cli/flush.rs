//! `flush`: schedules that are called off (contract: ctl §3).

use std::time::Duration;

use http::Method;

use super::{
    CliError, Context, FlushArgs, RoleFilter,
    member_jobs::{call, failed},
    members::Look,
    source::Source,
    targets::{confirmed, named},
    ui::Ui,
};
use crate::{
    dcs::{Key, When, Written},
    exit::Exit,
};

const SHORT: Duration = Duration::from_secs(15);

pub(super) async fn flush(context: &Context, ui: &mut dyn Ui, args: FlushArgs) -> anyhow::Result<Exit> {
    let mut words = args.words;
    match words.pop().as_deref() {
        Some("restart") => restart(context, ui, words, args.role, args.force).await,
        Some("switchover") => {
            // No member is asked for; names are accepted as the contract's tool accepts them.
            let names = context.member_names(words);
            let source = Source::load(context, ui).await?;
            named(&source.view, &names, RoleFilter::Any)?;
            switchover(context, ui, &source).await
        }
        _ => Err(CliError::refused("what to flush comes last: restart or switchover").into()),
    }
}

async fn restart(
    context: &Context,
    ui: &mut dyn Ui,
    words: Vec<String>,
    role: RoleFilter,
    force: bool,
) -> anyhow::Result<Exit> {
    const WHAT: &str = "flush scheduled restart";
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look::PLAIN));
    let members = named(&source.view, &context.member_names(words), role)?;
    confirmed(ui, "flush", &members, force)?;
    let mut exit = Exit::Ok;
    for member in members {
        if member.scheduled_restart.is_none() {
            ui.say(&format!("No scheduled restart for member {}", member.name));
            continue;
        }
        let answer = call(context, member, Method::DELETE, "restart", None, SHORT).await;
        match &answer {
            Ok(answer) if answer.status == 200 => {
                ui.say(&format!("Success: {WHAT} for member {}", member.name));
            }
            _ => {
                failed(ui, WHAT, member, &answer);
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

async fn switchover(context: &Context, ui: &mut dyn Ui, source: &Source) -> anyhow::Result<Exit> {
    if source.view.scheduled_switchover.is_none() {
        ui.say("No pending scheduled switchover");
        return Ok(Exit::Ok);
    }
    let mut members: Vec<_> = source.view.members.iter().collect();
    members.sort_by_key(|member| !member.role.leads());
    for member in members {
        match call(context, member, Method::DELETE, "switchover", None, SHORT).await {
            Ok(answer) if matches!(answer.status, 200 | 404) => {
                let done = answer.status == 200;
                let word = if done { "Success" } else { "Failed" };
                ui.say(&format!("{word}: {}", answer.text()));
                return Ok(if done { Exit::Ok } else { Exit::Failed });
            }
            Ok(answer) => ui.warn(&format!(
                "Failed: member={}, status_code={}, ({})",
                member.name,
                answer.status,
                answer.text()
            )),
            Err(error) => tracing::debug!(%error, "asking the next member"),
        }
    }
    ui.warn("no member can be reached, clearing it in the DCS");
    let Some(dcs) = &context.dcs else {
        return Err(CliError::refused("no DCS is configured here").into());
    };
    let version = dcs.cluster().await?.failover_version;
    let cleared = dcs
        .write(Key::Failover, "{}", version.map_or(When::Absent, When::Version))
        .await?;
    match cleared {
        Written::Yes(_) => {
            ui.say("Success: scheduled switchover deleted");
            Ok(Exit::Ok)
        }
        Written::Refused => {
            ui.say("Failed: the scheduled switchover was changed at the same time");
            Ok(Exit::Failed)
        }
    }
}
