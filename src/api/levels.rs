//! `GET /log` and `PATCH /log`: how much this member logs, until it is changed again or started anew. Not in Patroni.

use serde_json::{Map, Value, json};

use super::{
    refusal::Refusal,
    reply::{self, Reply},
    server::Api,
};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// GET: the directives in force.
pub(super) fn show(api: &Api) -> Reply {
    reply::object(200, &json!({"directives": api.options.levels.in_force()}))
}

/// PATCH: `{"level": "info", "loggers": {"howdah::dcs": "trace"}}`; an empty object goes back to what is configured.
pub(super) fn change(api: &Api, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let directives = directives(body)?;
    let before = api.options.levels.in_force();
    let after = api.options.levels.ask(directives);
    tracing::info!(
        from = before,
        to = after,
        because = "asked for through the REST API",
        "log level"
    );
    Ok(reply::object(200, &json!({"directives": after})))
}

/// In the syntax of tracing's `EnvFilter`; `None`: nothing is asked for.
fn directives(body: &Map<String, Value>) -> Result<Option<String>, Refusal> {
    let refuse = |text: String| Err(Refusal::new(422, text));
    if let Some(key) = body
        .keys()
        .find(|key| !matches!(key.as_str(), "level" | "loggers"))
    {
        return refuse(format!("{key}: there is no such key; level and loggers are"));
    }
    let level = |key: &str, value: &Value| match value.as_str().map(str::to_ascii_lowercase) {
        Some(level) if LEVELS.contains(&level.as_str()) => Ok(level),
        _ => Err(Refusal::new(
            422,
            format!("{key} = {value}: one of {} is expected", LEVELS.join(", ")),
        )),
    };
    let mut parts = Vec::new();
    if let Some(value) = body.get("level").filter(|value| !value.is_null()) {
        parts.push(level("level", value)?);
    }
    match body.get("loggers") {
        None | Some(Value::Null) => {}
        Some(Value::Object(loggers)) => {
            for (module, value) in loggers {
                let plain = !module.is_empty()
                    && module
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
                if !plain {
                    return refuse(format!("loggers: {module:?} is no module, such as howdah::dcs"));
                }
                // A member whose modules are spoken of need not be named.
                let module = match module.split("::").next() {
                    Some("howdah" | "program" | "etcd" | "hyper" | "kube") => module.clone(),
                    _ => format!("howdah::{module}"),
                };
                parts.push(format!("{module}={}", level(&module, value)?));
            }
        }
        Some(other) => {
            return refuse(format!(
                "loggers = {other}: a mapping of module to level is expected"
            ));
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    if !body.contains_key("level") {
        parts.insert(0, "info".to_owned());
    }
    Ok(Some(parts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &Value) -> Result<Option<String>, String> {
        directives(body.as_object().expect("an object")).map_err(|refusal| refusal.text)
    }

    #[test]
    fn levels_by_module() {
        assert_eq!(of(&json!({})), Ok(None));
        assert_eq!(of(&json!({"level": "WARN"})), Ok(Some("warn".into())));
        let loggers = json!({"loggers": {"dcs": "trace", "howdah::agent": "debug"}});
        assert_eq!(
            of(&loggers),
            Ok(Some("info,howdah::dcs=trace,howdah::agent=debug".into()))
        );
    }

    #[test]
    fn nonsense_is_named() {
        for (body, said) in [
            (json!({"level": "loud"}), "level = \"loud\": one of off, error"),
            (json!({"levle": "info"}), "levle: there is no such key"),
            (json!({"loggers": ["dcs"]}), "a mapping of module to level"),
            (json!({"loggers": {"a=b": "info"}}), "is no module"),
        ] {
            let error = of(&body).expect_err("nonsense");
            assert!(error.contains(said), "{body}: {error}");
        }
    }
}
