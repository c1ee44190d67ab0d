//! Where a WAL record ends, found with `pg_waldump`: the end of the shutdown checkpoint tells whether a stopped
//! former primary went beyond the point where the new timeline begins (contract: HA rules §12b).

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::model::{Lsn, Timeline};

use super::{binaries::Binaries, command};

/// Size of a WAL page; other sizes need a PostgreSQL compiled for them.
const PAGE: u64 = 8192;
/// Header of every page but the first of a segment (`SizeOfXLogShortPHD`).
const SHORT_HEADER: u64 = 24;
/// Header of the first page of a segment (`SizeOfXLogLongPHD`).
const LONG_HEADER: u64 = 40;

/// One record as `pg_waldump` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Resource manager, e.g. `XLOG`.
    pub rmgr: String,
    /// Total length in bytes, without page headers.
    pub total_bytes: u64,
    /// Where it starts.
    pub lsn: Lsn,
    /// Where the record before it starts.
    pub prev: Lsn,
    /// What it is, e.g. `CHECKPOINT_SHUTDOWN redo …`.
    pub description: String,
}

/// Why the record is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// pg_waldump failed, e.g. because the segment is gone.
    #[error("read the WAL record at {lsn}")]
    Run {
        /// Where it should start.
        lsn: Lsn,
        /// What the program said.
        #[source]
        source: command::Error,
    },
    /// The output has no record for this position.
    #[error("there is no WAL record at {0}")]
    NoRecord(Lsn),
}

/// Reads the record that starts at `lsn`.
///
/// # Errors
/// See [`Error`].
pub async fn record_at(
    binaries: &Binaries,
    data_dir: &Path,
    timeline: Timeline,
    lsn: Lsn,
    identity: Option<(u32, u32)>,
    cancel: &CancellationToken,
) -> Result<Record, Error> {
    let command = binaries
        .command("pg_waldump")
        .arg("-p")
        .arg(data_dir.join("pg_wal"));
    let command = command.args(["-t", &timeline.to_string(), "-s", &lsn.to_string(), "-n", "1"]);
    let command = command
        .identity(identity)
        .capture()
        .quiet()
        .deadline(Duration::from_secs(30));
    let output = command
        .run(cancel)
        .await
        .map_err(|source| Error::Run { lsn, source })?;
    let found = output
        .stdout
        .lines()
        .find_map(parse_line)
        .filter(|record| record.lsn == lsn);
    found.ok_or(Error::NoRecord(lsn))
}

/// Reads one line of `pg_waldump`.
#[must_use]
pub fn parse_line(line: &str) -> Option<Record> {
    let rest = line.trim_start().strip_prefix("rmgr:")?;
    let (rmgr, rest) = rest.split_once("len (rec/tot):")?;
    let (lengths, rest) = rest.split_once(", tx:")?;
    let total_bytes = lengths.split_once('/')?.1.trim().parse().ok()?;
    let (_, rest) = rest.split_once("lsn:")?;
    let (lsn, rest) = rest.split_once(", prev")?;
    let (prev, rest) = rest.split_once(',')?;
    let (_, description) = rest.split_once("desc:")?;
    Some(Record {
        rmgr: rmgr.trim().to_owned(),
        total_bytes,
        lsn: lsn.trim().parse().ok()?,
        prev: prev.trim().parse().ok()?,
        description: description.trim().to_owned(),
    })
}

impl Record {
    /// The rest of its segment was left unused.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.rmgr == "XLOG" && self.description.starts_with("SWITCH")
    }
}

/// Whether a record that starts here may follow a switch of the WAL segment: it is the first of its segment.
#[must_use]
pub const fn is_first(start: Lsn, wal_segment_bytes: u64) -> bool {
    wal_segment_bytes > LONG_HEADER && start.0 % wal_segment_bytes == LONG_HEADER
}

