//! `edit-config`: the dynamic configuration, changed by pairs, files or an editor (contract: ctl §3, §5).
//!
//! What is written is checked first, as the REST API does; a person who insists gets their way.

mod change;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::Command,
    time::Duration,
};

use serde_json::{Map, Value};
use similar::TextDiff;

use super::{
    CliError, Context, EditConfigArgs,
    ui::{Ui, confirm},
};
use crate::{
    dcs::{Key, When, Written},
    exit::Exit,
    model::{Cluster, new_remarks},
};

const STORE_WITHIN: Duration = Duration::from_secs(10);

/// Where the whole document comes from if not from pairs.
pub(super) async fn edit(context: &Context, ui: &mut dyn Ui, args: EditConfigArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let cluster = stored(context).await?;
    let (Some(before), Some(version)) = (cluster.config, cluster.config_version) else {
        return Err(CliError::refused(format!(
            "The config key does not exist in the cluster {}",
            context.scope
        ))
        .into());
    };
    let takes_stdin = [&args.apply, &args.replace]
        .iter()
        .any(|file| file.as_deref() == Some("-"));
    if takes_stdin && !args.force {
        return Err(CliError::refused("Use --force option to apply changes").into());
    }
    let after = changed(&before, &args)?;
    let (old, new) = (yaml(&before)?, yaml(&after)?);
    if old == new {
        ui.say("Not changed");
        return Ok(Exit::Ok);
    }
    if !args.quiet {
        ui.say(&diff(&old, &new, io::stdout().is_terminal()));
    }
    let remarks = new_remarks(&before, &after);
    for remark in &remarks {
        ui.warn(&format!("Warning: {remark}"));
    }
    if args.force {
        return apply(context, ui, &after, When::Version(version)).await;
    }
    let question = match remarks.is_empty() {
        true => "Apply these changes?",
        false => "Apply these changes all the same?",
    };
    if !confirm(ui, question)? {
        return Ok(Exit::Ok);
    }
    apply(context, ui, &after, When::Version(version)).await
}

async fn stored(context: &Context) -> anyhow::Result<Cluster> {
    let dcs = context
        .dcs
        .as_ref()
        .ok_or_else(|| CliError::refused("no DCS is configured here"))?;
    match tokio::time::timeout(STORE_WITHIN, dcs.cluster()).await {
        Ok(cluster) => Ok(cluster?),
        Err(_) => anyhow::bail!("the DCS did not answer within {STORE_WITHIN:?}"),
    }
}

async fn apply(
    context: &Context,
    ui: &mut dyn Ui,
    document: &Map<String, Value>,
    when: When,
) -> anyhow::Result<Exit> {
    let Some(dcs) = &context.dcs else {
        return Err(CliError::refused("no DCS is configured here").into());
    };
    let text = Value::Object(document.clone()).to_string();
    match tokio::time::timeout(STORE_WITHIN, dcs.write(Key::Config, &text, when)).await {
        Ok(Ok(Written::Yes(_))) => {
            ui.say("Configuration changed");
            Ok(Exit::Ok)
        }
        Ok(Ok(Written::Refused)) => {
            ui.say("Config modification aborted due to concurrent changes");
            Ok(Exit::Failed)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            anyhow::bail!("the DCS did not answer within {STORE_WITHIN:?}: it may have been written or not")
        }
    }
}

/// The document as it is to be: replaced, then merged, then set by pairs; or edited by hand.
fn changed(before: &Map<String, Value>, args: &EditConfigArgs) -> anyhow::Result<Map<String, Value>> {
    let mut after = before.clone();
    let mut given = false;
    if let Some(file) = &args.replace {
        after = document(&read(file)?, file)?;
        given = true;
    }
    if let Some(file) = &args.apply {
        crate::model::merge_patch(&mut after, &document(&read(file)?, file)?);
        given = true;
    }
    for pair in &args.set {
        change::set(&mut after, pair, "")?;
        given = true;
    }
    for pair in &args.pg {
        change::set(&mut after, pair, "postgresql.parameters.")?;
        given = true;
    }
    match given {
        true => Ok(after),
        false => by_hand(before),
    }
}

