//! Many seeds on all cores: progress, a state to go on from, and what is told at the end.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    coverage::Coverage,
    exec::{MS, SECOND},
    mutants::{Row, TABLE},
    properties::{PROPERTIES, Violation},
    run::{self, Options},
    shrink,
};

/// Seeds a worker takes at a time; also the grain of the saved state.
const CHUNK: u64 = 50;
/// From this many seeds on the state is saved, so that a run can be broken off.
const LONG: u64 = 20_000;
/// Stories told in full.
const STORIES: usize = 3;

#[derive(Default)]
struct Total {
    done: BTreeMap<u64, ()>,
    seeds: u64,
    coverage: Coverage,
    acknowledged: u64,
    generations: u64,
    at_thaw: u64,
    at_thaw_latest: u64,
    violations: BTreeMap<u64, Violation2>,
}

/// What is kept of a violation.
#[derive(Debug, Clone)]
struct Violation2 {
    property: String,
    what: String,
}

struct Chunk {
    first: u64,
    coverage: Coverage,
    acknowledged: u64,
    generations: u64,
    at_thaw: u64,
    at_thaw_latest: u64,
    seeds: u64,
    violations: Vec<(u64, Violation)>,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) first: u64,
    pub(crate) seeds: u64,
    pub(crate) threads: usize,
    /// List the pairs never visited.
    pub(crate) list: bool,
    /// Go on after violations, to count them.
    pub(crate) keep_going: bool,
}

fn one_chunk(first: u64, end: u64) -> Chunk {
    let mut chunk = Chunk {
        first,
        coverage: Coverage::default(),
        acknowledged: 0,
        generations: 0,
        at_thaw: 0,
        at_thaw_latest: 0,
        seeds: end - first,
        violations: Vec::new(),
    };
    for seed in first..end {
        let outcome = run::run(seed, &Options::default());
        chunk.coverage.add(&outcome.coverage);
        chunk.acknowledged += outcome.acknowledged;
        chunk.generations += outcome.generations;
        chunk.at_thaw += outcome.at_thaw;
        chunk.at_thaw_latest = chunk.at_thaw_latest.max(outcome.at_thaw_latest);
        if let Some(violation) = outcome.violation {
            chunk.violations.push((seed, violation));
        }
    }
    chunk
}

/// Runs the seeds; true per property that held.
pub(crate) fn seeds(wish: &Wish) -> Vec<(String, bool)> {
    let begun = Instant::now();
    let state = state_file(wish);
    let mut total = Total::default();
    if let Some(path) = &state {
        restore(path, &mut total);
        if total.seeds > 0 {
            println!("going on after {} seeds (state: {})", total.seeds, path.display());
        }
    }
    let resumed = total.seeds;
    let next = AtomicU64::new(wish.first);
    let stop = AtomicBool::new(false);
    let end = wish.first + wish.seeds;
    let done = std::mem::take(&mut total.done);
    let total = Mutex::new(total);
    thread::scope(|scope| {
        let (sender, chunks) = mpsc::channel();
        for _ in 0..wish.threads {
            let sender = sender.clone();
            let (next, stop, done) = (&next, &stop, &done);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if first >= end {
                        return;
                    }
                    if done.contains_key(&first) {
                        continue;
                    }
                    // Nobody listens any more only after a panic elsewhere.
                    if sender.send(one_chunk(first, (first + CHUNK).min(end))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut told = Instant::now();
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.done.clone_from(&done);
        for chunk in chunks {
            take(&mut total, chunk);
            if !wish.keep_going && total.violations.len() >= STORIES {
                stop.store(true, Ordering::Relaxed);
            }
            if told.elapsed() > Duration::from_secs(if wish.seeds >= LONG { 15 } else { 60 }) {
                told = Instant::now();
                let rate = (total.seeds - resumed) as f64 / begun.elapsed().as_secs_f64();
                let left = (wish.seeds - total.seeds) as f64 / rate.max(0.001);
                println!(
                    "{} of {} seeds, {rate:.0} per second, {left:.0} s to go, {} violations",
                    total.seeds,
                    wish.seeds,
                    total.violations.len()
                );
                if let Some(path) = &state {
                    save(path, &total);
                }
            }
        }
        if let Some(path) = &state {
            save(path, &total);
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(wish, &total, begun.elapsed())
}

fn take(total: &mut Total, chunk: Chunk) {
    total.done.insert(chunk.first, ());
    total.seeds += chunk.seeds;
    total.coverage.add(&chunk.coverage);
    total.acknowledged += chunk.acknowledged;
    total.generations += chunk.generations;
    total.at_thaw += chunk.at_thaw;
    total.at_thaw_latest = total.at_thaw_latest.max(chunk.at_thaw_latest);
    for (seed, violation) in chunk.violations {
        println!(
            "seed {seed}, {:.1} s: {violation}",
            violation.at as f64 / SECOND as f64
        );
        total.violations.insert(
            seed,
            Violation2 {
                property: violation.property.name().to_owned(),
                what: violation.what,
            },
        );
    }
}

fn report(wish: &Wish, total: &Total, took: Duration) -> Vec<(String, bool)> {
    println!(
        "{} seeds of 600 s in {:.1} s: {} commits acknowledged by {} generations of primaries",
        total.seeds,
        took.as_secs_f32(),
        total.acknowledged,
        total.generations
    );
    println!(
        "acknowledged by an old primary in the instant of its thaw: {} commits, the latest {} ms after it",
        total.at_thaw,
        total.at_thaw_latest / MS
    );
    print!("{}", total.coverage.report(wish.list));
    for seed in total.violations.keys().take(STORIES) {
        story(*seed, &Options::default());
    }
    PROPERTIES
        .iter()
        .map(|property| {
            let held = total.violations.values().all(|v| v.property != property.name());
            (property.name().to_owned(), held)
        })
        .collect()
}

/// Finds the shortest story of a seed and tells it. False: nothing is wrong with it.
pub(crate) fn story(seed: u64, options: &Options) -> bool {
    let outcome = run::run(seed, options);
    let Some(violation) = outcome.violation else {
        println!(
            "seed {seed}: nothing is wrong ({} commits acknowledged)",
            outcome.acknowledged
        );
        return false;
    };
    let schedule = shrink::shrink(seed, options, violation.property);
    let from = schedule
        .first()
        .map_or(0, |fault| fault.at.saturating_sub(2 * SECOND));
    let told = run::run(
        seed,
        &Options {
            mutant: options.mutant,
            schedule: Some(schedule.clone()),
            telling: true,
        },
    );
    println!("\nseed {seed}: {}", told.summary);
    for fault in &schedule {
        println!("  {fault}");
    }
    if let Some(story) = &told.story {
        print!("{}", story.table(told.members, from));
    }
    let violation = told.violation.unwrap_or(violation);
    println!("{} at {:.3} s", violation, violation.at as f64 / SECOND as f64);
    let mutant = options
        .mutant
        .and_then(|mutant| TABLE.iter().find(|row| row.mutant == mutant))
        .map_or_else(String::new, |row| format!(" --mutant {}", row.name));
    println!("again: ./tests/run --only simulation --seed {seed}{mutant}\n");
    true
}

/// What this seed makes of the mutant. What goes wrong without it, too, has not caught it.
fn caught_by(row: &Row, seed: u64) -> Option<Violation> {
    let options = Options {
        mutant: Some(row.mutant),
        ..Options::default()
    };
    let violation = run::run(seed, &options).violation;
    violation
        .filter(|violation| row.caught_by.contains(&violation.property))
        .filter(|_| run::run(seed, &Options::default()).violation.is_none())
}

/// Runs one mutant until it is caught: by the seed that is known for it, else by the first of so many.
fn hunt(row: &Row, threads: usize) -> (bool, String) {
    if let Some(violation) = row
        .known
        .filter(|seed| *seed < row.within)
        .and_then(|seed| caught_by(row, seed))
    {
        let seed = row.known.unwrap_or_default();
        return (true, format!("caught by seed {seed}: {violation}"));
    }
    let next = AtomicU64::new(0);
    let caught: Mutex<Option<(u64, Violation)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let found = caught
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_ref()
                        .map(|c| c.0);
                    if seed >= row.within || found.is_some_and(|found| found < seed) {
                        return;
                    }
                    if let Some(violation) = caught_by(row, seed) {
                        let mut caught = caught.lock().unwrap_or_else(PoisonError::into_inner);
                        if caught.as_ref().is_none_or(|(other, _)| *other > seed) {
                            *caught = Some((seed, violation));
                        }
                    }
                }
            });
        }
    });
    match caught.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((seed, violation)) => (true, format!("caught by seed {seed}: {violation}")),
        None => (
            false,
            format!("not caught within {} seeds: {}", row.within, row.what),
        ),
    }
}

