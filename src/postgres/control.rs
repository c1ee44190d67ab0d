//! Reading `pg_control` with PostgreSQL's own `pg_controldata`.

use std::{
    collections::HashMap,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::model::{ControlData, DbState, Lsn, SystemId, Timeline};

use super::{binaries::Binaries, command};

/// Why nothing is known about a data directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no `global/pg_control`.
    #[error("{} has no pg_control: it is no data directory, or a damaged one", data_dir.display())]
    Missing {
        /// The directory.
        data_dir: PathBuf,
    },
    /// `pg_controldata` failed.
    #[error("read pg_control")]
    Run(#[source] command::Error),
    /// The file is there, but its checksum or content is wrong.
    #[error("pg_control is damaged: {reason}")]
    Broken {
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// The data directory itself is at fault, not the attempt to read it.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Broken { .. })
    }
}

/// What `pg_controldata` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// What decisions need.
    pub control: ControlData,
    /// `Bytes per WAL segment`.
    pub wal_segment_bytes: u64,
    /// `Catalog version number`; names the folder of this version inside tablespaces.
    pub catalog_version: u32,
}

/// Reads the control file of a data directory.
///
/// # Errors
/// See [`Error`].
pub async fn read(
    binaries: &Binaries,
    data_dir: &Path,
    identity: Option<(u32, u32)>,
    cancel: &CancellationToken,
) -> Result<ControlFile, Error> {
    if matches!(data_dir.join("global/pg_control").try_exists(), Ok(false)) {
        return Err(Error::Missing {
            data_dir: data_dir.to_owned(),
        });
    }
    let command = binaries
        .command("pg_controldata")
        .env("LC_ALL", "C")
        .arg("-D")
        .arg(data_dir);
    let command = command
        .identity(identity)
        .capture()
        .quiet()
        .deadline(Duration::from_secs(30));
    let output = command.run(cancel).await.map_err(Error::Run)?;
    // Where the warning goes (stdout or stderr) depends on the version.
    parse(&format!("{}\n{}", output.tail, output.stdout))
}

/// The state alone, straight from the file and without its checksum: cheap enough to be asked many times a second.
/// Whoever acts on it has [`read`] confirm it. `None`: not readable, or of a version this program does not know.
#[must_use]
pub fn peek(data_dir: &Path) -> Option<DbState> {
    let mut head = [0; HEAD];
    let mut file = std::fs::File::open(data_dir.join("global/pg_control")).ok()?;
    file.read_exact(&mut head).ok()?;
    state_in(&head)
}

/// Bytes of `ControlFileData` (PostgreSQL: `pg_control.h`) up to the end of `state`.
const HEAD: usize = 20;

/// `system_identifier` (8 bytes), `pg_control_version` (4), `catalog_version_no` (4), `state` (4), in the byte order of
/// the host. The order has not changed since PostgreSQL 9.4; versions 14 to 18 have 1300 to 1800.
fn state_in(head: &[u8; HEAD]) -> Option<DbState> {
    let word = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
    if !(1300..1900).contains(&word(8)?) {
        return None;
    }
    Some(match word(16)? {
        0 => DbState::StartingUp,
        1 => DbState::ShutDown,
        2 => DbState::ShutDownInRecovery,
        3 => DbState::ShuttingDown,
        4 => DbState::InCrashRecovery,
        5 => DbState::InArchiveRecovery,
        6 => DbState::InProduction,
        _ => return None,
    })
}

/// Reads the output of `pg_controldata` (in the C locale).
///
/// # Errors
/// [`Error::Broken`] when a field is missing or nonsense, or the program warned about the checksum.
pub fn parse(text: &str) -> Result<ControlFile, Error> {
    let broken = |reason: String| Error::Broken { reason };
    if text.contains("checksum does not match") || text.contains("CRC checksum") {
        return Err(broken("its checksum does not match".into()));
    }
    let fields: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(k, v)| (k.trim(), v.trim()))
        .collect();
    let field = |name: &str| {
        fields
            .get(name)
            .copied()
            .ok_or_else(|| broken(format!("'{name}' is missing")))
    };
    let lsn = |name: &str| -> Result<Lsn, Error> {
        field(name)?
            .parse()
            .map_err(|error| broken(format!("{name}: {error}")))
    };
    let number = |name: &str| -> Result<u64, Error> {
        let text = field(name)?;
        text.parse()
            .map_err(|_| broken(format!("{name}: '{text}' is not a number")))
    };
    let small = |name: &str| -> Result<u32, Error> {
        u32::try_from(number(name)?).map_err(|_| broken(format!("{name} is out of range")))
    };
    let system_id = field("Database system identifier")?;
    if !SystemId::is_valid(system_id) {
        return Err(broken(format!("'{system_id}' is no system identifier")));
    }
    let state = field("Database cluster state")?;
    let control = ControlData {
        system_id: SystemId(system_id.to_owned()),
        state: db_state(state).ok_or_else(|| broken(format!("unknown cluster state '{state}'")))?,
        checkpoint: lsn("Latest checkpoint location")?,
        redo: lsn("Latest checkpoint's REDO location")?,
        timeline: Timeline(small("Latest checkpoint's TimeLineID")?),
        min_recovery_end: lsn("Minimum recovery ending location")?,
        min_recovery_timeline: Timeline(small("Min recovery ending loc's timeline")?),
        checksums: number("Data page checksum version")? != 0,
        wal_log_hints: field("wal_log_hints setting")? == "on",
        settings: settings(&fields),
    };
    let wal_segment_bytes = number("Bytes per WAL segment")?;
    if !wal_segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&wal_segment_bytes) {
        return Err(broken(format!(
            "WAL segments of {wal_segment_bytes} bytes do not exist"
        )));
    }
    Ok(ControlFile {
        control,
        wal_segment_bytes,
        catalog_version: small("Catalog version number")?,
    })
}

