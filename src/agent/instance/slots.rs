//! Slots of the local server, and what a replica needs to know of the leader's.

use std::{sync::atomic::Ordering, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, SMALL, chain};
use crate::{
    ha::{Failure, Upstream, slots::LeaderSlots},
    model::Lsn,
    postgres::{
        postmaster::{StopLadder, StopMode},
        query::{Address, Monitor, QueryError, Target, literal},
        replslot::{self, SlotFile},
    },
};

/// Reading the states of the leader's slots.
const FETCH_LIMIT: Duration = Duration::from_secs(10);

impl Instance {
    /// A physical slot that keeps WAL from now on; false if there is one of that name.
    pub async fn create_slot(&self, name: &str) -> Result<bool, QueryError> {
        self.monitor().create_physical_slot(name, SMALL).await
    }

    /// Drops a slot nobody uses; false if there is none or it is in use.
    pub async fn drop_slot(&self, name: &str) -> Result<bool, QueryError> {
        self.monitor().drop_slot(name, SMALL).await
    }

    /// Moves a physical slot forward.
    pub async fn advance_slot(&self, name: &str, to: Lsn) -> Result<(), QueryError> {
        self.monitor().advance_slot(name, to, SMALL).await
    }

    /// A logical slot that decodes from now on. Waits for the transactions of this moment.
    pub async fn create_logical_slot(
        &self,
        name: &str,
        database: &str,
        plugin: &str,
        limit: Duration,
    ) -> Result<(), QueryError> {
        let (name, plugin) = (literal(name), literal(plugin));
        let sql = format!("SELECT pg_catalog.pg_create_logical_replication_slot({name}, {plugin})");
        self.in_database(database)
            .execute_long(&sql, limit)
            .await
            .map(drop)
    }

    /// Moves a logical slot forward; PostgreSQL goes no further than it has replayed.
    pub async fn advance_logical_slot(
        &self,
        name: &str,
        database: &str,
        to: Lsn,
        limit: Duration,
    ) -> Result<(), QueryError> {
        let name = literal(name);
        let sql = format!("SELECT pg_catalog.pg_replication_slot_advance({name}, '{to}')");
        self.in_database(database)
            .execute_long(&sql, limit)
            .await
            .map(drop)
    }

    /// A logical slot can only be worked on from within its database.
    fn in_database(&self, database: &str) -> Monitor {
        let target = self.monitor().target();
        Monitor::new(Target {
            dbname: database.to_owned(),
            ..(*target).clone()
        })
    }

    /// Whether logical slots here need `hot_standby_feedback`; true if that is news.
    pub fn force_feedback(&self, on: bool) -> bool {
        self.feedback.swap(on, Ordering::Relaxed) != on
    }

    fn of_leader(&self, leader: &Upstream) -> Monitor {
        let settings = self.settings();
        let address = Address::Tcp(leader.host.clone());
        Monitor::new(settings.target(&settings.rewind, address, leader.port, &settings.database))
    }

    /// What the leader's slots protect: the one we stream from, and its logical ones.
    pub async fn leader_slots(&self, leader: &Upstream, limit: Duration) -> Result<LeaderSlots, String> {
        let ours = literal(&self.settings().member.slot());
        let sql = format!(
            "SELECT pg_catalog.jsonb_build_object(\
               'ours', (SELECT s.catalog_xmin::text::bigint FROM pg_catalog.pg_replication_slots s \
                         WHERE s.slot_name = {ours} AND s.slot_type = 'physical'), \
               'logical', (SELECT pg_catalog.jsonb_object_agg(s.slot_name, s.catalog_xmin::text::bigint) \
                             FROM pg_catalog.pg_replication_slots s \
                            WHERE s.slot_type = 'logical' AND s.catalog_xmin IS NOT NULL)) \
              WHERE NOT pg_catalog.pg_is_in_recovery()"
        );
        let answer = self.of_leader(leader).execute_long(&sql, limit).await;
        let text = answer
            .map_err(|error| chain(&error))?
            .ok_or("it is still in recovery")?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let number = |value: &serde_json::Value| u32::try_from(value.as_u64()?).ok();
        let logical = value["logical"].as_object().into_iter().flatten();
        Ok(LeaderSlots {
            ours: number(&value["ours"]),
            logical: logical
                .filter_map(|(name, xmin)| Some((name.clone(), number(xmin)?)))
                .collect(),
        })
    }

