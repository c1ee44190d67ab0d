//! Writing postgresql.conf, pg_hba.conf, pg_ident.conf, the signal files and the password file for a role.

use serde_json::{Map, Value};
use tracing::warn;

use super::{Instance, chain, lock, settings::Account};
use crate::{
    ha::{StartAs, Upstream},
    model::{ControlData, Dynamic},
    postgres::{
        conf::{self, Effective},
        conninfo::Conninfo,
        hba, pgpass,
        recovery::{Follow, Recovery, recovery_settings},
    },
};

impl Instance {
    /// Writes everything a postmaster in this role reads; returns its arguments.
    pub(super) fn write_files(
        &self,
        start_as: &StartAs,
        dynamic: &Dynamic,
        control: Option<&ControlData>,
    ) -> Result<Vec<String>, String> {
        let replica = matches!(start_as, StartAs::Replica(_));
        let effective = self.effective(dynamic, control.filter(|_| replica));
        for warning in &effective.warnings {
            warn!(
                parameter = warning.name,
                value = warning.value,
                "{}",
                warning.reason
            );
        }
        let recovery = match start_as {
            StartAs::Primary => None,
            StartAs::Replica(upstream) => Some(self.recovery(upstream.as_ref(), dynamic)?),
        };
        self.write_all(&effective, recovery.as_ref(), dynamic)
            .map_err(|error| chain(&error))?;
        self.conf.set_standby(replica).map_err(|error| chain(&error))?;
        let args = conf::postmaster_args(&effective);
        let config_file = format!("--config-file={}", self.conf.main().display());
        *lock(&self.written) = effective.parameters;
        Ok(std::iter::once(config_file).chain(args).collect())
    }

    fn write_all(
        &self,
        effective: &Effective,
        recovery: Option<&Recovery>,
        dynamic: &Dynamic,
    ) -> Result<(), crate::postgres::files::Error> {
        let conf = &self.conf;
        conf.adopt_base()?;
        conf.restore_missing()?;
        let (include, hba_file, ident_file) = (conf.include(), conf.hba(), conf.ident());
        let frame = conf::Frame {
            include: &include,
            hba_file: &hba_file.to_string_lossy(),
            ident_file: &ident_file.to_string_lossy(),
            recovery,
        };
        conf.write(&conf.main(), &conf::render_postgresql_conf(&frame, effective))?;
        if let Some(text) = hba::render(&self.hba_lines(dynamic)) {
            conf.write(&hba_file, &text)?;
        }
        if let Some(text) = hba::render(&self.ident_lines(dynamic)) {
            conf.write(&ident_file, &text)?;
        }
        conf.strip_auto_conf()?;
        Ok(())
    }

    fn effective(&self, dynamic: &Dynamic, control: Option<&ControlData>) -> Effective {
        let settings = self.settings();
        let empty = Map::new();
        let parameters = dynamic
            .postgresql()
            .and_then(|pg| pg.get("parameters"))
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let socket_dir = settings.socket_dir.to_string_lossy().into_owned();
        conf::effective(&conf::Input {
            major: self.binaries.major(),
            scope: &settings.scope,
            listen_addresses: &settings.listen_addresses,
            port: settings.port,
            socket_dir: Some(&socket_dir),
            dynamic: parameters,
            local: &settings.parameters,
            forced: &[],
            known: &self.known,
            replica_of: control,
        })
    }

    fn hba_lines(&self, dynamic: &Dynamic) -> Vec<String> {
        let settings = self.settings();
        if !settings.pg_hba.is_empty() {
            return settings.pg_hba.clone();
        }
        let shared = lines(dynamic, "pg_hba");
        if !shared.is_empty() {
            return shared;
        }
        let mut own = hba::default_lines(&settings.replication.login.username, false);
        own.extend(settings.bootstrap_pg_hba.iter().cloned());
        own
    }

    fn ident_lines(&self, dynamic: &Dynamic) -> Vec<String> {
        let settings = self.settings();
        if settings.pg_ident.is_empty() {
            lines(dynamic, "pg_ident")
        } else {
            settings.pg_ident.clone()
        }
    }

    fn recovery(&self, upstream: Option<&Upstream>, dynamic: &Dynamic) -> Result<Recovery, String> {
        let settings = self.settings();
        let conninfo = match upstream {
            Some(upstream) => {
                self.write_passfile(upstream)?;
                let conninfo = self.connection(upstream, &settings.replication);
                Some(
                    conninfo
                        .with("application_name", settings.member.as_str())
                        .with_replication_defaults(self.binaries.major()),
                )
            }
            None => None,
        };
        let slot = settings.member.slot();
        Ok(recovery_settings(
            self.binaries.major(),
            &Follow {
                primary: conninfo.as_ref(),
                slot: dynamic.use_slots.then_some(slot.as_str()),
                user: Some(&settings.recovery_conf),
                standby_cluster: Vec::new(),
            },
        ))
    }

    /// A connection to another member; the password is in the password file.
    pub(super) fn connection(&self, to: &Upstream, account: &Account) -> Conninfo {
        let settings = self.settings();
        let mut conninfo = Conninfo::new()
            .with("user", account.login.username.as_str())
            .with("passfile", settings.passfile.to_string_lossy())
            .with("host", to.host.as_str())
            .with("port", to.port.to_string())
            .with("dbname", settings.database.as_str())
            .with("krbsrvname", settings.krbsrvname.as_deref().unwrap_or_default());
        for (keyword, value) in &account.options {
            conninfo = conninfo.with(keyword, value.as_str());
        }
        conninfo
    }

    /// Logins for the upstream (streaming, rewinding, superuser) and for the local socket.
    pub(super) fn write_passfile(&self, upstream: &Upstream) -> Result<(), String> {
        let settings = self.settings();
        let port = upstream.port.to_string();
        let accounts = [&settings.replication, &settings.rewind, &settings.superuser];
        let entries: Vec<pgpass::Entry<'_>> = accounts
            .iter()
            .map(|account| pgpass::Entry {
                host: &upstream.host,
                port: &port,
                login: &account.login,
            })
            .collect();
        pgpass::write(&settings.passfile, &entries)
            .map(drop)
            .map_err(|error| chain(&error))
    }
}

fn lines(dynamic: &Dynamic, key: &str) -> Vec<String> {
    let list = dynamic
        .postgresql()
        .and_then(|pg| pg.get(key))
        .and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}
