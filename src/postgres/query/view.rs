//! The observation: one query, the row it returns, and its reading. PostgreSQL 14 to 18: whole catalog rows are
//! taken as JSON, so columns that only some versions have are simply absent.

use std::{collections::BTreeMap, fmt};

use serde::de::DeserializeOwned;
use tokio_postgres::{Row, types::FromSql};

use super::{
    QueryError,
    rows::{PendingSetting, Slot, WalReceiver, WalSender},
};
use crate::model::{Lsn, SystemId, Timeline};

/// Whether there is a WAL receiver is asked before the positions: what it brings in between they have. `r.standby` is asked once, so that the row is of one mind when a promotion comes in between. Times are UTC in the
/// form of the REST contract (`YYYY-MM-DD HH:MM:SS.ffffff+00:00`).
pub(super) const SQL: &str = r#"
SELECT r.standby,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id,
       pg_catalog.current_setting('server_version_num')::int AS version,
       pg_catalog.to_char(pg_catalog.pg_postmaster_start_time() AT TIME ZONE 'UTC',
                          'YYYY-MM-DD HH24:MI:SS.US"+00:00"') AS started,
       extract(epoch FROM pg_catalog.pg_postmaster_start_time())::float8 AS started_epoch,
       c.timeline_id AS checkpoint_timeline,
       CASE WHEN r.standby THEN
            EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walreceiver')
       END AS receives,
       (SELECT pg_catalog.to_jsonb(w) FROM pg_catalog.pg_stat_wal_receiver w) AS receiver,
       CASE WHEN NOT r.standby THEN pg_catalog.pg_current_wal_flush_lsn()::text END AS flush_lsn,
       CASE WHEN NOT r.standby THEN
            pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
       END AS wal_timeline,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()::text END AS replay_lsn,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_receive_lsn()::text END AS receive_lsn,
       CASE WHEN r.standby THEN pg_catalog.pg_is_wal_replay_paused() END AS paused,
       CASE WHEN r.standby THEN
            pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',
                               'YYYY-MM-DD HH24:MI:SS.US"+00:00"')
       END AS replayed,
       CASE WHEN r.standby THEN
            extract(epoch FROM pg_catalog.pg_last_xact_replay_timestamp())::float8
       END AS replayed_epoch,
       CASE WHEN r.standby THEN
            (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())
       END AS min_recovery_timeline,
       (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)) FROM pg_catalog.pg_stat_replication s) AS senders,
       (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)) FROM pg_catalog.pg_replication_slots s) AS slots,
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                   'name', name, 'setting', pg_catalog.current_setting(name), 'unit', unit))
          FROM pg_catalog.pg_settings WHERE pending_restart) AS pending,
       (SELECT pg_catalog.jsonb_object_agg(name, setting) FROM pg_catalog.pg_settings
         WHERE name IN ('max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions',
                        'max_locks_per_transaction')) AS limits,
       pg_catalog.current_setting('primary_conninfo') AS primary_conninfo,
       pg_catalog.current_setting('primary_slot_name') AS primary_slot_name,
       pg_catalog.current_setting('restore_command') AS restore_command,
       pg_catalog.current_setting('synchronous_standby_names') AS synchronous_standby_names,
       pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
       CASE WHEN NOT r.standby THEN
            (SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer' LIMIT 1)
       END AS checkpointer,
       CASE WHEN r.standby THEN
            (SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup' LIMIT 1)
       END AS startup
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r,
       pg_catalog.pg_control_checkpoint() c
"#;

/// What the local server said about itself at one moment.
#[derive(Clone, PartialEq)]
pub struct LocalView {
    /// Identity of the cluster.
    pub system_id: SystemId,
    /// `server_version_num`, e.g. 150008.
    pub version: u32,
    /// Start of the postmaster, UTC, `YYYY-MM-DD HH:MM:SS.ffffff+00:00`.
    pub started: String,
    /// The same in seconds since the epoch.
    pub started_epoch: f64,
    /// Timeline of the last checkpoint: lags behind after a promotion until that checkpoint is complete.
    pub checkpoint_timeline: Timeline,
    /// Timeline a standby replays, where it was asked for by other means than this query.
    pub replayed_timeline: Option<Timeline>,
    /// Primary or standby, with its positions.
    pub place: Where,
    /// Who receives WAL from here.
    pub senders: Vec<WalSender>,
    /// Replication slots.
    pub slots: Vec<Slot>,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<PendingSetting>,
    /// The settings a replica must not undercut, in force now.
    pub limits: BTreeMap<String, String>,
    /// In force now; may hold a password, hence not in `Debug`.
    pub primary_conninfo: String,
    /// In force now.
    pub primary_slot_name: String,
    /// In force now.
    pub restore_command: String,
    /// In force now.
    pub synchronous_standby_names: String,
    /// As a new session of ours gets it.
    pub synchronous_commit: String,
    /// What the checkpointer of a primary waits for.
    pub checkpointer: Option<String>,
}

/// Role and positions.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made per observation and none is stored in bulk"
)]
pub enum Where {
    /// Accepts writes.
    Primary(Primary),
    /// In recovery.
    Standby(Standby),
}

