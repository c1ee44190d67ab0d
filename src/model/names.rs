//! Names of members and clusters.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a member, unique within its cluster (scope).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the replication slot this member streams from.
    #[must_use]
    pub fn slot(&self) -> String {
        slot_name(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cluster's identity as initdb made it (`Database system identifier` of `pg_controldata`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(pub String);

impl SystemId {
    /// Whether the text can be a system identifier: decimal, at least ten digits (contract: HA rules §1 step 5).
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit())
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Replication slot name of a member: lower case, `-` and `.` become `_`, any other character outside
/// `[a-z0-9_]` becomes `u` and its code point in four or more decimal digits, cut to 63 characters
/// (contract: DCS layout §4).
#[must_use]
pub fn slot_name(member: &str) -> String {
    let mut slot = String::with_capacity(member.len());
    for c in member.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' | '_' => slot.push(c),
            '-' | '.' => slot.push('_'),
            other => slot.push_str(&format!("u{:04}", u32::from(other))),
        }
    }
    slot.truncate(63);
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_follow_the_contract() {
        assert_eq!(slot_name("Pg-1.example"), "pg_1_example");
        assert_eq!(slot_name("a b"), "au0032b");
        assert_eq!(slot_name("é"), "u0233");
        assert_eq!(slot_name(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn a_system_id_is_a_long_number() {
        assert!(SystemId::is_valid("7400000000000000001"));
        assert!(!SystemId::is_valid(""));
        assert!(!SystemId::is_valid("123"));
        assert!(!SystemId::is_valid("74000000000000000x1"));
    }
}
