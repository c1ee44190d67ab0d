//! One cluster of members of both kinds.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{
    SOON,
    etcd::Server as Etcd,
    node::{Node, children, cmdline, wait_for},
    patroni::{Patroni, REPLICATION, REWIND, bin_dir},
    seat::Seat,
    witness::Witness,
};

/// Patroni knows no shorter one.
pub const TTL: Duration = Duration::from_secs(20);

/// The store and a place for members; members are made in it and must be dropped before it.
pub struct Mixed {
    pub etcd: Etcd,
    base: TempDir,
}

impl Mixed {
    pub fn new() -> Self {
        let base = tempfile::Builder::new()
            .prefix("howdah-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        Self {
            etcd: Etcd::start(),
            base,
        }
    }

    /// The cluster's first configuration, whoever makes it.
    fn dcs(more: Value) -> Value {
        let mut dcs = json!({
            "ttl": TTL.as_secs(), "loop_wait": 1, "retry_timeout": 3,
            "postgresql": {"use_pg_rewind": true, "use_slots": true},
        });
        if let (Some(dcs), Value::Object(more)) = (dcs.as_object_mut(), more) {
            dcs.extend(more);
        }
        dcs
    }

    pub fn patroni(&self, name: &str, more: Value) -> Patroni {
        Patroni::new(self.base.path(), name, &self.etcd.endpoint(), &Self::dcs(more))
    }

    pub fn howdah(&self, name: &str, more: Value) -> Node {
        let mut node = Node::new(self.base.path(), name, "demo", &[self.etcd.endpoint()]);
        for shorter in ["HOWDAH_TTL", "HOWDAH_LOOP_WAIT", "HOWDAH_RETRY_TIMEOUT"] {
            node.env.remove(shorter);
        }
        node.set("HOWDAH_BOOTSTRAP_DCS", &Self::dcs(more).to_string())
            .set("HOWDAH_POSTGRESQL_BIN_DIR", &bin_dir())
            .set("HOWDAH_REPLICATION_USERNAME", REPLICATION.0)
            .set("HOWDAH_REPLICATION_PASSWORD", REPLICATION.1)
            .set("HOWDAH_REWIND_USERNAME", REWIND.0)
            .set("HOWDAH_REWIND_PASSWORD", REWIND.1);
        node
    }

    /// Howdah in the place of a Patroni that has ended: its file, its data, its name, its addresses.
    pub fn in_place_of(&self, patroni: &Patroni) -> Node {
        let mut node = self.howdah(&patroni.seat.name, json!({}));
        let seen = |path: &Path| path.display().to_string();
        node.env = BTreeMap::from([
            ("HOWDAH_CONFIGURATION_FILE".to_owned(), seen(&patroni.file())),
            ("HOWDAH_LOG_LEVEL".to_owned(), "DEBUG".to_owned()),
            (
                "HOWDAH_INITDB_SCRIPTS_DIR".to_owned(),
                seen(&patroni.dir.join("initdb.d")),
            ),
            // For this test's own look at it; the file says the same.
            ("PGDATA".to_owned(), seen(&patroni.data_dir())),
        ]);
        (node.pg_port, node.api_port) = (patroni.seat.pg_port, patroni.seat.api_port);
        node.dir = self.base.path().join(format!("howdah-{}", node.name));
        fs::create_dir_all(&node.dir).expect("create a directory for the log");
        node
    }

    /// A key of the cluster.
    pub async fn key(&self, name: &str) -> Option<String> {
        let mut client = self.etcd.client().await;
        let answer = client
            .get(format!("/service/demo/{name}"), None)
            .await
            .expect("etcd answers");
        answer
            .kvs()
            .first()
            .map(|kv| kv.value_str().expect("text").to_owned())
    }

