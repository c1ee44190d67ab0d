//! SQL against the local server, and one look at the leader. Every call has a limit that also covers connecting and
//! waiting for the connection; a hung server costs exactly that. SQL stands next to its row type (`view`, `leader`).
//! Not here: what follows from an answer.

mod error;
mod leader;
mod rows;
mod session;
mod shell;
mod tls;
mod view;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout_at},
};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

pub use error::QueryError;
pub use leader::{LeaderProbe, leader_probe};
pub use rows::{PendingSetting, Slot, WalReceiver, WalSender};
pub use session::{Address, Target};
pub use shell::{Said, Shell};
pub use tls::{TlsError, TlsOptions};
pub use view::{LocalView, Primary, Standby, Where};

use session::{Purpose, Session, bounded};

/// Longest statement on the persistent connections (contract: PostgreSQL configuration §9).
const STATEMENT_LIMIT: Duration = Duration::from_millis(2000);

/// Connections to the local server, opened when needed and kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Read for each new connection, so that it can be replaced.
    target: RwLock<Arc<Target>>,
    /// For observations only, so that no other statement delays them.
    observer: Mutex<Option<Session>>,
    /// For short commands.
    commander: Mutex<Option<Session>>,
}

impl Monitor {
    /// A monitor of the server at `target`; does not connect yet.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self(Arc::new(Inner {
            target: RwLock::new(Arc::new(target)),
            observer: Mutex::new(None),
            commander: Mutex::new(None),
        }))
    }

    /// Where it connects to.
    #[must_use]
    pub fn target(&self) -> Arc<Target> {
        Arc::clone(&self.0.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connects elsewhere, or as somebody else, from now on. Open connections are closed unless nothing changed.
    pub async fn retarget(&self, target: Target) {
        {
            let mut present = self.0.target.write().unwrap_or_else(PoisonError::into_inner);
            if **present == target {
                return;
            }
            *present = Arc::new(target);
        }
        self.disconnect().await;
    }

    /// Everything the agent wants to know about the server, in one query.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn observe(&self, limit: Duration) -> Result<LocalView, QueryError> {
        let deadline = Instant::now() + limit;
        let first = self.observe_until(limit, deadline).await;
        // A promotion in the middle of the query makes a recovery function fail, once.
        if let Err(error) = &first
            && error.code() == Some(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE.code())
        {
            return self.observe_until(limit, deadline).await;
        }
        first
    }

    async fn observe_until(&self, limit: Duration, deadline: Instant) -> Result<LocalView, QueryError> {
        let (slot, mut session) = self.take(Purpose::Observe, limit, deadline).await?;
        let work = async {
            let statement = session.prepared(view::SQL).await?;
            session.client.query_one(&statement, &[]).await
        };
        let done = bounded(&self.target(), limit, deadline, work).await;
        put_back(slot, session, &done);
        let row = done?;
        LocalView::from_row(&row)
    }

    /// Whether the server is in recovery.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn in_recovery(&self, limit: Duration) -> Result<bool, QueryError> {
        let rows = self
            .simple("SELECT pg_catalog.pg_is_in_recovery()", limit)
            .await?;
        Ok(first_cell(&rows).as_deref() == Some("t"))
    }

    /// Whether a session of its own gets an answer: says nothing about the ones that are open.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn fresh_session(&self, limit: Duration) -> Result<(), QueryError> {
        let (target, deadline) = (self.target(), Instant::now() + limit);
        let session = Box::pin(Session::open(&target, Purpose::Command, limit, limit)).await?;
        let asked = session.client.simple_query("SELECT 1");
        bounded(&target, limit, deadline, asked).await.map(drop)
    }

    /// Runs short statements (no parameters; several may be separated by `;`). Returns the first cell of the last
    /// result, if there is one. At most 2 s on the server, whatever `limit` says.
    ///
    /// # Errors
    /// See [`QueryError`]. After a timeout the statement may or may not have taken effect.
    pub async fn execute(&self, sql: &str, limit: Duration) -> Result<Option<String>, QueryError> {
        let rows = self.simple(sql, limit).await?;
        Ok(first_cell(&rows))
    }

    /// Runs a long statement such as CHECKPOINT on a connection of its own; `limit` also binds the server.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn execute_long(&self, sql: &str, limit: Duration) -> Result<Option<String>, QueryError> {
        let deadline = Instant::now() + limit;
        let target = self.target();
        let session = Box::pin(Session::open(&target, Purpose::Command, limit, limit)).await?;
        let rows = bounded(&target, limit, deadline, session.client.simple_query(sql)).await?;
        Ok(first_cell(&rows))
    }

    /// Creates a physical slot that keeps WAL from now on; an existing one of that name is left as it is.
    /// Returns whether it was created.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn create_physical_slot(&self, name: &str, limit: Duration) -> Result<bool, QueryError> {
        let name = literal(name);
        let sql = format!("SELECT pg_catalog.pg_create_physical_replication_slot({name}, true)");
        match self.execute(&sql, limit).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(SqlState::DUPLICATE_OBJECT.code()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Drops a slot nobody uses. Returns false if there is none of that name or it is in use.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn drop_slot(&self, name: &str, limit: Duration) -> Result<bool, QueryError> {
        let name = literal(name);
        let sql = format!("SELECT pg_catalog.pg_drop_replication_slot({name})");
        let gone = [SqlState::UNDEFINED_OBJECT, SqlState::OBJECT_IN_USE];
        match self.execute(&sql, limit).await {
            Ok(_) => Ok(true),
            Err(error) if gone.iter().any(|c| error.code() == Some(c.code())) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves a physical slot forward to `lsn`.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn advance_slot(
        &self,
        name: &str,
        lsn: crate::model::Lsn,
        limit: Duration,
    ) -> Result<(), QueryError> {
        let name = literal(name);
        let sql = format!("SELECT pg_catalog.pg_replication_slot_advance({name}, '{lsn}')");
        self.execute(&sql, limit).await.map(drop)
    }

    /// Closes the connections, e.g. before a smart stop, or after a change of password.
    pub async fn disconnect(&self) {
        *self.0.observer.lock().await = None;
        *self.0.commander.lock().await = None;
    }

    async fn simple(&self, sql: &str, limit: Duration) -> Result<Vec<SimpleQueryMessage>, QueryError> {
        let deadline = Instant::now() + limit;
        let (slot, session) = self.take(Purpose::Command, limit, deadline).await?;
        let done = bounded(&self.target(), limit, deadline, session.client.simple_query(sql)).await;
        put_back(slot, session, &done);
        done
    }

    /// Takes the connection for `purpose` out of its slot, opening one if needed. Cancel-safe: a dropped call drops
    /// the connection too, whose next answer could belong to its question.
    async fn take(
        &self,
        purpose: Purpose,
        limit: Duration,
        deadline: Instant,
    ) -> Result<(MutexGuard<'_, Option<Session>>, Session), QueryError> {
        let slot = match purpose {
            Purpose::Observe => &self.0.observer,
            Purpose::Command | Purpose::Person => &self.0.commander,
        };
        let mut slot = match timeout_at(deadline, slot.lock()).await {
            Ok(slot) => slot,
            Err(_) => return Err(QueryError::Timeout { limit }),
        };
        // One closed by a restart in the meantime is noticed here; a statement is never sent twice.
        let session = match slot.take().filter(Session::is_open) {
            Some(session) => session,
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                Box::pin(Session::open(&self.target(), purpose, STATEMENT_LIMIT, left)).await?
            }
        };
        Ok((slot, session))
    }
}

/// Keeps a connection that has answered. Whatever went wrong on the wire or in time closes it.
fn put_back<T>(mut slot: MutexGuard<'_, Option<Session>>, session: Session, done: &Result<T, QueryError>) {
    let answered = matches!(
        done,
        Ok(_) | Err(QueryError::Sql { .. } | QueryError::Auth { .. })
    );
    if answered && session.is_open() {
        *slot = Some(session);
    }
}

/// Quotes a string literal for any setting of `standard_conforming_strings`.
#[must_use]
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

fn first_cell(rows: &[SimpleQueryMessage]) -> Option<String> {
    rows.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(literal("n1"), "'n1'");
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
    }

    #[test]
    fn rows_of_any_version_are_read() {
        let slot = r#"{"slot_name":"s","slot_type":"physical","active":true,"restart_lsn":"0/3000028","xmin":"731","new":[1]}"#;
        let slot: Slot = serde_json::from_str(slot).expect("valid row");
        assert_eq!(slot.restart_lsn, Some(crate::model::Lsn(0x300_0028)));
        assert!(!slot.failover && slot.wal_status.is_none());
        let sender: WalSender = serde_json::from_str("{\"client_addr\":null}").expect("valid row");
        assert_eq!(sender, WalSender::default());
        assert!(serde_json::from_str::<Slot>(r#"{"restart_lsn":"x"}"#).is_err());
    }

    #[test]
    fn passwords_are_not_printed() {
        let target = Target {
            address: Address::Tcp("h".into()),
            port: 1,
            user: "u".into(),
            password: Some("geheim".into()),
            dbname: "d".into(),
            application_name: "a".into(),
            tls: TlsOptions::default(),
        };
        assert_eq!(format!("{target:?} {target}"), "u@h:1/d h:1");
        assert!(!format!("{:?}", Monitor::new(target)).contains("geheim"));
    }
}
