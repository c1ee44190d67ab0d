//! Howdah: PostgreSQL high availability in one container image.
pub mod clock;
pub mod dcs;
pub mod exit;
pub mod ha;
pub mod model;
