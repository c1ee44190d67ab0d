//! What a person reads, and the line the rings are counted by.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::oracle::Overlap;

/// One fault, once.
#[derive(Debug)]
pub struct Row {
    fault: &'static str,
    mode: &'static str,
    gap: Duration,
    healed: Duration,
    pub lost: usize,
    pub overlaps: Vec<Overlap>,
    violations: Vec<String>,
    broken: bool,
}

impl Row {
    pub fn new(fault: &'static str, mode: &'static str, gap: Duration, healed: Duration) -> Self {
        Self {
            fault,
            mode,
            gap,
            healed,
            lost: 0,
            overlaps: Vec::new(),
            violations: Vec::new(),
            broken: false,
        }
    }

    /// It could not be carried through, or the cluster did not heal.
    pub fn broken(fault: &'static str, mode: &'static str, why: String) -> Self {
        let mut row = Self::new(fault, mode, Duration::ZERO, Duration::ZERO);
        row.violate(why);
        row.broken = true;
        row
    }

    pub fn violate(&mut self, why: String) {
        self.violations.push(why);
    }

    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn line(&self) -> String {
        let verdict = if self.violations.is_empty() {
            "PASS"
        } else {
            "FAIL"
        };
        let mut line = format!(
            "        {verdict} [{:7.3}s] {} {}: {:.3} s without commits, {} lost",
            self.healed.as_secs_f32(),
            self.mode,
            self.fault,
            self.gap.as_secs_f32(),
            self.lost
        );
        for overlap in &self.overlaps {
            let _never = write!(
                line,
                ", {} acknowledged up to {:?} after the next had begun",
                overlap.acks, overlap.latest
            );
        }
        for why in &self.violations {
            let _never = write!(line, "\n             {why}");
        }
        line
    }
}

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn failed(&self) -> usize {
        let failed = self.rows.iter().filter(|row| !row.violations.is_empty()).count();
        // Nothing done is nothing proven.
        failed.max(usize::from(self.rows.is_empty()))
    }

    pub fn render(&self, took: Duration) -> String {
        let mut groups: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            groups.entry((row.mode, row.fault)).or_default().push(row);
        }
        let mut text = format!(
            "\n{:8} {:20} {:>5} {:>6} {:>6} {:>9} {:>9} {:>9}  {}\n",
            "mode", "fault", "runs", "failed", "lost", "gap min", "median", "max", "late acks (latest)"
        );
        for ((mode, fault), rows) in groups {
            let mut gaps: Vec<f32> = rows.iter().map(|row| row.gap.as_secs_f32()).collect();
            gaps.sort_by(f32::total_cmp);
            let failed = rows.iter().filter(|row| !row.violations.is_empty()).count();
            let lost: usize = rows.iter().map(|row| row.lost).sum();
            let overlaps = || rows.iter().flat_map(|row| &row.overlaps);
            let late: usize = overlaps().map(|overlap| overlap.acks).sum();
            let latest = overlaps().map(|overlap| overlap.latest).max().unwrap_or_default();
            let _never = writeln!(
                text,
                "{mode:8} {fault:20} {:5} {failed:6} {lost:6} {:9.3} {:9.3} {:9.3}  {late} ({latest:.1?})",
                rows.len(),
                gaps[0],
                gaps[gaps.len() / 2],
                gaps[gaps.len() - 1],
            );
        }
        let failed = self.failed();
        let _never = writeln!(
            text,
            "     Summary [{:8.3}s] {} runs: {} passed, {failed} failed",
            took.as_secs_f32(),
            self.rows.len(),
            self.rows.len().saturating_sub(failed),
        );
        text
    }
}
