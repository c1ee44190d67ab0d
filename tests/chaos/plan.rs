//! Which faults, in which modes, how often.

use crate::{
    cluster::{MODES, Mode},
    fault::{ALL, Fault},
};

pub const USAGE: &str =
    "usage: chaos [--iterations N] [--faults NAME,...] [--modes async,sync,strict,quorum] [--list]";

#[derive(Debug)]
pub struct Plan {
    /// Runs of every fault in every mode; `None`: a short walk through all of them.
    pub iterations: Option<usize>,
    pub faults: Vec<Fault>,
    pub modes: Vec<Mode>,
}

impl Plan {
    /// `None`: only the names were asked for.
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut plan = Self {
            iterations: None,
            faults: ALL.to_vec(),
            modes: MODES.to_vec(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--iterations" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|n| *n > 0);
                    plan.iterations =
                        Some(number.ok_or(format!("--iterations {text}: a whole number from 1 on"))?);
                }
                "--faults" => plan.faults = chosen(&value()?, &ALL, |fault| fault.name())?,
                "--modes" => plan.modes = chosen(&value()?, &MODES, |mode| mode.name())?,
                "--list" => {
                    for fault in ALL {
                        println!("{}", fault.name());
                    }
                    return Ok(None);
                }
                other => return Err(format!("unknown argument: {other}")),
            }
        }
        Ok(Some(plan))
    }

    /// Faults of one mode, with how often. The short walk does every fault once without synchronous replication, and
    /// a third of them in each of the other modes, so that every fault meets one of those, too.
    pub fn of(&self, mode: Mode) -> Vec<(Fault, usize)> {
        let place = self.modes.iter().position(|m| *m == mode).unwrap_or_default();
        let taken = |index: usize| mode == Mode::Async || index % 3 == place % 3;
        match self.iterations {
            Some(n) => self.faults.iter().map(|fault| (*fault, n)).collect(),
            None => self
                .faults
                .iter()
                .enumerate()
                .filter(|(index, _)| taken(*index))
                .map(|(_, fault)| (*fault, 1))
                .collect(),
        }
    }
}

fn chosen<T: Copy>(list: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<Vec<T>, String> {
    let one = |wanted: &str| {
        let found = all.iter().find(|thing| name(thing) == wanted).copied();
        let allowed = || all.iter().map(&name).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("'{wanted}' is none of: {}", allowed()))
    };
    list.split(',').map(one).collect()
}
