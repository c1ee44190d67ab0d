//! `config explain`: where the value of a setting comes from, what is stronger than what, and when it takes effect.
//!
//! A setting is one of ours (`ttl`, `restapi.listen`, `HOWDAH_SCOPE`), or a parameter of PostgreSQL (`work_mem`). What the
//! cluster's configuration says comes from the DCS, what the member says from the environment of this command, and what
//! is in force from the member's own PostgreSQL. Whatever cannot be asked is said.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    CliError, Context, ExplainArgs,
    source::{self, Source},
    table::{Column, Table},
    ui::Ui,
};
use crate::{
    config::{
        Loaded,
        check::value as shown,
        vars::{self, Effect, Var},
    },
    exit::Exit,
    model::{RoleScope, dynamic_names},
    postgres::{
        conf,
        query::{Address, Shell, literal},
    },
};

const ASK_WITHIN: Duration = Duration::from_secs(3);
const PARAMETERS: &str = "postgresql.parameters";

pub(super) async fn explain(context: &Context, ui: &mut dyn Ui, args: ExplainArgs) -> anyhow::Result<Exit> {
    let Some(loaded) = &context.loaded else {
        return Err(CliError::refused("the configuration of this member is not known here").into());
    };
    let document = match source::config(context, ui).await {
        Ok(Some(Value::Object(document))) => Some(document),
        Ok(_) => None,
        Err(error) => {
            ui.warn(&format!("the cluster's configuration is not known here: {error}"));
            None
        }
    };
    let cluster = document.as_ref();
    let explained = match Subject::of(&args.name) {
        Some(Subject::Ours { var, dynamic }) => ours(loaded, cluster, var, dynamic.as_deref()),
        Some(Subject::Parameter(name)) => {
            let running = match running(context, ui, loaded, &name).await {
                Ok(running) => running,
                Err(why) => {
                    ui.warn(&format!(
                        "what is in force cannot be asked of PostgreSQL here: {why}"
                    ));
                    None
                }
            };
            parameter(loaded, cluster, &name, running.as_ref())
        }
        None => return Err(unknown(&args.name).into()),
    };
    ui.say(&explained.render(args.format));
    Ok(Exit::Ok)
}

/// What a name means.
#[derive(Debug)]
enum Subject {
    /// A setting of a member, of the cluster, or of both.
    Ours {
        var: Option<&'static Var>,
        dynamic: Option<String>,
    },
    /// A parameter of PostgreSQL.
    Parameter(String),
}

impl Subject {
    /// A variable's name, a path with dots, or a plain name.
    fn of(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        if let Some(path) = upper.strip_prefix("HOWDAH__") {
            return Self::of(&path.to_ascii_lowercase().replace("__", "."));
        }
        let suffix = ["HOWDAH_", "PATRONI_"]
            .iter()
            .find_map(|prefix| upper.strip_prefix(prefix));
        if let Some(suffix) = suffix {
            let var = vars::by_suffix(suffix)?;
            return Some(Self::ours_of(Some(var), var.path));
        }
        let below = format!("{PARAMETERS}.");
        if let Some(parameter) = name.strip_prefix(below.as_str()) {
            return Some(Self::Parameter(parameter.to_ascii_lowercase()));
        }
        let var = vars::all().find(|var| var.path == name);
        let subject = Self::ours_of(var, name);
        if matches!(
            &subject,
            Self::Ours { var: Some(_), .. } | Self::Ours { dynamic: Some(_), .. }
        ) {
            return Some(subject);
        }
        // Everything else without a dot of ours may be PostgreSQL's; it says whether it knows it.
        let plain = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        let of_ours = name.split('.').next().is_some_and(|first| {
            name.contains('.') && vars::all().any(|var| var.path.split('.').next() == Some(first))
        });
        (plain && !of_ours).then(|| Self::Parameter(name.to_ascii_lowercase()))
    }

    fn ours_of(var: Option<&'static Var>, path: &str) -> Self {
        let in_document = path.strip_prefix("bootstrap.dcs.").unwrap_or(path);
        let dynamic = dynamic_names().find(|name| name == in_document);
        // `bootstrap.dcs.ttl` and `ttl` are one thing to a person.
        let first = format!("bootstrap.dcs.{path}");
        let var = var.or_else(|| dynamic.as_ref().and(vars::all().find(|var| var.path == first)));
        Self::Ours { var, dynamic }
    }
}

