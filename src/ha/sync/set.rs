//! Sets of member names. PostgreSQL compares the names of standbys without regard to case, and so does `/sync`.

use std::collections::{BTreeMap, btree_map};

use crate::model::MemberName;

/// Names by their lower-case form, in its order; each keeps the spelling it came with.
#[derive(Debug, Clone, Default)]
pub struct NameSet(BTreeMap<String, MemberName>);

fn key(name: &MemberName) -> String {
    name.0.to_ascii_lowercase()
}

impl PartialEq for NameSet {
    fn eq(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl Eq for NameSet {}

impl NameSet {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is it one of them?
    #[must_use]
    pub fn contains(&self, name: &MemberName) -> bool {
        self.0.contains_key(&key(name))
    }

    /// In order.
    pub fn iter(&self) -> btree_map::Values<'_, String, MemberName> {
        self.0.values()
    }

    /// With this one.
    #[must_use]
    pub fn with(mut self, name: &MemberName) -> Self {
        self.0.entry(key(name)).or_insert_with(|| name.clone());
        self
    }

    /// Without this one.
    #[must_use]
    pub fn without(mut self, name: &MemberName) -> Self {
        self.0.remove(&key(name));
        self
    }

    /// In either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        other.iter().fold(self.clone(), Self::with)
    }

    /// In this one and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.iter().filter(|name| !other.contains(name)).collect()
    }

    /// In both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.iter().filter(|name| other.contains(name)).collect()
    }

    /// Every one of them is in the other.
    #[must_use]
    pub fn within(&self, other: &Self) -> bool {
        self.0.keys().all(|name| other.0.contains_key(name))
    }

    /// As a list, in order.
    #[must_use]
    pub fn list(&self) -> Vec<MemberName> {
        self.iter().cloned().collect()
    }

    /// `'a', 'b'`, or `nobody`.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.is_empty() {
            return "nobody".to_owned();
        }
        let quoted: Vec<String> = self.iter().map(|name| format!("'{name}'")).collect();
        quoted.join(", ")
    }
}

impl FromIterator<MemberName> for NameSet {
    fn from_iter<I: IntoIterator<Item = MemberName>>(names: I) -> Self {
        Self(names.into_iter().map(|name| (key(&name), name)).collect())
    }
}

impl<'a> FromIterator<&'a MemberName> for NameSet {
    fn from_iter<I: IntoIterator<Item = &'a MemberName>>(names: I) -> Self {
        names.into_iter().cloned().collect()
    }
}

#[cfg(test)]
impl FromIterator<&'static str> for NameSet {
    fn from_iter<I: IntoIterator<Item = &'static str>>(names: I) -> Self {
        names.into_iter().map(MemberName::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_no_difference_and_the_spelling_stays() {
        let set: NameSet = ["pgB", "a"].into_iter().collect();
        assert_eq!(set, ["A", "PGB"].into_iter().collect());
        assert_eq!(set.clone().with(&"PGb".into()).list(), set.list());
        assert_eq!(set.shown(), "'a', 'pgB'");
        assert!(set.contains(&"PGB".into()) && !set.clone().without(&"pgb".into()).contains(&"pgB".into()));
        let other: NameSet = ["A", "c"].into_iter().collect();
        assert_eq!(set.union(&other).len(), 3);
        assert_eq!(set.minus(&other).list(), ["pgB".into()]);
        assert_eq!(set.and(&other).list(), ["a".into()]);
        assert!(set.and(&other).within(&other) && !set.within(&other));
    }
}
