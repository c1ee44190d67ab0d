//! The body of POST /restart (contract: REST API §11).

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{refusal::Refusal, schedule};
use crate::{
    agent::handle::{PgVersion, RestartFilters},
    model::Role,
};

/// A restart as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartRequest {
    /// When; at once if absent.
    pub at: Option<Timestamp>,
    /// Under which conditions.
    pub filters: RestartFilters,
}

/// Reads the body; keys count in the order given and the first mistake answers.
pub fn parse(body: &Map<String, Value>, now: Timestamp, paused: bool) -> Result<RestartRequest, Refusal> {
    let mut request = RestartRequest::default();
    for (key, value) in body {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match key.as_str() {
            "schedule" if paused => {
                return Err(Refusal::new(500, "Can't schedule restart in the paused state"));
            }
            "schedule" => request.at = Some(schedule::in_future(&text, "restart", now)?),
            "role" => request.filters.role = Some(role(&text)?),
            "postgres_version" => request.filters.older_than = Some(version(&text)?),
            "timeout" => request.filters.timeout = Some(timeout(&text)?),
            "restart_pending" => request.filters.pending_only = true,
            other => {
                return Err(Refusal::bad_request(format!(
                    "Unknown filter for the scheduled restart: {other}"
                )));
            }
        }
    }
    Ok(request)
}

fn role(text: &str) -> Result<Role, Refusal> {
    match text {
        "primary" | "master" => Ok(Role::Primary),
        "standby_leader" => Ok(Role::StandbyLeader),
        "replica" => Ok(Role::Replica),
        _ => Err(Refusal::bad_request(
            "PostgreSQL role should be either primary, standby_leader, or replica",
        )),
    }
}

/// `X.Y` since version 10, `X.Y.Z` before, as a `server_version` number.
pub fn version(text: &str) -> Result<PgVersion, Refusal> {
    let parts: Option<Vec<u32>> = text
        .trim()
        .split('.')
        .map(|part| part.parse().ok().filter(|number| *number < 100))
        .collect();
    let number = match parts.as_deref() {
        Some([major, minor]) if *major >= 10 => Some(major * 10_000 + minor),
        Some([major, minor, patch]) if *major < 10 => Some(major * 10_000 + minor * 100 + patch),
        _ => None,
    };
    match number {
        Some(number) => Ok(PgVersion {
            text: text.to_owned(),
            number,
        }),
        None => Err(Refusal::bad_request(format!(
            "Invalid PostgreSQL version '{text}': it should look like X.Y (X.Y.Z before version 10)"
        ))),
    }
}

/// Positive seconds, or a number with one of PostgreSQL's time units.
fn timeout(text: &str) -> Result<Duration, Refusal> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let factor = match text[end..].trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => 0.0,
    };
    let seconds = text[..end]
        .parse::<f64>()
        .map_or(0.0, |number| (number * factor).round());
    if (1.0..=1e9).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Refusal::bad_request(
            "Timeout should be a positive number of seconds",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(body: &Value, paused: bool) -> Result<RestartRequest, (u16, String)> {
        let now = "2026-01-01T00:00:00Z".parse().expect("valid");
        parse(body.as_object().expect("an object"), now, paused).map_err(|r| (r.code, r.text))
    }

    #[test]
    fn reads_every_filter() {
        let body = json!({"schedule": "2026-02-01T03:00Z", "role": "replica", "postgres_version": "9.5.2",
            "timeout": "2min", "restart_pending": false});
        let request = ask(&body, false).expect("valid");
        assert!(request.at.is_some() && request.filters.pending_only);
        assert_eq!(request.filters.role, Some(Role::Replica));
        assert_eq!(
            request.filters.older_than.map(|version| version.number),
            Some(90_502)
        );
        assert_eq!(request.filters.timeout, Some(Duration::from_secs(120)));
        assert_eq!(version("17.4").expect("valid").number, 170_004);
        assert_eq!(ask(&json!({}), false), Ok(RestartRequest::default()));
    }

    #[test]
    fn the_first_mistake_answers() {
        for (body, paused, code, text) in [
            (
                json!({"role": "boss", "x": 1}),
                false,
                400,
                "PostgreSQL role should be either primary, standby_leader, or replica",
            ),
            (
                json!({"x": 1, "role": "boss"}),
                false,
                400,
                "Unknown filter for the scheduled restart: x",
            ),
            (
                json!({"timeout": 0}),
                false,
                400,
                "Timeout should be a positive number of seconds",
            ),
            (
                json!({"timeout": -5}),
                false,
                400,
                "Timeout should be a positive number of seconds",
            ),
            (
                json!({"timeout": "5 parsecs"}),
                false,
                400,
                "Timeout should be a positive number of seconds",
            ),
            (
                json!({"postgres_version": "17"}),
                false,
                400,
                "Invalid PostgreSQL version '17': it should look like X.Y (X.Y.Z before version 10)",
            ),
            (
                json!({"schedule": "2026-02-01T03:00Z"}),
                true,
                500,
                "Can't schedule restart in the paused state",
            ),
            (
                json!({"schedule": "2026-02-01T03:00"}),
                false,
                400,
                "Timezone information is mandatory for the scheduled restart",
            ),
        ] {
            assert_eq!(ask(&body, paused), Err((code, text.to_owned())), "{body}");
        }
    }
}