fn unknown(name: &str) -> CliError {
    let names = vars::all()
        .flat_map(|var| [var.path.to_owned(), var.name()])
        .chain(dynamic_names());
    let near = names
        .map(|known| {
            (
                strsim::jaro_winkler(&known.to_ascii_lowercase(), &name.to_ascii_lowercase()),
                known,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    CliError::refused(match near {
        Some((_, known)) => format!("there is no setting named {name}; did you mean {known}?"),
        None => format!("there is no setting named {name} (howdah check lists those in force)"),
    })
}

/// One place a value may come from.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    name: String,
    value: Option<String>,
}

/// Everything there is to say, strongest place first.
#[derive(Debug, Default)]
struct Explained {
    name: String,
    places: Vec<Place>,
    effect: String,
    /// What PostgreSQL itself says.
    notes: Vec<String>,
}

impl Explained {
    fn render(&self, format: super::Format) -> String {
        let holds = self.places.iter().position(|place| place.value.is_some());
        let row = |(index, place): (usize, &Place)| {
            let mark = if holds == Some(index) { "holds" } else { "" };
            vec![
                place.name.clone().into(),
                place.value.clone().map_or(Value::Null, Value::from),
                mark.into(),
            ]
        };
        let table = Table {
            title: None,
            columns: vec![
                Column::left("Origin").headed("Where, strongest first"),
                Column::left("Value"),
                Column::left("Holds").headed(""),
            ],
            rows: self.places.iter().enumerate().map(row).collect(),
        };
        let text = table.render(format);
        if format != super::Format::Pretty {
            return text;
        }
        let mut lines = vec![self.name.clone(), text, format!(" Takes effect: {}", self.effect)];
        lines.extend(self.notes.iter().map(|note| format!(" {note}")));
        lines.join("\n")
    }
}

fn effect(effect: Effect) -> String {
    match effect {
        Effect::Start => "with the next start of this member".to_owned(),
        Effect::Reload => "with the next reload (howdah reload, SIGHUP)".to_owned(),
        Effect::Bootstrap => {
            "when the cluster is created; later only the cluster's own configuration counts".to_owned()
        }
        Effect::Nothing => "never: it is accepted and does nothing".to_owned(),
        Effect::Unsupported(what) => format!("never: {what} not supported"),
    }
}

/// The value at a path with dots.
fn at<'a>(document: Option<&'a Map<String, Value>>, path: &str) -> Option<&'a Value> {
    let mut steps = path.split('.');
    let mut value = document?.get(steps.next()?)?;
    for step in steps {
        value = value.get(step)?;
    }
    (!value.is_null()).then_some(value)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ours(
    loaded: &Loaded,
    cluster: Option<&Map<String, Value>>,
    var: Option<&Var>,
    dynamic: Option<&str>,
) -> Explained {
    let mut explained = Explained {
        name: match (var, dynamic) {
            (Some(var), _) => format!("{}: {}", var.name(), var.help),
            (None, name) => name.unwrap_or_default().to_owned(),
        },
        effect: "at once, on all members".to_owned(),
        ..Explained::default()
    };
    // What creates a cluster has no say in one that exists.
    let creates = var.is_some_and(|var| var.effect == Effect::Bootstrap);
    let in_cluster = dynamic.map(|name| Place {
        name: format!("the cluster: /config {name}"),
        value: at(cluster, name).map(text),
    });
    let member = var.map(|var| {
        let setting = loaded.origins.get(var.path).filter(|setting| setting.is_given());
        let origins = setting.map(|setting| {
            let names: Vec<String> = setting.origins.iter().map(ToString::to_string).collect();
            names.join(", ")
        });
        Place {
            name: match origins {
                Some(origins) => format!("this member: {origins}"),
                None => format!("this member: {}", var.name()),
            },
            value: setting.map(|setting| shown(var, setting)),
        }
    });
    match (creates, dynamic) {
        (true, Some(_)) => {
            explained.places.extend(in_cluster);
            if let Some(member) = member {
                let counts = cluster.is_none();
                explained.places.push(Place {
                    name: format!("{} (when the cluster is created)", member.name),
                    value: member.value.filter(|_| counts),
                });
            }
        }
        (_, _) => {
            explained.places.extend(member);
            explained.places.extend(in_cluster);
        }
    }
    if let Some(var) = var {
        if dynamic.is_none() || !creates {
            explained.effect = effect(var.effect);
        }
        let default = match var.default {
            vars::Default::Fixed(text) => Some(text.to_owned()),
            vars::Default::Computed(how) => Some(how.to_owned()),
            vars::Default::Unset | vars::Default::Required => None,
        };
        explained.places.push(Place {
            name: "default".to_owned(),
            value: default,
        });
    }
    explained
}

/// What the local PostgreSQL says of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    value: String,
    context: String,
    pending: bool,
    source: String,
    default: String,
    role: RoleScope,
}

