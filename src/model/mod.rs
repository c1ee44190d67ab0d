//! The nouns: plain data with serde and Display. No I/O, no clock, no async runtime here.
//!
//! Everything that is stored in the DCS or sent over the REST API has its type in this folder, so that the
//! wire format (contract: DCS layout, REST API) is defined once.

mod cluster;
mod control;
mod dynamic;
mod failover;
mod lsn;
mod member;
mod method;
mod names;
mod peer;
mod role;
mod status;
mod tags;
mod timeline;

pub use cluster::{Cluster, Entry, Leader, SyncKey, Version};
pub use control::{ControlData, DbState};
pub use dynamic::{
    Dynamic, IgnoreSlot, PermanentSlot, Remark, SlotKind, SlotScope, StandbyCluster, SyncKind, SyncMode,
    Timing, Trouble, dynamic_names, merge_patch, new_remarks, of_new_cluster, read_bool, read_duration,
    read_int, read_methods, remarks,
};
pub use failover::FailoverKey;
pub use lsn::{Lsn, ParseLsnError};
pub use member::{Member, MemberData};
pub use method::{BASEBACKUP, BootstrapMethod, MethodError, ReplicaCommand, ReplicaMethod};
pub use names::{MemberName, SystemId, slot_name};
pub use peer::PeerStatus;
pub use role::{PgState, Role, RoleScope};
pub use status::StatusKey;
pub use tags::Tags;
pub use timeline::{HistoryRow, Timeline, parse_history_file, switch_point};
