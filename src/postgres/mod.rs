//! Everything about the one local PostgreSQL instance. Adapters only: nothing here decides about roles.

pub mod orphans;
pub mod pidfile;
pub mod postmaster;
mod procfs;
pub mod promote;
pub mod query;
