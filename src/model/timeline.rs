//! Timelines and their history, as PostgreSQL writes it (`*.history`) and as the `/history` key keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Lsn;

/// A timeline number; 0 means "unknown".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// No timeline known.
    pub const UNKNOWN: Self = Self(0);

    /// Name of the history file that starts this timeline, e.g. `00000002.history`.
    #[must_use]
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One row of `/history`: `[timeline, lsn, reason, timestamp, new_leader]`; the last two may be missing
/// in rows written by old software (contract: DCS layout §2, REST API §7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub lsn: Lsn,
    /// PostgreSQL's own words for why.
    pub reason: String,
    /// ISO 8601 time at which the next timeline began.
    pub timestamp: Option<String>,
    /// Member that began the next timeline.
    pub new_leader: Option<String>,
}

impl HistoryRow {
    /// Reads a row; `None` if it is not a list starting with two numbers and a text.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let row = value.as_array()?;
        let text = |i: usize| row.get(i).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            timeline: Timeline(u32::try_from(row.first()?.as_u64()?).ok()?),
            lsn: Lsn(row.get(1)?.as_u64()?),
            reason: text(2)?,
            timestamp: text(3),
            new_leader: text(4),
        })
    }

    /// The row as stored.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut row = vec![
            self.timeline.0.into(),
            self.lsn.0.into(),
            self.reason.clone().into(),
        ];
        if let Some(timestamp) = &self.timestamp {
            row.push(timestamp.clone().into());
            if let Some(leader) = &self.new_leader {
                row.push(leader.clone().into());
            }
        }
        Value::Array(row)
    }
}

/// Reads the text of a `*.history` file: one line per ended timeline, `tl <TAB> lsn <TAB> reason`.
/// Comments, blank lines and lines PostgreSQL itself would refuse are skipped
/// (PostgreSQL: `src/backend/access/transam/timeline.c`).
#[must_use]
pub fn parse_history_file(text: &str) -> Vec<HistoryRow> {
    let row = |line: &str| {
        let mut fields = line.trim().splitn(3, '\t');
        Some(HistoryRow {
            timeline: Timeline(fields.next()?.trim().parse().ok()?),
            lsn: fields.next()?.parse().ok()?,
            reason: fields.next().unwrap_or_default().trim().to_owned(),
            timestamp: None,
            new_leader: None,
        })
    };
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(row)
        .collect()
}

/// Where `timeline` ended according to the history of a later timeline.
#[must_use]
pub fn switch_point(history: &[HistoryRow], timeline: Timeline) -> Option<Lsn> {
    history
        .iter()
        .find(|row| row.timeline == timeline)
        .map(|row| row.lsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_history_file() {
        let rows = parse_history_file(
            "1\t0/3000148\tno recovery target specified\n# note\n\n2\t0/5000000\tbefore x\n",
        );
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].timeline, Timeline(1));
        assert_eq!(rows[1].reason, "before x");
        assert_eq!(switch_point(&rows, Timeline(2)), Some(Lsn(0x500_0000)));
        assert_eq!(switch_point(&rows, Timeline(3)), None);
    }

    #[test]
    fn keeps_short_rows_short() {
        let short: Value = serde_json::json!([1, 25_165_976, "no recovery target specified"]);
        let row = HistoryRow::from_json(&short).expect("valid row");
        assert_eq!(row.to_json(), short);
        let full: Value = serde_json::json!([1, 2, "r", "2026-01-05T08:10:00+00:00", "n2"]);
        assert_eq!(HistoryRow::from_json(&full).expect("valid row").to_json(), full);
        assert_eq!(HistoryRow::from_json(&serde_json::json!(["x"])), None);
    }
}
