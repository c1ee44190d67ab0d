//! Everything about one local PostgreSQL instance: its programs, its files and its configuration.
//!
//! Rendering and parsing is pure; the functions that touch the disk or run a program sit next to the pure
//! part they need. Not here: the decision what to do (`ha`) and the DCS (`dcs`). Version differences are
//! gated in [`version`] only.

pub mod archive;
pub mod binaries;
pub mod clone;
pub mod command;
pub mod conf;
pub mod confdir;
pub mod conninfo;
pub mod control;
pub mod datadir;
pub mod files;
pub mod guc;
pub mod hba;
pub mod initdb;
pub mod initscripts;
mod lines;
pub mod login;
pub mod options;
pub mod pgpass;
mod protected;
pub mod recovery;
pub mod rewind;
pub mod roles;
pub mod staging;
mod username;
pub mod version;
pub mod waldump;