/// Where a record ends, as PostgreSQL counts it (`EndRecPtr` in `xlogreader.c`): its bytes, padded to a multiple of
/// eight, flow around the headers of the pages it crosses. A record that fills its page ends at the page's end, not
/// behind the next header. `None` for an impossible start or segment size.
#[must_use]
pub fn record_end(start: Lsn, total_bytes: u64, wal_segment_bytes: u64) -> Option<Lsn> {
    let header = |position: u64| {
        if position.is_multiple_of(wal_segment_bytes) {
            LONG_HEADER
        } else {
            SHORT_HEADER
        }
    };
    if wal_segment_bytes < PAGE
        || !wal_segment_bytes.is_multiple_of(PAGE)
        || total_bytes == 0
        || total_bytes > 1 << 31
    {
        return None;
    }
    let page_start = start.0 - start.0 % PAGE;
    if !start.0.is_multiple_of(PAGE) && start.0 - page_start < header(page_start) {
        return None;
    }
    let mut remaining = total_bytes.next_multiple_of(8);
    let mut position = start.0;
    loop {
        if position.is_multiple_of(PAGE) {
            position = position.checked_add(header(position))?;
        }
        let room = PAGE - position % PAGE;
        if remaining <= room {
            return position.checked_add(remaining).map(Lsn);
        }
        remaining -= room;
        position = position.checked_add(room)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn reads_a_line() {
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/01752D40, prev 0/01752D10, desc: CHECKPOINT_SHUTDOWN redo 0/1752D40; tli 1; shutdown";
        let record = parse_line(line).expect("a record");
        assert_eq!(
            (record.rmgr.as_str(), record.total_bytes, record.lsn, record.prev),
            ("XLOG", 114, Lsn(0x175_2D40), Lsn(0x175_2D10))
        );
        assert!(!record.is_switch());
        let switch = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/030000D8, prev 0/030000A0, desc: SWITCH ";
        assert!(parse_line(switch).expect("a record").is_switch());
        assert!(is_first(Lsn(0x400_0028), SEGMENT) && !is_first(Lsn(0x400_00A0), SEGMENT));
        assert!(record.description.starts_with("CHECKPOINT_SHUTDOWN"));
        for line in [
            "",
            "rmgr:",
            "pg_waldump: error",
            "rmgr: X len (rec/tot): a/b, tx: 0, lsn: 0/1, desc: x",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }

    #[track_caller]
    fn check(start: u64, total: u64, end: u64) {
        assert_eq!(
            record_end(Lsn(start), total, SEGMENT),
            Some(Lsn(end)),
            "{start:X}+{total}"
        );
    }

    #[test]
    fn a_record_inside_a_page_ends_padded() {
        check(0x0300_0028, 114, 0x0300_0028 + 120);
        check(0x0300_0028, 120, 0x0300_0028 + 120);
    }

    #[test]
    fn a_record_flows_around_page_headers() {
        // 8 bytes left on the page: the other 112 come behind the short header.
        check(0x0300_1FF8, 114, 0x0300_2000 + 24 + 112);
        // The next page begins a segment: its header is longer.
        check(0x03FF_FFF8, 114, 0x0400_0000 + 40 + 112);
        // Two pages further.
        check(0x0300_1FF8, 8 + (8192 - 24) + 16, 0x0300_4000 + 24 + 16);
    }

    #[test]
    fn a_record_that_fills_its_page_ends_at_the_boundary() {
        check(0x0300_2000 - 120, 114, 0x0300_2000);
    }

    #[test]
    fn nonsense_has_no_end() {
        assert_eq!(record_end(Lsn(0x0300_0028), 0, SEGMENT), None);
        assert_eq!(record_end(Lsn(0x0300_0010), 114, SEGMENT), None);
        assert_eq!(record_end(Lsn(8), 114, 0), None);
        assert_eq!(record_end(Lsn(u64::MAX - 7), 1000, SEGMENT), None);
    }
}
