//! The rows of `/history` (contract: HA rules §3, "history update").

use super::Parent;
use crate::model::{HistoryRow, Lsn, MemberName, Timeline};

/// How far a member at `position` of `timeline`, which began at `parent`, has come on the way that the cluster has taken:
/// what lies beyond the point where a later timeline left its own is no part of that, nor what lies beyond the one where
/// its own left that way.
#[must_use]
pub fn reach(rows: Option<&[HistoryRow]>, timeline: Timeline, parent: Option<Parent>, position: Lsn) -> Lsn {
    let rows = rows.unwrap_or_default();
    let later = rows
        .iter()
        .filter(|row| timeline != Timeline::UNKNOWN && row.timeline >= timeline);
    let reached = later.map(|row| row.lsn).fold(position, Lsn::min);
    let parted = parent.filter(|(before, at)| {
        let end = rows.iter().find(|row| row.timeline == *before);
        end.is_some_and(|row| row.lsn != *at)
    });
    parted.map_or(reached, |(_, at)| reached.min(at))
}

/// PostgreSQL's history file has no line for a timeline that was begun elsewhere and given up; its number is taken all the
/// same. With a row for each number the last row tells the present timeline, as everybody reads it.
fn with_every_number(local: &[HistoryRow], timeline: Timeline) -> Vec<HistoryRow> {
    let mut rows = Vec::with_capacity(local.len());
    for (index, row) in local.iter().enumerate() {
        rows.push(row.clone());
        let next = local.get(index + 1).map_or(timeline, |next| next.timeline);
        rows.extend(
            (row.timeline.0.saturating_add(1)..next.0).map(|number| HistoryRow {
                timeline: Timeline(number),
                reason: GIVEN_UP.to_owned(),
                ..row.clone()
            }),
        );
    }
    rows
}

const GIVEN_UP: &str = "begun by another member and given up";