    /// Copies logical slots of the leader. Postgres is stopped once all of them have been read, and stays stopped: the
    /// next turn starts it as it starts every stopped replica.
    pub async fn copy_slots(
        &self,
        leader: &Upstream,
        names: &[String],
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if self.wanted("wal_level").as_deref() != Some("logical") {
            // With a lower level PostgreSQL refuses to start with such a slot.
            return Err(Failure::Failed("wal_level is not 'logical' here".to_owned()));
        }
        let mut states = Vec::new();
        for name in names {
            match self.slot_state(leader, name).await {
                Ok((file, _)) if !self.has_wal_of(&file) => {
                    // As its consumer goes on, the slot will need newer WAL only.
                    warn!(
                        slot = name,
                        needs = %file.restart,
                        "cannot copy a logical slot yet: the WAL it needs is older than what is here"
                    );
                }
                Ok(state) => states.push((name, state)),
                Err(error) => {
                    warn!(slot = name, error, leader = %leader.member, "cannot copy a logical slot yet")
                }
            }
        }
        if states.is_empty() {
            return Err(Failure::NotYet(
                "none of the slots can be copied from the leader now".to_owned(),
            ));
        }
        if cancel.is_cancelled() {
            return Err(Failure::Cancelled(
                "cancelled before postgres was stopped".to_owned(),
            ));
        }
        let ladder = StopLadder {
            smart: Duration::ZERO,
            fast: Duration::from_secs(10),
            immediate: Duration::from_secs(5),
        };
        self.halt(StopMode::Fast, ladder).await?;
        for (name, (file, state)) in states {
            // The checkpoint of the stop may have removed some.
            if !self.has_wal_of(&file) {
                warn!(slot = name, needs = %file.restart, "not copied: the WAL it needs has just been removed");
                continue;
            }
            replslot::install(self.data_dir(), name, &state).map_err(|error| chain(&error))?;
            info!(slot = name, leader = %leader.member, "copied a logical replication slot");
        }
        Ok(())
    }

    /// With less a slot looks well and cannot be read from.
    fn has_wal_of(&self, slot: &SlotFile) -> bool {
        replslot::oldest_wal(self.data_dir()).is_some_and(|oldest| oldest <= slot.restart)
    }

    /// The state of a usable logical slot, as the leader has it on disk.
    async fn slot_state(&self, leader: &Upstream, name: &str) -> Result<(SlotFile, Vec<u8>), String> {
        let slot = literal(name);
        let path = literal(&format!("pg_replslot/{name}/state"));
        let sql = format!(
            "SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file({path}, 0, {}, false), 'hex') \
               FROM pg_catalog.pg_replication_slots s \
              WHERE NOT pg_catalog.pg_is_in_recovery() AND s.slot_name = {slot} AND s.slot_type = 'logical' \
                AND NOT s.temporary AND s.wal_status IS DISTINCT FROM 'lost'",
            replslot::SIZE_MAX
        );
        let answer = self.of_leader(leader).execute_long(&sql, FETCH_LIMIT).await;
        let text = answer
            .map_err(|error| chain(&error))?
            .ok_or("the leader has no usable logical slot of this name")?;
        let state = replslot::from_hex(&text).ok_or("the leader's answer is not hexadecimal")?;
        let parsed = replslot::parse(&state).ok_or("the leader's file is not a slot's state")?;
        if parsed.name != name || !parsed.logical {
            return Err(format!("the leader's file is about slot '{}'", parsed.name));
        }
        Ok((parsed, state))
    }
}
