//! etcd's log lines (JSON) as our own events.

use std::path::Path;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    sync::watch,
};

/// As whom our etcd takes part, by its own words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster: u64,
    pub(super) member: u64,
}

/// Reads the FIFO for ever; what etcd says about itself goes to `identity`.
pub(super) async fn forward(fifo: &Path, identity: &watch::Sender<Option<Identity>>) -> std::io::Result<()> {
    // Open for writing too: without a writer a FIFO reads as ended.
    let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(fifo)?;
    let mut reader = BufReader::new(receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if let Some(said) = said_identity(&text) {
            identity.send_replace(Some(said));
        }
        emit(&text);
    }
}

fn emit(line: &str) {
    let (level, text) = parse(line);
    match level {
        Level::Quiet => tracing::debug!(target: "etcd", "{text}"),
        Level::Loud => tracing::warn!(target: "etcd", "{text}"),
    }
}

/// Each start says both in one line; ids are hexadecimal.
fn said_identity(line: &str) -> Option<Identity> {
    // Most lines are about other things: no need to parse those.
    if !line.contains("\"local-member-id\"") {
        return None;
    }
    let fields: Value = serde_json::from_str(line).ok()?;
    let id = |name: &str| u64::from_str_radix(fields.get(name)?.as_str()?, 16).ok();
    Some(Identity {
        cluster: id("cluster-id")?,
        member: id("local-member-id")?,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Level {
    Quiet,
    Loud,
}

/// Level and text of a line; what is no JSON (a Go panic) is loud.
fn parse(line: &str) -> (Level, String) {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return (Level::Loud, line.trim_end().to_owned());
    };
    let level = match fields.get("level").and_then(Value::as_str) {
        Some("debug" | "info") => Level::Quiet,
        _ => Level::Loud,
    };
    let message = fields
        .get("msg")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    for known in ["level", "ts", "caller", "msg", "stacktrace"] {
        fields.remove(known);
    }
    match fields.is_empty() {
        true => (level, message),
        false => (level, format!("{message} {}", Value::Object(fields))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_says_who_it_is() {
        let line = r#"{"level":"info","msg":"restarting local member","cluster-id":"a1","local-member-id":"8e9e05c52164694d","commit-index":5}"#;
        let expected = Identity {
            cluster: 0xa1,
            member: 0x8e9e_05c5_2164_694d,
        };
        assert_eq!(said_identity(line), Some(expected));
        for other in [
            "",
            r#"{"local-member-id":"x","cluster-id":"1"}"#,
            r#"{"local-member-id":"1"}"#,
        ] {
            assert_eq!(said_identity(other), None, "{other:?}");
        }
    }

    #[test]
    fn lines_keep_their_level_and_fields() {
        let line = r#"{"level":"info","ts":"2026","caller":"x.go:1","msg":"ready","n":1}"#;
        assert_eq!(parse(line), (Level::Quiet, r#"ready {"n":1}"#.into()));
        assert_eq!(parse(r#"{"level":"fatal","msg":"m"}"#), (Level::Loud, "m".into()));
        assert_eq!(parse("panic: x\n"), (Level::Loud, "panic: x".into()));
    }
}