/// The rows that should be stored, or `None` if those stored are fine.
///
/// `local` is this primary's own history file, `started` the ISO time at which its timeline began.
#[must_use]
pub fn update(
    stored: Option<&[HistoryRow]>,
    local: &[HistoryRow],
    timeline: Timeline,
    me: &MemberName,
    started: &str,
    max_rows: usize,
) -> Option<Vec<HistoryRow>> {
    if timeline.0 <= 1 {
        return stored.is_none_or(|rows| !rows.is_empty()).then(Vec::new);
    }
    // The number alone proves nothing: a branch that was given up may have had the same.
    let ours = |row: &HistoryRow| local.last().is_none_or(|last| last.lsn == row.lsn);
    let complete = |row: &HistoryRow| {
        row.timeline.0.saturating_add(1) == timeline.0 && row.new_leader.is_some() && ours(row)
    };
    if stored.and_then(<[_]>::last).is_some_and(complete) {
        return None;
    }
    let known = |row: &HistoryRow| {
        stored?
            .iter()
            .find(|old| old.timeline == row.timeline && old.lsn == row.lsn)
    };
    let mut rows: Vec<HistoryRow> = with_every_number(local, timeline)
        .into_iter()
        .map(|row| known(&row).cloned().unwrap_or(row))
        .collect();
    if let Some(newest) = rows.last_mut() {
        newest.timestamp.get_or_insert_with(|| started.to_owned());
        newest.new_leader.get_or_insert_with(|| me.0.clone());
    }
    if max_rows > 0 && rows.len() > max_rows {
        rows.drain(..rows.len() - max_rows);
    }
    (!rows.is_empty()).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lsn, parse_history_file};

    fn row(tl: u32, leader: Option<&str>) -> HistoryRow {
        HistoryRow {
            timeline: Timeline(tl),
            lsn: Lsn(u64::from(tl) * 0x100),
            reason: "r".into(),
            timestamp: leader.map(|_| "t".into()),
            new_leader: leader.map(Into::into),
        }
    }

    fn local(tl: u32) -> Vec<HistoryRow> {
        let line = |n: u32| format!("{n}\t0/{:X}\tr\n", n * 0x100);
        parse_history_file(&(1..tl).map(line).collect::<String>())
    }

    #[test]
    fn what_a_later_timeline_has_left_behind_does_not_count() {
        let rows = [row(1, None), row(2, None)];
        let reach = |tl, lsn| reach(Some(&rows), Timeline(tl), None, Lsn(lsn)).0;
        assert_eq!(reach(3, 0x900), 0x900);
        assert_eq!((reach(2, 0x900), reach(2, 0x180)), (0x200, 0x180));
        // Timeline 1 ended before timeline 2 did.
        assert_eq!((reach(1, 0x150), reach(1, 0x80)), (0x100, 0x80));
        assert_eq!(super::reach(None, Timeline(1), None, Lsn(7)), Lsn(7));
        // Its timeline began where the cluster's way did not fork.
        let from = |tl, lsn| {
            super::reach(
                Some(&rows),
                Timeline(2),
                Some((Timeline(tl), Lsn(lsn))),
                Lsn(0x180),
            )
            .0
        };
        assert_eq!(
            (from(1, 0x100), from(1, 0x80), from(9, 0x80)),
            (0x180, 0x80, 0x180)
        );
        assert_eq!(reach(Timeline::UNKNOWN.0, 0x900), 0x900);
    }

    #[test]
    fn timeline_one_has_an_empty_history() {
        assert_eq!(
            update(None, &[], Timeline(1), &"a".into(), "now", 0),
            Some(vec![])
        );
        assert_eq!(update(Some(&[]), &[], Timeline(1), &"a".into(), "now", 0), None);
        assert_eq!(
            update(Some(&[row(1, None)]), &[], Timeline(1), &"a".into(), "now", 0),
            Some(vec![])
        );
    }

    #[test]
    fn the_newest_row_names_the_new_leader_and_older_names_stay() {
        let stored = [row(1, Some("old"))];
        let rows = update(Some(&stored), &local(3), Timeline(3), &"me".into(), "now", 0).expect("an update");
        assert_eq!(rows[0], row(1, Some("old")));
        assert_eq!(
            (rows[1].new_leader.as_deref(), rows[1].timestamp.as_deref()),
            (Some("me"), Some("now"))
        );
        assert_eq!(
            update(Some(&rows), &local(3), Timeline(3), &"me".into(), "later", 0),
            None
        );
    }

    #[test]
    fn a_number_that_was_given_up_has_a_row_too() {
        let rows = |stored: Option<&[HistoryRow]>, local: &[HistoryRow], tl| {
            update(stored, local, Timeline(tl), &"me".into(), "now", 0)
        };
        // Timeline 4 left timeline 1 because 2 and 3 were others'.
        let first = rows(None, &local(2), 4).expect("an update");
        let brief = |rows: &[HistoryRow]| {
            rows.iter()
                .map(|row| (row.timeline.0, row.lsn.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(brief(&first), [(1, 0x100), (2, 0x100), (3, 0x100)]);
        assert_eq!(first[2].new_leader.as_deref(), Some("me"));
        assert_eq!(rows(Some(&first), &local(2), 4), None);
        // And keeps it later.
        let next = [local(2), vec![row(4, None)]].concat();
        let second = rows(Some(&first), &next, 5).expect("an update");
        assert_eq!(brief(&second), [(1, 0x100), (2, 0x100), (3, 0x100), (4, 0x400)]);
        assert_eq!(second[2].new_leader.as_deref(), Some("me"));
    }

    #[test]
    fn a_row_of_a_forgotten_branch_is_not_believed() {
        let mut stale = row(1, Some("old"));
        stale.lsn = Lsn(1);
        let rows = update(Some(&[stale]), &local(3), Timeline(3), &"me".into(), "now", 0).expect("an update");
        assert_eq!(rows[0].new_leader, None);
    }

    #[test]
    fn the_newest_row_of_a_forgotten_branch_is_replaced() {
        let mut stale = row(2, Some("old"));
        stale.lsn = Lsn(1);
        let stored = [row(1, Some("old")), stale];
        let rows = update(Some(&stored), &local(3), Timeline(3), &"me".into(), "now", 0).expect("an update");
        assert_eq!(
            (rows[1].lsn, rows[1].new_leader.as_deref()),
            (Lsn(0x200), Some("me"))
        );
        // Nothing to compare with is no reason to write nothing.
        assert_eq!(
            update(Some(&stored), &[], Timeline(3), &"me".into(), "now", 0),
            None
        );
    }

    #[test]
    fn old_rows_are_cut() {
        let rows = update(None, &local(6), Timeline(6), &"me".into(), "now", 2).expect("an update");
        assert_eq!(rows.iter().map(|row| row.timeline.0).collect::<Vec<_>>(), [4, 5]);
    }
}
