//! Where the data ends and on which timeline: the end of a shutdown checkpoint, the timeline a replica replays, the
//! local history, and timeline numbers that are in use elsewhere.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, SMALL, chain, lock};
use crate::{
    model::{ControlData, HistoryRow, Lsn, Timeline, parse_history_file},
    postgres::{
        conninfo::Conninfo,
        control, files, pgpass,
        query::{LocalView, Where},
        waldump,
    },
};

impl Instance {
    /// End of the shutdown checkpoint record of a cleanly stopped primary.
    pub async fn checkpoint_end(&self, control: &ControlData) -> Option<Lsn> {
        let cached = *lock(&self.checkpoint_end);
        if let Some((at, end)) = cached
            && at == control.checkpoint
        {
            return end;
        }
        let cancel = CancellationToken::new();
        let file = control::read(&self.binaries, self.data_dir(), None, &cancel)
            .await
            .ok()?;
        let (timeline, lsn) = (control.timeline, control.checkpoint);
        let record = waldump::record_at(&self.binaries, self.data_dir(), timeline, lsn, None, &cancel).await;
        let end = match record {
            Ok(record) => waldump::record_end(record.lsn, record.total_bytes, file.wal_segment_bytes),
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

    /// Where the data certainly ends, if it was stopped cleanly.
    pub async fn clean_end(&self) -> Option<Lsn> {
        let control = self.control().await.ok()?;
        if !control.state.is_clean() {
            return None;
        }
        Some(self.checkpoint_end(&control).await.unwrap_or(control.end().1))
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
    /// number that was used already. PostgreSQL picks the first number without a history file
    /// (`findNewestTimeLine`), so the files of the numbers in use are put there.
    pub fn reserve_timelines(&self, history: &Option<Vec<HistoryRow>>) -> Result<(), String> {
        let Some(rows) = history else { return Ok(()) };
        for (index, last) in rows.iter().enumerate() {
            let name = Timeline(last.timeline.0.saturating_add(1)).history_file();
            let path = self.data_dir().join("pg_wal").join(name);
            if path.exists() {
                continue;
            }
            let lines = rows.iter().take(index + 1);
            let text: String = lines
                .map(|row| format!("{}\t{}\t{}\n", row.timeline, row.lsn, row.reason))
                .collect();
            files::write_atomic(&path, text.as_bytes(), 0o600).map_err(|error| chain(&error))?;
            info!(file = %path.display(), "reserved a timeline number that is in use elsewhere");
        }
        Ok(())
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
        let timeline = match ask.await {
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
