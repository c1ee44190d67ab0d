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

/// Where the table starts and ends in a document that contains it.
const MARKS: (&str, &str) = ("<!-- settings -->\n", "<!-- end of settings -->");

/// The document with the table between its marks brought up to date; `None` if it has no marks. A test compares it
/// with the document as it is.
#[must_use]
pub fn update(document: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS.0)?;
    let (_, after) = rest.split_once(MARKS.1)?;
    let table = render_markdown();
    Some(format!("{before}{}\n{table}\n{}{after}", MARKS.0, MARKS.1))
}

fn row(var: &Var) -> String {
    let ours = [var.name(), format!("PATRONI_{}", var.suffix)];
    let others: Vec<String> = other_names::names(var)
        .into_iter()
        .map(|other| other.name)
        .filter(|name| !ours.contains(name) && !name.contains("ETCD_") && !name.starts_with("ETCD3_"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_brought_up_to_date() {
        let updated =
            update("a\n<!-- settings -->\nstale words\n<!-- end of settings -->\nb\n").expect("marks");
        assert!(
            updated.starts_with("a\n<!-- settings -->\n\n### Member")
                && updated.ends_with("settings -->\nb\n")
        );
        assert!(!updated.contains("stale words"));
        assert_eq!(update(&updated).as_deref(), Some(updated.as_str()));
        assert_eq!(update("no marks"), None);
    }
}
