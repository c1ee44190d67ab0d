//! What a member is and what its postgres is doing, in the words of the wire contract.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Role of a member as published (contract: DCS layout §4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes.
    #[serde(alias = "master")]
    Primary,
    /// In recovery, follows another member.
    Replica,
    /// Holds the lock of a standby cluster; in recovery.
    StandbyLeader,
    /// Was primary, has been stopped and not yet started as a replica.
    Demoted,
    /// Promotion has been asked for and is not finished.
    Promoted,
    /// No data directory yet.
    #[default]
    Uninitialized,
}

impl Role {
    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::StandbyLeader => "standby_leader",
            Self::Demoted => "demoted",
            Self::Promoted => "promoted",
            Self::Uninitialized => "uninitialized",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role that settings of its own can be given for: `parameters_primary`, `pg_hba_replica` and so on (contract:
/// environment §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleScope {
    /// Not in recovery.
    Primary,
    /// In recovery.
    Replica,
    /// In recovery, with the lock of a standby cluster.
    StandbyLeader,
}

impl RoleScope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Primary, Self::Replica, Self::StandbyLeader];

    /// The end of the keys of its settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => Role::Primary.as_str(),
            Self::Replica => Role::Replica.as_str(),
            Self::StandbyLeader => Role::StandbyLeader.as_str(),
        }
    }
}

/// State of a member's postgres as published (contract: REST API §5, state texts in their order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgState {
    /// initdb runs.
    #[serde(rename = "initializing new cluster")]
    Initializing,
    /// initdb failed.
    #[serde(rename = "initdb failed")]
    InitdbFailed,
    /// A custom bootstrap method runs.
    #[serde(rename = "running custom bootstrap script")]
    CustomBootstrap,
    /// The custom bootstrap method failed.
    #[serde(rename = "custom bootstrap failed")]
    CustomBootstrapFailed,
    /// The data directory is being cloned.
    #[serde(rename = "creating replica")]
    CreatingReplica,
    /// Accepts connections.
    #[serde(rename = "running")]
    Running,
    /// Started, not yet accepting connections.
    #[serde(rename = "starting")]
    Starting,
    /// First start after a custom bootstrap.
    #[serde(rename = "starting after custom bootstrap")]
    StartingAfterCustomBootstrap,
    /// The start failed.
    #[serde(rename = "start failed")]
    StartFailed,
    /// A restart runs.
    #[serde(rename = "restarting")]
    Restarting,
    /// The restart failed.
    #[serde(rename = "restart failed")]
    RestartFailed,
    /// A stop runs.
    #[serde(rename = "stopping")]
    Stopping,
    /// Not running, stopped on purpose.
    #[serde(rename = "stopped")]
    Stopped,
    /// The stop failed.
    #[serde(rename = "stop failed")]
    StopFailed,
    /// Not running, died by itself.
    #[serde(rename = "crashed")]
    Crashed,
    /// Running, but it did not answer (REST API §5).
    #[serde(rename = "unknown")]
    Unknown,
}

impl PgState {
    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing new cluster",
            Self::InitdbFailed => "initdb failed",
            Self::CustomBootstrap => "running custom bootstrap script",
            Self::CustomBootstrapFailed => "custom bootstrap failed",
            Self::CreatingReplica => "creating replica",
            Self::Running => "running",
            Self::Starting => "starting",
            Self::StartingAfterCustomBootstrap => "starting after custom bootstrap",
            Self::StartFailed => "start failed",
            Self::Restarting => "restarting",
            Self::RestartFailed => "restart failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::StopFailed => "stop failed",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PgState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_serde_names() {
        for state in [
            PgState::Initializing,
            PgState::CreatingReplica,
            PgState::StartFailed,
            PgState::Crashed,
        ] {
            assert_eq!(serde_json::to_value(state).expect("plain enum"), state.as_str());
        }
        for role in [Role::Primary, Role::StandbyLeader, Role::Uninitialized] {
            assert_eq!(serde_json::to_value(role).expect("plain enum"), role.as_str());
        }
        assert_eq!(
            serde_json::from_value::<Role>("master".into()).expect("alias"),
            Role::Primary
        );
    }
}
