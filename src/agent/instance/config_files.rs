//! Writing postgresql.conf, pg_hba.conf, pg_ident.conf, the signal files and the password file for a role.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::atomic::Ordering,
};

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Instance, chain, layers::Layers, lock, settings::Account, sync_names::PARAMETER};
use crate::{
    ha::{StartAs, Upstream},
    model::{ControlData, Dynamic, RoleScope, StandbyCluster},
    postgres::{
        conf::{self, Effective},
        confcheck::{self, Verdict},
        conninfo::Conninfo,
        files, hba, listen, pgpass,
        recovery::{Follow, Recovery, primary_settings, recovery_settings},
        replslot, walvolume,
    },
};

/// So many bad values are put right one after the other; then the old file stays.
const CORRECTIONS_MAX: usize = 32;
/// Configurations remembered as usable: one per role and a few changes.
const REMEMBERED_MAX: usize = 8;

impl Instance {
    /// Writes everything a postmaster in this role reads; returns its arguments.
    pub(super) async fn write_files(
        &self,
        start_as: &StartAs,
        dynamic: &Dynamic,
        control: Option<&ControlData>,
    ) -> Result<Vec<String>, String> {
        let replica = matches!(start_as, StartAs::Replica(_));
        let scope = self.scope(start_as);
        let sync_names = self.forced_sync_names(start_as, dynamic);
        let ours = sync_names.is_some();
        let mut effective = self.effective(dynamic, scope, control.filter(|_| replica), sync_names);
        for warning in &effective.warnings {
            warn!(
                parameter = warning.name,
                value = warning.value,
                "{}",
                warning.reason
            );
        }
        let recovery = match start_as {
            StartAs::Primary => primary_settings(),
            StartAs::Replica(upstream) => self.recovery(upstream.as_ref(), dynamic)?,
        };
        let conf = self.conf();
        let prepared = conf.adopt_base().and_then(|()| conf.restore_missing());
        prepared.map_err(|error| chain(&error))?;
        // On the heap: this is part of the future of every turn of the loop.
        let checked = Box::pin(self.checked(&mut effective, Some(&recovery), ours)).await?;
        if let Some(text) = checked {
            conf.write(&conf.main(), &text).map_err(|error| chain(&error))?;
            lock(&self.written).clone_from(&effective.parameters);
        }
        self.write_others(dynamic, scope, ours)
            .map_err(|error| chain(&error))?;
        conf.set_standby(replica).map_err(|error| chain(&error))?;
        let args = self.arguments(&effective);
        *lock(&self.raised) = effective.pending_restart;
        *lock(&self.written_for) = Some(scope);
        lock(&self.arguments_written).clone_from(&args);
        self.generation.fetch_add(1, Ordering::Relaxed);
        Ok(args)
    }

    /// Arguments of a postmaster with this configuration, without writing anything.
    pub(super) fn arguments_now(&self, dynamic: &Dynamic) -> Vec<String> {
        self.arguments(&self.effective(dynamic, RoleScope::Primary, None, None))
    }

    /// Writes everything the first postmaster of a restored cluster reads: recovery as told, nobody but us let in.
    /// `own_recovery`: its recovery settings are the ones that are there already.
    pub(super) async fn write_restored_files(
        &self,
        recovery: Option<&Recovery>,
        own_recovery: bool,
        dynamic: &Dynamic,
        control: &ControlData,
    ) -> Result<Vec<String>, String> {
        // What the backup's cluster waited for is not here.
        let mut effective = self.effective(dynamic, RoleScope::Primary, Some(control), Some(String::new()));
        if recovery.is_some() || own_recovery {
            // Its primary may have had larger settings, which do not matter where nobody can read before the end.
            effective
                .parameters
                .insert("hot_standby".to_owned(), "off".to_owned());
        }
        let conf = self.conf();
        let prepared = conf.adopt_base().and_then(|()| conf.restore_missing());
        prepared.map_err(|error| chain(&error))?;
        let checked = Box::pin(self.checked(&mut effective, recovery, true)).await?;
        if let Some(text) = checked {
            conf.write(&conf.main(), &text).map_err(|error| chain(&error))?;
        }
        let superuser = &self.settings().superuser.login.username;
        let hba = hba::render(&hba::custom_bootstrap_lines(superuser)).unwrap_or_default();
        let written = conf.write(&conf.hba(), &hba);
        let written = written.and_then(|_| {
            if own_recovery {
                Ok(false)
            } else {
                conf.strip_auto_conf(&[PARAMETER])
            }
        });
        written.map_err(|error| chain(&error))?;
        let mut args = self.arguments(&effective);
        args.push(format!("--hba_file={}", conf.hba().display()));
        args.push("--listen_addresses=".to_owned());
        Ok(args)
    }

