//! The configuration of one member, from the environment.
//!
//! Three steps: `gather` reads variables, their `_FILE` forms and the document of `HOWDAH_CONFIGURATION` into
//! settings by path; `build` fills in defaults and makes the typed [`Config`], which cannot be invalid; whatever is
//! wrong on the way is collected and reported at once as [`Mistakes`]. The table of settings ([`vars`]) drives all of
//! it, and the output of [`check`] and the table in the documentation ([`markdown`]) too.
//!
//! Not here: the cluster's own (dynamic) configuration, see `model::Dynamic`; files of PostgreSQL, see `postgres`.

mod address;
mod allow;
pub mod bin_dir;
mod build;
pub mod check;
mod child_env;
mod document;
mod env;
mod gather;
mod kind;
pub mod markdown;
mod mistakes;
mod other_names;
mod secret;
mod settings;
mod text;
mod types;
pub mod vars;

#[cfg(test)]
mod tests;

pub use address::{Address, Listen, bracketed};
pub use allow::{Allowed, Network};
pub use child_env::{child_environment, is_private};
pub use env::{Env, FixedHost, Host, MapEnv, ProcessEnv, ThisHost};
pub use kind::Kind;
pub use mistakes::{Mistake, Mistakes};
pub use secret::Secret;
pub use settings::{Origin, Setting, Settings};
pub use types::{
    Authentication, Bootstrap, Callbacks, Config, Consul, ConsulService, Credentials, Ctl, DcsConfig,
    Embedded, Etcd3, Kubernetes, KubernetesMode, KubernetesPort, Log, LogFormat, LogLevel, Login, MemberRole,
    Peer, Postgresql, RestApi, RoleSettings, Watchdog, WatchdogDriver, WatchdogMode, ZooKeeper,
};

/// A configuration and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting in force with its origin.
    pub origins: Settings,
    /// What is worth saying but no reason to stop.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the configuration; also again on reload, files included.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(env: &dyn Env, host: &dyn Host) -> Result<Loaded, Mistakes> {
        let mut gathered = gather::gather(env);
        let config = build::build(&mut gathered, host);
        if gathered.mistakes.is_empty() {
            Ok(Loaded {
                config,
                origins: gathered.settings,
                warnings: gathered.warnings,
            })
        } else {
            Err(Mistakes(gathered.mistakes))
        }
    }
}

impl Loaded {
    /// What is different in a configuration read later, in the order of the table; its effect says whether a reload
    /// is enough.
    #[must_use]
    pub fn changes(&self, later: &Self) -> Vec<&'static vars::Var> {
        vars::all()
            .filter(|var| {
                let value = |loaded: &Self| loaded.origins.get(var.path).map(|setting| setting.value.clone());
                value(self) != value(later)
            })
            .collect()
    }
}
