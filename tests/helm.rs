//! The helm ring: a release of the chart on a real Kubernetes, with kubelets that run its pods in Docker.
//!
//! | module     | what                                                                                     |
//! |------------|------------------------------------------------------------------------------------------|
//! | `cluster`  | two nodes and their control plane in namespaces of their own; kubectl, helm               |
//! | `release`  | installed, tested, its leader deleted, killed and drained away, scaled, upgraded, removed |
//!
//! Needs root, the image of `docker/build`, and what `tests/kubernetes/build all` makes.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]
#![cfg(feature = "kubernetes")]

#[path = "helm/cluster.rs"]
mod cluster;
#[path = "common/helm.rs"]
#[allow(dead_code, reason = "shared with the chart ring, which uses more of it")]
mod helm;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;
#[path = "helm/release.rs"]
mod release;
#[path = "common/witness.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod witness;
