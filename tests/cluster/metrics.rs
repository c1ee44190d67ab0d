//! Metrics of real members: what a switchover leaves behind in them, and that a scrape is well-formed.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Cluster, SOON,
    node::{Node, http, wait_for},
};

/// Series (name and labels) to value.
async fn scrape(node: &Node) -> Result<BTreeMap<String, f64>, String> {
    let (code, body) = http(node.api_port, "GET", "/metrics", None).await?;
    let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    if code != 200 {
        return Err(format!("{code}: {text}"));
    }
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').ok_or_else(|| line.to_owned())?;
        let value: f64 = value.parse().map_err(|_| line.to_owned())?;
        let name = name.split('{').next().unwrap_or_default().to_owned() + &labels(name);
        if series.insert(name, value).is_some() {
            return Err(format!("twice: {line}"));
        }
    }
    Ok(series)
}

/// Without those that every line has, in order.
fn labels(series: &str) -> String {
    let inner = series
        .split_once('{')
        .map_or("", |(_, rest)| rest.trim_end_matches('}'));
    let mut labels: Vec<&str> = inner
        .split(',')
        .filter(|label| !label.starts_with("scope=") && !label.starts_with("name="))
        .collect();
    labels.sort_unstable();
    format!("{{{}}}", labels.join(","))
}

async fn value(node: &Node, series: &str) -> Result<f64, String> {
    let all = scrape(node).await?;
    all.get(series)
        .copied()
        .ok_or_else(|| format!("no {series} on {}", node.name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_shows_in_the_metrics_of_both() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let old = cluster.leader(SOON).await;
    let new = 1 - old;
    wait_for("the metrics of a leader", SOON, async || {
        let leader = &cluster.nodes[old];
        for (series, expected) in [
            ("patroni_primary{}", 1.0),
            ("patroni_replica{}", 0.0),
            ("patroni_postgres_running{}", 1.0),
            ("patroni_failsafe_member{}", 1.0),
            ("howdah_failsafe_ready{}", 1.0),
            ("howdah_split_brain_suspected{}", 0.0),
        ] {
            let found = value(leader, series).await?;
            if (found - expected).abs() > f64::EPSILON {
                return Err(format!("{series} {found}"));
            }
        }
        let fence = value(leader, "howdah_fence_deadline_seconds{}").await?;
        let renewals = value(
            leader,
            r#"howdah_dcs_call_duration_seconds_count{call="renew",outcome="ok"}"#,
        )
        .await?;
        let free = value(leader, "howdah_data_volume_free_bytes{}").await?;
        let synced = value(leader, "howdah_data_volume_fsync_duration_seconds_count{}").await?;
        match fence > 0.0 && renewals > 0.0 && free > 0.0 && synced > 0.0 {
            true => Ok(()),
            false => Err(format!("{fence} {renewals} {free} {synced}")),
        }
    })
    .await;
    let replica = scrape(&cluster.nodes[new]).await.expect("a scrape");
    assert_eq!(replica.get("patroni_postgres_streaming{}"), Some(&1.0));
    assert!(
        !replica.contains_key("howdah_fence_deadline_seconds{}"),
        "it does not lead"
    );
    assert!(!replica.contains_key(r#"howdah_promotions_total{cause="switchover"}"#));

    let (from, to) = (&cluster.nodes[old].name, &cluster.nodes[new].name);
    let body = json!({"leader": from, "candidate": to});
    let (code, text) = cluster.nodes[old]
        .request("POST", "/switchover", body)
        .await
        .expect("an answer");
    assert_eq!(code, 200, "{text}");
    wait_for("the promotion to be counted", SOON, async || {
        let node = &cluster.nodes[new];
        let promoted = value(node, r#"howdah_promotions_total{cause="switchover"}"#).await?;
        let gap = value(
            node,
            r#"howdah_handover_duration_seconds_sum{cause="switchover"}"#,
        )
        .await?;
        let role = value(node, r#"howdah_role_changes_total{from="replica",to="primary"}"#).await?;
        let primary = value(node, "patroni_primary{}").await?;
        match promoted == 1.0 && gap > 0.0 && gap < 30.0 && role >= 1.0 && primary == 1.0 {
            true => Ok(()),
            false => Err(format!("{promoted} {gap} {role} {primary}")),
        }
    })
    .await;
    wait_for("the old leader to say that it is none", SOON, async || {
        let node = &cluster.nodes[old];
        match (
            value(node, "patroni_replica{}").await?,
            value(node, "howdah_failsafe_ready{}").await?,
        ) {
            (replica, ready) if replica == 1.0 && ready == 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
