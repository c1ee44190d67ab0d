//! The Helm chart without pods: what it says of itself, what it renders for every variation in its folder `ci`, and what a
//! real API server makes of that. Pods that run: helm.rs.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]
#![cfg(feature = "kubernetes")]

#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "common/helm.rs"]
#[allow(dead_code, reason = "shared with the helm ring, which uses more of it")]
mod helm;
#[path = "common/kubernetes.rs"]
#[allow(dead_code, reason = "shared with the kubernetes ring, which uses more of it")]
mod kubernetes;

#[path = "chart/docs.rs"]
mod docs;
#[path = "chart/manifests.rs"]
mod manifests;
#[path = "chart/server.rs"]
mod server;
