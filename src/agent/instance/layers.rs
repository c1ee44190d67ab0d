//! Which settings hold: those of the cluster, those of this member, and of both those for the present role. Pure.
//!
//! ```text
//! parameters    cluster ─► member ─► cluster, this role ─► member, this role       each over the one before, by name
//! pg_hba        member, this role │ cluster, this role │ member │ cluster          the first that has lines, whole
//! pg_ident, callbacks, commands    the same without roles
//! ```
//!
//! Contract: environment §1 (what a member says is stronger), §3 (settings for one role replace lists).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Settings;
use crate::{
    config::{self, RoleSettings},
    model::{Dynamic, RoleScope},
};

/// Settings of both origins.
pub(super) struct Layers<'a> {
    cluster: Option<&'a Map<String, Value>>,
    member: &'a Settings,
}

impl<'a> Layers<'a> {
    pub(super) fn new(dynamic: &'a Dynamic, member: &'a Settings) -> Self {
        Self {
            cluster: dynamic.postgresql(),
            member,
        }
    }

    /// Parameters of the cluster for every role; only here those count that all members must agree on.
    pub(super) fn shared_parameters(&self) -> Map<String, Value> {
        self.map("parameters").cloned().unwrap_or_default()
    }

    /// What goes over them in this role: of one name the strongest. `null` takes a weaker value back.
    pub(super) fn own_parameters(&self, role: RoleScope) -> Map<String, Value> {
        let shared = self.map(&key("parameters", role));
        let own = self.of_role(role).map(|own| &own.parameters);
        let layers = [Some(&self.member.parameters), shared, own];
        let mut merged = Map::new();
        for (name, value) in layers.into_iter().flatten().flatten() {
            merged.insert(name.trim().to_ascii_lowercase(), value.clone());
        }
        merged
    }

    /// Lines of pg_hba.conf; empty: nobody gave any.
    pub(super) fn hba(&self, role: RoleScope) -> Vec<String> {
        self.lines("pg_hba", role, |own| &own.pg_hba, &self.member.pg_hba)
    }

    /// Lines of pg_ident.conf; empty: nobody gave any.
    pub(super) fn ident(&self, role: RoleScope) -> Vec<String> {
        self.lines("pg_ident", role, |own| &own.pg_ident, &self.member.pg_ident)
    }

    fn lines(
        &self,
        what: &str,
        role: RoleScope,
        own: fn(&RoleSettings) -> &Vec<String>,
        for_all: &[String],
    ) -> Vec<String> {
        let given = |lines: Vec<String>| (!lines.is_empty()).then_some(lines);
        given(self.of_role(role).map(own).cloned().unwrap_or_default())
            .or_else(|| given(self.list(&key(what, role))))
            .or_else(|| given(for_all.to_vec()))
            .or_else(|| given(self.list(what)))
            .unwrap_or_default()
    }

    /// Whether the files depend on the role at all.
    pub(super) fn differ_by_role(&self) -> bool {
        let keys = ["parameters", "pg_hba", "pg_ident"];
        let shared = |role| keys.iter().any(|what| self.value(&key(what, role)).is_some());
        !self.member.by_role.is_empty() || RoleScope::ALL.into_iter().any(shared)
    }

