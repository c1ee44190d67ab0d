//! Where the data ends and on which timeline: the end of a shutdown checkpoint, the timeline a replica replays, the
//! local history, and timeline numbers that are in use elsewhere.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, SMALL, chain, lock};
use crate::{
    model::{ControlData, DbState, HistoryRow, Lsn, Timeline, parse_history_file},
    postgres::{
        archive,
        conninfo::Conninfo,
        control, files, pgpass,
        query::{LocalView, Where},
        waldump,
    },
};

/// The whole content of a file that only keeps a number free.
const RESERVED: &str = "# reserved by howdah\n";

/// Timelines the cluster has used: one more than each that ended. Older rows may have been cut off
/// (`max_timelines_history`), but timelines are numbered without gaps, so everything below is in use too.
fn in_use(history: &[HistoryRow]) -> Vec<Timeline> {
    let newest = history.iter().map(|row| row.timeline.0).max().unwrap_or(0);
    let Some(newest) = newest.checked_add(1) else {
        return Vec::new();
    };
    (newest.saturating_sub(RESERVED_MAX).max(1)..newest)
        .map(|number| Timeline(number + 1))
        .collect()
}

/// Nobody promotes a member that is this many timelines behind.
const RESERVED_MAX: u32 = 1000;

impl Instance {
    /// End of the shutdown checkpoint record of a cleanly stopped primary.
    pub async fn checkpoint_end(&self, control: &ControlData) -> Option<Lsn> {
        if let Some(end) = self.looked_up(control) {
            return end;
        }
        let file = self.control_file().await?;
        self.look_up(control, file.wal_segment_bytes).await
    }

    /// The last checkpoint record that was looked up, if it is this one.
    fn looked_up(&self, control: &ControlData) -> Option<Option<Lsn>> {
        let (at, end) = (*lock(&self.checkpoint_end))?;
        (at == control.checkpoint).then_some(end)
    }

