//! The simulation: the decision of `howdah::ha` as it is shipped, on 3 to 5 members, in a hostile world that one seed
//! describes completely. `tests/run --only simulation` runs it; see [`USAGE`].
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::large_futures,
    reason = "output is what a person reads; a simulated member is one future, made once"
)]

mod clients;
mod clock;
mod coverage;
mod dcs;
mod exec;
mod faults;
mod mutants;
mod net;
mod postgres;
mod properties;
mod rng;
mod run;
mod runner;
mod shell;
mod shrink;
mod story;
mod wal;
mod world;

use std::{process::ExitCode, thread, time::Instant};

use run::Options;
use runner::Wish;

const USAGE: &str = "\
usage: simulation [--seeds N] [--from N] [--threads N] [--list] [--keep-going] [--no-mutants]
       simulation --seed N [--mutant NAME] [--whole]
       simulation --mutants [--mutant NAME]

Without arguments 10000 seeds and all mutants. Runs of 20000 seeds and more go on where they were broken off.

  --seed N       one seed; if it breaks a property its shortest story is told
  --whole        with --seed: everything that happens, nothing left out
  --seeds N      that many seeds
  --from N       the first of them
  --list         list the pairs of situation and event that were never visited
  --keep-going   go on after violations, to count them
  --mutants      only the mutants
";

/// Seeds of a usual run.
const SEEDS: u64 = 10_000;

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: Option<u64>,
    threads: Option<u64>,
    mutant: Option<String>,
    mutants: bool,
    no_mutants: bool,
    list: bool,
    whole: bool,
    keep_going: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || {
            let value = inline.clone().or_else(|| words.next());
            value.ok_or_else(|| format!("{name} needs a value"))
        };
        let number = |text: String| text.parse().map_err(|_| format!("not a number: {text}"));
        match name.as_str() {
            "--seed" => parsed.seed = Some(number(value()?)?),
            "--seeds" => parsed.seeds = Some(number(value()?)?),
            "--from" => parsed.from = Some(number(value()?)?),
            "--threads" => parsed.threads = Some(number(value()?)?),
            "--mutant" => parsed.mutant = Some(value()?),
            "--mutants" => parsed.mutants = true,
            "--no-mutants" => parsed.no_mutants = true,
            "--list" => parsed.list = true,
            "--whole" => parsed.whole = true,
            "--keep-going" => parsed.keep_going = true,
            other => return Err(format!("unknown argument: {other}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let begun = Instant::now();
    let cores = thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let threads = arguments
        .threads
        .map_or(cores, |n| usize::try_from(n).unwrap_or(1).max(1));
    let results = match arguments.seed {
        Some(seed) => match one(seed, &arguments) {
            Ok(held) => vec![(format!("seed_{seed}"), held)],
            Err(error) => {
                eprintln!("error: {error}\n{USAGE}");
                return ExitCode::from(64);
            }
        },
        None => many(&arguments, threads),
    };
    conclude(&results, begun)
}

fn one(seed: u64, arguments: &Arguments) -> Result<bool, String> {
    let mutant = match &arguments.mutant {
        None => None,
        Some(name) => {
            let row = mutants::TABLE.iter().find(|row| row.name == name);
            Some(row.ok_or_else(|| format!("no mutant is named '{name}'"))?.mutant)
        }
    };
    let options = Options {
        mutant,
        schedule: None,
        telling: arguments.whole,
    };
    if !arguments.whole {
        return Ok(!runner::story(seed, &options));
    }
    let outcome = run::run(seed, &options);
    println!("{}", outcome.summary);
    if let Some(story) = &outcome.story {
        print!("{}", story.table(outcome.members, 0));
    }
    match &outcome.violation {
        Some(violation) => println!("seed {seed}: {violation}"),
        None => println!("seed {seed}: nothing is wrong"),
    }
    println!(
        "{} commits acknowledged by {} generations, {} steps",
        outcome.acknowledged, outcome.generations, outcome.polls
    );
    Ok(outcome.violation.is_none())
}

fn many(arguments: &Arguments, threads: usize) -> Vec<(String, bool)> {
    let mut results = Vec::new();
    if !arguments.mutants {
        results = runner::seeds(&Wish {
            first: arguments.from.unwrap_or(0),
            seeds: arguments.seeds.unwrap_or(SEEDS),
            threads,
            list: arguments.list || arguments.seeds.is_some_and(|seeds| seeds > SEEDS),
            keep_going: arguments.keep_going,
        });
    }
    let all = arguments.seeds.is_none() && !arguments.no_mutants;
    if arguments.mutants || all {
        results.extend(runner::mutants(arguments.mutant.as_deref(), threads));
    }
    results
}

/// The lines `tests/run` counts.
fn conclude(results: &[(String, bool)], begun: Instant) -> ExitCode {
    for (name, held) in results {
        println!(
            "        {} simulation {name}",
            if *held { "PASS" } else { "FAIL" }
        );
    }
    let passed = results.iter().filter(|(_, held)| *held).count();
    let failed = results.len() - passed;
    let failures = if failed == 0 {
        String::new()
    } else {
        format!(", {failed} failed")
    };
    println!(
        "     Summary [{:8.3}s] {} tests run: {passed} passed{failures}, 0 skipped",
        begun.elapsed().as_secs_f32(),
        results.len()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
