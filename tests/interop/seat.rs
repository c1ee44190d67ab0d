//! Where a member is reached, whoever runs there: both kinds are asked the same questions in the same way.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    SOON,
    node::{Node, PASSWORD, http, wait_for},
    patroni::Patroni,
};

/// Addresses of one member, all on loopback.
#[derive(Debug, Clone)]
pub struct Seat {
    pub name: String,
    pub pg_port: u16,
    pub api_port: u16,
}

impl From<&Node> for Seat {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            pg_port: node.pg_port,
            api_port: node.api_port,
        }
    }
}

impl From<&Patroni> for Seat {
    fn from(patroni: &Patroni) -> Self {
        patroni.seat.clone()
    }
}

impl Seat {
    pub async fn get(&self, path: &str) -> Result<(u16, Value), String> {
        http(self.api_port, "GET", path, None).await
    }

    pub async fn sql(&self, sql: &str) -> Result<String, String> {
        query(self.pg_port, sql).await
    }

    /// Whether a user without a password gets in: where pg_hba.conf trusts it.
    pub async fn admits(&self, user: &str) -> Result<(), String> {
        let connect = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.pg_port)
            .user(user)
            .dbname("postgres")
            .connect(tokio_postgres::NoTls)
            .await;
        connect
            .map(drop)
            .map_err(|error| format!("{user} on {}: {error:?}", self.name))
    }

    /// GET of something that must be there.
    pub async fn json(&self, path: &str) -> Value {
        let (code, body) = self.get(path).await.expect("an answer");
        assert_eq!(code, 200, "{path} of {}: {body}", self.name);
        body
    }

    pub async fn wait_primary(&self, limit: Duration) {
        wait_for(&format!("{} to be primary", self.name), limit, async || {
            let (code, status) = self.get("/primary").await?;
            let writable = status["role"] == "primary" && status["state"] == "running";
            if code == 200 && writable {
                Ok(())
            } else {
                Err(format!("{code} {status}"))
            }
        })
        .await;
    }

    pub async fn wait_streaming(&self, limit: Duration) {
        wait_for(&format!("{} to stream", self.name), limit, async || {
            let (code, status) = self.get("/replica").await?;
            if code == 200 && status["replication_state"] == "streaming" {
                Ok(())
            } else {
                Err(format!("{code} {status}"))
            }
        })
        .await;
    }

    /// Asks this member to have `leader` replaced by `candidate`, waits until that is done, and until the former
    /// leader streams again. How long nobody could write is printed.
    pub async fn switchover(&self, leader: &Self, candidate: &Self) {
        let body = json!({"leader": leader.name, "candidate": candidate.name}).to_string();
        let asked = Instant::now();
        let answer = http(self.api_port, "POST", "/switchover", Some(body)).await;
        let expected = format!("Successfully switched over to \"{}\"", candidate.name);
        assert_eq!(answer, Ok((200, json!(expected))), "asked {}", self.name);
        candidate.wait_primary(SOON).await;
        println!(
            "switchover {} -> {} asked of {}: {:?}",
            leader.name,
            candidate.name,
            self.name,
            asked.elapsed()
        );
        leader.wait_streaming(SOON).await;
    }

    /// Waits for the answer `expected` to a query that is put again and again.
    pub async fn wait_sql(&self, sql: &str, expected: &str) {
        wait_for(&format!("'{sql}' on {}", self.name), SOON, async || {
            let found = self.sql(sql).await?;
            if found == expected { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

/// First column of the first row, in a session of its own.
pub async fn query(port: u16, sql: &str) -> Result<String, String> {
    let connect = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(PASSWORD)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(2))
        .connect(tokio_postgres::NoTls)
        .await;
    let (client, connection) = connect.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    let rows = tokio::time::timeout(Duration::from_secs(20), client.simple_query(sql))
        .await
        .map_err(|_| "no answer in 20 s".to_owned())?
        .map_err(|error| format!("{error:?}"))?;
    let first = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(first.unwrap_or_default())
}
