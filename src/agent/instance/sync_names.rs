//! `synchronous_standby_names` of the local postgres: as the decision set it, and otherwise such that nothing is
//! acknowledged by a server that nobody has looked after yet.
//!
//! | role    | the decision said nothing since it began |
//! |---------|------------------------------------------|
//! | primary | what our file says goes on to count (the agent was restarted) |
//! | replica | strict or quorum mode: nobody will do, so that a promoted server acknowledges nothing before its standbys are named; mode on: nobody is waited for; off: the user's own |

use super::{Instance, lock};
use crate::{
    ha::{
        StartAs,
        sync::{self, Method, StandbyNames},
    },
    model::{Dynamic, SyncKind},
    postgres::guc,
};

/// Name of the parameter.
pub(super) const PARAMETER: &str = "synchronous_standby_names";

/// Where its value comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum SyncNames {
    /// An agent that has just begun does not know yet.
    #[default]
    Kept,
    /// Of a server that was started as a replica.
    Standby,
    /// Set by the decision; `None`: the user's own.
    Set(Option<String>),
}

/// What was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Our value; `None` if it is the user's own, or not known.
    pub ours: Option<String>,
    /// It is the user's own.
    pub users_own: bool,
}

impl Instance {
    /// What was last written for a primary.
    #[must_use]
    pub fn sync_names(&self, dynamic: &Dynamic) -> Asked {
        let off = sync::kind(dynamic) == SyncKind::Off;
        let mut names = lock(&self.sync_names);
        if off && *names == SyncNames::Kept && self.file_value().is_none() {
            *names = SyncNames::Set(None);
        }
        match &*names {
            SyncNames::Set(ours) => Asked {
                ours: ours.clone(),
                users_own: ours.is_none(),
            },
            SyncNames::Standby => Asked {
                ours: None,
                users_own: off,
            },
            SyncNames::Kept => Asked {
                ours: None,
                users_own: false,
            },
        }
    }

    fn file_value(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.conf().main()).unwrap_or_default();
        guc::value_in(&text, PARAMETER)
    }

    /// Writes the parameter (`None`: the user's own) and reloads a server that runs; the next start uses it anyway.
    pub async fn set_sync_names(&self, names: Option<String>, dynamic: &Dynamic) -> Result<(), String> {
        let users_own = names.is_none();
        *lock(&self.sync_names) = SyncNames::Set(names);
        let applied = self.apply(dynamic).await;
        if users_own && applied.is_err() {
            // The file may still name standbys: the decision must ask again.
            *lock(&self.sync_names) = SyncNames::Kept;
        }
        applied
    }

    /// The server is (to be) a replica: what it was as a primary counts no more.
    pub(super) fn forget_sync_names(&self) {
        *lock(&self.sync_names) = SyncNames::Standby;
    }

    /// The value to write for a server in this role; `None`: the user's own.
    pub(super) fn forced_sync_names(&self, start_as: &StartAs, dynamic: &Dynamic) -> Option<String> {
        let names = lock(&self.sync_names).clone();
        let kept = match (&names, start_as) {
            (SyncNames::Kept, StartAs::Primary) => self.file_value(),
            _ => None,
        };
        value(names, kept, start_as, dynamic)
    }
}

fn value(names: SyncNames, kept: Option<String>, start_as: &StartAs, dynamic: &Dynamic) -> Option<String> {
    match (names, start_as) {
        (SyncNames::Set(names), _) => names,
        (SyncNames::Kept, StartAs::Primary) => kept.or_else(|| match sync::kind(dynamic) {
            SyncKind::Off => None,
            SyncKind::On | SyncKind::Quorum => Some(String::new()),
        }),
        (SyncNames::Kept | SyncNames::Standby, _) => match sync::kind(dynamic) {
            SyncKind::Off => None,
            SyncKind::Quorum => Some(StandbyNames::nobody_will_do(Method::Any).render()),
            SyncKind::On if dynamic.sync.strict => Some(StandbyNames::nobody_will_do(Method::First).render()),
            SyncKind::On => Some(String::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_nobody_has_looked_after_acknowledges_nothing_it_must_not() {
        let dynamic = |raw: serde_json::Value| Dynamic::from_map(raw.as_object().expect("a map"));
        let off = dynamic(json!({}));
        let on = dynamic(json!({"synchronous_mode": true}));
        let strict = dynamic(json!({"synchronous_mode": true, "synchronous_mode_strict": true}));
        let quorum = dynamic(json!({"synchronous_mode": "quorum"}));
        let replica = || StartAs::Replica(None);
        let of = |names: &SyncNames, kept: Option<&str>, start_as: &StartAs, dynamic: &Dynamic| {
            value(names.clone(), kept.map(str::to_owned), start_as, dynamic)
        };
        for names in [SyncNames::Standby, SyncNames::Kept] {
            assert_eq!(of(&names, None, &replica(), &off), None);
            assert_eq!(of(&names, None, &replica(), &on).as_deref(), Some(""));
            for mode in [&strict, &quorum] {
                let text = of(&names, None, &replica(), mode).expect("a value of ours");
                assert!(StandbyNames::parse(&text).blocks(), "{text}");
            }
        }
        // An agent that was restarted beside a primary changes nothing, whatever mode it believes in.
        for mode in [&off, &on, &strict, &quorum] {
            let kept = of(&SyncNames::Kept, Some("a"), &StartAs::Primary, mode);
            assert_eq!(kept.as_deref(), Some("a"));
            let set = SyncNames::Set(Some("b".into()));
            assert_eq!(of(&set, None, &replica(), mode).as_deref(), Some("b"));
        }
        assert_eq!(of(&SyncNames::Kept, None, &StartAs::Primary, &off), None);
    }
}
