//! The output of a program, line by line, with bounds on everything.

use std::collections::VecDeque;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::command::Stream;

/// Lines kept for the error message.
const TAIL_LINES: usize = 20;
/// Longest line kept, in bytes; the rest is cut.
pub(super) const LINE_BYTES: usize = 8 * 1024;
/// Most bytes kept by `Command::capture`.
const CAPTURE_BYTES: usize = 4 * 1024 * 1024;

/// Where the lines of a program go: to the caller, the log, the result and the tail.
pub(super) struct Sink<'a, F> {
    pub(super) name: &'a str,
    pub(super) log: bool,
    pub(super) capture: bool,
    pub(super) stdout: String,
    pub(super) tail: VecDeque<String>,
    pub(super) on_line: &'a mut F,
}

impl<F: FnMut(Stream, &str) + Send> Sink<'_, F> {
    pub(super) fn line(&mut self, stream: Stream, line: Option<String>) {
        let Some(line) = line else { return };
        (self.on_line)(stream, &line);
        if self.capture && stream == Stream::Stdout {
            if self.stdout.len() + line.len() < CAPTURE_BYTES {
                self.stdout.push_str(&line);
                self.stdout.push('\n');
            }
            return;
        }
        if line.trim().is_empty() {
            return;
        }
        if self.log {
            tracing::info!(target: "program", program = self.name, "{line}");
        } else {
            tracing::debug!(target: "program", program = self.name, "{line}");
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

/// Splits a stream at `\n` and `\r` (progress displays), with a bound on the length of a line.
pub(super) struct Lines<R> {
    source: Option<R>,
    chunk: Vec<u8>,
    buffer: Vec<u8>,
    ready: VecDeque<String>,
    pub(super) ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(source: Option<R>) -> Self {
        let ended = source.is_none();
        Self {
            source,
            // On the heap: it would be part of every future that runs a program.
            chunk: vec![0; 8192],
            buffer: Vec::new(),
            ready: VecDeque::new(),
            ended,
        }
    }

    /// The next line; `None` when there is none now or the stream has ended. Cancel-safe: the only await is a
    /// single read.
    pub(super) async fn next(&mut self) -> Option<String> {
        if let Some(line) = self.ready.pop_front() {
            return Some(line);
        }
        let source = self.source.as_mut()?;
        let length = source.read(&mut self.chunk).await.unwrap_or(0);
        if length == 0 {
            // `ended` is looked at before `ready`, so the last line must go out with this call.
            self.ended = true;
            self.source = None;
            let rest = std::mem::take(&mut self.buffer);
            return (!rest.is_empty()).then(|| text(&rest));
        }
        for byte in &self.chunk[..length] {
            match byte {
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.buffer);
                    self.ready.push_back(text(&line));
                }
                byte if self.buffer.len() < LINE_BYTES => self.buffer.push(*byte),
                _ => {}
            }
        }
        self.ready.pop_front()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