    fn arguments(&self, effective: &Effective) -> Vec<String> {
        let config_file = format!("--config-file={}", self.conf().main().display());
        std::iter::once(config_file)
            .chain(conf::postmaster_args(effective))
            .collect()
    }

    fn render(&self, effective: &Effective, recovery: Option<&Recovery>) -> String {
        let (include, hba_file, ident_file) = (self.conf().include(), self.conf().hba(), self.conf().ident());
        let frame = conf::Frame {
            include: &include,
            hba_file: &hba_file.to_string_lossy(),
            ident_file: &ident_file.to_string_lossy(),
            recovery,
        };
        conf::render_postgresql_conf(&frame, effective)
    }

    /// The text of postgresql.conf once PostgreSQL accepts it. One bad value in the cluster's configuration would
    /// otherwise keep every member from ever starting again. A value it refuses is replaced by the one in force before, or left
    /// out; `None` when it does not say which one is bad: then the old file stays.
    async fn checked(
        &self,
        effective: &mut Effective,
        recovery: Option<&Recovery>,
        sync_names: bool,
    ) -> Result<Option<String>, String> {
        let main = self.conf().main();
        let candidate = files::neighbour(&main, ".check");
        for _ in 0..CORRECTIONS_MAX {
            let text = self.render(effective, recovery);
            let fingerprint = fingerprint(&effective.parameters, recovery, sync_names);
            if lock(&self.accepted).contains(&fingerprint) {
                return Ok(Some(text));
            }
            self.conf()
                .write(&candidate, &text)
                .map_err(|error| chain(&error))?;
            let (args, cancel) = (self.arguments(effective), CancellationToken::new());
            let verdict = confcheck::check(
                &self.binaries,
                self.data_dir(),
                &candidate,
                &args,
                "port",
                &cancel,
            )
            .await;
            if let Err(error) = std::fs::remove_file(&candidate) {
                warn!(file = %candidate.display(), %error, "cannot remove a temporary file");
            }
            match verdict {
                Verdict::Usable(_) => {
                    self.remember(fingerprint);
                    return Ok(Some(text));
                }
                Verdict::Unknown(error) => {
                    warn!(
                        error,
                        "could not check the new postgresql.conf, using it as it is"
                    );
                    return Ok(Some(text));
                }
                Verdict::Refused(reason) => {
                    let before = lock(&self.written).clone();
                    if !correct(&mut effective.parameters, &before, &reason) {
                        return Ok(self.keep_old(text, &reason));
                    }
                }
            }
        }
        Ok(self.keep_old(self.render(effective, recovery), "too many bad values"))
    }

    fn keep_old(&self, text: String, reason: &str) -> Option<String> {
        let main = self.conf().main();
        if main.exists() {
            warn!(file = %main.display(), reason, "PostgreSQL refuses the new configuration, the old file stays");
            return None;
        }
        warn!(file = %main.display(), reason, "PostgreSQL refuses the configuration and there is no older one");
        Some(text)
    }