/// Positions of a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Flushed to disk up to here.
    pub flush_lsn: Lsn,
    /// Timeline being written.
    pub timeline: Timeline,
}

/// Positions of a standby.
#[derive(Debug, Clone, PartialEq)]
pub struct Standby {
    /// Replayed up to here.
    pub replay_lsn: Option<Lsn>,
    /// Received by streaming since the start up to here.
    pub receive_lsn: Option<Lsn>,
    /// Replay was paused by hand.
    pub paused: bool,
    /// Commit time of the last replayed transaction, UTC, in the form of `LocalView::started`.
    pub replayed: Option<String>,
    /// The same in seconds since the epoch.
    pub replayed_epoch: Option<f64>,
    /// Timeline up to which recovery must go to be consistent; 0 if unknown.
    pub min_recovery_timeline: Timeline,
    /// Nothing says yet that it has replayed all the WAL it was started with, so it may have more than its positions say.
    /// Its consistent point can come long before that.
    pub replaying: bool,
    /// More WAL may come in: there is a WAL receiver, connected or not, or one is configured.
    pub receiving: bool,
    /// Present while the WAL receiver is connected.
    pub receiver: Option<WalReceiver>,
}

impl Standby {
    /// What the REST contract calls `received_location`: written by the receiver, else received, else replayed.
    #[must_use]
    pub fn received(&self) -> Option<Lsn> {
        let written = self.receiver.as_ref().and_then(|r| r.written_lsn);
        let received = written.max(self.receive_lsn);
        received.or(self.replay_lsn)
    }

    /// Furthest point this standby has, received or (from an archive) replayed.
    #[must_use]
    pub fn reach(&self) -> Option<Lsn> {
        self.received().max(self.replay_lsn)
    }

    /// Connected and receiving.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.receiver
            .as_ref()
            .is_some_and(|receiver| receiver.status == "streaming")
    }
}

impl LocalView {
    /// Whether it is in recovery.
    #[must_use]
    pub const fn in_recovery(&self) -> bool {
        matches!(self.place, Where::Standby(_))
    }

    /// Timeline being written or followed, as well as it is known.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        match &self.place {
            Where::Primary(primary) => primary.timeline,
            Where::Standby(standby) => {
                let received = standby.receiver.as_ref().and_then(|r| r.received_tli);
                received
                    .unwrap_or_default()
                    .max(self.replayed_timeline.unwrap_or_default())
                    .max(standby.min_recovery_timeline)
                    .max(self.checkpoint_timeline)
            }
        }
    }
}

/// What the startup process waits for once pg_wal has no more (PostgreSQL: `WaitForWALToBecomeAvailable`); before
/// that it reads one source after the other without a pause.
fn waits_for_wal(event: &str) -> bool {
    matches!(event, "RecoveryWalStream" | "RecoveryRetrieveRetryInterval")
}