    pub async fn key_json(&self, name: &str) -> Value {
        let text = self.key(name).await.unwrap_or_else(|| panic!("no key {name}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
    }

    /// Waits until `/sync` says that commits wait for `standby`, and that it may lead.
    pub async fn wait_sync(&self, leader: &Seat, standby: &Seat) {
        wait_for(
            &format!("{} to be the synchronous standby", standby.name),
            SOON,
            async || {
                let text = self.key("sync").await.unwrap_or_default();
                let sync: Value = serde_json::from_str(&text).unwrap_or_default();
                if sync["leader"] == leader.name.as_str() && sync["sync_standby"] == standby.name.as_str() {
                    Ok(())
                } else {
                    Err(text)
                }
            },
        )
        .await;
        leader
            .wait_sql(
                "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'sync'",
                &standby.name,
            )
            .await;
    }
}

/// What every member must say of the cluster, whoever it is and whoever leads.
pub async fn agree(seats: &[&Seat], leader: &Seat) {
    // Positions move; who is who does not.
    const SAME: &[&str] = &["name", "role", "state", "host", "port", "api_url", "timeline"];
    let shown = async |seat: &Seat| -> Result<(Value, Value, Value), String> {
        let (_, view) = seat.get("/cluster").await?;
        let members = view["members"].as_array().ok_or_else(|| view.to_string())?;
        for member in members.iter().filter(|member| member["role"] != "leader") {
            if !member["lag"].is_u64() || !member["lsn"].is_string() {
                return Err(format!("{}: {member}", seat.name));
            }
        }
        let kept = |member: &Value| {
            let keys = SAME.iter().map(|key| ((*key).to_owned(), member[*key].clone()));
            Value::Object(keys.collect::<Map<_, _>>())
        };
        let members = members.iter().map(kept).collect();
        Ok((
            members,
            seat.get("/config").await?.1,
            seat.get("/history").await?.1,
        ))
    };
    wait_for("all members to see the same", SOON, async || {
        let first = shown(seats[0]).await?;
        for seat in &seats[1..] {
            let other = shown(seat).await?;
            if other != first {
                return Err(format!(
                    "{first:?} on {}, {other:?} on {}",
                    seats[0].name, seat.name
                ));
            }
        }
        let all = first.0.as_array().ok_or("no members")?;
        let leads = |m: &&Value| m["role"] == "leader" && m["name"] == leader.name.as_str();
        let streaming = all.iter().filter(|m| m["state"] == "streaming").count();
        if all.iter().filter(leads).count() == 1 && streaming == all.len() - 1 && all.len() == seats.len() {
            Ok(())
        } else {
            Err(first.0.to_string())
        }
    })
    .await;
}

/// One slot on the leader for each replica, in use, under the name that both kinds give it; and in `/status`.
pub async fn slots(mixed: &Mixed, leader: &Seat, replicas: &[&Seat]) {
    for replica in replicas {
        let slot = replica.name.replace('-', "_");
        let sql = format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
        leader.wait_sql(&sql, "true").await;
        wait_for(&format!("{slot} in /status"), SOON, async || {
            let status = mixed.key_json("status").await;
            let known = status["slots"][&slot].is_u64() && status["optime"].is_u64();
            if known { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
}

/// Freezes whatever sends WAL from this postmaster: what is written then is on no other member.
pub fn cut_off(postmaster: i32) {
    let senders: Vec<i32> = children(postmaster)
        .into_iter()
        .filter(|pid| cmdline(*pid).contains("walsender"))
        .collect();
    assert!(!senders.is_empty(), "nobody streams");
    for pid in senders {
        let sent = std::process::Command::new("kill")
            .args(["-STOP", &pid.to_string()])
            .status();
        assert!(sent.expect("run kill").success());
    }
}

/// Every commit that was acknowledged to one of these is on this member.
pub async fn nothing_lost(seat: &Seat, witnesses: &[Witness]) {
    let ids: Vec<String> = witnesses
        .iter()
        .flat_map(Witness::acks)
        .map(|ack| ack.id.to_string())
        .collect();
    assert!(!ids.is_empty(), "nothing was written at all");
    let sql = format!(
        "SELECT count(*) FROM unnest(ARRAY[{}]::bigint[]) AS a(id) \
         WHERE NOT EXISTS (SELECT 1 FROM witness w WHERE w.id = a.id)",
        ids.join(",")
    );
    let missing = seat.sql(&sql).await;
    assert_eq!(
        missing.as_deref(),
        Ok("0"),
        "of {} acknowledged commits, on {}",
        ids.len(),
        seat.name
    );
}