fn read(file: &str) -> Result<String, CliError> {
    let text = match file {
        "-" => io::read_to_string(io::stdin()),
        file => std::fs::read_to_string(file),
    };
    text.map_err(|error| CliError::refused(format!("cannot read {file}: {error}")))
}

fn document(text: &str, origin: &str) -> Result<Map<String, Value>, CliError> {
    match serde_yaml_ng::from_str::<Value>(text) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(CliError::refused(format!("{origin} is not a mapping"))),
        Err(error) => Err(CliError::refused(format!("{origin} is not YAML: {error}"))),
    }
}

fn yaml(document: &Map<String, Value>) -> anyhow::Result<String> {
    let mut value = Value::Object(document.clone());
    value.sort_all_objects();
    Ok(serde_yaml_ng::to_string(&value)?)
}

/// Opens the person's editor on a private file.
fn by_hand(before: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    let path = std::env::temp_dir().join(format!("howdah-config-{}.yaml", std::process::id()));
    let _removed = Removed(&path);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.write(true).create_new(true).open(&path)?;
    file.write_all(yaml(before)?.as_bytes())?;
    drop(file);
    let wanted = std::env::var("EDITOR")
        .ok()
        .filter(|editor| !editor.trim().is_empty());
    let editors = match &wanted {
        Some(editor) => vec![editor.as_str()],
        None => vec!["editor", "vi"],
    };
    for editor in editors {
        // An editor may come with options: EDITOR="code --wait".
        let mut words = editor.split_whitespace();
        let Some(program) = words.next() else { continue };
        match Command::new(program).args(words).arg(&path).status() {
            Ok(status) if status.success() => {
                return Ok(document(
                    &std::fs::read_to_string(&path)?,
                    "what the editor left",
                )?);
            }
            Ok(status) => anyhow::bail!("the editor {editor} ended with {status}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => anyhow::bail!("cannot start the editor {editor}: {error}"),
        }
    }
    Err(CliError::refused("EDITOR environment variable is not set. editor or vi are not available").into())
}

/// Removes a file when dropped.
struct Removed<'a>(&'a std::path::Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // Nothing more can be done about it here; it holds no secret.
        let _ = std::fs::remove_file(self.0);
    }
}

/// A unified diff, with colours on a terminal that wants them.
fn diff(old: &str, new: &str, terminal: bool) -> String {
    let diff = TextDiff::from_lines(old, new);
    let text = diff
        .unified_diff()
        .context_radius(3)
        .header("---", "+++")
        .to_string();
    let text = text.trim_end();
    if !terminal || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    let coloured = text.lines().map(|line| match line.chars().next() {
        Some('+') => format!("\x1b[32m{line}\x1b[0m"),
        Some('-') => format!("\x1b[31m{line}\x1b[0m"),
        Some('@') => format!("\x1b[36m{line}\x1b[0m"),
        _ => line.to_owned(),
    });
    coloured.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_changes() {
        let old = "loop_wait: 10\nttl: 30\n";
        insta::assert_snapshot!(diff(old, "loop_wait: 5\nttl: 30\n", false), @r"
        --- ---
        +++ +++
        @@ -1,2 +1,2 @@
        -loop_wait: 10
        +loop_wait: 5
         ttl: 30
        ");
    }

    #[test]
    fn a_document_is_a_mapping() {
        assert!(document("a: 1", "x").is_ok());
        assert!(document("", "x").is_ok_and(|map| map.is_empty()));
        assert_eq!(
            document("[1]", "x.yml").expect_err("a list").to_string(),
            "x.yml is not a mapping"
        );
        assert!(document("a: [", "x").is_err());
    }
}
