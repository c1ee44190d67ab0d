//! The distributed configuration store (DCS): where the leader lock and the cluster's shared facts live.
//!
//! One small trait in our words; a backend per file. What a key means is in [`crate::model`]; what to do about it
//! is decided in `ha`. "Lost the race", "refused" and "could not ask" are different answers here:
//! the first two are values, the last is a [`DcsError`]. Nothing in this folder decides to demote.

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(any(feature = "consul", feature = "zookeeper"))]
pub mod dial;
#[cfg(feature = "etcd")]
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod memory;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    clock::Boottime,
    model::{Cluster, Entry, MemberName, Version},
};

/// A key of the cluster, relative to its base path (contract: DCS layout §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// System identifier, or empty while a first member bootstraps.
    Initialize,
    /// Dynamic configuration.
    Config,
    /// Position and slots of the leader.
    Status,
    /// Switchover or failover request.
    Failover,
    /// Synchronous standbys.
    Sync,
    /// Timeline history.
    History,
    /// Failsafe topology.
    Failsafe,
}

impl Key {
    /// Path relative to the cluster's base.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Config => "config",
            Self::Status => "status",
            Self::Failover => "failover",
            Self::Sync => "sync",
            Self::History => "history",
            Self::Failsafe => "failsafe",
        }
    }
}

/// Precondition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Unconditional.
    Always,
    /// Only if the key does not exist.
    Absent,
    /// Only if the key still has this version.
    Version(Version),
}

/// Answer to a conditional write or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Done; the new version of the key (of the whole store for a delete).
    Yes(Version),
    /// The precondition did not hold; nothing was changed.
    Refused,
}

/// Our hold on the lock after a successful acquire or renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When the request that proved it was *sent*. The lease cannot expire in the store before `sent_at + ttl`.
    pub sent_at: Boottime,
    /// The ttl the store counts with.
    pub ttl: Duration,
    /// Lease or session id, with which a restarted agent can go on (see [`Dcs::adopt`]).
    pub lease: i64,
}

/// Answer to an attempt to take or keep the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// We hold it.
    Held(Hold),
    /// Proof that we do not: somebody else does, or nobody (`None`).
    Lost(Option<MemberName>),
}

/// Why the store could not be asked, or gave no usable answer. Never proof of anything.
#[derive(Debug, thiserror::Error)]
pub enum DcsError {
    /// No answer within the time allowed.
    #[error("no answer from {endpoint} within {waited:?}")]
    Timeout {
        /// Who was asked.
        endpoint: String,
        /// How long.
        waited: Duration,
    },
    /// Connection, TLS or protocol trouble.
    #[error("cannot talk to {endpoint}: {reason}")]
    Transport {
        /// Who was asked.
        endpoint: String,
        /// In the library's words.
        reason: String,
    },
    /// The store answered with an error of its own.
    #[error("{endpoint} answered with an error: {reason}")]
    Answer {
        /// Who was asked.
        endpoint: String,
        /// In the store's words.
        reason: String,
    },
    /// User, password, token or certificate refused.
    #[error("{endpoint} refused the credentials: {reason}")]
    Credentials {
        /// Who was asked.
        endpoint: String,
        /// In the store's words.
        reason: String,
    },
    /// The backend was configured in a way it can never work.
    #[error("{0}")]
    Config(String),
}

/// The store of one cluster (scope), as one member sees it. All methods are bounded in time by
/// `retry_timeout` given at construction (see [`Dcs::set_timing`]).
#[async_trait]
pub trait Dcs: Send + Sync + std::fmt::Debug {
    /// The whole cluster in one linearizable read.
    async fn cluster(&self) -> Result<Cluster, DcsError>;

    /// Tries to take the free lock. Must not succeed while somebody (also we under another lease) holds it.
    async fn acquire(&self) -> Result<Lock, DcsError>;

    /// Keeps the lock. If our lease is gone but the key is free, takes it again; that counts as held. A key with our
    /// name is ours only under a lease of ours, or under the one it had at our first [`Dcs::cluster`], which
    /// a predecessor left; else it is a namesake's, and the answer is [`Lock::Lost`] with our own name.
    async fn renew(&self) -> Result<Lock, DcsError>;

    /// Gives the lock up if it is ours, writing `/status` in the same step when given.
    async fn release(&self, status: Option<&str>) -> Result<(), DcsError>;

    /// Publishes our member key, bound to our lease.
    async fn touch_member(&self, value: &str) -> Result<(), DcsError>;

    /// Removes our member key.
    async fn remove_member(&self) -> Result<(), DcsError>;

    /// Writes a key.
    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError>;

    /// Deletes a key.
    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError>;

    /// Goes on with a lease of our predecessor (agent restart) instead of a new one.
    async fn adopt(&self, lease: i64);

    /// New ttl and retry budget; takes effect with the next request. A changed ttl means a new lease.
    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration);

    /// Counts up whenever something changed that the HA loop should look at: leader, failover, config, initialize,
    /// sync, or members coming and going (not mere updates of member keys or status).
    /// A lost watch also counts up, after it is re-established.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Name of the backend for logs (`etcd3`, `memory` …).
    fn kind(&self) -> &'static str;
}

/// Shared by backends: base path `/<namespace>/<scope>/`, duplicate slashes collapsed (contract: DCS layout §1).
#[must_use]
pub fn base_path(namespace: &str, scope: &str) -> String {
    let mut base = String::from("/");
    for part in [namespace, scope] {
        for piece in part.split('/').filter(|piece| !piece.is_empty()) {
            base.push_str(piece);
            base.push('/');
        }
    }
    base
}

/// Shared by backends: builds the view.
#[must_use]
pub fn view(entries: &[Entry]) -> Cluster {
    Cluster::from_entries(entries)
}
