//! etcd's log lines (JSON) as our own events.

use std::path::Path;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
};

/// Reads the FIFO for ever.
pub(super) async fn forward(fifo: &Path) -> std::io::Result<()> {
    // Open for writing too: without a writer a FIFO reads as ended.
    let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(fifo)?;
    let mut reader = BufReader::new(receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        emit(&String::from_utf8_lossy(&line));
    }
}

fn emit(line: &str) {
    let (level, text) = parse(line);
    match level {
        Level::Quiet => tracing::debug!(target: "etcd", "{text}"),
        Level::Loud => tracing::warn!(target: "etcd", "{text}"),
    }
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
    fn lines_keep_their_level_and_fields() {
        let line = r#"{"level":"info","ts":"2026","caller":"x.go:1","msg":"ready","n":1}"#;
        assert_eq!(parse(line), (Level::Quiet, r#"ready {"n":1}"#.into()));
        assert_eq!(parse(r#"{"level":"fatal","msg":"m"}"#), (Level::Loud, "m".into()));
        assert_eq!(parse("panic: x\n"), (Level::Loud, "panic: x".into()));
    }
}
