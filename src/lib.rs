//! Howdah: PostgreSQL high availability in one container image.
pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod dcs;
pub mod exit;
pub mod model;