    /// Commands and options.
    pub(super) fn hooks(&self) -> Hooks {
        let text = |value: Option<&Value>| {
            let text = value.and_then(Value::as_str).map(str::trim);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let shared = self.map("callbacks");
        let callback = |own: &Option<String>, name: &str| {
            own.clone()
                .or_else(|| text(shared.and_then(|shared| shared.get(name))))
        };
        let command = |own: &Option<String>, name: &str| own.clone().or_else(|| text(self.value(name)));
        let options = |own: &[String], name: &str| match own {
            [] => self.value(name).cloned().unwrap_or_default(),
            own => Value::from(own),
        };
        let own = &self.member.callbacks;
        Hooks {
            callbacks: config::Callbacks {
                on_start: callback(&own.on_start, "on_start"),
                on_stop: callback(&own.on_stop, "on_stop"),
                on_restart: callback(&own.on_restart, "on_restart"),
                on_reload: callback(&own.on_reload, "on_reload"),
                on_role_change: callback(&own.on_role_change, "on_role_change"),
            },
            pre_promote: command(&self.member.pre_promote, "pre_promote"),
            before_stop: command(&self.member.before_stop, "before_stop"),
            rewind: options(&self.member.rewind_args, "rewind"),
            basebackup: options(&self.member.basebackup, "basebackup"),
        }
    }

    fn of_role(&self, role: RoleScope) -> Option<&RoleSettings> {
        let by_role: &BTreeMap<_, _> = &self.member.by_role;
        by_role.get(&role)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.cluster?.get(key).filter(|value| !value.is_null())
    }

    fn map(&self, key: &str) -> Option<&Map<String, Value>> {
        self.value(key)?.as_object()
    }

    fn list(&self, key: &str) -> Vec<String> {
        let items = self.value(key).and_then(Value::as_array);
        let lines = items.into_iter().flatten().filter_map(Value::as_str);
        lines.map(str::to_owned).collect()
    }
}

fn key(what: &str, role: RoleScope) -> String {
    format!("{what}_{}", role.as_str())
}

/// The operator's commands, and options of the programs we run, whoever gave them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Hooks {
    /// Commands to run when something happened.
    pub(super) callbacks: config::Callbacks,
    /// Command to run before a promotion; its failure prevents it.
    pub(super) pre_promote: Option<String>,
    /// Command to run before a stop.
    pub(super) before_stop: Option<String>,
    /// Options of pg_rewind: a list or a map; null for none.
    pub(super) rewind: Value,
    /// Options of pg_basebackup: a list or a map; null for none.
    pub(super) basebackup: Value,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, FixedHost, MapEnv};

    fn member(document: &str) -> Settings {
        let env = MapEnv::new(&[
            ("HOWDAH_NAME", "a"),
            ("POSTGRES_PASSWORD", "x"),
            ("HOWDAH_CONFIGURATION", document),
        ]);
        let loaded = Config::load(&env, &FixedHost::default()).expect("no mistakes");
        Settings::from_config(&loaded.config)
    }

    fn cluster(postgresql: Value) -> Dynamic {
        let raw = json!({ "postgresql": postgresql });
        Dynamic::from_map(raw.as_object().expect("an object"))
    }

    #[test]
    fn of_parameters_the_member_and_the_role_are_stronger() {
        let dynamic = cluster(json!({
            "parameters": {"a": "cluster", "b": "cluster", "c": "cluster", "d": "cluster"},
            "parameters_primary": {"C": "cluster primary", "d": "cluster primary"},
            "parameters_replica": {"a": "cluster replica"}
        }));
        let settings = member(
            "postgresql: {parameters: {B: member, c: member}, parameters_primary: {d: member primary}}",
        );
        let layers = Layers::new(&dynamic, &settings);
        assert_eq!(layers.shared_parameters()["a"], "cluster");
        assert_eq!(
            Value::Object(layers.own_parameters(RoleScope::Primary)),
            json!({"b": "member", "c": "cluster primary", "d": "member primary"})
        );
        assert_eq!(
            Value::Object(layers.own_parameters(RoleScope::Replica)),
            json!({"b": "member", "c": "member", "a": "cluster replica"})
        );
        assert!(layers.differ_by_role());
    }

    #[test]
    fn lists_are_taken_whole_from_the_strongest_that_has_lines() {
        let dynamic = cluster(
            json!({"pg_hba": ["c"], "pg_hba_primary": ["c p"], "pg_hba_replica": [], "pg_ident": ["i"]}),
        );
        let settings = member("postgresql: {pg_hba: [m], pg_hba_standby_leader: [m s]}");
        let layers = Layers::new(&dynamic, &settings);
        assert_eq!(layers.hba(RoleScope::Primary), ["c p"]);
        assert_eq!(layers.hba(RoleScope::Replica), ["m"]);
        assert_eq!(layers.hba(RoleScope::StandbyLeader), ["m s"]);
        assert_eq!(layers.ident(RoleScope::Primary), ["i"]);
        let (plain, none) = (cluster(json!({"pg_hba": ["c"]})), member("{}"));
        let layers = Layers::new(&plain, &none);
        assert_eq!(layers.hba(RoleScope::Primary), ["c"]);
        assert!(!layers.differ_by_role());
    }

    #[test]
    fn commands_come_from_the_cluster_unless_the_member_has_its_own() {
        let dynamic = cluster(json!({
            "callbacks": {"on_start": "c start", "on_stop": "c stop", "on_reload": " "},
            "pre_promote": "c pre", "before_stop": 7, "rewind": ["debug"], "basebackup": {"max-rate": "1M"}
        }));
        let settings = member("postgresql: {callbacks: {on_stop: m stop}, basebackup: [verbose]}");
        let hooks = Layers::new(&dynamic, &settings).hooks();
        assert_eq!(hooks.callbacks.on_start.as_deref(), Some("c start"));
        assert_eq!(hooks.callbacks.on_stop.as_deref(), Some("m stop"));
        assert_eq!((hooks.callbacks.on_reload, hooks.before_stop), (None, None));
        assert_eq!(hooks.pre_promote.as_deref(), Some("c pre"));
        assert_eq!(
            (hooks.rewind, hooks.basebackup),
            (json!(["debug"]), json!(["--verbose"]))
        );
    }
}
