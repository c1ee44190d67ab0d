//! What can go wrong with a query, sorted by what it says about the server.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::tls::TlsError;

/// A failed query.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server lives but takes no connections now: starting up, shutting down, recovering.
    #[error("the server accepts no connections: {message}")]
    NotAccepting {
        /// Its own words.
        message: String,
    },
    /// No connection: nobody listens, or it broke.
    #[error("cannot connect to {target}")]
    ConnectFailed {
        /// Where to.
        target: String,
        /// Reason.
        source: tokio_postgres::Error,
    },
    /// The account's TLS options cannot be used; nothing was sent.
    #[error("cannot connect to {target}")]
    Tls {
        /// Where to.
        target: String,
        /// Reason.
        source: TlsError,
    },
    /// The server was reached and did not answer in time, or cancelled the statement.
    #[error("no answer within {limit:?}")]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// Wrong password, missing role or no matching pg_hba.conf line.
    #[error("authentication failed: {message}")]
    Auth {
        /// The server's words.
        message: String,
    },
    /// The server refused the statement.
    #[error("{code}: {message}")]
    Sql {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The answer does not have the expected form.
    #[error("unexpected answer in column {column}")]
    Decode {
        /// Name of the column.
        column: &'static str,
        /// Reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl QueryError {
    /// Sorts an error of the driver.
    pub(super) fn from_driver(target: &str, limit: Duration, source: tokio_postgres::Error) -> Self {
        let Some(db) = source.as_db_error() else {
            return Self::ConnectFailed {
                target: target.to_owned(),
                source,
            };
        };
        let message = db.message().to_owned();
        let code = db.code();
        if [
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
        ]
        .contains(code)
        {
            Self::NotAccepting { message }
        } else if *code == SqlState::QUERY_CANCELED {
            Self::Timeout { limit }
        } else if code.code().starts_with("28") {
            Self::Auth { message }
        } else {
            Self::Sql {
                code: code.code().to_owned(),
                message,
            }
        }
    }

    /// SQLSTATE of a refused statement.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Sql { code, .. } => Some(code),
            _ => None,
        }
    }
}
