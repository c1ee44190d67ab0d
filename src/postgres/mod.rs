//! Everything about the one local PostgreSQL instance. Adapters only: nothing here decides about roles.
//!
//! Files and programs: [`binaries`], [`command`], [`datadir`], [`staging`], [`conf`] and its neighbours, [`initdb`],
//! [`clone`], [`rewind`]. The process: [`postmaster`] owns it; [`promote`] and [`query`] talk to it. Rendering and
//! parsing is pure and sits next to the function that touches the disk. Version differences: [`version`] only.

pub mod archive;
pub mod binaries;
pub mod clone;
pub mod command;
pub mod conf;
pub mod confcheck;
pub mod confdir;
pub mod conninfo;
pub mod control;
pub mod datadir;
pub mod dynamic_copy;
pub mod files;
pub mod guc;
pub mod hba;
pub mod initdb;
pub mod initscripts;
pub mod inplace;
mod lines;
pub mod listen;
pub mod login;
pub mod options;
pub mod orphans;
pub mod pgpass;
pub mod pidfile;
pub mod postmaster;
pub mod probe;
mod procfs;
pub mod promote;
mod protected;
pub mod query;
pub mod recovery;
pub mod replslot;
pub mod restore_wal;
pub mod rewind;
pub mod roles;
pub mod socketlock;
pub mod staging;
pub mod tablespaces;
pub mod units;
mod username;
pub mod version;
pub mod waldump;
pub mod walvolume;
