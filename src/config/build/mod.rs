//! From settings to [`Config`]: defaults, and everything that only shows when settings are seen together.

mod kubernetes;
mod methods;
mod other_stores;
mod postgresql;
mod roles;
mod stores;
mod timing;
mod tls;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;

use super::{
    address::{Address, Listen},
    allow::Allowed,
    document,
    env::Host,
    gather::Gathered,
    mistakes::Mistake,
    other_names::nearest,
    secret::Secret,
    types::{
        Bootstrap, Config, Credentials, Ctl, Log, LogFormat, LogLevel, MemberRole, RestApi, Watchdog,
        WatchdogDriver, WatchdogMode,
    },
    vars::{self, Default as VarDefault},
};
use crate::{
    logfile,
    model::{MemberName, Tags, read_bool, read_int},
};

/// Patroni's stand-in for "no synchronous standby"; nobody may be called so.
const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// Settings under construction. Every method that finds a mistake notes it and goes on with a default, so that
/// all mistakes are found; the result is used only if there were none.
struct Builder {
    all: Gathered,
    host_address: String,
}

/// Fills in defaults and builds the configuration; mistakes and warnings are left in `gathered`.
pub(super) fn build(gathered: &mut Gathered, host: &dyn Host) -> Config {
    let mut builder = Builder {
        all: std::mem::take(gathered),
        host_address: String::new(),
    };
    builder.fixed_defaults();
    builder.computed_defaults(host);
    let config = builder.config();
    *gathered = builder.all;
    config
}

impl Builder {
    fn fixed_defaults(&mut self) {
        for var in vars::all() {
            if let VarDefault::Fixed(text) = var.default
                && let Ok(value) = var.kind.normalise(&Value::from(text))
            {
                self.all.settings.set_default(var.path, value);
            }
        }
    }

    fn computed_defaults(&mut self, host: &dyn Host) {
        if !self.all.settings.is_given("name") {
            match host.hostname().filter(|name| {
                vars::by_path("name")
                    .is_some_and(|var| var.kind.normalise(&Value::from(name.as_str())).is_ok())
            }) {
                Some(name) => self.all.settings.set_default("name", name),
                None => self.missing("name", "this host has no usable name"),
            }
        }
        let needs_address = ["restapi", "postgresql"].iter().any(|part| {
            !self.all.settings.is_given(&format!("{part}.connect_address"))
                && self.listen(&format!("{part}.listen")).specific().is_none()
        });
        self.host_address = match host.address() {
            Some(address) => address.to_string(),
            None => {
                if needs_address {
                    self.warn("this host has no address but its loopback: other members cannot reach it; set HOWDAH_POSTGRESQL_CONNECT_ADDRESS and HOWDAH_RESTAPI_CONNECT_ADDRESS");
                }
                "127.0.0.1".to_owned()
            }
        };
        for part in ["restapi", "postgresql"] {
            let listen = self.listen(&format!("{part}.listen"));
            let host = listen.specific().unwrap_or(&self.host_address).to_owned();
            let port = listen.port;
            let address = Address { host, port }.to_string();
            self.all
                .settings
                .set_default(&format!("{part}.connect_address"), address);
        }
    }

    fn config(&mut self) -> Config {
        let name = self.text("name");
        if name == PLACEHOLDER {
            self.inconsistent(&["name"], "this name is reserved");
        }
        let restapi = self.restapi();
        let ctl = self.ctl(&restapi);
        let postgresql = self.postgresql();
        let config = Config {
            name: MemberName(name),
            scope: self.text("scope"),
            namespace: self.namespace(),
            role: self.role(),
            tags: self.tags(),
            log: self.log(),
            dcs: self.dcs(&postgresql),
            bootstrap: self.bootstrap(&postgresql.authentication.superuser.username),
            restapi,
            ctl,
            watchdog: self.watchdog(),
            postgresql,
        };
        let used = self.used_sections(&config);
        document::settle(&mut self.all, &used);
        config
    }

    pub(super) fn is_voter(&self) -> bool {
        self.text("role") == "voter"
    }

