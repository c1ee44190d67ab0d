//! Reading this member's configuration again: what takes effect at once, and what waits for the next start.

use tracing::{info, warn};

use super::{Agent, Identity};
use crate::{
    agent::instance::Settings,
    config::{Authentication, Config, Loaded, Log, Login, Postgresql, RestApi, vars::Effect},
    tls,
};

/// The way to a configuration that is read again, and to those outside of the loop who use it.
pub struct Reread {
    /// Reads it; an error is all its mistakes in words.
    pub load: Box<dyn Fn() -> Result<Loaded, String> + Send + Sync>,
    /// Gives log, REST API and HTTP client what they need of it. Must not wait.
    pub apply: Box<dyn Fn(&Config) + Send + Sync>,
}

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reread")
    }
}

impl Agent {
    /// Environment and files are read again; what can change without a new start is applied.
    pub(super) async fn reload(&mut self) {
        info!("reloading the configuration");
        let later = match (self.reread.load)() {
            Ok(later) => later,
            Err(mistakes) => {
                warn!(
                    mistakes,
                    "the reload failed, the old configuration stays in force"
                );
                return;
            }
        };
        for warning in &later.warnings {
            warn!("{warning}");
        }
        for name in waiting(&self.started, &later) {
            warn!(
                variable = name,
                "changed; takes effect with the next start, the old value stays in force"
            );
        }
        let config = in_force(&self.started.config, later.config);
        (self.reread.apply)(&config);
        self.identity = Identity::of(&config);
        self.watchdog.reload(config.watchdog.clone());
        let settings = Settings::from_config(&config);
        // Not beside a job: a promotion or a start would find its files written for another role.
        if self.jobs.view().is_some() {
            self.deferred = Some(settings);
            self.unapplied = true;
            return;
        }
        match self.instance.reload(settings, &self.dynamic).await {
            Ok(()) => self.settle(),
            Err(error) => {
                warn!(error, "could not apply the configuration to postgres yet");
                self.unapplied = true;
            }
        }
    }
}

/// The variables whose new value needs a new start.
fn waiting(started: &Loaded, later: &Loaded) -> Vec<String> {
    let changed = started.changes(later).into_iter();
    changed
        .filter(|var| var.effect == Effect::Start)
        .map(crate::config::vars::Var::name)
        .collect()
}

/// The configuration as it is now: `later`, except where an agent that runs cannot follow.
fn in_force(started: &Config, later: Config) -> Config {
    let old = started.clone();
    let later_roles = later.postgresql.authentication.clone();
    let old_roles = old.postgresql.authentication;
    Config {
        tags: later.tags,
        log: Log {
            format: old.log.format,
            file: old.log.file,
            static_fields: old.log.static_fields,
            ..later.log
        },
        restapi: RestApi {
            listen: old.restapi.listen,
            connect_address: old.restapi.connect_address,
            tls: tls_in_force(old.restapi.tls, later.restapi.tls),
            ..later.restapi
        },
        ctl: later.ctl,
        watchdog: later.watchdog,
        postgresql: Postgresql {
            listen: old.postgresql.listen,
            connect_address: old.postgresql.connect_address,
            data_dir: old.postgresql.data_dir,
            config_dir: old.postgresql.config_dir,
            config_base_name: old.postgresql.config_base_name,
            bin_dir: old.postgresql.bin_dir,
            bin_names: old.postgresql.bin_names,
            database: old.postgresql.database,
            pgpass: old.postgresql.pgpass,
            authentication: Authentication {
                superuser: renamed(later_roles.superuser, &old_roles.superuser),
                replication: renamed(later_roles.replication, &old_roles.replication),
                rewind: renamed(later_roles.rewind, &old_roles.rewind),
            },
            ..later.postgresql
        },
        ..old
    }
}

/// TLS is neither switched on nor off without a new start, because everybody knows the API by its URL.
fn tls_in_force(
    old: Option<tls::server::Settings>,
    later: Option<tls::server::Settings>,
) -> Option<tls::server::Settings> {
    let old = old?;
    let Some(later) = later else { return Some(old) };
    let identity = tls::files::Identity {
        cert: old.identity.cert,
        ..later.identity
    };
    Some(tls::server::Settings { identity, ..later })
}

/// The roles keep their names: they were made in the database under these.
fn renamed(login: Login, old: &Login) -> Login {
    Login {
        username: old.username.clone(),
        ..login
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedHost, MapEnv};

    #[test]
    fn tls_stays_as_it_was_switched_but_what_it_asks_for_changes() {
        let tls = |vars: &[(&str, &str)]| load(vars).config.restapi.tls;
        let cert = ("HOWDAH_RESTAPI_CERTFILE", "/a");
        let other = [
            ("HOWDAH_RESTAPI_CERTFILE", "/b"),
            ("HOWDAH_RESTAPI_KEYFILE", "/k"),
            ("HOWDAH_RESTAPI_CIPHERS", "AES256"),
        ];
        assert_eq!(tls_in_force(None, tls(&[cert])), None);
        assert_eq!(tls_in_force(tls(&[cert]), None), tls(&[cert]));
        let now = tls_in_force(tls(&[cert]), tls(&other)).expect("TLS");
        assert_eq!(now.identity.cert, std::path::Path::new("/a"));
        assert_eq!(
            (now.identity.key, now.ciphers.as_deref()),
            ("/k".into(), Some("AES256"))
        );
    }

    fn load(more: &[(&str, &str)]) -> Loaded {
        let base = [("HOWDAH_NAME", "pg1"), ("POSTGRES_PASSWORD", "secret")];
        let all: Vec<_> = base.iter().chain(more).copied().collect();
        Config::load(&MapEnv::new(&all), &FixedHost::default()).expect("no mistakes")
    }

    #[test]
    fn what_needs_a_start_is_named_and_keeps_its_value() {
        let started = load(&[("HOWDAH_TAGS", "nofailover: true")]);
        let later = load(&[
            ("HOWDAH_TAGS", "nosync: true"),
            ("HOWDAH_LOG_LEVEL", "debug"),
            ("HOWDAH_POSTGRESQL_LISTEN", "127.0.0.1:6000"),
            ("HOWDAH_RESTAPI_USERNAME", "u"),
            ("HOWDAH_RESTAPI_PASSWORD", "p"),
        ]);
        let both = ["HOWDAH_POSTGRESQL_LISTEN", "HOWDAH_POSTGRESQL_CONNECT_ADDRESS"];
        assert_eq!(waiting(&started, &later), both, "the second follows the first");
        let now = in_force(&started.config, later.config.clone());
        assert_eq!(now.postgresql.listen, started.config.postgresql.listen);
        assert_eq!((&now.tags, &now.log), (&later.config.tags, &later.config.log));
        assert_eq!(now.restapi.authentication, later.config.restapi.authentication);
    }
}
