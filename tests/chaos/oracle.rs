//! What the acknowledged commits of one run say.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use crate::witness::Ack;

/// A term of office: this member, on this timeline.
type Generation = (i32, usize);

/// One generation acknowledged something after the next had begun to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    pub old: Generation,
    pub new: Generation,
    /// How many of the old came too late.
    pub acks: usize,
    /// How late the latest was.
    pub latest: Duration,
}

/// Generations in the order of their first acknowledgement, and what of an earlier one came after a later had begun.
pub fn overlaps(acks: &[Ack]) -> Vec<Overlap> {
    let mut spans: BTreeMap<Generation, Vec<Instant>> = BTreeMap::new();
    for ack in acks {
        spans.entry((ack.timeline, ack.node)).or_default().push(ack.at);
    }
    let mut order: Vec<(Instant, Generation)> = spans
        .iter()
        .filter_map(|(generation, at)| Some((*at.iter().min()?, *generation)))
        .collect();
    order.sort();
    let mut found = Vec::new();
    for (index, (_, old)) in order.iter().enumerate() {
        // The first that began after it is the one it must not outlast.
        let Some((begun, new)) = order.get(index + 1) else {
            continue;
        };
        let late = spans[old].iter().filter(|at| *at > begun).map(|at| *at - *begun);
        let (count, latest) = late.fold((0, Duration::ZERO), |(n, max), d| (n + 1, max.max(d)));
        if count > 0 {
            found.push(Overlap {
                old: *old,
                new: *new,
                acks: count,
                latest,
            });
        }
    }
    found
}

/// Acknowledged ids that are not there in the end.
pub fn lost(acks: &[Ack], there: &HashSet<i64>) -> Vec<Ack> {
    acks.iter()
        .filter(|ack| !there.contains(&ack.id))
        .copied()
        .collect()
}

/// The longest time without any acknowledgement between the two, edges included.
pub fn longest_gap(acks: &[Ack], from: Instant, to: Instant) -> Duration {
    let mut times: Vec<Instant> = acks
        .iter()
        .map(|a| a.at)
        .filter(|at| *at >= from && *at <= to)
        .collect();
    times.sort();
    let mut last = from;
    let gaps = times
        .into_iter()
        .chain([to])
        .map(|at| at - std::mem::replace(&mut last, at));
    gaps.max().unwrap_or_default()
}

/// The oracle itself must see what it is there for.
pub fn self_check() -> Result<(), String> {
    let start = Instant::now();
    let ack = |id: i64, node: usize, timeline: i32, ms: u64| Ack {
        id,
        node,
        timeline,
        at: start + Duration::from_millis(ms),
    };
    let clean = [ack(1, 0, 1, 0), ack(2, 0, 1, 5), ack(3, 1, 2, 6), ack(4, 0, 3, 9)];
    let two = [ack(1, 0, 1, 0), ack(3, 1, 2, 6), ack(2, 0, 1, 8), ack(4, 1, 2, 9)];
    let expect = |name: &str, ok: bool| {
        ok.then_some(())
            .ok_or_else(|| format!("the oracle misses {name}"))
    };
    expect("that all is well", overlaps(&clean).is_empty())?;
    let found = overlaps(&two);
    expect(
        "two that write",
        found.len() == 1 && found[0].acks == 1 && found[0].latest.as_millis() == 2,
    )?;
    let there = HashSet::from([1, 2, 4]);
    expect("a lost commit", lost(&two, &there) == [two[1]])?;
    let gap = longest_gap(&clean, start, start + Duration::from_millis(30));
    expect("silence at the end", gap.as_millis() == 21)
}
