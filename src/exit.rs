//! Why the process ended, as an exit status. One table for init, agent and CLI; README repeats it.
//!
//! The numbers follow `sysexits.h` where it has a word for the case, so that 64 is "usage" as everywhere.

/// The reason a `howdah` process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Stopped on request; a leader has handed over or released its lock.
    Ok = 0,
    /// A command failed for an operational reason (CLI only).
    Failed = 1,
    /// Bad command line, as everywhere; nothing was done.
    Usage = 2,
    /// Bad environment; every mistake was printed.
    Config = 64,
    /// The data directory belongs to another cluster (system identifier) or another major version.
    ForeignData = 65,
    /// A service this process needs cannot be reached and waiting makes no sense.
    Unavailable = 69,
    /// A bug, or the agent died more often than the restart budget allows.
    Internal = 70,
    /// The operating system refused something basic (fork, socket, missing program).
    Os = 71,
    /// Bootstrap of a new cluster failed (initdb, init scripts); nothing was deleted.
    Bootstrap = 73,
    /// Reading or writing the data directory failed (full disk, I/O error).
    Io = 74,
    /// Wrong owner or mode of the data directory, or a port already in use.
    Permission = 77,
    /// Another running member has the same name.
    DuplicateName = 78,
    /// Fenced: the fence deadline passed without a renewal, so everything was killed.
    Fenced = 80,
    /// Stopped, but postgres had to be killed or the lock was left to expire.
    Dirty = 81,
}

impl Exit {
    /// Every reason, in the order of their numbers.
    pub const ALL: &[Self] = &[
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Config,
        Self::ForeignData,
        Self::Unavailable,
        Self::Internal,
        Self::Os,
        Self::Bootstrap,
        Self::Io,
        Self::Permission,
        Self::DuplicateName,
        Self::Fenced,
        Self::Dirty,
    ];

    /// The numeric exit status.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether an agent that ended with this status meant it. Any other end (a signal, a panic, an
    /// unknown code) is a crash: init starts the agent again while its budget lasts.
    #[must_use]
    pub fn deliberate(code: i32) -> Option<Self> {
        [
            Self::Ok,
            Self::Config,
            Self::ForeignData,
            Self::Unavailable,
            Self::Os,
            Self::Bootstrap,
            Self::Io,
            Self::Permission,
            Self::DuplicateName,
            Self::Dirty,
        ]
        .into_iter()
        .find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete() {
        // A new variant does not compile here until it is added, and then belongs into the list too.
        let place = |exit: &Exit| match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Config => 3,
            Exit::ForeignData => 4,
            Exit::Unavailable => 5,
            Exit::Internal => 6,
            Exit::Os => 7,
            Exit::Bootstrap => 8,
            Exit::Io => 9,
            Exit::Permission => 10,
            Exit::DuplicateName => 11,
            Exit::Fenced => 12,
            Exit::Dirty => 13,
        };
        let places: Vec<usize> = Exit::ALL.iter().map(place).collect();
        assert_eq!(places, (0..14).collect::<Vec<_>>());
    }
}
