//! What was measured: statistics, a table of both with the ratio, and JSON. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

/// Whose cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Howdah,
    Patroni,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Howdah => "howdah",
            Self::Patroni => "patroni",
        }
    }
}

/// Something that is measured.
pub struct Measure {
    pub name: &'static str,
    /// What `--only` calls it.
    pub group: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// What Howdah is to reach.
    pub target: &'static str,
    /// Whether less is better.
    less: bool,
}

const fn less(
    group: &'static str,
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    target: &'static str,
) -> Measure {
    Measure {
        name,
        group,
        title,
        unit,
        target,
        less: true,
    }
}

const fn more(name: &'static str, title: &'static str, target: &'static str) -> Measure {
    Measure {
        name,
        group: "rest",
        title,
        unit: "/s",
        target,
        less: false,
    }
}

/// In the order of the table.
pub const MEASURES: &[Measure] = &[
    less(
        "start",
        "first-writable",
        "first member writable after start",
        "s",
        "1.0",
    ),
    less(
        "start",
        "two-replicas",
        "two replicas streaming after start",
        "s",
        "2.5",
    ),
    less("switchover", "switchover", "write gap, switchover", "s", "0.30"),
    less(
        "leader-stopped",
        "leader-stopped",
        "write gap, SIGTERM to the leader",
        "s",
        "0.35",
    ),
    less(
        "postmaster-killed",
        "postmaster-killed",
        "write gap, kill -9 postmaster",
        "s",
        "0.5, at most 1.0",
    ),
    less(
        "agent-killed",
        "agent-killed",
        "write gap, kill -9 agent",
        "s",
        "0.05",
    ),
    less(
        "leader-killed",
        "leader-killed",
        "write gap, kill -9 leader, ttl 30",
        "s",
        "rest of the lease + 0.3",
    ),
    less(
        "leader-killed",
        "leader-killed-beyond",
        "  of it after the lease has ended",
        "s",
        "0.3",
    ),
    less(
        "leader-killed-ttl-5",
        "leader-killed-ttl-5",
        "write gap, kill -9 leader, ttl 5",
        "s",
        "5.3",
    ),
    less(
        "leader-killed-ttl-5",
        "leader-killed-ttl-5-beyond",
        "  of it after the lease has ended",
        "s",
        "0.3",
    ),
    less("idle", "memory", "resident memory of an idle member", "MiB", "8"),
    less("idle", "cpu", "processor time of an idle member", "s/min", "0.03"),
    less(
        "idle",
        "store-writes",
        "writes to etcd, three idle members",
        "/min",
        "no more",
    ),
    more("rest-primary", "GET /primary, 16 connections", "40000"),
    less("rest", "rest-primary-p99", "  99 % within", "ms", "1"),
    more("rest-cluster", "GET /cluster", "20000"),
    more("rest-patroni", "GET /patroni", "20000"),
    more("rest-metrics", "GET /metrics", "20000"),
    less(
        "health-under-load",
        "health-under-load",
        "GET /primary while pgbench saturates, 99 % within",
        "ms",
        "5",
    ),
];

