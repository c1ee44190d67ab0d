//! The image ring: containers of the image, with the binary as the real PID 1.
//!
//! | module     | what is broken there                                                          |
//! |------------|-------------------------------------------------------------------------------|
//! | `alone`    | one container: ways to run it, signals, processes inside, refusals             |
//! | `failover` | the leader of a cluster is killed, stopped, frozen, cut off                    |
//! | `comeback` | members return: in any order, with a new volume, with a stranger's data        |
//! | `compose`  | `compose/up` and `compose/down` themselves                                     |
//! | `operate`  | nothing: commands and requests of people, and what a member takes for itself   |
//!
//! `members` holds the cluster they share. Needs a Docker engine and the images of `docker/build`.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]

#[path = "image/alone.rs"]
mod alone;
#[path = "image/comeback.rs"]
mod comeback;
#[path = "image/compose.rs"]
mod compose;
#[path = "common/docker.rs"]
mod docker;
#[path = "image/failover.rs"]
mod failover;
#[path = "image/members.rs"]
mod members;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;
#[path = "image/operate.rs"]
mod operate;
#[path = "common/witness.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod witness;

use std::time::Duration;

/// A condition that is about to come true; the limit is only reached by a failure.
const SOON: Duration = Duration::from_secs(40);
