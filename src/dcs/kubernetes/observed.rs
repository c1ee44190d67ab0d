//! Until when a recorded lock counts, as Patroni judges it: a record that nobody has changed for ttl, counted on our
//! own clock from when we first saw it, is dead. No clock of another host has a say. Pure.
//!
//! Why nobody takes a lock that somebody still holds: the holder counts ttl from when it sent its last renewal; we saw
//! the record of it later, so we count longer. And the lock is taken under the `resourceVersion` of a fresh read that
//! still shows that record: a renewal in between makes the API server refuse.

use std::time::Duration;

use super::object::Record;
use crate::clock::Boottime;

/// The record as last seen, and since when it has looked like that.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    record: Option<Record>,
    since: Boottime,
    /// What counts where the record does not say.
    pub(super) ttl: Duration,
}

impl Observed {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            ..Self::default()
        }
    }

    /// Takes a look in; `now` is when its answer came. Whether anything is new.
    pub(super) fn note(&mut self, record: Option<&Record>, now: Boottime) -> bool {
        if self.record.as_ref() == record {
            return false;
        }
        self.record = record.cloned();
        self.since = now;
        true
    }

    /// When the record dies unless it changes; `None` while nobody has the lock.
    pub(super) fn ends(&self) -> Option<Boottime> {
        let record = self.record.as_ref()?;
        let seconds = record.ttl.parse().ok().filter(|seconds| *seconds > 0);
        Some(self.since + seconds.map_or(self.ttl, Duration::from_secs))
    }

    /// Whether this very record is dead. One that we have seen otherwise since has been renewed, or was read late.
    pub(super) fn is_over(&self, record: &Record, now: Boottime) -> bool {
        self.record.as_ref() == Some(record) && self.ends().is_some_and(|end| now >= end)
    }

    /// The record, while it counts.
    pub(super) fn alive(&self, now: Boottime) -> Option<&Record> {
        self.record
            .as_ref()
            .filter(|_| self.ends().is_some_and(|end| now < end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn record(renewed: &str, ttl: &str) -> Record {
        Record {
            leader: "a".into(),
            renewed: renewed.into(),
            ttl: ttl.into(),
            ..Record::default()
        }
    }

    #[test]
    fn a_record_dies_ttl_after_it_was_first_seen_unchanged() {
        let mut observed = Observed::new(S * 30);
        let start = Boottime(0) + S * 1000;
        assert!(observed.note(Some(&record("1", "5")), start));
        assert!(
            !observed.note(Some(&record("1", "5")), start + S * 4),
            "the same record"
        );
        assert!(observed.alive(start + S * 4).is_some());
        assert!(observed.alive(start + S * 5).is_none());
        assert!(
            observed.note(Some(&record("2", "5")), start + S * 6),
            "renewed after all"
        );
        assert!(observed.alive(start + S * 10).is_some());
        assert_eq!(observed.ends(), Some(start + S * 11));
        assert!(observed.is_over(&record("2", "5"), start + S * 11));
        assert!(!observed.is_over(&record("2", "5"), start + S * 10));
        assert!(
            !observed.is_over(&record("1", "5"), start + S * 60),
            "another was seen since"
        );
        assert!(observed.note(None, start + S * 7));
        assert!(observed.alive(start + S * 7).is_none() && observed.ends().is_none());
    }

    #[test]
    fn where_the_record_has_no_usable_ttl_ours_counts() {
        for ttl in ["", "0", "-3", "soon"] {
            let mut observed = Observed::new(S * 30);
            observed.note(Some(&record("1", ttl)), Boottime(0) + S);
            assert_eq!(observed.ends(), Some(Boottime(0) + S * 31), "{ttl:?}");
        }
    }
}
