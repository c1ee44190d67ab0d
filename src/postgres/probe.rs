//! Does a server that should be there go along with a new connection? Three probes that do not depend on each other, nor on
//! any connection that is open already: those are served on by their backends when the postmaster hangs.
//!
//! | probe | what it proves |
//! |---|---|
//! | the process is not stopped | somebody could answer at all |
//! | a connection is accepted and its first request answered | the postmaster turns and can start backends (as `pg_isready`) |
//! | a new session answers `SELECT 1` | backends get through their own start |

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    procfs::Stat,
    query::{Address, Monitor, QueryError, Target},
};

/// `SSLRequest` (PostgreSQL documentation, "Message Formats"): answered with one byte before anybody has to say who he is,
/// and closing the connection afterwards leaves no complaint in the log.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// How far a server goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its process is stopped.
    Stopped,
    /// It takes no connection, or says nothing on one.
    Nothing,
    /// It takes connections, but a new session gets no answer.
    Connection,
    /// A new session is answered, be it with a refusal.
    Session,
}

/// Whether the process is stopped (`SIGSTOP`); one that a debugger holds for a moment is not.
#[must_use]
pub fn is_stopped(pid: i32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.state == 'T')
}

/// Whether a new connection is accepted and answered.
pub async fn answers(target: &Target, limit: Duration) -> bool {
    let ask = async {
        match &target.address {
            Address::Socket(dir) => {
                let path = dir.join(format!(".s.PGSQL.{}", target.port));
                first_byte(UnixStream::connect(path).await?).await
            }
            Address::Tcp(host) => first_byte(TcpStream::connect((host.as_str(), target.port)).await?).await,
        }
    };
    matches!(timeout(limit, ask).await, Ok(Ok(())))
}

async fn first_byte(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(&SSL_REQUEST).await?;
    // `N`, `S`, or the beginning of an error: all of them are answers.
    stream.read_u8().await.map(drop)
}

/// All three probes, each with this limit.
pub async fn reach(monitor: &Monitor, pid: i32, limit: Duration) -> Reach {
    if is_stopped(pid) {
        return Reach::Stopped;
    }
    if !answers(&monitor.target(), limit).await {
        return Reach::Nothing;
    }
    match monitor.fresh_session(limit).await {
        Ok(()) => Reach::Session,
        Err(QueryError::Timeout { .. } | QueryError::ConnectFailed { .. }) => Reach::Connection,
        // An error is an answer.
        Err(_) => Reach::Session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::query::TlsOptions;

    fn target(dir: &std::path::Path) -> Target {
        Target {
            address: Address::Socket(dir.to_owned()),
            port: 5432,
            user: "u".into(),
            password: None,
            dbname: "d".into(),
            application_name: "a".into(),
            tls: TlsOptions::default(),
        }
    }

    #[tokio::test]
    async fn accepting_is_not_answering() {
        const LIMIT: Duration = Duration::from_millis(100);
        let dir = tempfile::tempdir().expect("a directory");
        let target = target(dir.path());
        assert!(!answers(&target, LIMIT).await, "nobody listens");
        let listener = tokio::net::UnixListener::bind(dir.path().join(".s.PGSQL.5432")).expect("bound");
        assert!(!answers(&target, LIMIT).await, "accepted by the kernel alone");
        let serve = async {
            // The one before is still in the queue.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 8];
                if stream.read_exact(&mut request).await.is_ok() && request == SSL_REQUEST {
                    let _gone = stream.write_all(b"N").await;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serve => {}
            answered = answers(&target, Duration::from_secs(5)) => assert!(answered),
        }
        let gone = reach(&Monitor::new(target), i32::MAX, LIMIT).await;
        assert_eq!(gone, Reach::Nothing);
    }

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        assert!(!is_stopped(i32::try_from(std::process::id()).expect("a pid")));
        assert!(!is_stopped(i32::MAX));
    }
}
