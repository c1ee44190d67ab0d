//! Makes a schedule that breaks a property as short as it gets: faults are dropped, in groups and one by one, and what
//! remains is made shorter.

use crate::{
    faults::{self, Fault},
    properties::Property,
    run::{self, Options},
};

/// Runs spent on one story at most.
const ATTEMPTS: usize = 600;

struct Shrinker<'a> {
    seed: u64,
    options: &'a Options,
    property: Property,
    left: usize,
}

/// The shortest schedule found that breaks the same property.
pub(crate) fn shrink(seed: u64, options: &Options, property: Property) -> Vec<Fault> {
    let mut schedule = options
        .schedule
        .clone()
        .unwrap_or_else(|| faults::schedule(&run::setup(seed), seed));
    let mut shrinker = Shrinker {
        seed,
        options,
        property,
        left: ATTEMPTS,
    };
    loop {
        let before = schedule.clone();
        shrinker.drop_groups(&mut schedule);
        shrinker.shorten(&mut schedule);
        if schedule == before || shrinker.left == 0 {
            return schedule;
        }
    }
}

impl Shrinker<'_> {
    fn breaks(&mut self, schedule: &[Fault]) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let options = Options {
            mutant: self.options.mutant,
            schedule: Some(schedule.to_vec()),
            telling: false,
        };
        let violation = run::run(self.seed, &options).violation;
        violation.is_some_and(|violation| violation.property == self.property)
    }

    fn drop_groups(&mut self, schedule: &mut Vec<Fault>) {
        let mut size = schedule.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < schedule.len() {
                let end = (at + size).min(schedule.len());
                let mut shorter = schedule.clone();
                shorter.drain(at..end);
                if self.breaks(&shorter) {
                    *schedule = shorter;
                } else {
                    at = end;
                }
            }
            if size == 1 {
                return;
            }
            size = size.div_ceil(2);
        }
    }

    fn shorten(&mut self, schedule: &mut [Fault]) {
        for at in 0..schedule.len() {
            for _ in 0..4 {
                let mut shorter = schedule.to_vec();
                shorter[at].lasts /= 2;
                if !self.breaks(&shorter) {
                    break;
                }
                schedule[at].lasts = shorter[at].lasts;
            }
        }
    }
}
