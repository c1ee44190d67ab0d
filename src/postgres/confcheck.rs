//! Asking PostgreSQL itself whether it would start with a configuration: `postgres -C port` reads all files and checks
//! every value, touches nothing, and works beside a running server (PostgreSQL: `PostmasterMain`, option `-C`).

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{binaries::Binaries, command};

/// Reading some files takes milliseconds; a slow disk is not the configuration's fault.
const LIMIT: Duration = Duration::from_secs(10);

/// What the server says about a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It would start. Carries the value that was asked for.
    Usable(String),
    /// It would not; its own words.
    Refused(String),
    /// It could not be asked.
    Unknown(String),
}

/// Checks `config_file` with the postmaster's other arguments, by asking for the value of `parameter`.
pub async fn check(
    binaries: &Binaries,
    data_dir: &Path,
    config_file: &Path,
    args: &[String],
    parameter: &str,
    cancel: &CancellationToken,
) -> Verdict {
    // First, because only there it is looked for before the check for root.
    let command = binaries
        .command("postgres")
        .args(["-C", parameter])
        .arg("-D")
        .arg(data_dir);
    let others = args.iter().filter(|arg| !arg.starts_with("--config-file="));
    let command = command
        .arg(format!("--config-file={}", config_file.display()))
        .args(others)
        // The reasons are read here; the file must not translate or silence them.
        .args(["--lc_messages=C", "--log_min_messages=warning"]);
    // On the heap: it would be part of the future of every turn of the loop.
    match Box::pin(command.capture().quiet().deadline(LIMIT).run(cancel)).await {
        Ok(output) => Verdict::Usable(output.stdout.trim_end_matches('\n').to_owned()),
        Err(command::Error::Failed { tail, .. }) => Verdict::Refused(reasons(&tail)),
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}

/// The lines that say why, without prefix and without the summary at the end.
fn reasons(tail: &str) -> String {
    let line = |line: &str| {
        let after = ["LOG:  ", "FATAL:  ", "HINT:  ", "DETAIL:  "]
            .iter()
            .find_map(|level| line.split_once(level));
        after.map_or(line, |(_, text)| text).trim().to_owned()
    };
    let all: Vec<String> = tail.lines().map(line).filter(|line| !line.is_empty()).collect();
    let telling: Vec<&String> = all
        .iter()
        .filter(|line| !(line.starts_with("configuration file ") && line.contains("contains errors")))
        .collect();
    if telling.is_empty() {
        return all.join("; ");
    }
    telling
        .into_iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Names of the parameters a refusal complains about.
#[must_use]
pub fn named_parameters(refusal: &str) -> Vec<String> {
    let mut names: Vec<String> = refusal
        .split("parameter \"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "2026-01-05 08:10:00.000 UTC [17] LOG:  invalid value for parameter \"work_mem\": \"32Mb\"\n\
        2026-01-05 08:10:00.000 UTC [17] HINT:  Valid units for this parameter are \"B\", \"kB\", \"MB\", \"GB\", and \"TB\".\n\
        2026-01-05 08:10:00.000 UTC [17] LOG:  parameter \"Fsync\" requires a Boolean value\n\
        2026-01-05 08:10:00.000 UTC [17] FATAL:  configuration file \"/data/postgresql.conf\" contains errors\n";

    #[test]
    fn the_reason_names_the_parameters() {
        let text = reasons(TAIL);
        insta::assert_snapshot!(text, @r#"invalid value for parameter "work_mem": "32Mb"; Valid units for this parameter are "B", "kB", "MB", "GB", and "TB".; parameter "Fsync" requires a Boolean value"#);
        assert_eq!(named_parameters(&text), ["fsync", "work_mem"]);
        assert!(named_parameters("syntax error in file \"x\" line 3, near token \"=\"").is_empty());
    }

    #[test]
    fn a_refusal_without_a_reason_still_says_something() {
        let summary = "FATAL:  configuration file \"/data/postgresql.conf\" contains errors";
        assert!(reasons(summary).contains("/data/postgresql.conf"));
    }
}
