//! The interop ring: what was written for Patroni meets Howdah. Nothing on the other side is ours.
//!
//! Real Patroni and real HAProxy, from where their users get them, beside real members on a real etcd:
//!
//! | module      | what meets what                                                              |
//! |-------------|------------------------------------------------------------------------------|
//! | `looking`   | `patronictl` reads a Howdah cluster: every view of it, in every format        |
//! | `acting`    | `patronictl` changes a Howdah cluster                                         |
//! | `together`  | Patroni and Howdah members in one synchronous cluster; each leads, each is killed |
//! | `migration` | a cluster of Patroni's becomes Howdah's, member by member, and goes back      |
//! | `slots`     | permanent slots move with the leader from kind to kind                        |
//! | `failsafe`  | the store is away; each kind of primary asks the other kind                   |
//! | `balanced`  | HAProxy with the checks of Patroni's template in front of a Howdah cluster    |
//!
//! `tests/run --only interop` installs what is needed: Patroni goes into `tests/.cache/patroni`.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]

#[path = "interop/acting.rs"]
mod acting;
#[path = "interop/balanced.rs"]
mod balanced;
#[path = "interop/ctl.rs"]
mod ctl;
#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "interop/failsafe.rs"]
mod failsafe;
#[path = "interop/looking.rs"]
mod looking;
#[path = "interop/migration.rs"]
mod migration;
#[path = "interop/mixed.rs"]
mod mixed;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;
#[path = "interop/patroni.rs"]
mod patroni;
#[path = "interop/seat.rs"]
mod seat;
#[path = "interop/slots.rs"]
mod slots;
#[path = "interop/together.rs"]
mod together;
#[path = "common/witness.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod witness;

use std::time::Duration;

/// Long enough for whatever needs no ttl to run out.
const SOON: Duration = Duration::from_secs(45);