/// All figures, by measure and kind.
#[derive(Debug, Default)]
pub struct Report(BTreeMap<(&'static str, Kind), Vec<f64>>);

impl Report {
    pub fn add(&mut self, name: &'static str, kind: Kind, figure: f64) {
        assert!(MEASURES.iter().any(|measure| measure.name == name), "{name}");
        self.0.entry((name, kind)).or_default().push(figure);
    }

    /// Takes over what is asked for, by the name of its group.
    pub fn take(&mut self, other: Self, asked: impl Fn(&str) -> bool) {
        for ((name, kind), figures) in other.0 {
            let measure = MEASURES.iter().find(|measure| measure.name == name);
            if measure.is_some_and(|measure| asked(measure.group)) {
                self.0.entry((name, kind)).or_default().extend(figures);
            }
        }
    }

    fn of(&self, measure: &Measure, kind: Kind) -> Option<Summary> {
        Summary::of(self.0.get(&(measure.name, kind))?)
    }

    /// A line a measure.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:50} {:>28} {:>28} {:>7}  {}\n",
            "", "howdah min/med/p99/max", "patroni min/med/p99/max", "ratio", "howdah at most (or at least)"
        );
        for measure in MEASURES {
            let (ours, theirs) = (self.of(measure, Kind::Howdah), self.of(measure, Kind::Patroni));
            if ours.is_none() && theirs.is_none() {
                continue;
            }
            let ratio = ours.as_ref().zip(theirs.as_ref()).map(|(ours, theirs)| {
                let ratio = if measure.less {
                    theirs.median / ours.median
                } else {
                    ours.median / theirs.median
                };
                format!("{ratio:.1}x")
            });
            let shown =
                |summary: Option<Summary>| summary.map_or_else(|| "-".to_owned(), |summary| summary.shown());
            let _infallible = writeln!(
                text,
                "{:50} {:>28} {:>28} {:>7}  {}",
                format!("{}, {}", measure.title, measure.unit),
                shown(ours),
                shown(theirs),
                ratio.unwrap_or_else(|| "-".to_owned()),
                measure.target
            );
        }
        text
    }

    /// Every figure.
    pub fn json(&self) -> Value {
        let rows = MEASURES.iter().map(|measure| {
            let figures = |kind| self.0.get(&(measure.name, kind)).cloned().unwrap_or_default();
            json!({
                "measure": measure.name,
                "title": measure.title.trim(),
                "unit": measure.unit,
                "target": measure.target,
                "howdah": figures(Kind::Howdah),
                "patroni": figures(Kind::Patroni),
            })
        });
        rows.collect()
    }
}

/// Some figures of one measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    min: f64,
    median: f64,
    p99: f64,
    max: f64,
    count: usize,
}

impl Summary {
    fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: *sorted.first()?,
            median: rank(&sorted, 0.5)?,
            p99: rank(&sorted, 0.99)?,
            max: *sorted.last()?,
            count: sorted.len(),
        })
    }

    fn shown(&self) -> String {
        if self.count == 1 {
            return short(self.median);
        }
        [self.min, self.median, self.p99, self.max].map(short).join("/")
    }
}

/// The figure that this share of all does not exceed (nearest rank).
pub fn rank(sorted: &[f64], share: f64) -> Option<f64> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the length"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
    sorted.get(index).copied()
}

/// Three digits that count.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

#[cfg(test)]
#[allow(unused_imports, reason = "in the benchmark itself no test is run")]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_says_how_many_times_better_and_a_missing_peer_is_shown_as_such() {
        let mut report = Report::default();
        for (ours, theirs) in [(0.2, 2.4), (0.3, 2.0), (0.25, 3.0)] {
            report.add("switchover", Kind::Howdah, ours);
            report.add("switchover", Kind::Patroni, theirs);
        }
        report.add("rest-primary", Kind::Howdah, 42_000.0);
        report.add("rest-primary", Kind::Patroni, 1_400.0);
        report.add("leader-killed-ttl-5", Kind::Howdah, 4.2);
        let table = report.table();
        let line = |start: &str| {
            let found = table.lines().find(|line| line.starts_with(start));
            found
                .unwrap_or_default()
                .split_whitespace()
                .rev()
                .take(4)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            line("write gap, switchover"),
            ["0.30", "9.6x", "2.00/2.40/3.00/3.00", "0.200/0.250/0.300/0.300"]
        );
        assert_eq!(line("GET /primary, 16"), ["40000", "30.0x", "1400", "42000"]);
        assert_eq!(
            line("write gap, kill -9 leader, ttl 5"),
            ["5.3", "-", "-", "4.20"]
        );
        assert_eq!(table.lines().count(), 4);
    }

    #[test]
    fn ranks_are_figures_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(rank(&hundred, 0.99), Some(99.0));
        assert_eq!(rank(&hundred, 0.5), Some(50.0));
        assert_eq!(rank(&[7.0], 0.99), Some(7.0));
        assert_eq!(rank(&[], 0.5), None);
    }

    #[test]
    fn only_what_is_asked_for_is_taken_over() {
        let mut started = Report::default();
        started.add("first-writable", Kind::Howdah, 1.0);
        let mut report = Report::default();
        report.take(started, |group| group != "start");
        assert_eq!(report.table().lines().count(), 1);
    }
}