fn parameter(
    loaded: &Loaded,
    cluster: Option<&Map<String, Value>>,
    name: &str,
    running: Option<&Running>,
) -> Explained {
    let of = |section: &str| {
        let map = at(cluster, &format!("postgresql.{section}"))?.as_object()?;
        let found = map
            .iter()
            .find(|(given, _)| given.trim().eq_ignore_ascii_case(name));
        found
            .filter(|(_, value)| !value.is_null())
            .map(|(_, value)| text(value))
    };
    let mine = |path: &str| {
        let map = loaded.origins.get(path)?.value.as_object()?;
        let found = map
            .iter()
            .find(|(given, _)| given.trim().eq_ignore_ascii_case(name));
        found
            .filter(|(_, value)| !value.is_null())
            .map(|(_, value)| text(value))
    };
    let mut places = Vec::new();
    let shared_only = conf::of_all_members(name);
    let role = running.map(|running| running.role);
    let roles: Vec<RoleScope> = role.map_or_else(|| RoleScope::ALL.to_vec(), |role| vec![role]);
    if conf::managed(name) {
        places.push(Place {
            name: "Howdah itself: high availability needs it so".to_owned(),
            value: running.map(|running| running.value.clone()),
        });
    } else {
        if !shared_only {
            for role in &roles {
                let key = format!("parameters_{}", role.as_str());
                places.push(Place {
                    name: format!(
                        "this member as {}: HOWDAH_POSTGRESQL_{}",
                        role.as_str(),
                        key.to_ascii_uppercase()
                    ),
                    value: mine(&format!("postgresql.{key}")),
                });
                places.push(Place {
                    name: format!("the cluster as {}: /config postgresql.{key}", role.as_str()),
                    value: of(&key),
                });
            }
            places.push(Place {
                name: "this member: HOWDAH_POSTGRESQL_PARAMETERS".to_owned(),
                value: mine(PARAMETERS),
            });
        }
        places.push(Place {
            name: format!("the cluster: /config {PARAMETERS}"),
            value: of("parameters"),
        });
        places.push(Place {
            name: "Howdah's default".to_owned(),
            value: conf::default_of(name),
        });
    }
    places.push(Place {
        name: "PostgreSQL's default".to_owned(),
        value: running.map(|running| running.default.clone()),
    });
    let mut notes = Vec::new();
    if shared_only {
        notes.push("All members must agree on it: only the cluster's configuration counts.".to_owned());
    }
    let mut effect = "with the next reload, or restart, as PostgreSQL has it".to_owned();
    if let Some(running) = running {
        effect = match running.context.as_str() {
            "postmaster" => "with a restart of PostgreSQL".to_owned(),
            "internal" => "never: it cannot be changed".to_owned(),
            "backend" | "superuser-backend" => "with a reload, in new sessions".to_owned(),
            _ => "with a reload, by itself within moments".to_owned(),
        };
        notes.insert(
            0,
            format!(
                "In force on this member ({}): {} (PostgreSQL says it comes from: {})",
                running.role.as_str(),
                running.value,
                running.source
            ),
        );
        notes.push(match running.pending {
            true => "A restart is pending for it: howdah restart --pending".to_owned(),
            false => "No restart is pending for it.".to_owned(),
        });
    }
    Explained {
        name: format!("{name}: a parameter of PostgreSQL"),
        places,
        effect,
        notes,
    }
}

