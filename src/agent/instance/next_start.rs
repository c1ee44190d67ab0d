//! What a restart would change: the values of parameters at the next start, asked of PostgreSQL itself.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::{Instance, SMALL, chain, lock};
use crate::postgres::{query::PendingSetting, units};

/// All of them together; what is not known by then is asked again by a later turn.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Stands for a value nobody knows (contract: PostgreSQL configuration §7).
const UNKNOWN: &str = "?";

/// Values at the next start, as they were asked for.
#[derive(Debug, Default)]
pub(super) struct NextStart {
    /// The files they were read from.
    generation: u64,
    asked: Vec<PendingSetting>,
    answers: Vec<Option<String>>,
}

impl Instance {
    /// The values these parameters would have after a restart, in the form of `SHOW`, in their order. Asks again only when
    /// the parameters or the files are others than before, or there was no time to ask for all.
    pub async fn values_at_next_start(&self, settings: &[PendingSetting]) -> Vec<String> {
        let generation = self.generation.load(Ordering::Relaxed);
        let mut known = self.next_start.lock().await;
        let same = known.generation == generation && known.asked == settings;
        if !same || known.answers.iter().any(Option::is_none) {
            *known = NextStart {
                generation,
                asked: settings.to_vec(),
                answers: self.ask_for(settings).await,
            };
        }
        let text = |answer: &Option<String>| answer.clone().unwrap_or_else(|| UNKNOWN.to_owned());
        known.answers.iter().map(text).collect()
    }

    async fn ask_for(&self, settings: &[PendingSetting]) -> Vec<Option<String>> {
        let args = lock(&self.arguments_written).clone();
        let mut answers = vec![None; settings.len()];
        // An adopted postmaster whose files we have not written yet.
        if args.is_empty() {
            return answers;
        }
        let deadline = Instant::now() + ASK_LIMIT;
        for (setting, answer) in settings.iter().zip(&mut answers) {
            let value = Box::pin(self.value_at_start(&args, &setting.name));
            match timeout_at(deadline, value).await {
                // A refusal is an answer too: it stands until the files or the parameters are others.
                Ok(value) => {
                    *answer = Some(value.map_or_else(
                        || UNKNOWN.to_owned(),
                        |value| units::shown(&value, setting.unit.as_deref()),
                    ));
                }
                Err(_) => {
                    debug!(?ASK_LIMIT, "could not ask for all values at the next start");
                    break;
                }
            }
        }
        answers
    }

    /// Learns the units of parameters from the running server, once.
    pub async fn learn_units(&self) {
        const SQL: &str = "SELECT pg_catalog.jsonb_object_agg(name, unit) FROM pg_catalog.pg_settings \
            WHERE unit IS NOT NULL";
        if self.known().has_units() {
            return;
        }
        let units: std::collections::BTreeMap<String, String> = match self.monitor.execute(SQL, SMALL).await {
            Ok(Some(text)) => serde_json::from_str(&text).unwrap_or_default(),
            Ok(None) => return,
            Err(error) => return debug!(error = chain(&error), "could not ask for the units of parameters"),
        };
        if units.is_empty() {
            return warn!("the server named no units of its parameters");
        }
        let known = (*self.known()).clone().with_units(units);
        *self
            .known
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = std::sync::Arc::new(known);
    }
}
