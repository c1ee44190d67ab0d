//! The command line.

use std::{path::PathBuf, time::Duration};

use crate::report::MEASURES;

/// What is to be measured, and how often.
pub struct Asked {
    pub trials: usize,
    /// How long an idle cluster is looked at.
    pub look: Duration,
    /// How long each way of load lasts.
    pub short_look: Duration,
    pub json: PathBuf,
    only: Vec<String>,
}

impl Asked {
    /// `None`: answered already.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut asked = Self {
            trials: 10,
            look: Duration::from_secs(60),
            short_look: Duration::from_secs(5),
            json: PathBuf::from("target/bench.json"),
            only: Vec::new(),
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match &*word {
                "--quick" => {
                    asked.trials = 1;
                    asked.look = Duration::from_secs(20);
                    asked.short_look = Duration::from_secs(2);
                }
                "--trials" => {
                    let given = value()?;
                    asked.trials = given
                        .parse()
                        .ok()
                        .filter(|trials| (1..=1000).contains(trials))
                        .ok_or_else(|| format!("--trials {given}: it has to be a number from 1 to 1000"))?;
                }
                "--only" => {
                    for name in value()?.split(',') {
                        if !groups().any(|known| known == name) {
                            let known: Vec<&str> = groups().collect();
                            return Err(format!("--only {name}: there are {}", known.join(", ")));
                        }
                        asked.only.push(name.to_owned());
                    }
                }
                "--json" => asked.json = PathBuf::from(value()?),
                "--list" => {
                    for measure in MEASURES {
                        println!("{:22} {}", measure.group, measure.title);
                    }
                    return Ok(None);
                }
                other => return Err(format!("unknown argument {other}; --help tells what there is")),
            }
        }
        Ok(Some(asked))
    }

    /// Whether this is to be measured.
    pub fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

fn groups() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    MEASURES.iter().filter_map(move |measure| {
        let new = measure.group != last;
        last = measure.group;
        new.then_some(measure.group)
    })
}