    fn role(&mut self) -> MemberRole {
        if !self.is_voter() {
            return MemberRole::Member;
        }
        if self.all.settings.list("embedded.peers").len() < 2 {
            self.inconsistent(
                &["role"],
                "a voter is one of several members with the image's etcd; HOWDAH_EMBEDDED_PEERS names them all, this one too",
            );
        }
        MemberRole::Voter
    }

    fn namespace(&mut self) -> String {
        let text = self.text("namespace");
        let namespace = text.trim_matches('/').to_owned();
        if namespace.is_empty() || namespace.contains(char::is_whitespace) {
            self.inconsistent(
                &["namespace"],
                &format!("{text:?} is not usable as the first part of keys"),
            );
        }
        self.all.settings.amend("namespace", namespace.as_str().into());
        namespace
    }

    fn tags(&mut self) -> Tags {
        let tags = self.all.settings.map("tags");
        for (name, value) in &tags {
            self.tag(name, value);
        }
        for (flag, priority) in [("nofailover", "failover_priority"), ("nosync", "sync_priority")] {
            if tags.contains_key(flag) && tags.contains_key(priority) {
                let origin = self.all.settings.origin("tags");
                self.warn(&format!(
                    "{origin}: {flag} and {priority} say the same thing twice; {flag} wins"
                ));
            }
        }
        Tags(tags)
    }

    /// A tag that means something must be readable: one that is not would count as its default, so that a member
    /// that was to stay out of an election takes part.
    fn tag(&mut self, name: &str, value: &Value) {
        const FLAGS: &[&str] = &["nofailover", "noloadbalance", "clonefrom", "nosync", "nostream"];
        const NUMBERS: &[&str] = &["failover_priority", "sync_priority"];
        const NAMES: &[&str] = &["replicatefrom"];
        let (readable, what) = if FLAGS.contains(&name) {
            (read_bool(value).is_some(), "a yes or no")
        } else if NUMBERS.contains(&name) {
            (read_int(value).is_some(), "a whole number")
        } else if NAMES.contains(&name) {
            (value.is_string(), "the name of a member")
        } else {
            let known = [FLAGS, NUMBERS, NAMES].concat();
            if let Some(meant) = nearest(name, known) {
                let origin = self.all.settings.origin("tags");
                self.warn(&format!(
                    "{origin}: {name} is a tag of your own; did you mean {meant}?"
                ));
            }
            return;
        };
        if !readable {
            self.inconsistent(&["tags"], &format!("{name}: {value} is not {what}"));
        }
    }

    fn log(&mut self) -> Log {
        let mut loggers = BTreeMap::new();
        for (module, level) in self.all.settings.map("log.loggers") {
            let simple = module
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.'));
            match level.as_str().and_then(LogLevel::parse).filter(|_| simple) {
                // A document for Patroni names its modules with dots.
                Some(level) => _ = loggers.insert(module.replace('.', "::"), level),
                None => self.inconsistent(&["log.loggers"], &format!("{module}: {level} is not a level (allowed: TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL)")),
            }
        }
        Log {
            level: LogLevel::parse(&self.text("log.level")).unwrap_or(LogLevel::Info),
            format: if self.text("log.type") == "json" {
                LogFormat::Json
            } else {
                LogFormat::Plain
            },
            loggers,
            file: self.log_file(),
            static_fields: self.all.settings.map("log.static_fields"),
        }
    }

    fn log_file(&mut self) -> Option<logfile::Settings> {
        const MODE: &str = "log.mode";
        let text = self.text(MODE);
        // As Patroni does: octal with a zero in front, decimal without.
        let mode = match text.strip_prefix('0') {
            Some(octal) => u32::from_str_radix(octal.trim_start_matches('o'), 8),
            None => text.parse(),
        };
        let mode = mode.ok().filter(|mode| *mode > 0 && *mode <= 0o777);
        if mode.is_none() && !text.is_empty() {
            self.inconsistent(
                &[MODE],
                &format!("{text:?} is no mode of a file (allowed: 0600, 0640, 0644 …)"),
            );
        }
        let number = |path: &str| self.all.settings.int(path).unwrap_or_default();
        Some(logfile::Settings {
            bytes_max: u64::try_from(number("log.file_size")).unwrap_or_default(),
            keep: u32::try_from(number("log.file_num")).unwrap_or(u32::MAX),
            dir: self.file("log.dir")?,
            mode,
        })
    }