/// Runs the table of mutants, or one of them.
pub(crate) fn mutants(only: Option<&str>, threads: usize) -> Vec<(String, bool)> {
    let rows = TABLE
        .iter()
        .filter(|row| only.is_none_or(|name| row.name == name));
    rows.map(|row| {
        let begun = Instant::now();
        let (caught, how) = hunt(row, threads);
        println!(
            "mutant {} ({:.1} s): {how}",
            row.name,
            begun.elapsed().as_secs_f32()
        );
        (format!("mutant_{}_is_caught", row.name), caught)
    })
    .collect()
}

// ----------------------------------------------------------------------------------------------------------- state

/// Long runs only. Another build begins afresh: what its predecessor has shown says nothing about it.
fn state_file(wish: &Wish) -> Option<PathBuf> {
    if wish.seeds < LONG {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let bytes = fs::read(&program).ok()?;
    let print = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // target/simulation/deps/simulation-…
    let folder = program.parent()?.parent()?;
    Some(folder.join(format!("state-{print:016x}-{}-{}", wish.first, wish.seeds)))
}

fn save(path: &PathBuf, total: &Total) {
    let mut text = format!(
        "seeds {}\nacknowledged {}\ngenerations {}\nthaw {} {}\n",
        total.seeds, total.acknowledged, total.generations, total.at_thaw, total.at_thaw_latest
    );
    for first in total.done.keys() {
        text += &format!("done {first}\n");
    }
    for (seed, violation) in &total.violations {
        text += &format!("violation {seed} {} {}\n", violation.property, violation.what);
    }
    text += &total.coverage.store();
    let beside = path.with_extension("new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        println!("cannot save the state to {}: {error}", path.display());
    }
}

fn restore(path: &PathBuf, total: &mut Total) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let number = |at: usize| {
            words
                .get(at)
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0)
        };
        match words.first() {
            Some(&"seeds") => total.seeds = number(1),
            Some(&"acknowledged") => total.acknowledged = number(1),
            Some(&"generations") => total.generations = number(1),
            Some(&"thaw") => (total.at_thaw, total.at_thaw_latest) = (number(1), number(2)),
            Some(&"done") => {
                total.done.insert(number(1), ());
            }
            Some(&"violation") => {
                let text = |at: usize| words.get(at).map_or_else(String::new, |word| (*word).to_owned());
                total.violations.insert(
                    number(1),
                    Violation2 {
                        property: text(2),
                        what: text(3),
                    },
                );
            }
            Some(&"pair") => total.coverage.restore(line),
            _ => {}
        }
    }
}