fn db_state(text: &str) -> Option<DbState> {
    Some(match text {
        "starting up" => DbState::StartingUp,
        "shut down" => DbState::ShutDown,
        "shut down in recovery" => DbState::ShutDownInRecovery,
        "shutting down" => DbState::ShuttingDown,
        "in crash recovery" => DbState::InCrashRecovery,
        "in archive recovery" => DbState::InArchiveRecovery,
        "in production" => DbState::InProduction,
        _ => return None,
    })
}

/// The settings a replica must not undercut, under their configuration names.
fn settings(fields: &HashMap<&str, &str>) -> Vec<(String, String)> {
    const NAMES: &[(&str, &str)] = &[
        ("max_connections", "max_connections setting"),
        ("max_worker_processes", "max_worker_processes setting"),
        ("max_wal_senders", "max_wal_senders setting"),
        ("max_prepared_transactions", "max_prepared_xacts setting"),
        ("max_locks_per_transaction", "max_locks_per_xact setting"),
    ];
    let known = |(name, field): &(&str, &str)| Some(((*name).to_owned(), (*fields.get(field)?).to_owned()));
    NAMES.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 14 to 18 print alike; the differences are lines this program does not read.
    const COMMON: &str = include_str!("fixtures/pg_controldata-15.txt");

    fn variant(from: &str, to: &str) -> String {
        assert!(COMMON.contains(from), "{from}");
        COMMON.replace(from, to)
    }

    #[test]
    fn reads_a_control_file() {
        let file = parse(COMMON).expect("valid");
        insta::assert_debug_snapshot!(file);
        assert_eq!(file.control.end(), (Timeline(1), Lsn(0x175_2D40)));
    }

    #[test]
    fn reads_what_other_versions_print() {
        let base = parse(COMMON).expect("valid").control;
        let seventeen = variant(
            "track_commit_timestamp setting:       off\n",
            "track_commit_timestamp setting:       off\nnew_in_17 setting:                    x\n",
        );
        let eighteen = variant(
            "Mock authentication nonce:",
            "Default char data signedness:         signed\nMock authentication nonce:",
        );
        let fourteen = variant("Blocks per segment of large relation: 131072\n", "");
        for text in [fourteen, seventeen, eighteen] {
            assert_eq!(parse(&text).expect("valid").control, base);
        }
    }

    #[test]
    fn every_state_is_known() {
        for (text, state) in [
            ("starting up", DbState::StartingUp),
            ("shut down in recovery", DbState::ShutDownInRecovery),
            ("shutting down", DbState::ShuttingDown),
            ("in crash recovery", DbState::InCrashRecovery),
            ("in archive recovery", DbState::InArchiveRecovery),
            ("in production", DbState::InProduction),
        ] {
            let line = format!("Database cluster state:               {text}\n");
            let file = parse(&variant(
                "Database cluster state:               shut down\n",
                &line,
            ));
            assert_eq!(file.expect("valid").control.state, state);
        }
    }

    #[test]
    fn the_state_is_found_in_the_file_itself() {
        let head = |version: u32, state: u32| {
            let mut head = [7; HEAD];
            head[8..12].copy_from_slice(&version.to_ne_bytes());
            head[16..20].copy_from_slice(&state.to_ne_bytes());
            state_in(&head)
        };
        assert_eq!(head(1300, 6), Some(DbState::InProduction));
        assert_eq!(head(1800, 1), Some(DbState::ShutDown));
        for (version, state) in [(1300, 7), (942, 1), (1900, 1)] {
            assert_eq!(head(version, state), None, "{version} {state}");
        }
        assert_eq!(peek(Path::new("/nowhere")), None);
    }

    #[test]
    fn damage_is_told_apart() {
        for text in [
            String::new(),
            "nonsense".to_owned(),
            format!("WARNING: Calculated CRC checksum does not match value stored in file.\n{COMMON}"),
            variant("7711513161556410640", "0"),
            variant(
                "Database cluster state:               shut down",
                "Database cluster state:               unrecognized status code",
            ),
            variant("0/1752D40", "zz"),
            variant(
                "Bytes per WAL segment:                16777216",
                "Bytes per WAL segment:                12345",
            ),
            variant(
                "Latest checkpoint's TimeLineID:       1",
                "Latest checkpoint's TimeLineID:       99999999999",
            ),
        ] {
            let error = parse(&text).expect_err("damaged");
            assert!(error.is_damage(), "{error}");
        }
    }
}
