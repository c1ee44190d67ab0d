//! Howdah: PostgreSQL high availability in one container image.
pub mod clock;
pub mod config;
pub mod dcs;
pub mod exit;
pub mod model;