/// `None`: PostgreSQL does not know the parameter (yet: an extension may bring it).
async fn running(
    context: &Context,
    ui: &mut dyn Ui,
    loaded: &Loaded,
    name: &str,
) -> Result<Option<Running>, String> {
    let mut target = context.login.clone().ok_or("no login is known")?;
    let source = Source::load(context, ui)
        .await
        .map_err(|error| error.to_string())?;
    let member = source.view.member(loaded.config.name.as_str());
    let (host, port) = member
        .and_then(|member| member.address.clone())
        .ok_or_else(|| format!("{} has published no address", loaded.config.name))?;
    (target.address, target.port) = (Address::Tcp(host), port);
    let shell = Shell::open(&target, ASK_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let sql = format!(
        "SELECT pg_catalog.current_setting(name), context, pending_restart, source, boot_val || coalesce(unit, ''), \
         pg_catalog.pg_is_in_recovery() FROM pg_catalog.pg_settings WHERE name = {}",
        literal(name)
    );
    let said = tokio::time::timeout(ASK_WITHIN, shell.run(&sql)).await;
    let said = said.map_err(|_| "no answer in time".to_owned())??;
    let Some(row) = said.rows.first() else {
        return Ok(None);
    };
    let cell = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    let standby = cell(5) == "t";
    let leads = member.is_some_and(|member| member.role.leads());
    Ok(Some(Running {
        value: cell(0),
        context: cell(1),
        pending: cell(2) == "t",
        source: cell(3),
        default: cell(4),
        role: match (standby, leads) {
            (false, _) => RoleScope::Primary,
            (true, true) => RoleScope::StandbyLeader,
            (true, false) => RoleScope::Replica,
        },
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, FixedHost, MapEnv};

    fn loaded(document: &str) -> Loaded {
        let env = MapEnv::new(&[
            ("HOWDAH_NAME", "a"),
            ("POSTGRES_PASSWORD", "geheim"),
            ("HOWDAH_RESTAPI_LISTEN", "127.0.0.1:8008"),
            ("HOWDAH_CONFIGURATION", document),
        ]);
        Config::load(&env, &FixedHost::default()).expect("no mistakes")
    }

    fn explained(name: &str, running: Option<&Running>) -> String {
        let member = loaded("postgresql: {parameters: {work_mem: 6MB}}");
        let cluster = json!({"ttl": 40, "postgresql": {"parameters": {"work_mem": "4MB", "max_connections": 200},
            "parameters_primary": {"work_mem": "8MB"}}});
        let cluster = cluster.as_object();
        match Subject::of(name).expect("known") {
            Subject::Ours { var, dynamic } => ours(&member, cluster, var, dynamic.as_deref()),
            Subject::Parameter(name) => parameter(&member, cluster, &name, running),
        }
        .render(crate::cli::Format::Pretty)
    }

    fn primary() -> Running {
        Running {
            value: "8MB".into(),
            context: "user".into(),
            pending: false,
            source: "configuration file".into(),
            default: "4096kB".into(),
            role: RoleScope::Primary,
        }
    }

    fn holding(text: &str) -> String {
        let line = text
            .lines()
            .find(|line| line.contains("| holds |"))
            .unwrap_or_default();
        line.split('|')
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .take(2)
            .collect::<Vec<_>>()
            .join(" = ")
    }

    #[test]
    fn of_a_parameter_the_strongest_place_holds() {
        let text = explained("work_mem", Some(&primary()));
        assert_eq!(
            holding(&text),
            "the cluster as primary: /config postgresql.parameters_primary = 8MB"
        );
        assert!(
            text.contains("In force on this member (primary): 8MB") && text.contains("No restart is pending"),
            "{text}"
        );
        let replica = Running {
            role: RoleScope::Replica,
            ..primary()
        };
        let text = explained("postgresql.parameters.work_mem", Some(&replica));
        assert_eq!(holding(&text), "this member: HOWDAH_POSTGRESQL_PARAMETERS = 6MB");
        // What all must agree on is the cluster's alone.
        let text = explained("max_connections", None);
        assert_eq!(holding(&text), "the cluster: /config postgresql.parameters = 200");
        assert!(!text.contains("HOWDAH_POSTGRESQL_PARAMETERS"), "{text}");
        assert_eq!(
            holding(&explained("password_encryption", None)),
            "Howdah's default = scram-sha-256"
        );
    }

    #[test]
    fn of_a_setting_of_ours_too_under_each_of_its_names() {
        for name in [
            "restapi.listen",
            "HOWDAH_RESTAPI_LISTEN",
            "PATRONI_RESTAPI_LISTEN",
        ] {
            let text = explained(name, None);
            assert_eq!(
                holding(&text),
                "this member: HOWDAH_RESTAPI_LISTEN = 127.0.0.1:8008",
                "{text}"
            );
        }
        assert_eq!(holding(&explained("ttl", None)), "the cluster: /config ttl = 40");
        assert_eq!(
            holding(&explained("HOWDAH_TTL", None)),
            "the cluster: /config ttl = 40"
        );
        let secret = explained("HOWDAH_SUPERUSER_PASSWORD", None);
        assert!(!secret.contains("geheim") && secret.contains("***"), "{secret}");
        let error = Subject::of("restapi.lissten")
            .map_or_else(|| unknown("restapi.lissten").to_string(), |s| format!("{s:?}"));
        assert!(error.ends_with("did you mean restapi.listen?"), "{error}");
    }
}
