//! A person's own SQL on any member. Unlike our own statements it has no time limit and the server's usual settings.

use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;

use super::{
    error::QueryError,
    session::{Purpose, Session, Target},
};

/// An open connection for a person.
#[derive(Debug)]
pub struct Shell(Session);

/// What the last statement that returned rows said; every value as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Shell {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn open(target: &Target, limit: Duration) -> Result<Self, QueryError> {
        Ok(Self(Session::open(target, Purpose::Person, limit, limit).await?))
    }

    /// Runs one or more statements, for as long as they take.
    ///
    /// # Errors
    /// What the server said, with its SQLSTATE.
    pub async fn run(&self, sql: &str) -> Result<Said, String> {
        let messages = self
            .0
            .client
            .simple_query(sql)
            .await
            .map_err(|error| match error.as_db_error() {
                Some(said) => format!("SQLSTATE: {}: {}", said.code().code(), said.message()),
                None => error.to_string(),
            })?;
        let mut said = Said::default();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    said.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                    said.rows.clear();
                }
                SimpleQueryMessage::Row(row) => {
                    let cells = 0..row.len();
                    let cell = |index| row.try_get(index).ok().flatten().map(str::to_owned);
                    said.rows.push(cells.map(cell).collect());
                }
                _ => {}
            }
        }
        Ok(said)
    }
}
