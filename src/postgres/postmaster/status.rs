//! Follows the status line of `postmaster.pid` while a postmaster starts. The file is read on a blocking thread, so
//! a frozen disk can hold up this watch but not the owner's deadlines.

use std::{path::PathBuf, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::postgres::pidfile::{self, PidFile, PmStatus};

/// A running watch; ends when dropped.
#[derive(Debug)]
pub(super) struct StatusWatch {
    changes: mpsc::Receiver<PmStatus>,
    task: JoinHandle<()>,
}

impl Drop for StatusWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StatusWatch {
    /// Watches the file for `pid`. `stale` is the file's text from before the spawn: in a fresh container the new
    /// postmaster may well get the pid of the last one, whose file says "ready".
    pub(super) fn begin(data_dir: PathBuf, pid: i32, stale: Option<String>) -> Self {
        let (sender, changes) = mpsc::channel(4);
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let mut last = None;
            loop {
                let dir = data_dir.clone();
                let read = tokio::task::spawn_blocking(move || pidfile::read_text(&dir)).await;
                let text = read.ok().and_then(Result::ok).flatten();
                let status = text
                    .filter(|text| Some(text) != stale.as_ref())
                    .and_then(|text| PidFile::parse(&text))
                    .filter(|file| file.pid == pid)
                    .and_then(|file| file.status);
                if let Some(status) = status
                    && last != Some(status)
                {
                    last = Some(status);
                    if sender.send(status).await.is_err() || status == PmStatus::Ready {
                        return;
                    }
                }
                sleep(pause(begun.elapsed())).await;
            }
        });
        Self { changes, task }
    }

    /// The next change. Cancel-safe as `mpsc::Receiver::recv` is; pends for ever after the last change.
    pub(super) async fn next(&mut self) -> PmStatus {
        match self.changes.recv().await {
            Some(status) => status,
            None => std::future::pending().await,
        }
    }
}

/// Ordinary starts take a tenth of a second; a long recovery need not be looked at 200 times a second.
const fn pause(waited: Duration) -> Duration {
    Duration::from_millis(match waited.as_secs() {
        0..=4 => 5,
        5..=59 => 25,
        _ => 200,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn the_file_of_the_last_postmaster_is_not_believed_even_with_the_same_pid() {
        let dir = tempfile::tempdir().expect("temp dir");
        let write = |started: u32, status: &str| {
            let text = format!("17\n/data\n{started}\n5432\n/tmp\n*\n1 2\n{status}\n");
            fs::write(dir.path().join("postmaster.pid"), &text).expect("writable");
            text
        };
        let stale = write(100, "ready");
        let mut watch = StatusWatch::begin(dir.path().to_owned(), 17, Some(stale));
        // Let it see the stale file at least once.
        sleep(Duration::from_millis(30)).await;
        write(200, "starting");
        assert_eq!(watch.next().await, PmStatus::Starting);
        write(200, "ready");
        assert_eq!(watch.next().await, PmStatus::Ready);
    }
}
