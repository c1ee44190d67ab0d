//! The table of settings for the documentation.

use std::fmt::Write as _;

use super::{
    other_names,
    vars::{Default, Effect, SECTIONS, Var},
};

/// All settings as Markdown, one table per section.
#[must_use]
pub fn render_markdown() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "### {}\n\n| Variable | Meaning | Value | Default | Takes effect |\n|---|---|---|---|---|\n",
            section.title
        );
        for var in section.vars {
            text.push_str(&row(var));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn row(var: &Var) -> String {
    let ours = [var.name(), format!("PATRONI_{}", var.suffix)];
    let others: Vec<String> = other_names::names(var)
        .into_iter()
        .map(|other| other.name)
        .filter(|name| {
            !ours.contains(name) && !name.contains("ETCD_") && !name.starts_with("ETCD3_")
        })
        .map(|name| format!("`{name}`"))
        .collect();
    let also = if others.is_empty() {
        String::new()
    } else {
        format!(" (also {})", others.join(", "))
    };
    let default = match var.default {
        Default::Unset => "–".to_owned(),
        Default::Fixed(text) => format!("`{text}`"),
        Default::Computed(how) => how.to_owned(),
        Default::Required => "**required**".to_owned(),
    };
    let effect = match var.effect {
        Effect::Start => "start",
        Effect::Reload => "reload",
        Effect::Bootstrap => "creation of the cluster",
        Effect::Nothing => "never, only accepted",
        Effect::Unsupported(_) => "not supported yet",
    };
    format!(
        "| `{}`{also} | {} | {} | {default} | {effect} |\n",
        var.name(),
        var.help.replace('|', "\\|"),
        var.kind.describe()
    )
}
