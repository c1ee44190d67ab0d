//! The store of a cluster under test, whichever it is.
#![allow(missing_docs)]

use super::{consul, node::Node, zookeeper};

/// A real server of a store, and what happens to it.
pub enum Store {
    Consul(consul::Server),
    ZooKeeper(zookeeper::Server),
}

/// Which one.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Consul,
    ZooKeeper,
}

impl Store {
    pub fn start(kind: Kind) -> Self {
        match kind {
            Kind::Consul => Self::Consul(consul::Server::start()),
            Kind::ZooKeeper => Self::ZooKeeper(zookeeper::Server::start()),
        }
    }

    /// Tells a member where it is.
    pub fn configure(&self, node: &mut Node) {
        node.env.remove("HOWDAH_ETCD3_HOSTS");
        match self {
            Self::Consul(server) => node.set("HOWDAH_CONSUL_HOST", &server.endpoint()),
            Self::ZooKeeper(server) => node.set("HOWDAH_ZOOKEEPER_HOSTS", &server.endpoint()),
        };
    }

    pub fn freeze(&self) {
        match self {
            Self::Consul(server) => server.freeze(),
            Self::ZooKeeper(server) => server.freeze(),
        }
    }

    pub fn thaw(&self) {
        match self {
            Self::Consul(server) => server.thaw(),
            Self::ZooKeeper(server) => server.thaw(),
        }
    }

    pub fn kill(&mut self) {
        match self {
            Self::Consul(server) => server.kill(),
            Self::ZooKeeper(server) => server.kill(),
        }
    }

    /// Of a killed one: forgets everything.
    pub fn wipe(&self) {
        match self {
            Self::Consul(server) => server.wipe(),
            Self::ZooKeeper(server) => server.wipe(),
        }
    }

    pub fn start_again(&mut self) {
        match self {
            Self::Consul(server) => server.start_again(),
            Self::ZooKeeper(server) => server.start_again(),
        }
    }
}
