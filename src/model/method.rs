//! Commands of the operator's own that make a data directory: a bootstrap method, or a way to make a replica
//! (contract: bootstrap and images §3.2, §4). What they are told; running them is the business of others.

use serde_json::{Map, Value};

use super::read_bool;

/// The built-in way to make a replica.
pub const BASEBACKUP: &str = "basebackup";

/// Keys that steer a bootstrap method and are not handed on to its command.
const OF_BOOTSTRAP: &[&str] = &[
    "command",
    "no_params",
    "keep_existing_recovery_conf",
    "recovery_conf",
    "scope",
    "datadir",
];

/// Why a section describes no method.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// There is no such section, or it is not a mapping.
    #[error("there is no section {0}")]
    NoSection(String),
    /// It has no command.
    #[error("section {0} has no command")]
    NoCommand(String),
    /// A flag is neither yes nor no.
    #[error("{0}: {1} is neither yes nor no")]
    Flag(String, Value),
    /// A value that cannot be handed on.
    #[error("{0}: {1} is not a single value")]
    Value(String, Value),
    /// A recovery setting with which the recovery would never end by itself.
    #[error(
        "recovery_conf: recovery_target_action must be promote, with {0} the recovery never ends by itself"
    )]
    Action(Value),
}

/// How the data of a new cluster is made, if not by initdb.
#[derive(Debug, Clone, PartialEq)]
pub struct BootstrapMethod {
    /// Name of its section.
    pub name: String,
    /// Command line.
    pub command: String,
    /// It is not told anything, so it works where its own configuration says: in the data directory itself.
    pub no_params: bool,
    /// Its own keys, in the order of the file.
    pub own: Vec<(String, String)>,
    /// Recovery settings for what it brings; `None`: it is not recovered but for what every backup needs.
    pub recovery_conf: Option<Map<String, Value>>,
    /// Recovery is as the command left it.
    pub keep_existing_recovery_conf: bool,
}

impl BootstrapMethod {
    /// Reads the section `bootstrap.<name>`.
    ///
    /// # Errors
    /// See [`MethodError`]. A method that was asked for and cannot be used must not become an empty cluster.
    pub fn read(name: &str, section: Option<&Value>) -> Result<Self, MethodError> {
        let section = section
            .and_then(Value::as_object)
            .ok_or_else(|| MethodError::NoSection(name.to_owned()))?;
        let recovery_conf = match section.get("recovery_conf") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => Some(map.clone()),
            Some(other) => return Err(MethodError::Value("recovery_conf".to_owned(), other.clone())),
        };
        let action = recovery_conf
            .as_ref()
            .and_then(|conf| conf.get("recovery_target_action"));
        if let Some(action) = action.filter(|action| action.as_str() != Some("promote")) {
            return Err(MethodError::Action(action.clone()));
        }
        let own = section
            .iter()
            .filter(|(key, _)| !OF_BOOTSTRAP.contains(&key.as_str()));
        Ok(Self {
            name: name.to_owned(),
            command: command(section).ok_or_else(|| MethodError::NoCommand(name.to_owned()))?,
            no_params: flag(section, "no_params")?,
            own: own.map(single).collect::<Result<_, _>>()?,
            recovery_conf,
            keep_existing_recovery_conf: flag(section, "keep_existing_recovery_conf")?,
        })
    }

    /// What is appended to the command line.
    #[must_use]
    pub fn arguments(&self, scope: &str, data_dir: &str) -> Vec<String> {
        let given = if self.no_params {
            Vec::new()
        } else {
            vec![("scope", scope), ("datadir", data_dir)]
        };
        given
            .into_iter()
            .map(|(key, value)| format!("--{key}={value}"))
            .chain(self.own.iter().map(|(key, value)| format!("--{key}={value}")))
            .collect()
    }
}

/// One way to make a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// `pg_basebackup`.
    Basebackup,
    /// A command.
    Command(ReplicaCommand),
}

/// A command that makes a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaCommand {
    /// Name of its section.
    pub name: String,
    /// Command line.
    pub command: String,
    /// It works on the data that is there.
    pub keep_data: bool,
    /// It needs no running member to copy from.
    pub no_leader: bool,
    /// It is not told anything, so it works where its own configuration says: in the data directory itself.
    pub no_params: bool,
    /// Its own keys, in the order of the file.
    pub own: Vec<(String, String)>,
}

