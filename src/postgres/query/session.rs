//! One connection: where to, how it is set up, and that nothing on it waits for ever.

use std::{fmt, path::PathBuf, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_postgres::{Client, Config, NoTls, Statement, config::SslMode, types::Type};

use super::{
    error::QueryError,
    tls::{Attempt, TlsOptions},
};

/// Longest wait for a connection (contract: PostgreSQL configuration §9).
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Directory of its Unix socket.
    Socket(PathBuf),
    /// Host name or address.
    Tcp(String),
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: Address,
    /// Port (also part of the socket's name).
    pub port: u16,
    /// Role.
    pub user: String,
    /// Password, if it needs one.
    pub password: Option<String>,
    /// Database.
    pub dbname: String,
    /// Shown in pg_stat_activity, e.g. `Howdah n1`.
    pub application_name: String,
    /// How a TCP connection is encrypted; a Unix socket never is.
    pub tls: TlsOptions,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Socket(dir) => write!(f, "{}:{}", dir.display(), self.port),
            Address::Tcp(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{self}/{}", self.user, self.dbname)
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reads only.
    Observe,
    /// Changes things. With `synchronous_commit=local`, so that our housekeeping (roles, slots) never waits for
    /// standbys that may be the very thing being repaired.
    Command,
    /// A person's own statements, with the server's own settings.
    Person,
}

/// An open connection; closed when dropped, whatever the server does.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    /// The observation, prepared once per connection.
    pub(super) observe: Option<Statement>,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Waiting for a polite goodbye of a hung server would keep the socket open for ever.
        self.driver.abort();
    }
}

impl Session {
    /// Connects and sets the session up, within `limit`. `search_path` holds off lookalikes of system functions.
    pub(super) async fn open(
        target: &Target,
        purpose: Purpose,
        statement_limit: Duration,
        limit: Duration,
    ) -> Result<Self, QueryError> {
        let limit = limit.min(CONNECT_LIMIT);
        let deadline = Instant::now() + limit;
        let config = config(target, purpose, statement_limit, limit);
        let mut attempts = match &target.address {
            Address::Socket(_) => vec![Attempt::Plain],
            Address::Tcp(_) => target.tls.attempts().map_err(|source| QueryError::Tls {
                target: target.to_string(),
                source,
            })?,
        }
        .into_iter()
        .peekable();
        while let Some(attempt) = attempts.next() {
            match connect(&config, attempt, target, limit, deadline).await {
                // Mode prefer, as libpq: what fails with TLS (the handshake, or no matching line in pg_hba.conf) may
                // work without.
                Err(QueryError::ConnectFailed { .. } | QueryError::Auth { .. })
                    if attempts.peek().is_some() => {}
                done => return done,
            }
        }
        Err(QueryError::Timeout { limit })
    }

    /// Whether the connection is still usable.
    pub(super) fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    /// The prepared statement for `sql`, one per session.
    pub(super) async fn prepared(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = &self.observe {
            return Ok(statement.clone());
        }
        let none: &[Type] = &[];
        let statement = self.client.prepare_typed(sql, none).await?;
        self.observe = Some(statement.clone());
        Ok(statement)
    }
}

fn config(target: &Target, purpose: Purpose, statement_limit: Duration, limit: Duration) -> Config {
    let mut config = Config::new();
    match &target.address {
        Address::Socket(dir) => config.host_path(dir),
        Address::Tcp(host) => config.host(host),
    };
    config
        .port(target.port)
        .user(&target.user)
        .dbname(&target.dbname)
        .application_name(&target.application_name)
        .connect_timeout(limit);
    let ours = |more: &str| {
        format!(
            "-c statement_timeout={} -c search_path=pg_catalog \
             -c client_min_messages=error{more}",
            millis(statement_limit)
        )
    };
    match purpose {
        Purpose::Observe => config.options(ours("")),
        Purpose::Command => config.options(ours(" -c synchronous_commit=local")),
        Purpose::Person => &mut config,
    };
    if let Some(password) = &target.password {
        config.password(password);
    }
    config
}

async fn connect(
    config: &Config,
    attempt: Attempt,
    target: &Target,
    limit: Duration,
    deadline: Instant,
) -> Result<Session, QueryError> {
    let mut config = config.clone();
    // The driver of either connection ends with it; its error is also what the pending query gets. On the heap, because
    // a handshake would be part of the future of every turn of the loop.
    let (client, driver) = match attempt {
        Attempt::Plain => {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) =
                bounded(target, limit, deadline, Box::pin(config.connect(NoTls))).await?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
        Attempt::Tls(tls, mode) => {
            config.ssl_mode(mode);
            let (client, connection) =
                bounded(target, limit, deadline, Box::pin(config.connect(tls))).await?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
    };
    Ok(Session {
        client,
        observe: None,
        driver,
    })
}

/// Runs `work` until `deadline`; `limit` is what the error says.
pub(super) async fn bounded<T>(
    target: &Target,
    limit: Duration,
    deadline: Instant,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, QueryError> {
    match timeout_at(deadline, work).await {
        Ok(done) => done.map_err(|e| QueryError::from_driver(&target.to_string(), limit, e)),
        Err(_) => Err(QueryError::Timeout { limit }),
    }
}

/// Whole milliseconds, at least one: zero would mean "no limit" to PostgreSQL.
fn millis(limit: Duration) -> u128 {
    limit.as_millis().clamp(1, 2_147_483_647)
}