    async fn look_up(&self, control: &ControlData, wal_segment_bytes: u64) -> Option<Lsn> {
        let end = match self.record(control.timeline, control.checkpoint).await {
            Ok(record) => waldump::record_end(record.lsn, record.total_bytes, wal_segment_bytes),
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "cannot tell where the shutdown checkpoint ends"
                );
                None
            }
        };
        *lock(&self.checkpoint_end) = Some((control.checkpoint, end));
        end
    }

    async fn record(&self, timeline: Timeline, at: Lsn) -> Result<waldump::Record, waldump::Error> {
        let cancel = CancellationToken::new();
        let record = waldump::record_at(&self.binaries, self.data_dir(), timeline, at, None, &cancel);
        // On the heap: this is part of the future of every turn of the loop.
        Box::pin(record).await
    }

    async fn control_file(&self) -> Option<control::ControlFile> {
        let cancel = CancellationToken::new();
        let read = control::read(&self.binaries, self.data_dir(), None, &cancel);
        Box::pin(read).await.ok()
    }

    /// The state in `pg_control`, without proof of its checksum; for looking often.
    #[must_use]
    pub fn peek(&self) -> Option<DbState> {
        control::peek(self.data_dir())
    }

    /// WAL files that wait for the archiver.
    #[must_use]
    pub fn unarchived(&self) -> usize {
        archive::ready(self.data_dir()).map_or(0, |segments| segments.len())
    }

    /// What a successor is measured by once this primary was shut down cleanly: the end of its data. With archiving the
    /// rest of the last segment is skipped right before the shutdown checkpoint; up to 16 MB of nothing must not count
    /// as a lag, so then it is where the data before that ends (contract: HA rules §10, common steps).
    pub async fn handed_over_at(&self) -> Option<Lsn> {
        let file = self.control_file().await?;
        let (control, segment) = (&file.control, file.wal_segment_bytes);
        if !control.state.is_clean() {
            return None;
        }
        if control.state == DbState::ShutDown
            && waldump::is_first(control.checkpoint, segment)
            && let Some(switch) = self.switch_before(control).await
        {
            return Some(switch);
        }
        let end = match self.looked_up(control) {
            Some(end) => end,
            None => self.look_up(control, segment).await,
        };
        Some(end.unwrap_or(control.end().1))
    }

    async fn switch_before(&self, control: &ControlData) -> Option<Lsn> {
        let checkpoint = self.record(control.timeline, control.checkpoint).await.ok()?;
        let before = self.record(control.timeline, checkpoint.prev).await.ok()?;
        before.is_switch().then_some(before.lsn)
    }

    /// Local timeline history and the time the timeline began.
    #[must_use]
    pub fn history(&self, timeline: Timeline) -> (Vec<HistoryRow>, String) {
        let path = self.data_dir().join("pg_wal").join(timeline.history_file());
        let rows = std::fs::read_to_string(&path)
            .map(|text| parse_history_file(&text))
            .unwrap_or_default();
        let written = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        let at = written
            .and_then(|time| jiff::Timestamp::try_from(time).ok())
            .unwrap_or_else(jiff::Timestamp::now);
        (rows, at.display_with_offset(jiff::tz::Offset::UTC).to_string())
    }

    /// Before a promotion: a member that promotes behind the cluster's timeline must not give its new timeline a
    /// number that was used already. Remembers the numbers in use; [`Instance::promote`] occupies them.
    pub fn reserve_timelines(&self, history: &Option<Vec<HistoryRow>>) -> Result<(), String> {
        *lock(&self.reserved) = in_use(history.as_deref().unwrap_or_default());
        Ok(())
    }

    /// PostgreSQL picks the first number without a history file (`findNewestTimeLine` in `timeline.c`), so there is
    /// one for each number in use. Only a comment is in it: a replica that looks for a newer timeline meanwhile finds
    /// it is no child of its own and stays where it is, while with real lines it would follow it. Not synced: after a
    /// crash of the system nothing has been promoted either.
    pub(super) fn occupy_timelines(&self) -> Result<(), String> {
        let numbers = lock(&self.reserved).clone();
        self.occupy(numbers)
    }

    /// A primary has a history file for every number up to its own timeline's: a replica on an older one asks for each
    /// of them before it follows (`WalRcvFetchTimeLineHistoryFiles` in `walreceiver.c`), and would ask for ever for the
    /// one of a timeline that only a former leader had. A replica that fetches such a file finds it is no child of its
    /// own timeline, and goes by the newest.
    pub(super) fn fill_timelines(&self, timeline: Timeline) {
        let first = timeline.0.saturating_sub(RESERVED_MAX).max(2);
        if let Err(error) = self.occupy((first..timeline.0).map(Timeline)) {
            warn!(error, "replicas on an older timeline may not be able to follow");
        }
    }

    fn occupy(&self, numbers: impl IntoIterator<Item = Timeline>) -> Result<(), String> {
        for number in numbers {
            let path = self.data_dir().join("pg_wal").join(number.history_file());
            let mut options = fs::OpenOptions::new();
            let made = options.write(true).create_new(true).mode(0o600).open(&path);
            let written = match made {
                Ok(mut file) => file.write_all(RESERVED.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                // Also the one just made, which may be empty.
                self.release_timelines(Timeline::UNKNOWN);
                return Err(format!("write {}: {error}", path.display()));
            }
            info!(file = %path.display(), "keeping a timeline number free that is in use elsewhere");
        }
        Ok(())
    }

    /// Removes those files from a replica: its start would take the newest of them for the timeline to follow and fail. A full disk or a crash may have left one shorter than it should be; PostgreSQL never
    /// writes an empty one.
    /// Those up to `reached` stay.
    pub(super) fn release_timelines(&self, reached: Timeline) {
        let needed: Vec<String> = (2..=reached.0)
            .map(|number| Timeline(number).history_file())
            .collect();
        let folder = self.data_dir().join("pg_wal");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A directory without pg_wal has other problems, told elsewhere.
            Err(_) => return,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default();
            let is_history = path.extension().is_some_and(|end| end == "history")
                && needed.iter().all(|needed| name != needed.as_str());
            if is_history
                && fs::read(&path).is_ok_and(|text| RESERVED.as_bytes().starts_with(&text))
                && let Err(error) = fs::remove_file(&path)
            {
                warn!(file = %path.display(), %error, "cannot remove a placeholder of ours");
            }
        }
    }

    /// Timeline a running replica replays: only the replication protocol tells it when nothing is being received
    /// (contract: PostgreSQL configuration §9, IDENTIFY_SYSTEM). Asked once per postmaster and pause in streaming.
    pub async fn replay_timeline(&self, view: &LocalView) -> Option<Timeline> {
        let Where::Standby(standby) = &view.place else {
            return None;
        };
        if standby.receiver.is_some() {
            *lock(&self.identified) = None;
            return None;
        }
        let cached = lock(&self.identified).clone();
        if let Some((started, timeline)) = cached
            && started == view.started
        {
            return Some(timeline);
        }
        let settings = self.settings();
        let socket = settings.socket_dir.to_string_lossy().into_owned();
        let conninfo = Conninfo::new()
            .with("host", socket.as_str())
            .with("port", settings.port.to_string())
            .with("user", settings.superuser.login.username.as_str())
            .with("dbname", settings.database.as_str())
            .with("connect_timeout", "2");
        let port = settings.port.to_string();
        let entry = pgpass::Entry {
            host: &socket,
            port: &port,
            login: &settings.superuser.login,
        };
        let passfile = files::neighbour(&settings.passfile, ".local");
        if let Err(error) = pgpass::write(&passfile, &[entry]) {
            warn!(error = chain(&error), "cannot write the password file");
            return None;
        }
        let cancel = CancellationToken::new();
        let ask = self
            .binaries
            .command("psql")
            .args(["-X", "-A", "-t", "-w", "-c", "IDENTIFY_SYSTEM", "-d"])
            // The mode of the connection is no keyword of a replica's conninfo, so it is added by hand.
            .arg(format!("{} replication=database", conninfo.dsn(self.binaries.major())))
            .env("PGPASSFILE", &passfile)
            .deadline(SMALL)
            .capture()
            .run(&cancel);
        // On the heap: this is part of the future of every turn of the loop.
        let timeline = match Box::pin(ask).await {
            Ok(output) => output
                .stdout
                .trim()
                .split('|')
                .nth(1)
                .and_then(|tl| tl.parse().ok())
                .map(Timeline),
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "cannot ask for the timeline being replayed"
                );
                None
            }
        };
        if let Some(timeline) = timeline {
            *lock(&self.identified) = Some((view.started.clone(), timeline));
        }
        timeline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parse_history_file;

    #[test]
    fn all_timelines_up_to_the_present_one_are_in_use() {
        let numbers = |text: &str| {
            in_use(&parse_history_file(text))
                .iter()
                .map(|t| t.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers("1\t0/100\tr\n2\t0/200\tr\n"), [2, 3]);
        // Older rows were cut off; the numbers are used all the same.
        assert_eq!(numbers("3\t0/200\tr\n"), [2, 3, 4]);
        assert!(numbers("").is_empty());
        let many = format!("{}\t0/200\tr\n", u32::MAX - 1);
        assert_eq!(numbers(&many).len(), RESERVED_MAX as usize);
    }
}