    fn remember(&self, fingerprint: u64) {
        let mut accepted = lock(&self.accepted);
        if accepted.len() == REMEMBERED_MAX {
            accepted.remove(0);
        }
        accepted.push(fingerprint);
    }

    /// Why PostgreSQL cannot start whatever its data: an address that somebody else has, or a file it refuses.
    pub(super) async fn fault_of_settings(&self, args: &[String]) -> Option<String> {
        let settings = self.settings();
        if let Some(address) = listen::taken(settings.listen_addresses.split(','), settings.port) {
            return Some(format!("another process listens on {address}"));
        }
        let cancel = CancellationToken::new();
        let main = self.conf().main();
        match confcheck::check(&self.binaries, self.data_dir(), &main, args, "port", &cancel).await {
            Verdict::Refused(reason) => Some(reason),
            Verdict::Usable(_) | Verdict::Unknown(_) => None,
        }
    }

    /// The value a parameter would have at the next start, whichever file it comes from.
    pub(super) async fn value_at_start(&self, args: &[String], parameter: &str) -> Option<String> {
        let cancel = CancellationToken::new();
        let main = self.conf().main();
        match confcheck::check(&self.binaries, self.data_dir(), &main, args, parameter, &cancel).await {
            Verdict::Usable(value) => Some(value),
            Verdict::Refused(reason) | Verdict::Unknown(reason) => {
                warn!(parameter, reason, "cannot tell its value");
                None
            }
        }
    }

    /// As what postgres counts for settings that hold in one role only.
    fn scope(&self, start_as: &StartAs) -> RoleScope {
        match start_as {
            StartAs::Primary => RoleScope::Primary,
            StartAs::Replica(_) if self.standby_leader.load(Ordering::Relaxed) => RoleScope::StandbyLeader,
            StartAs::Replica(_) => RoleScope::Replica,
        }
    }

    /// Notes as what postgres was seen running. True: its files were written for another role, and say something else
    /// than they would now.
    pub fn note_scope(&self, seen: RoleScope, dynamic: &Dynamic) -> bool {
        self.standby_leader
            .store(seen == RoleScope::StandbyLeader, Ordering::Relaxed);
        let before = lock(&self.written_for).unwrap_or(seen);
        before != seen && Layers::new(dynamic, &self.settings()).differ_by_role()
    }

    fn write_others(
        &self,
        dynamic: &Dynamic,
        scope: RoleScope,
        sync_names: bool,
    ) -> Result<(), files::Error> {
        let conf = self.conf();
        if let Some(text) = self.hba_text(dynamic, scope)? {
            conf.write(&conf.hba(), &text)?;
        }
        if let Some(text) = hba::render(&Layers::new(dynamic, &self.settings()).ident(scope)) {
            conf.write(&conf.ident(), &text)?;
        }
        // ALTER SYSTEM must not decide whom commits wait for either.
        let also: &[&str] = if sync_names { &[PARAMETER] } else { &[] };
        conf.strip_auto_conf(also).map(drop)
    }

    fn effective(
        &self,
        dynamic: &Dynamic,
        scope: RoleScope,
        control: Option<&ControlData>,
        sync_names: Option<String>,
    ) -> Effective {
        let mut forced = self.forced();
        forced.extend(sync_names.map(|names| (PARAMETER, names)));
        let settings = self.settings();
        let layers = Layers::new(dynamic, &settings);
        let socket_dir = settings.socket_dir.to_string_lossy().into_owned();
        conf::effective(&conf::Input {
            major: self.binaries.major(),
            scope: &settings.scope,
            listen_addresses: &settings.listen_addresses,
            port: settings.port,
            socket_dir: Some(&socket_dir),
            dynamic: &layers.shared_parameters(),
            local: &layers.own_parameters(scope),
            forced: &forced,
            slot_wal_limit: self.slot_wal_limit(),
            known: &self.known(),
            replica_of: control,
        })
    }

