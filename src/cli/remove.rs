//! `remove`: a cluster is forgotten by the DCS (contract: ctl §5). Its data stays where it is.

use super::{
    CliError, Context, RemoveArgs,
    members::Look,
    source::Source,
    ui::{Ui, ask},
};
use crate::{
    dcs::{Dcs, Key, When},
    exit::Exit,
};

const KEYS: [Key; 7] = [
    Key::Failover,
    Key::Sync,
    Key::Failsafe,
    Key::Status,
    Key::History,
    Key::Config,
    // Last: a member that finds it gone and the rest there would take the cluster for a lost one.
    Key::Initialize,
];

pub(super) async fn remove(context: &Context, ui: &mut dyn Ui, args: RemoveArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(Some(&args.cluster))?;
    let Some(dcs) = &context.dcs else {
        return Err(CliError::refused("no DCS is configured here").into());
    };
    let source = Source::load(context, ui).await?;
    ui.say(&source.table(Look {
        format: args.format,
        ..Look::PLAIN
    }));
    let name = ask(ui, "Please confirm the cluster name to remove", None)?;
    if name != context.scope {
        return Err(CliError::refused("Cluster names specified do not match").into());
    }
    let aware = "Yes I am aware";
    let question =
        format!("You are about to remove all information in DCS for {name}, please type: \"{aware}\"");
    if ask(ui, &question, None)? != aware {
        return Err(CliError::refused("You did not exactly type \"Yes I am aware\"").into());
    }
    if let Some(leader) = source.view.leader() {
        let question = "This cluster currently is healthy. Please specify the leader name to continue";
        if ask(ui, question, None)? != leader.name.as_str() {
            return Err(CliError::refused("You did not specify the current leader of the cluster").into());
        }
    }
    for key in KEYS {
        forget(&**dcs, key).await?;
    }
    ui.say(&format!("the DCS knows nothing of {name} any more"));
    let running = dcs.cluster().await?.members;
    if !running.is_empty() {
        let names: Vec<&str> = running.iter().map(|member| member.name.as_str()).collect();
        ui.warn(&format!(
            "{} still run: each publishes itself again, and a leader makes the keys anew. Stop them first to forget the \
             cluster for good",
            names.join(", ")
        ));
    }
    Ok(Exit::Ok)
}

async fn forget(dcs: &dyn Dcs, key: Key) -> anyhow::Result<()> {
    match dcs.delete(key, When::Always).await {
        Ok(_) => Ok(()),
        Err(error) => anyhow::bail!("could not delete /{}: {error}; start over", key.path()),
    }
}
