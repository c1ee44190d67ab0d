//! The agent's end of the socket to init: arming the fence and noticing that init is gone.
//!
//! Lives here: taking the socket over from standard input, sending records. Does not live here: when
//! to arm (the lease decides), what the fence does ([`crate::init`]).
//!
//! An agent that runs without init (by hand, in a test) gets a guard that does nothing: it accepts
//! every record, init never goes away, and there is nothing to adopt.

use std::env;
use std::fs::File;
use std::future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::{dup2_stdin, getppid};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send, sockopt::socket_type};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::clock::Boottime;
use crate::init::message::{Deadline, Message, ParseDeadlineError};
use crate::init::{ADOPT, INIT};

/// Why the socket could not be taken over, or a record not be sent.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// `HOWDAH_INIT` names our parent, but standard input is not what init gives its agent.
    #[error("started by init (pid {init}), but standard input is not its socket")]
    NotTheSocket {
        /// The pid of init.
        init: i32,
    },
    /// The operating system refused to move the socket away from standard input.
    #[error("cannot take over the socket of init")]
    TakeOver(#[source] io::Error),
    /// `HOWDAH_ADOPT` is not what init writes.
    #[error("{ADOPT}")]
    Adopt(#[source] ParseDeadlineError),
    /// The record was not sent; what init was told before still counts. For arming this means that
    /// the deadline was not extended.
    #[error("cannot send to init")]
    Send(#[source] io::Error),
}

/// The agent's handle on the fence. Share it by reference; every method takes `&self`.
#[derive(Debug)]
pub struct Guard {
    /// `None`: no init.
    socket: Option<OwnedFd>,
    adopted: Option<Deadline>,
}

impl Guard {
    /// Takes fd 0 over if it is the socket given by init, and puts `/dev/null` in its place. To be
    /// called once, before anything reads standard input or starts a process.
    pub fn from_stdin() -> Result<Self, GuardError> {
        let parent = getppid().as_raw();
        // Inherited by some other way (a callback that calls howdah), the variable names no parent.
        let init = env::var(INIT).ok().and_then(|pid| pid.parse().ok());
        if init != Some(parent) {
            return Ok(Self::without_init());
        }
        let stdin = io::stdin();
        match socket_type(&stdin) {
            Ok(SocketType::SEQPACKET) => {}
            Ok(_) | Err(_) => return Err(GuardError::NotTheSocket { init: parent }),
        }
        let socket = stdin.as_fd().try_clone_to_owned().map_err(GuardError::TakeOver)?;
        let null = File::open("/dev/null").map_err(GuardError::TakeOver)?;
        dup2_stdin(null).map_err(|error| GuardError::TakeOver(error.into()))?;
        let adopted = match env::var(ADOPT) {
            Ok(text) => Some(text.parse().map_err(GuardError::Adopt)?),
            Err(_) => None,
        };
        Ok(Self {
            socket: Some(socket),
            adopted,
        })
    }

    /// A guard that does nothing.
    #[must_use]
    pub fn without_init() -> Self {
        Self {
            socket: None,
            adopted: None,
        }
    }

    /// Whether there is an init that fences.
    #[must_use]
    pub fn has_init(&self) -> bool {
        self.socket.is_some()
    }

    /// The lease under which the crashed predecessor of this agent was armed, if it was. Init goes
    /// by its deadline until [`Guard::arm`] or [`Guard::disarm`] says otherwise.
    #[must_use]
    pub fn adopted(&self) -> Option<Deadline> {
        self.adopted
    }

    /// From `until` on, init ends everything, unless told otherwise before. `token` is the lease, for
    /// the agent that may have to adopt it. Never waits: if init does not read, this fails.
    pub fn arm(&self, until: Boottime, token: i64) -> Result<(), GuardError> {
        self.send(Message::Deadline(Deadline { until, token }))
    }

    /// Nothing of this node can acknowledge a commit any more: no deadline. Never waits.
    pub fn disarm(&self) -> Result<(), GuardError> {
        self.send(Message::Disarm)
    }

    /// This agent is stopping by its own decision; if it dies on the way, init does not start
    /// another one. Never waits.
    pub fn stopping(&self) -> Result<(), GuardError> {
        self.send(Message::Stopping)
    }

    fn send(&self, message: Message) -> Result<(), GuardError> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match send(socket, &message.encode(), flags) {
                // A packet is sent whole or not at all.
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(GuardError::Send(error.into())),
            }
        }
    }

    /// As [`Guard::stopping`]; what this agent leaves behind goes on without init. Never waits.
    pub fn leaving(&self) -> Result<(), GuardError> {
        self.send(Message::Leaving)
    }

    /// Whether init is the first process of its container: then nothing outlives it.
    #[must_use]
    pub fn is_container(&self) -> bool {
        self.socket.is_some() && getppid().as_raw() == 1
    }

    /// Resolves when init has died; without init, never. Nobody fences then, so postgres must stop
    /// at once. Cancel-safe: it only looks. Needs a tokio runtime with I/O enabled.
    pub async fn init_gone(&self) {
        let Some(socket) = &self.socket else {
            return future::pending().await;
        };
        let watched = match watch(socket) {
            Ok(watched) => watched,
            Err(error) => {
                tracing::error!(%error, "cannot watch init; its end will be noticed when arming");
                return future::pending().await;
            }
        };
        loop {
            if watched.readable().await.is_err() {
                return;
            }
            let mut packet = [0; 64];
            let heard = watched.try_io(Interest::READABLE, || {
                Ok(recv(socket, &mut packet[..], RecvFlags::DONTWAIT)?)
            });
            match heard {
                // A later version of init may speak; we have nothing to hear.
                Ok((1.., _)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end, or ECONNRESET: init died with records unread.
                Ok((0, _)) | Err(_) => return,
            }
        }
    }
}

/// A descriptor of its own, so that two callers do not share one registration. The type is that of a
/// stream, but it is only asked for readiness, which is the same for packets.
fn watch(socket: &OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(socket.try_clone()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketFlags, socketpair};
    use tokio::time::timeout;

    use super::*;

    fn pair() -> io::Result<(Guard, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, inits) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((
            Guard {
                socket: Some(ours),
                adopted: None,
            },
            inits,
        ))
    }

    fn received(init: &OwnedFd) -> Option<Message> {
        let mut packet = [0; 64];
        let (length, _) = recv(init, &mut packet[..], RecvFlags::DONTWAIT).ok()?;
        Message::decode(&packet[..length]).ok()
    }

    const MOMENT: Boottime = Boottime(12);

    #[test]
    fn init_receives_what_the_agent_says() -> Result<(), Box<dyn std::error::Error>> {
        let (guard, init) = pair()?;
        guard.arm(MOMENT, -5)?;
        guard.disarm()?;
        guard.stopping()?;
        let armed = Message::Deadline(Deadline {
            until: MOMENT,
            token: -5,
        });
        assert_eq!(received(&init), Some(armed));
        assert_eq!(received(&init), Some(Message::Disarm));
        assert_eq!(received(&init), Some(Message::Stopping));
        assert_eq!(received(&init), None);
        Ok(())
    }

    #[test]
    fn arming_fails_instead_of_waiting_when_init_does_not_read() -> io::Result<()> {
        let (guard, _init) = pair()?;
        let refused = (0..1_000_000).find_map(|_| guard.arm(MOMENT, 0).err());
        assert!(
            matches!(&refused, Some(GuardError::Send(error)) if error.kind() == io::ErrorKind::WouldBlock),
            "{refused:?}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn the_end_of_init_is_noticed_also_with_records_unread() -> Result<(), Box<dyn std::error::Error>> {
        for unread in [false, true] {
            let (guard, init) = pair()?;
            if unread {
                guard.arm(MOMENT, 0)?;
            }
            let early = timeout(Duration::from_millis(20), guard.init_gone()).await;
            assert!(early.is_err(), "init is still there, unread {unread}");
            send(&init, b"something", SendFlags::empty())?;
            let early = timeout(Duration::from_millis(20), guard.init_gone()).await;
            assert!(early.is_err(), "init only said something, unread {unread}");
            drop(init);
            timeout(Duration::from_secs(5), guard.init_gone()).await?;
            assert!(matches!(guard.disarm(), Err(GuardError::Send(_))));
        }
        Ok(())
    }

    #[tokio::test]
    async fn without_init_everything_is_accepted_and_nothing_happens() -> Result<(), GuardError> {
        let guard = Guard::without_init();
        guard.arm(MOMENT, 0)?;
        guard.disarm()?;
        assert!(!guard.has_init());
        assert_eq!(guard.adopted(), None);
        let gone = timeout(Duration::from_millis(20), guard.init_gone()).await;
        assert!(gone.is_err());
        Ok(())
    }
}