    /// What the HA logic insists on.
    fn forced(&self) -> Vec<(&'static str, String)> {
        let feedback = self.feedback.load(Ordering::Relaxed);
        // With a lower level PostgreSQL does not start as long as there are logical slots, whoever made them.
        let decodes = replslot::read_all(self.data_dir())
            .iter()
            .any(|slot| slot.logical);
        let wanted = [
            (feedback, "hot_standby_feedback", "on"),
            (decodes, "wal_level", "logical"),
        ];
        let forced = wanted.into_iter().filter(|(forced, ..)| *forced);
        forced.map(|(_, name, value)| (name, value.to_owned())).collect()
    }

    /// What slots may hold back, unless the user's own configuration file says it.
    fn slot_wal_limit(&self) -> Option<String> {
        let conf = self.conf();
        let included = conf.custom_conf.clone().unwrap_or_else(|| conf.base());
        let given = std::fs::read_to_string(included)
            .is_ok_and(|text| walvolume::mentions(&text, "max_slot_wal_keep_size"));
        let size = walvolume::size(self.data_dir()).filter(|_| !given)?;
        walvolume::slot_wal_limit(size)
    }

    /// The configured lines; else those that Patroni has left; else our own.
    fn hba_text(&self, dynamic: &Dynamic, scope: RoleScope) -> Result<Option<String>, files::Error> {
        let settings = self.settings();
        let superuser = &settings.superuser.login.username;
        let given = Layers::new(dynamic, &settings).hba(scope);
        if !given.is_empty() {
            return Ok(hba::render(&hba::with_own_access(superuser, given)));
        }
        if let Some(left) = self.conf().patronis_hba()? {
            return Ok(Some(hba::keep(superuser, &left)));
        }
        let user = &settings.replication.login.username;
        Ok(hba::render(&hba::default_lines(
            user,
            false,
            &settings.bootstrap_pg_hba,
        )))
    }

