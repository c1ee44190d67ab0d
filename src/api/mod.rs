//! The REST API (contract: REST API). Reads the agent's published snapshot, sends it requests, reads and writes the
//! DCS for what concerns the whole cluster. Decides nothing about postgres and never asks it anything.
//!
//! | endpoint | answer |
//! |---|---|
//! | `GET HEAD OPTIONS` anything below not listed | health check by path, see [`health::code`]; GET adds the status JSON |
//! | `GET /liveness`, `/readiness` | probes, bare status |
//! | `GET /patroni` | status JSON, at most a quarter of a second old |
//! | `GET /slots` | replication slots of this member, whose they are and what WAL they hold back; not in Patroni |
//! | `GET /metrics` | counters and gauges in Prometheus' format |
//! | `GET PATCH /log` | how much is logged |
//! | `GET /ui` | a page for people |
//! | `GET /why` | could each member lead now, and which rule says no |
//! | `GET /openapi.json` | all of this as a document |
//! | `GET /cluster`, `/history` | from the DCS |
//! | `GET PATCH PUT /config` | dynamic configuration |
//! | `POST DELETE /switchover`, `POST /failover` | change of leader |
//! | `POST DELETE /restart`, `POST /reload`, `/reinitialize` | this member |
//! | `GET POST DELETE /failsafe` | whom a primary without the DCS asks; the promise not to lead beside it, and its end |
//! | anything else | 501 |
//!
//! | file | thought |
//! |---|---|
//! | `server` | sockets: accept, limit, time out, drain |
//! | `access` | who may change something |
//! | `failsafe` | what is promised to a primary without the DCS |
//! | `routes`, `actions` | which handler; the ones that change something |
//! | `health`, `render`, `slots`, `cluster`, `switchover`, `restart`, `schedule` | pure: what to answer |

pub mod access;
mod actions;
mod bind;
pub mod cluster;
mod failsafe;
pub mod health;
pub mod json;
mod levels;
mod openapi;
pub mod query;
mod refusal;
pub mod render;
mod reply;
pub mod restart;
mod routes;
pub mod schedule;
mod server;
pub mod slots;
pub mod switchover;
mod ui;
pub mod why;

use std::{sync::Arc, time::Duration};

pub use access::Access;
pub use bind::{BindError, bind, bind_all};
pub use refusal::Refusal;
pub use server::serve;

use tokio::sync::watch;

use crate::{client::Client, telemetry::LevelHandle, tls::server::InForce};

/// What the server needs besides the agent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who may change something; a reload sends another.
    pub access: watch::Receiver<Access>,
    /// How TLS is spoken on the next connection; `None`: it is not.
    pub tls: watch::Receiver<Option<InForce>>,
    /// For asking other members.
    pub client: Client,
    /// How much is logged.
    pub levels: Arc<LevelHandle>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds that keep one client from being everybody's problem.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for a handshake of TLS.
    pub handshake_within: Duration,
    /// Open connections; above that the longest idle one makes room.
    pub connections_max: usize,
    /// Time for a request's head to arrive, also the time a connection may be idle.
    pub head_within: Duration,
    /// Time for a request's body to arrive.
    pub body_within: Duration,
    /// Size of a request's body.
    pub body_bytes_max: usize,
    /// Time requests in flight have left after a shutdown was asked for.
    pub drain_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_within: Duration::from_secs(10),
            connections_max: 512,
            head_within: Duration::from_secs(30),
            body_within: Duration::from_secs(10),
            body_bytes_max: 1 << 20,
            drain_within: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod page_tests;
#[cfg(test)]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