    fn restapi(&mut self) -> RestApi {
        let tls = self.restapi_tls();
        let mut extra_headers = self.extra_headers("restapi.http_extra_headers");
        let over_tls = self.extra_headers("restapi.https_extra_headers");
        if tls.is_some() {
            extra_headers.extend(over_tls);
        }
        RestApi {
            listen: self.listen("restapi.listen"),
            connect_address: self.address("restapi.connect_address", 8008),
            authentication: self.credentials("restapi.authentication"),
            allowlist: self.allowlist(),
            allowlist_include_members: self.flag("restapi.allowlist_include_members"),
            extra_headers,
            tls,
        }
    }

    fn allowlist(&mut self) -> Vec<Allowed> {
        const PATH: &str = "restapi.allowlist";
        let mut allowlist = Vec::new();
        for text in self.all.settings.list(PATH) {
            match Allowed::parse(&text) {
                Some(allowed) => allowlist.push(allowed),
                None => self.inconsistent(
                    &[PATH],
                    &format!("{text:?} is not an address, network or host (allowed: 10.0.0.1, 10.0.0.0/8, fd00::/8, name)"),
                ),
            }
        }
        allowlist
    }

    fn extra_headers(&mut self, path: &str) -> BTreeMap<String, String> {
        // How long an answer is, and how the connection goes on, is not for others to say.
        const OURS: &[&str] = &[
            "content-length",
            "content-type",
            "transfer-encoding",
            "connection",
        ];
        let mut extra_headers = BTreeMap::new();
        for (name, value) in self.all.settings.map(path) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let valid = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && http::HeaderValue::from_str(&text).is_ok()
                && !OURS.contains(&name.to_ascii_lowercase().as_str());
            if !valid {
                self.inconsistent(
                    &[path],
                    &format!("{name:?} with this value is no HTTP header that can be added"),
                );
            }
            extra_headers.insert(name, text);
        }
        extra_headers
    }

    fn ctl(&mut self, restapi: &RestApi) -> Ctl {
        let own = self.credentials("ctl.authentication");
        Ctl {
            authentication: own.or_else(|| restapi.authentication.clone()),
            insecure: self.flag("ctl.insecure"),
            cacert: self.file("ctl.cacert").or_else(|| self.file("restapi.cafile")),
            identity: self.identity("ctl.certfile", "ctl.keyfile", "ctl.keyfile_password"),
        }
    }

    fn bootstrap(&mut self, superuser: &str) -> Bootstrap {
        self.all.settings.set_default("bootstrap.database", superuser);
        let timing = self.timing();
        Bootstrap {
            dcs: self.dynamic(),
            timing,
            method: self.bootstrap_method(),
            initdb: self.initdb(),
            pg_hba: self.all.settings.list("bootstrap.pg_hba"),
            post_bootstrap: self.all.settings.text("bootstrap.post_bootstrap"),
            database: self.text("bootstrap.database"),
            scripts_dir: PathBuf::from(self.text("bootstrap.scripts_dir")),
        }
    }

    /// Arguments of initdb, without those that are ours to give (contract: environment §3, `bootstrap.initdb`).
    fn initdb(&mut self) -> Vec<String> {
        const OURS: &[&str] = &[
            "--pgdata",
            "-D",
            "--pwfile",
            "--pwprompt",
            "-W",
            "--username",
            "-U",
            "--sync-only",
            "-S",
            "--no-sync",
            "--nosync",
            "-N",
            "--version",
            "-V",
            "--help",
            "-?",
        ];
        let arguments = self.all.settings.list("bootstrap.initdb");
        for argument in &arguments {
            let name = argument
                .split_once('=')
                .map_or(argument.as_str(), |(name, _)| name);
            if OURS.contains(&name) {
                self.inconsistent(
                    &["bootstrap.initdb"],
                    &format!("{name} is given by Howdah itself; leave it out"),
                );
            }
        }
        arguments
    }

    fn watchdog(&self) -> Watchdog {
        let margin = self.all.settings.int("watchdog.safety_margin").unwrap_or(-1);
        Watchdog {
            mode: match self.text("watchdog.mode").as_str() {
                "required" => WatchdogMode::Required,
                "automatic" => WatchdogMode::Automatic,
                _ => WatchdogMode::Off,
            },
            device: PathBuf::from(self.text("watchdog.device")),
            safety_margin: u64::try_from(margin).ok().map(Duration::from_secs),
            driver: match self.text("watchdog.driver").as_str() {
                "testing" => WatchdogDriver::Testing,
                _ => WatchdogDriver::Linux,
            },
        }
    }

    /// A user and its password, both or neither.
    fn credentials(&mut self, path: &str) -> Option<Credentials> {
        let (username, password) = (format!("{path}.username"), format!("{path}.password"));
        match (
            self.all.settings.text(&username),
            self.all.settings.text(&password),
        ) {
            (Some(username), Some(password)) => Some(Credentials {
                username,
                password: Secret::new(password),
            }),
            (None, None) => None,
            (Some(_), None) => {
                self.missing(
                    &password,
                    &format!("{} is given", self.all.settings.origin(&username)),
                );
                None
            }
            (None, Some(_)) => {
                self.missing(
                    &username,
                    &format!("{} is given", self.all.settings.origin(&password)),
                );
                None
            }
        }
    }

    fn text(&self, path: &str) -> String {
        self.all.settings.text(path).unwrap_or_default()
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.all.settings.text(path).map(PathBuf::from)
    }

    fn flag(&self, path: &str) -> bool {
        self.all.settings.flag(path).unwrap_or(false)
    }

    fn listen(&self, path: &str) -> Listen {
        // Settings hold normal forms only: every address in them can be read.
        Listen::parse(&self.text(path), 1).unwrap_or(Listen {
            hosts: vec!["*".into()],
            port: 1,
        })
    }

    fn address(&self, path: &str, port: u16) -> Address {
        Address::parse(&self.text(path), port).unwrap_or(Address {
            host: self.host_address.clone(),
            port,
        })
    }

    fn warn(&mut self, text: &str) {
        self.all.warnings.push(text.to_owned());
    }

    /// Notes that a setting is missing, unless it was given and refused already.
    fn missing(&mut self, path: &str, why: &str) {
        let var = vars::by_path(path);
        let names: Vec<String> = var
            .map(|var| {
                super::other_names::names(var)
                    .into_iter()
                    .map(|n| n.name)
                    .collect()
            })
            .unwrap_or_default();
        let variable = |text: &str| text.strip_suffix("_FILE").unwrap_or(text).to_owned();
        let refused = self.all.mistakes.iter().any(|mistake| match mistake {
            Mistake::Invalid { origin, .. } => match origin {
                super::Origin::Variable(name) => names.contains(name),
                super::Origin::File { variable: name, .. } => names.contains(&variable(name)),
                super::Origin::Document { path: at, .. } => at == path,
                super::Origin::Default => false,
            },
            Mistake::Unreadable { variable: name, .. } => names.contains(&variable(name)),
            _ => false,
        });
        if refused {
            return;
        }
        let canonical = var.map_or_else(|| path.to_owned(), vars::Var::name);
        let official = names.iter().find(|name| name.starts_with("POSTGRES_"));
        let names = match official {
            Some(official) => format!("{canonical} or {official}, or either with _FILE,"),
            None => canonical,
        };
        self.all.mistakes.push(Mistake::Missing {
            names,
            why: why.to_owned(),
        });
    }

    /// Notes that settings do not fit, naming them as they were given.
    fn inconsistent(&mut self, paths: &[&str], why: &str) {
        let names: Vec<String> = paths
            .iter()
            .map(|path| {
                if self.all.settings.is_given(path) {
                    self.all.settings.origin(path)
                } else {
                    vars::by_path(path).map_or_else(|| (*path).to_owned(), vars::Var::name)
                }
            })
            .collect();
        self.all.mistakes.push(Mistake::Inconsistent {
            names: names.join(", "),
            why: why.to_owned(),
        });
    }
}
