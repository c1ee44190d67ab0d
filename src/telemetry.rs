//! Logging: to standard error, plain or JSON, with a level that can be changed while running.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// What SIGUSR1 switches to and back from.
const DEBUG: &str = "howdah=debug,info";

/// Shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Changes the level at run time.
#[derive(Debug)]
pub struct LevelHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// As configured.
    base: Mutex<String>,
    /// Asked for over the REST API, over what is configured.
    asked: Mutex<Option<String>>,
    debugging: AtomicBool,
}

impl LevelHandle {
    /// Switches between the configured level and debug; returns the directive now in force.
    pub fn toggle_debug(&self) -> String {
        let debug = !self.debugging.fetch_xor(true, Ordering::Relaxed);
        let directive = if debug { DEBUG.to_owned() } else { self.wanted() };
        self.use_directive(&directive);
        directive
    }

    /// Takes these directives over what is configured; `None` goes back to that. Ends debugging by signal. Returns what is
    /// in force now.
    pub fn ask(&self, directives: Option<String>) -> String {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = directives;
        self.debugging.store(false, Ordering::Relaxed);
        let wanted = self.wanted();
        self.use_directive(&wanted);
        wanted
    }

    /// The directives in force.
    #[must_use]
    pub fn in_force(&self) -> String {
        match self.debugging.load(Ordering::Relaxed) {
            true => DEBUG.to_owned(),
            false => self.wanted(),
        }
    }

    fn wanted(&self) -> String {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        asked.unwrap_or_else(|| self.base().clone())
    }

    /// One that changes nothing, for tests of others.
    #[cfg(test)]
    pub(crate) fn detached(level: &str) -> Self {
        let (_, filter) = reload::Layer::new(filter(level));
        Self::of(filter, level)
    }

    fn of(filter: reload::Handle<EnvFilter, Registry>, level: &str) -> Self {
        Self {
            filter,
            base: Mutex::new(level.to_owned()),
            asked: Mutex::new(None),
            debugging: AtomicBool::new(false),
        }
    }

    /// Takes another configured level; it is in force at once unless debugging was switched on.
    pub fn set(&self, level: &str) {
        level.clone_into(&mut self.base());
        if !self.debugging.load(Ordering::Relaxed) {
            self.use_directive(&self.wanted());
        }
    }

    fn use_directive(&self, directive: &str) {
        // The only failure is a subscriber that is gone, and then there is nobody to tell.
        let _gone = self.filter.reload(filter(directive));
    }

    /// A poisoned lock only means that another thread panicked while it copied a text.
    fn base(&self) -> MutexGuard<'_, String> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Installs the subscriber. `level` is a level or a list of directives (`info`, `howdah=debug,warn`).
pub fn install(level: &str, format: Format) -> LevelHandle {
    install_with(level, format, std::io::stderr)
}

/// The same, writing elsewhere.
pub fn install_with<W>(level: &str, format: Format, writer: W) -> LevelHandle
where
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter_layer, handle) = reload::Layer::new(filter(level));
    let layer = match format {
        Format::Plain => fmt::layer().with_writer(writer).with_ansi(false).boxed(),
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(writer)
            .boxed(),
    };
    // A second subscriber in one process only happens in tests; the first stays.
    let _already = tracing_subscriber::registry()
        .with(filter_layer)
        .with(layer)
        .try_init();
    LevelHandle::of(handle, level)
}

/// Unknown directives fall back to `info` rather than to silence.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level.to_ascii_lowercase()).unwrap_or_else(|_| EnvFilter::new("info"))
}
