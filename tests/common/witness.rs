//! A client that commits in a loop on one member and writes down what was acknowledged, and when.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::node::PASSWORD;

/// One acknowledged commit.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub id: i64,
    pub at: Instant,
}

/// Runs until dropped. Holds one session open as long as it lives and opens another as soon as it can.
pub struct Witness {
    acks: Arc<Mutex<Vec<Ack>>>,
    sessions: Arc<Mutex<u32>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// `first` separates the ids of several witnesses.
    pub fn start(port: u16, first: i64) -> Self {
        let mut server = tokio_postgres::Config::new();
        server
            .host("127.0.0.1")
            .port(port)
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(1));
        Self::on(server, first)
    }

    /// The same on any server.
    pub fn on(server: tokio_postgres::Config, first: i64) -> Self {
        let acks = Arc::new(Mutex::new(Vec::new()));
        let sessions = Arc::new(Mutex::new(0));
        let task = tokio::spawn(run(server, first, acks.clone(), sessions.clone()));
        Self { acks, sessions, task }
    }

    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().expect("not poisoned").clone()
    }

    pub fn sessions(&self) -> u32 {
        *self.sessions.lock().expect("not poisoned")
    }

    pub fn last(&self) -> Option<Ack> {
        self.acks().last().copied()
    }

    /// The longest time without an acknowledged commit within the window, its edges included: silence up to the end
    /// is a gap as any other.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(self.acks().iter().map(|ack| ack.at), from, to)
    }
}

fn longest_gap(acks: impl Iterator<Item = Instant>, from: Instant, to: Instant) -> Duration {
    let inside = acks.filter(|at| *at >= from && *at <= to);
    let mut last = from;
    let gaps = inside.chain([to]).map(|at| at - std::mem::replace(&mut last, at));
    gaps.max().unwrap_or_default()
}

#[test]
fn silence_at_either_end_of_the_window_counts_as_a_gap() {
    let from = Instant::now();
    let at = |ms| from + Duration::from_millis(ms);
    let gap = |acks: &[u64]| longest_gap(acks.iter().map(|ms| at(*ms)), from, at(100)).as_millis();
    assert_eq!(gap(&[]), 100);
    assert_eq!(gap(&[30, 50, 90]), 40);
    assert_eq!(gap(&[60, 99]), 60, "late to begin");
    assert_eq!(gap(&[1, 10]), 90, "silent since");
    assert_eq!(gap(&[10, 80, 99, 200]), 70, "what comes later is not asked");
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    server: tokio_postgres::Config,
    first: i64,
    acks: Arc<Mutex<Vec<Ack>>>,
    sessions: Arc<Mutex<u32>>,
) {
    let mut id = first;
    loop {
        if let Some(client) = connect(&server).await {
            *sessions.lock().expect("not poisoned") += 1;
            while let Ok(1) = client.execute("INSERT INTO witness VALUES ($1)", &[&id]).await {
                acks.lock().expect("not poisoned").push(Ack {
                    id,
                    at: Instant::now(),
                });
                id += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            id += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn connect(server: &tokio_postgres::Config) -> Option<tokio_postgres::Client> {
    let (client, connection) = server.connect(tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS witness (id bigint)")
        .await
        .ok()?;
    Some(client)
}
