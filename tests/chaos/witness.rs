//! A client on every member that commits as long as anybody lets it, and writes down what was acknowledged.
//!
//! It comes through the Unix socket, so no cut of the network ends its session: what a member that is cut off still
//! acknowledges, it sees.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::node::{Node, PASSWORD};

/// One acknowledged commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Unique over all members.
    pub id: i64,
    /// Index of the member.
    pub node: usize,
    /// Timeline it was written on.
    pub timeline: i32,
    /// When the answer came.
    pub at: Instant,
}

/// What all clients saw together.
#[derive(Debug, Default)]
pub struct Book {
    next: AtomicI64,
    acks: Mutex<Vec<Ack>>,
}

impl Book {
    /// Everything acknowledged since `from`, in the order it came.
    pub fn since(&self, from: Instant) -> Vec<Ack> {
        let acks = self.acks.lock().expect("not poisoned");
        acks.iter().filter(|ack| ack.at >= from).copied().collect()
    }

    pub fn len(&self) -> usize {
        self.acks.lock().expect("not poisoned").len()
    }

    /// The id the next commit will have, or a later one.
    pub fn next_id(&self) -> i64 {
        self.next.load(Ordering::SeqCst)
    }
}

/// Ends with its owner.
pub struct Witness(JoinHandle<()>);

impl Witness {
    pub fn start(node: &Node, index: usize, sockets: &str, book: Arc<Book>) -> Self {
        let config = tokio_postgres::Config::new()
            .host(sockets)
            .port(node.pg_port)
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(2))
            .clone();
        Self(tokio::spawn(run(config, index, book)))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The timeline is read in the same statement: it is that of the transaction.
const COMMIT: &str = "INSERT INTO witness VALUES ($1) \
     RETURNING ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";

async fn run(config: tokio_postgres::Config, node: usize, book: Arc<Book>) {
    loop {
        if let Ok(client) = connect(&config).await {
            // As long as the session lives; a commit that hangs is waited for.
            while !client.is_closed() {
                let id = book.next.fetch_add(1, Ordering::SeqCst);
                let Ok(row) = client.query_one(COMMIT, &[&id]).await else {
                    break;
                };
                let (timeline, at) = (row.get(0), Instant::now());
                let ack = Ack {
                    id,
                    node,
                    timeline,
                    at,
                };
                book.acks.lock().expect("not poisoned").push(ack);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn connect(config: &tokio_postgres::Config) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
