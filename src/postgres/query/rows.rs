//! Rows of the statistics views that the observation carries as JSON. A column unknown here is skipped, one that a
//! version lacks keeps its default.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, Timeline};

/// A row of `pg_stat_wal_receiver`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WalReceiver {
    /// `streaming`, `waiting`, `starting`, …
    pub status: String,
    /// Written to the operating system up to here.
    #[serde(deserialize_with = "lsn")]
    pub written_lsn: Option<Lsn>,
    /// Flushed to disk up to here.
    #[serde(deserialize_with = "lsn")]
    pub flushed_lsn: Option<Lsn>,
    /// Timeline of what was received last.
    pub received_tli: Option<Timeline>,
    /// Last position the sender reported.
    #[serde(deserialize_with = "lsn")]
    pub latest_end_lsn: Option<Lsn>,
    /// Slot in use.
    pub slot_name: Option<String>,
    /// Host it is connected to.
    pub sender_host: Option<String>,
    /// Port it is connected to.
    pub sender_port: Option<i32>,
    /// Connection string with the password masked by PostgreSQL.
    pub conninfo: Option<String>,
}

impl fmt::Debug for WalReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalReceiver")
            .field("status", &self.status)
            .field("written_lsn", &self.written_lsn)
            .field("received_tli", &self.received_tli)
            .field("sender_host", &self.sender_host)
            .field("sender_port", &self.sender_port)
            .field("slot_name", &self.slot_name)
            .finish_non_exhaustive()
    }
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WalSender {
    /// Its process.
    pub pid: Option<i32>,
    /// Login of the receiver.
    pub usename: Option<String>,
    /// Its name: for our members the member's name.
    pub application_name: String,
    /// Its address; absent for a Unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`, …
    pub state: Option<String>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: Option<String>,
    /// Place in the list of synchronous standbys, 0 for none.
    pub sync_priority: Option<i32>,
    /// Sent up to here.
    #[serde(deserialize_with = "lsn")]
    pub sent_lsn: Option<Lsn>,
    /// Written there up to here.
    #[serde(deserialize_with = "lsn")]
    pub write_lsn: Option<Lsn>,
    /// Flushed there up to here.
    #[serde(deserialize_with = "lsn")]
    pub flush_lsn: Option<Lsn>,
    /// Replayed there up to here.
    #[serde(deserialize_with = "lsn")]
    pub replay_lsn: Option<Lsn>,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Slot {
    /// Name.
    pub slot_name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    /// Output plugin of a logical slot.
    pub plugin: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Ends with its session.
    pub temporary: bool,
    /// In use.
    pub active: bool,
    /// Oldest WAL it keeps.
    #[serde(deserialize_with = "lsn")]
    pub restart_lsn: Option<Lsn>,
    /// Confirmed by the consumer of a logical slot.
    #[serde(deserialize_with = "lsn")]
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Oldest transaction it keeps (physical slots with feedback).
    pub xmin: Option<serde_json::Value>,
    /// Oldest catalog transaction it keeps.
    pub catalog_xmin: Option<serde_json::Value>,
    /// Meant to be synchronised to standbys (PostgreSQL 17).
    pub failover: bool,
    /// Synchronised from a primary (PostgreSQL 17).
    pub synced: bool,
}

/// A setting whose file value differs until the next restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSetting {
    /// Name.
    pub name: String,
    /// Value in force, with unit.
    pub setting: String,
}

fn lsn<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom))
        .transpose()
}
