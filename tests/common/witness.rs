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
        let acks = Arc::new(Mutex::new(Vec::new()));
        let sessions = Arc::new(Mutex::new(0));
        let task = tokio::spawn(run(port, first, acks.clone(), sessions.clone()));
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

    /// The longest time between two acknowledged commits, both within the window.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let acks = self.acks();
        let times: Vec<Instant> = acks
            .iter()
            .map(|ack| ack.at)
            .filter(|at| *at >= from && *at <= to)
            .collect();
        times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(to - from)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(port: u16, first: i64, acks: Arc<Mutex<Vec<Ack>>>, sessions: Arc<Mutex<u32>>) {
    let mut id = first;
    loop {
        if let Some(client) = connect(port).await {
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

async fn connect(port: u16) -> Option<tokio_postgres::Client> {
    let connect = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(PASSWORD)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(1))
        .connect(tokio_postgres::NoTls)
        .await;
    let (client, connection) = connect.ok()?;
    tokio::spawn(connection);
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS witness (id bigint)")
        .await
        .ok()?;
    Some(client)
}
