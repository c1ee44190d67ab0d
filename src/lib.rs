//! Howdah: PostgreSQL high availability in one container image.
pub mod clock;
pub mod dcs;
pub mod exit;
pub mod model;
pub mod postgres;
