//! A log writer that never makes its caller wait.
//!
//! Standard error is often a pipe to a log collector. When that hangs, a plain write hangs with it,
//! and an init that hangs in a log line is no fence. Here lines go through a bounded queue to a thread;
//! when the queue is full, lines are dropped and counted, and the count is logged later.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing_subscriber::fmt::MakeWriter;

use super::mask;
use crate::logfile::LogFile;

/// Lines in the queue before further ones are dropped.
const QUEUE: usize = 1024;

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Hand a clone to `tracing_subscriber::fmt().with_writer(…)`.
#[derive(Clone)]
pub struct LogWriter {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
    /// Members of every JSON object, each with a comma behind it.
    fields: Arc<str>,
}

impl LogWriter {
    /// Starts the thread, which has every signal blocked and writes to standard error.
    pub fn stderr() -> io::Result<Self> {
        Self::to(io::stderr())
    }

    /// The same, to a file.
    pub fn file(file: LogFile) -> io::Result<Self> {
        Self::to(file)
    }

    /// Adds these to every line that is a JSON object.
    #[must_use]
    pub fn with_fields(self, fields: &Map<String, Value>) -> Self {
        let each = fields.iter();
        let fields: String = each
            .map(|(name, value)| format!("{}:{value},", Value::from(name.as_str())))
            .collect();
        Self {
            fields: fields.into(),
            ..self
        }
    }

    fn to(mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = mpsc::sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        // Blocked before it starts and not by itself, so that no signal finds it unprepared.
        let before = nix::sys::signal::SigSet::thread_get_mask()?;
        mask::block()?;
        let started = thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&mut sink, &entries, &counter));
        before.thread_set_mask()?;
        started.map(|_| Self {
            queue,
            dropped,
            fields: Arc::from(""),
        })
    }

    /// Waits until what was logged so far is written, at most `bound`. Call it before the process
    /// exits.
    pub fn flush(&self, bound: Duration) {
        let (done, written) = mpsc::sync_channel(1);
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            // Either way there is nothing left to do but to exit.
            let _: Result<(), mpsc::RecvTimeoutError> = written.recv_timeout(bound);
        }
    }
}

fn write_all(sink: &mut impl Write, entries: &Receiver<Entry>, dropped: &AtomicU64) {
    for entry in entries {
        // A log that cannot be written has nowhere to say so.
        let _: io::Result<()> = match entry {
            Entry::Line(line) => sink.write_all(&line),
            Entry::Flush(done) => {
                let _: Result<(), _> = done.try_send(());
                sink.flush()
            }
        };
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _: io::Result<()> = writeln!(
                sink,
                "{lost} log lines dropped: the reader of the log was too slow"
            );
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let whole = match line.strip_prefix(b"{") {
            Some(rest) if !self.fields.is_empty() => [b"{", self.fields.as_bytes(), rest].concat(),
            _ => line.to_vec(),
        };
        if self.queue.try_send(Entry::Line(whole)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    /// Blocks in its first write until told otherwise.
    struct Stuck {
        go: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
        waited: bool,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if !self.waited {
                self.waited = true;
                let _: Result<(), mpsc::RecvError> = self.go.recv();
            }
            self.written.lock().map_err(|_| io::ErrorKind::Other)?.write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn fields_are_added_to_objects_and_to_nothing_else() -> io::Result<()> {
        let (release, go) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        release.send(()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let log = LogWriter::to(Stuck {
            go,
            written: Arc::clone(&written),
            waited: false,
        })?;
        let fields = serde_json::json!({"dc": "a", "rack": 7});
        let mut log = log.with_fields(fields.as_object().ok_or(io::ErrorKind::InvalidInput)?);
        log.write_all(b"{\"level\":\"INFO\"}\n")?;
        log.write_all(b"plain {}\n")?;
        log.flush(Duration::from_secs(5));
        let text = written.lock().map_err(|_| io::ErrorKind::Other)?.clone();
        assert_eq!(
            String::from_utf8_lossy(&text),
            "{\"dc\":\"a\",\"rack\":7,\"level\":\"INFO\"}\nplain {}\n"
        );
        Ok(())
    }

    #[test]
    fn a_reader_that_hangs_costs_lines_but_no_time() -> io::Result<()> {
        let (release, go) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let stuck = Stuck {
            go,
            written: Arc::clone(&written),
            waited: false,
        };
        let mut log = LogWriter::to(stuck)?;
        let start = Instant::now();
        for n in 0..3 * QUEUE {
            // As the formatter does: a whole line at a time.
            log.write_all(format!("line {n}\n").as_bytes())?;
        }
        log.flush(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        release.send(()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        // The queue is full until the thread catches up, and a full queue takes no flush.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            log.flush(Duration::from_secs(1));
            let text = written.lock().map_err(|_| io::ErrorKind::Other)?.clone();
            let text = String::from_utf8_lossy(&text).into_owned();
            if text.starts_with("line 0\n") && text.contains("log lines dropped") {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "written: {} bytes", text.len());
        }
    }
}
