//! A client of each member that never lets go of its session and commits a row about every five milliseconds wherever that is
//! accepted.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::node::PASSWORD;

const PAUSE: Duration = Duration::from_millis(5);

/// All of them; they end when this is dropped.
pub struct Writers {
    acks: Vec<Arc<Mutex<Vec<Instant>>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// One for each port. The table `bench` has to be there.
    pub fn on(ports: &[u16]) -> Self {
        let acks: Vec<Arc<Mutex<Vec<Instant>>>> = ports.iter().map(|_| Arc::default()).collect();
        let tasks = ports.iter().zip(&acks);
        let tasks = tasks.map(|(port, acks)| tokio::spawn(write(*port, Arc::clone(acks))));
        Self {
            tasks: tasks.collect(),
            acks,
        }
    }

    /// Commits that this member has acknowledged since then.
    pub fn count(&self, member: usize, since: Instant) -> usize {
        let acks = self.acks[member].lock().unwrap();
        acks.iter().rev().take_while(|at| **at >= since).count()
    }

    /// Commits of any member since then.
    pub fn count_all(&self, since: Instant) -> usize {
        (0..self.acks.len()).map(|member| self.count(member, since)).sum()
    }

    /// When this member acknowledged its first commit after that time.
    pub fn first(&self, member: usize, after: Instant) -> Option<Instant> {
        let acks = self.acks[member].lock().unwrap();
        acks.iter().find(|at| **at > after).copied()
    }

    /// The longest time between two commits of any members, from the last one before `from` on.
    pub fn longest_gap(&self, from: Instant) -> Duration {
        let mut all: Vec<Instant> = Vec::new();
        for acks in &self.acks {
            all.extend(acks.lock().unwrap().iter());
        }
        all.sort_unstable();
        let begin = all.partition_point(|at| *at < from).saturating_sub(1);
        let gaps = all[begin..].windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn write(port: u16, acks: Arc<Mutex<Vec<Instant>>>) {
    let mut server = tokio_postgres::Config::new();
    server
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(PASSWORD)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(1));
    loop {
        if let Ok((client, connection)) = server.connect(tokio_postgres::NoTls).await {
            let connection = tokio::spawn(connection);
            // A replica refuses, and the session stays: it may be promoted any time.
            while !client.is_closed() {
                if client.batch_execute("INSERT INTO bench VALUES (1)").await.is_ok() {
                    acks.lock().unwrap().push(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
            connection.abort();
        }
        tokio::time::sleep(PAUSE).await;
    }
}
