//! Howdah: PostgreSQL high availability in one container image.
pub mod exit;
