//! Howdah: PostgreSQL high availability in one container image.
pub mod clock;
pub mod exit;
pub mod guard;
pub mod init;
