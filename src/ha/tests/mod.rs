//! Tests of the decision: one file per situation as in `ha`, plus `grid` (invariants over every combination) and
//! `walk` (synchronous replication under random faults) and `life` (members whose plans are carried out against a model of the DCS and postgres, turn by turn).

mod blind;
mod bootstrap;
mod builder;
mod busy;
mod down;
mod election;
mod failsafe;
mod follow;
mod grid;
mod heirs;
mod leader;
mod life;
mod lost;
mod manual;
mod pause;
mod reason;
mod slots;
mod standby;
mod stopping;
mod sync;
mod walk;
mod why;
mod world;
