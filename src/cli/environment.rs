//! Where a command's configuration comes from: the environment, and what was named on the command line (contract:
//! ctl §1).

use std::{
    io,
    path::{Path, PathBuf},
};

use super::CliError;
use crate::config::{Env, ProcessEnv};

const FILE: &str = "HOWDAH_CONFIGURATION";
const HOSTS: &str = "HOWDAH_ETCD3_HOSTS";
const PROTOCOL: &str = "HOWDAH_ETCD3_PROTOCOL";
const NAMESPACE: &str = "HOWDAH_NAMESPACE";
const PASSWORD: &str = "HOWDAH_SUPERUSER_PASSWORD";

/// The environment with what was named put over it.
#[derive(Debug, Clone, Default)]
pub struct Named {
    over: Vec<(&'static str, String)>,
    /// Names that are hidden: they say the same otherwise.
    hidden: Vec<&'static str>,
}

/// Reads what the options name. The file at the default place may be absent, one that was named may not.
///
/// # Errors
/// Says which option has which value and what is expected.
pub fn environment(file: Option<&Path>, dcs: Option<&str>) -> Result<Named, CliError> {
    let mut named = Named::default();
    match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|_| {
                CliError::refused(format!(
                    "Provided config file {} not existing or no read rights. Check the -c/--config-file parameter",
                    path.display()
                ))
            })?;
            named.over.push((FILE, text));
        }
        None => {
            if let Some(text) = default_file().and_then(|path| std::fs::read_to_string(path).ok()) {
                named.over.push((FILE, text));
            }
        }
    }
    if let Some(url) = dcs.filter(|url| !url.is_empty()) {
        named.store(url)?;
    }
    Ok(named)
}

/// `~/.config/patroni/patronictl.yaml`.
fn default_file() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("patroni/patronictl.yaml"))
}

impl Named {
    /// A member needs the superuser's password; most commands do not, and are run where it is not known.
    #[must_use]
    pub fn without_password(&self) -> Self {
        let mut named = self.clone();
        named.over.push((PASSWORD, "not given".to_owned()));
        named
    }

    /// `scheme://host:port/namespace`; without a scheme etcd is meant.
    fn store(&mut self, url: &str) -> Result<(), CliError> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("etcd3", url));
        if !matches!(scheme, "etcd" | "etcd3") {
            return Err(CliError::refused(format!(
                "Unknown dcs scheme: {scheme} (-d/--dcs-url; known are etcd3 and etcd)"
            )));
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = match host {
            "" => "localhost:2379".to_owned(),
            host if host
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
            {
                host.to_owned()
            }
            host => format!("{host}:2379"),
        };
        self.over.push((HOSTS, host));
        self.over.push((PROTOCOL, "http".to_owned()));
        self.hidden
            .extend(["HOWDAH_EMBEDDED_PEERS", "HOWDAH_ETCD3_HOST", "HOWDAH_ETCD3_URL"]);
        if !path.trim_matches('/').is_empty() {
            self.over.push((NAMESPACE, path.trim_matches('/').to_owned()));
        }
        Ok(())
    }
}

impl Env for Named {
    fn vars(&self) -> Vec<(String, String)> {
        let named =
            |name: &str| self.over.iter().any(|(over, _)| *over == name) || self.hidden.contains(&name);
        let mut vars = ProcessEnv.vars();
        vars.retain(|(name, _)| !named(name));
        vars.extend(
            self.over
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        vars
    }

    fn read_file(&self, path: &Path) -> io::Result<String> {
        ProcessEnv.read_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(url: &str) -> Result<Vec<(&'static str, String)>, String> {
        let mut named = Named::default();
        named.store(url).map_err(|error| error.to_string())?;
        Ok(named.over)
    }

    #[test]
    fn a_url_names_the_store_and_the_namespace() {
        let http = (PROTOCOL, "http".to_owned());
        assert_eq!(
            over("etcd3://pg:2380/prod/"),
            Ok(vec![
                (HOSTS, "pg:2380".into()),
                http.clone(),
                (NAMESPACE, "prod".into())
            ])
        );
        assert_eq!(over("pg"), Ok(vec![(HOSTS, "pg:2379".into()), http.clone()]));
        assert_eq!(over("etcd://"), Ok(vec![(HOSTS, "localhost:2379".into()), http]));
        assert_eq!(
            over("redis://x"),
            Err("Unknown dcs scheme: redis (-d/--dcs-url; known are etcd3 and etcd)".into())
        );
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = environment(Some(Path::new("/no/such/file")), None).expect_err("absent");
        assert!(
            error
                .to_string()
                .starts_with("Provided config file /no/such/file not existing"),
            "{error}"
        );
    }
}
