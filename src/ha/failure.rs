//! Why a job did not do what it was begun for, as far as the next decision depends on it.

/// A failed job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was called off. Nothing is known about what would have come of it.
    #[error("{0}")]
    Cancelled(String),
    /// Postgres refuses its configuration: no other data would help.
    #[error("configuration: {0}")]
    Configuration(String),
    /// Another member was not ready for it yet. Nothing was changed.
    #[error("{0}")]
    NotYet(String),
    /// The operator's command `pre_promote` said no. Nothing was asked of postgres.
    #[error("{0}")]
    Vetoed(String),
    /// There was no space left for it.
    #[error("{0}")]
    DiskFull(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        // Programs run in a C locale, so these are the words of the C library; ours are the same.
        let full = ["No space left on device", "Disk quota exceeded"];
        if full.iter().any(|words| reason.contains(words)) {
            Self::DiskFull(reason)
        } else {
            Self::Failed(reason)
        }
    }
}

impl Failure {
    /// It says nothing against another attempt of the same kind.
    #[must_use]
    pub const fn proves_nothing(&self) -> bool {
        matches!(self, Self::Cancelled(_) | Self::NotYet(_))
    }
}
