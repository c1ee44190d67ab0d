//! The plain keys. A conditional write reads the object, judges the condition for the key alone, and then names the
//! object's `resourceVersion`: if another key of the same object was written meanwhile, it begins anew.

use tokio::time::Instant;

use super::{
    Kubernetes, Wrote, lock,
    lock::ROUNDS,
    object::{self, Object, Place},
};
use crate::{
    dcs::{DcsError, Key, When, Written},
    model::Version,
};

impl Kubernetes {
    /// Writes, or with `None` deletes.
    pub(super) async fn put(
        &self,
        key: Key,
        value: Option<&str>,
        when: When,
        deadline: Instant,
    ) -> Result<Written, DcsError> {
        let place = Place::of(key);
        let path = self.layout.at(place);
        let write = format!("{:x}", self.chance());
        let patch = object::patch(key, value, &write);
        let done = |object: &Object| Written::Yes(object::version(key, object).unwrap_or(Version(0)));
        for _ in 0..ROUNDS {
            if when == When::Always {
                let patch = self.layout.patch(None, patch.clone(), &[]);
                if let Wrote::Done(object) = self.pool.patch(&path, &patch, deadline).await? {
                    self.note_written(place, &object);
                    return Ok(done(&object));
                }
                // Not there yet: made below.
            }
            let object = self.pool.get(&path, deadline).await?;
            // An earlier round of this very write, whose answer was lost.
            if let Some(object) = object
                .as_ref()
                .filter(|object| object::bears(key, object, &write))
            {
                return Ok(done(object));
            }
            let there = object.as_ref().and_then(|object| object::version(key, object));
            let holds = match when {
                When::Always => true,
                When::Absent => there.is_none(),
                When::Version(version) => there == Some(version),
            };
            if !holds {
                return Ok(Written::Refused);
            }
            let wrote = match &object {
                None if value.is_none() => return Ok(Written::Yes(Version(0))),
                None => {
                    let (kind, name) = (self.layout.mode.kind(place), self.layout.name(place));
                    let create = self.layout.create(kind, &name, patch.clone(), &[]);
                    self.pool
                        .create(&self.layout.all(kind), &create, deadline)
                        .await?
                }
                Some(object) => {
                    let version = object.metadata.resource_version.as_str();
                    let patch = self.layout.patch(Some(version), patch.clone(), &[]);
                    self.pool.patch(&path, &patch, deadline).await?
                }
            };
            if let Wrote::Done(object) = wrote {
                self.note_written(place, &object);
                return Ok(done(&object));
            }
        }
        Err(DcsError::Answer {
            endpoint: "the API server".to_owned(),
            reason: format!("{path} kept changing"),
        })
    }

    /// The next renewal need not find out that the leader's object is another one now.
    fn note_written(&self, place: Place, object: &Object) {
        if place != Place::Leader {
            return;
        }
        self.see_leader(Some(object));
        let mut state = lock(&self.state);
        if state.leader.is_some() {
            state.leader = Some(object.clone());
        }
    }
}
