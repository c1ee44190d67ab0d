//! Howdah: PostgreSQL high availability in one container image.
pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod dcs;
pub mod exit;
pub mod guard;
pub mod ha;
pub mod init;
pub mod metrics;
pub mod model;
pub mod postgres;
pub mod priorities;
pub mod telemetry;
pub mod watchdog;
