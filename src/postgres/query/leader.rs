//! One look at the leader's server before following, rewinding or cloning from it.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    QueryError, Target,
    session::{Purpose, Session, bounded},
    view::{get, get_lsn, get_timeline, hex_timeline},
};
use crate::model::{HistoryRow, Lsn, SystemId, Timeline, parse_history_file};

/// Needs EXECUTE on `pg_read_binary_file(text, bigint, bigint, boolean)` only, which the rewind role has (contract:
/// PostgreSQL configuration §9). A standby leader cannot name its WAL file, so its timeline comes from pg_control.
const SQL: &str = "
SELECT r.standby,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id,
       CASE WHEN NOT r.standby THEN
            pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
       END AS wal_timeline,
       greatest(c.timeline_id,
                (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())) AS control_timeline,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_flush_lsn() END::text AS flushed
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r,
       pg_catalog.pg_control_checkpoint() c";

/// A history file has one short line per timeline; nobody gets near this many bytes.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// What the leader's server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderProbe {
    /// Identity of its cluster.
    pub system_id: SystemId,
    /// Still (or again) a standby: do not follow it as a primary.
    pub in_recovery: bool,
    /// Timeline it writes or follows.
    pub timeline: Timeline,
    /// Flushed up to here (a standby: replayed).
    pub flushed: Lsn,
    /// Timeline of its control file, which is what pg_rewind goes by; behind the other one until the first checkpoint
    /// after a promotion.
    pub control_timeline: Timeline,
    /// Text of that timeline's history file; none for timeline 1.
    pub history_text: Option<String>,
}

impl LeaderProbe {
    /// The history, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<HistoryRow> {
        parse_history_file(self.history_text.as_deref().unwrap_or_default())
    }
}

/// Connects, looks, disconnects; at most `limit` in all.
///
/// # Errors
/// See [`QueryError`].
pub async fn leader_probe(target: &Target, limit: Duration) -> Result<LeaderProbe, QueryError> {
    let deadline = Instant::now() + limit;
    let session = Box::pin(Session::open(target, Purpose::Observe, limit, limit)).await?;
    let query = session.client.query_one(SQL, &[]);
    let row = bounded(target, limit, deadline, query).await?;
    let in_recovery: bool = get(&row, "standby")?;
    let digits: Option<String> = get(&row, "wal_timeline")?;
    let control_timeline = get_timeline(&row, "control_timeline")?;
    let timeline = match digits {
        Some(digits) => hex_timeline(&digits, "wal_timeline")?,
        None => control_timeline,
    };
    let mut history_text = None;
    if timeline > Timeline(1) {
        let sql = format!(
            "SELECT pg_catalog.pg_read_binary_file('pg_wal/{}', 0, {HISTORY_BYTES_MAX}, true) AS history",
            timeline.history_file()
        );
        let query = session.client.query_one(&sql, &[]);
        let row = bounded(target, limit, deadline, query).await?;
        let bytes: Option<Vec<u8>> = get(&row, "history")?;
        history_text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(LeaderProbe {
        system_id: SystemId(get(&row, "system_id")?),
        in_recovery,
        timeline,
        flushed: get_lsn(&row, "flushed")?.unwrap_or_default(),
        control_timeline,
        history_text,
    })
}