impl ReplicaMethod {
    /// Reads the method `name`; its section is `postgresql.<name>`. Without a section, or without a command in it, the
    /// name itself is the command.
    ///
    /// # Errors
    /// See [`MethodError`].
    pub fn read(name: &str, section: Option<&Value>) -> Result<Self, MethodError> {
        if name == BASEBACKUP {
            return Ok(Self::Basebackup);
        }
        let empty = Map::new();
        let section = match section {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(section)) => section,
            Some(_) => return Err(MethodError::NoSection(name.to_owned())),
        };
        let no_params = flag(section, "no_params")?;
        // Without the other arguments these three would be the only ones the command cannot know.
        let steering = |key: &str| no_params && matches!(key, "no_params" | "no_leader" | "keep_data");
        let own = section
            .iter()
            .filter(|(key, _)| *key != "command" && !steering(key));
        Ok(Self::Command(ReplicaCommand {
            name: name.to_owned(),
            command: command(section).unwrap_or_else(|| name.to_owned()),
            keep_data: flag(section, "keep_data")?,
            no_leader: flag(section, "no_leader")?,
            no_params,
            own: own.map(single).collect::<Result<_, _>>()?,
        }))
    }

    /// Whether it can work while there is nobody to copy from.
    #[must_use]
    pub const fn needs_no_leader(&self) -> bool {
        matches!(self, Self::Command(ReplicaCommand { no_leader: true, .. }))
    }
}

impl ReplicaCommand {
    /// It works in the data directory itself: nothing else is known to it.
    #[must_use]
    pub const fn in_place(&self) -> bool {
        self.keep_data || self.no_params
    }

    /// What is appended to the command line. `connstring` is empty without a source.
    #[must_use]
    pub fn arguments(&self, scope: &str, data_dir: &str, connstring: &str) -> Vec<String> {
        let own = self.own.iter().map(|(key, value)| format!("--{key}={value}"));
        let mut arguments: Vec<String> = own.collect();
        if !self.no_params {
            arguments.extend([
                format!("--scope={scope}"),
                "--role=replica".to_owned(),
                format!("--datadir={data_dir}"),
                format!("--connstring={connstring}"),
            ]);
        }
        arguments
    }
}

fn command(section: &Map<String, Value>) -> Option<String> {
    let text = section.get("command")?.as_str()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn flag(section: &Map<String, Value>, key: &str) -> Result<bool, MethodError> {
    match section.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => read_bool(value).ok_or_else(|| MethodError::Flag(key.to_owned(), value.clone())),
    }
}

fn single((key, value): (&String, &Value)) -> Result<(String, String), MethodError> {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Array(_) | Value::Object(_) => return Err(MethodError::Value(key.clone(), value.clone())),
    };
    Ok((key.clone(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replica(section: &Value) -> ReplicaCommand {
        match ReplicaMethod::read("m", Some(section)) {
            Ok(ReplicaMethod::Command(command)) => command,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_bootstrap_command_is_told_where_and_its_own_keys() {
        let section = json!({"command": "/restore -v", "recovery_conf": {"restore_command": "cp /a/%f %p"},
            "retries": 3, "envdir": "/e", "scope": "x", "datadir": "y"});
        let method = BootstrapMethod::read("m", Some(&section)).expect("usable");
        assert_eq!(
            method.arguments("demo", "/d"),
            ["--scope=demo", "--datadir=/d", "--retries=3", "--envdir=/e"]
        );
        let silent = json!({"command": "x", "no_params": "on", "a": true});
        let method = BootstrapMethod::read("m", Some(&silent)).expect("usable");
        assert_eq!(method.arguments("demo", "/d"), ["--a=true"]);
    }

    #[test]
    fn a_bootstrap_method_that_cannot_work_is_refused() {
        let pause = json!({"command": "x", "recovery_conf": {"recovery_target_action": "pause"}});
        for section in [
            None,
            Some(json!("text")),
            Some(json!({})),
            Some(json!({"command": " "})),
            Some(json!({"command": "x", "no_params": "perhaps"})),
            Some(json!({"command": "x", "list": [1]})),
            Some(json!({"command": "x", "recovery_conf": "y"})),
            Some(pause),
        ] {
            assert!(
                BootstrapMethod::read("m", section.as_ref()).is_err(),
                "{section:?}"
            );
        }
    }

    #[test]
    fn a_replica_command_gets_its_own_keys_first() {
        let section = json!({"command": "/r", "keep_data": true, "no_leader": 1, "z": "a b", "b": 2});
        assert_eq!(
            replica(&section).arguments("demo", "/d", "host=a"),
            [
                "--keep_data=true",
                "--no_leader=1",
                "--z=a b",
                "--b=2",
                "--scope=demo",
                "--role=replica",
                "--datadir=/d",
                "--connstring=host=a",
            ]
        );
        let section =
            json!({"command": "/r", "keep_data": true, "no_leader": true, "no_params": true, "b": 2});
        let silent = replica(&section);
        assert_eq!(silent.arguments("demo", "/d", ""), ["--b=2"]);
        assert!(silent.in_place() && silent.no_leader);
    }

    #[test]
    fn a_method_without_a_section_is_its_own_command() {
        let Ok(ReplicaMethod::Command(method)) = ReplicaMethod::read("/bin/restore", None) else {
            unreachable!("a command");
        };
        assert_eq!(method.command, "/bin/restore");
        assert!(!method.in_place() && !method.no_leader);
        assert_eq!(
            ReplicaMethod::read(BASEBACKUP, Some(&json!(["x"]))),
            Ok(ReplicaMethod::Basebackup)
        );
        assert!(ReplicaMethod::read("m", Some(&json!("x"))).is_err());
    }
}