    fn recovery(&self, upstream: Option<&Upstream>, dynamic: &Dynamic) -> Result<Recovery, String> {
        let settings = self.settings();
        let remote = upstream.is_some_and(Upstream::is_remote);
        let conninfo = match upstream.filter(|upstream| upstream.streams()) {
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
        let standby = dynamic.standby.as_ref();
        let own_slot = dynamic.use_slots.then(|| settings.member.slot());
        let slot = match standby.filter(|_| remote) {
            Some(standby) => standby.primary_slot_name.clone(),
            None => own_slot,
        };
        Ok(recovery_settings(
            self.binaries.major(),
            &Follow {
                primary: conninfo.as_ref(),
                slot: slot.as_deref(),
                user: Some(&recovery_conf(dynamic, &settings.recovery_conf)),
                standby_cluster: standby.map_or_else(Vec::new, |standby| of_standby_cluster(standby, remote)),
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
        let hosts = upstream.host.split(',').map(str::trim);
        let entries: Vec<pgpass::Entry<'_>> = hosts
            .flat_map(|host| {
                let port = port.as_str();
                accounts.map(|account| pgpass::Entry {
                    host,
                    port,
                    login: &account.login,
                })
            })
            .collect();
        pgpass::write(&settings.passfile, &entries)
            .map(drop)
            .map_err(|error| chain(&error))
    }
}

/// What the section says about the archive holds for everybody, the delay for whoever follows the remote cluster: those
/// behind it are late already.
fn of_standby_cluster(standby: &StandbyCluster, remote: bool) -> Vec<(&'static str, String)> {
    let delay = standby.recovery_min_apply_delay.filter(|_| remote);
    let settings = [
        ("restore_command", standby.restore_command.clone()),
        ("archive_cleanup_command", standby.archive_cleanup_command.clone()),
        (
            "recovery_min_apply_delay",
            delay.map(|delay| delay.as_millis().to_string()),
        ),
    ];
    settings
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// The cluster's `recovery_conf` with this member's on top.
fn recovery_conf(dynamic: &Dynamic, local: &Map<String, Value>) -> Map<String, Value> {
    let shared = dynamic
        .postgresql()
        .and_then(|pg| pg.get("recovery_conf"))
        .and_then(Value::as_object);
    let lower = |(name, value): (&String, &Value)| (name.to_ascii_lowercase(), value.clone());
    shared.into_iter().flatten().chain(local).map(lower).collect()
}

/// What the check judges: everything that is not made by ourselves, as `sync_names` says of those names.
fn fingerprint(parameters: &BTreeMap<String, String>, recovery: Option<&Recovery>, sync_names: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    let judged = |(name, _): &(&String, &String)| !(sync_names && *name == PARAMETER);
    for parameter in parameters.iter().filter(judged) {
        parameter.hash(&mut hasher);
    }
    let settings = recovery.into_iter().flat_map(|recovery| &recovery.settings);
    for setting in settings.filter(|(name, _)| !name.starts_with("primary_")) {
        setting.hash(&mut hasher);
    }
    hasher.finish()
}

/// Takes the values PostgreSQL refused back to those in force before, or out. Returns whether it named any of them.
fn correct(
    parameters: &mut BTreeMap<String, String>,
    before: &BTreeMap<String, String>,
    reason: &str,
) -> bool {
    let mut corrected = false;
    for name in confcheck::named_parameters(reason) {
        let Some(bad) = parameters.remove(&name) else {
            continue;
        };
        corrected = true;
        let old = before.get(&name).filter(|old| **old != bad).cloned();
        warn!(
            parameter = name,
            value = bad,
            used = old.as_deref().unwrap_or("the default"),
            reason,
            "PostgreSQL refuses this value"
        );
        if let Some(old) = old {
            parameters.insert(name, old);
        }
    }
    corrected
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameters(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_refused_value_goes_back_to_the_one_before_or_out() {
        let before = parameters(&[("work_mem", "8MB"), ("fsync", "on")]);
        let reason =
            r#"invalid value for parameter "work_mem": "32Mb"; parameter "jit" requires a Boolean value"#;
        let mut new = parameters(&[("work_mem", "32Mb"), ("jit", "x"), ("fsync", "off")]);
        assert!(correct(&mut new, &before, reason));
        assert_eq!(new, parameters(&[("work_mem", "8MB"), ("fsync", "off")]));
        // The value before was just as bad: out with it, or this would never end.
        let before = parameters(&[("work_mem", "32Mb")]);
        let mut new = before.clone();
        assert!(correct(&mut new, &before, reason));
        assert!(new.is_empty());
        assert!(!correct(&mut new, &before, "syntax error"));
    }

    #[test]
    fn the_members_recovery_settings_win_over_the_clusters() {
        let raw =
            json!({"postgresql": {"recovery_conf": {"restore_command": "a", "recovery_end_command": "e"}}});
        let dynamic = Dynamic::from_map(raw.as_object().expect("a map"));
        let local = json!({"Restore_Command": "b"});
        let merged = recovery_conf(&dynamic, local.as_object().expect("a map"));
        assert_eq!(
            Value::Object(merged),
            json!({"restore_command": "b", "recovery_end_command": "e"})
        );
    }

    #[test]
    fn a_new_upstream_alone_needs_no_check() {
        let recovery = |conninfo: &str, command: &str| Recovery {
            standby: true,
            settings: parameters(&[("primary_conninfo", conninfo), ("restore_command", command)]),
        };
        let of = |recovery: &Recovery| fingerprint(&parameters(&[("a", "b")]), Some(recovery), false);
        assert_eq!(of(&recovery("host=a", "x")), of(&recovery("host=b", "x")));
        assert_ne!(of(&recovery("host=a", "x")), of(&recovery("host=a", "y")));
        let named = |names: &str, ours| fingerprint(&parameters(&[(PARAMETER, names)]), None, ours);
        assert_eq!(named("a", true), named("b", true));
        assert_ne!(named("a", false), named("b", false));
    }
}