impl LocalView {
    /// Reads the row of [`SQL`].
    pub(super) fn from_row(row: &Row) -> Result<Self, QueryError> {
        let standby: bool = get(row, "standby")?;
        let place = if standby {
            let receive_lsn = get_lsn(row, "receive_lsn")?;
            let startup: Option<String> = get(row, "startup")?;
            Where::Standby(Standby {
                replay_lsn: get_lsn(row, "replay_lsn")?,
                receive_lsn,
                replaying: receive_lsn.is_none() && !startup.is_some_and(|event| waits_for_wal(&event)),
                paused: get::<Option<bool>>(row, "paused")?.unwrap_or(false),
                replayed: get(row, "replayed")?,
                replayed_epoch: get(row, "replayed_epoch")?,
                min_recovery_timeline: get_timeline(row, "min_recovery_timeline")?,
                receiving: get::<Option<bool>>(row, "receives")?.unwrap_or(false)
                    || !get::<String>(row, "primary_conninfo")?.is_empty(),
                receiver: get_json(row, "receiver")?,
            })
        } else {
            let digits: String = get(row, "wal_timeline")?;
            Where::Primary(Primary {
                flush_lsn: get_lsn(row, "flush_lsn")?.unwrap_or_default(),
                timeline: hex_timeline(&digits, "wal_timeline")?,
            })
        };
        let version: i32 = get(row, "version")?;
        Ok(Self {
            system_id: SystemId(get(row, "system_id")?),
            version: version.unsigned_abs(),
            started: get(row, "started")?,
            started_epoch: get(row, "started_epoch")?,
            checkpoint_timeline: get_timeline(row, "checkpoint_timeline")?,
            replayed_timeline: None,
            place,
            senders: get_json(row, "senders")?.unwrap_or_default(),
            slots: get_json(row, "slots")?.unwrap_or_default(),
            pending_restart: get_json(row, "pending")?.unwrap_or_default(),
            limits: get_json(row, "limits")?.unwrap_or_default(),
            primary_conninfo: get(row, "primary_conninfo")?,
            primary_slot_name: get(row, "primary_slot_name")?,
            restore_command: get(row, "restore_command")?,
            synchronous_standby_names: get(row, "synchronous_standby_names")?,
            synchronous_commit: get(row, "synchronous_commit")?,
            checkpointer: get(row, "checkpointer")?,
        })
    }
}

impl fmt::Debug for LocalView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalView")
            .field("system_id", &self.system_id)
            .field("version", &self.version)
            .field("started", &self.started)
            .field("checkpoint_timeline", &self.checkpoint_timeline)
            .field("place", &self.place)
            .field("senders", &self.senders)
            .field("slots", &self.slots)
            .field("pending_restart", &self.pending_restart)
            .finish_non_exhaustive()
    }
}

/// A column by name.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &'static str) -> Result<T, QueryError> {
    row.try_get(column).map_err(|source| QueryError::Decode {
        column,
        source: Box::new(source),
    })
}

fn get_json<T: DeserializeOwned>(row: &Row, column: &'static str) -> Result<Option<T>, QueryError> {
    let value: Option<serde_json::Value> = get(row, column)?;
    value
        .map(serde_json::from_value)
        .transpose()
        .map_err(|source| QueryError::Decode {
            column,
            source: Box::new(source),
        })
}

pub(super) fn get_lsn(row: &Row, column: &'static str) -> Result<Option<Lsn>, QueryError> {
    let text: Option<&str> = get(row, column)?;
    text.map(str::parse)
        .transpose()
        .map_err(|source| QueryError::Decode {
            column,
            source: Box::new(source),
        })
}

/// PostgreSQL shows timelines as signed integers.
pub(super) fn get_timeline(row: &Row, column: &'static str) -> Result<Timeline, QueryError> {
    let number: Option<i32> = get(row, column)?;
    Ok(Timeline(number.unwrap_or(0).cast_unsigned()))
}

/// The first eight digits of a WAL file's name.
pub(super) fn hex_timeline(digits: &str, column: &'static str) -> Result<Timeline, QueryError> {
    let number = u32::from_str_radix(digits, 16).map_err(|source| QueryError::Decode {
        column,
        source: Box::new(source),
    })?;
    Ok(Timeline(number))
}
