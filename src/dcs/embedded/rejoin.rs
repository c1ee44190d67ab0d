//! As what this etcd joins: a founding member, or the replacement of one that lost its disk.
//!
//! A member that has voted and then forgot everything must not come back under its old identity: raft counts on its
//! word. etcd itself refuses that. So when our directory is empty and a running cluster knows us as a member that has
//! once been up, the old identity is removed and a new one added, and we join as "existing".

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::time::timeout;

use super::{Peer, Plan, process::etcd_dir};

const PATIENCE: Duration = Duration::from_secs(2);

/// The flags that tell etcd about its cluster.
pub(super) async fn membership(plan: &Plan) -> Vec<String> {
    if !plan.others.is_empty() && !etcd_dir(&plan.dir).join("member").exists() {
        for peer in &plan.others {
            match timeout(PATIENCE, replace(plan, peer)).await {
                Ok(Ok(Some(flags))) => return flags,
                // The cluster answers and waits for us as a founder.
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    tracing::debug!(peer = peer.name, %error, "cannot ask for the members")
                }
                Err(_) => tracing::debug!(peer = peer.name, "no answer about the members"),
            }
        }
    }
    let all = plan.others.iter().chain([&plan.me]);
    let mut members: Vec<String> = all
        .map(|peer| format!("{}={}", peer.name, peer.peer_url()))
        .collect();
    members.sort();
    flags(&members, "new")
}

fn flags(members: &[String], state: &str) -> Vec<String> {
    vec![
        format!("--initial-cluster={}", members.join(",")),
        format!("--initial-cluster-state={state}"),
    ]
}

async fn replace(plan: &Plan, peer: &Peer) -> Result<Option<Vec<String>>, Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(PATIENCE / 2)
        .with_require_leader(true);
    let mut client = Client::connect([peer.client_endpoint()], Some(options)).await?;
    let mine = plan.me.peer_url();
    let mut members = client.member_list().await?.members().to_vec();
    let old = members
        .iter()
        .find(|member| member.peer_urls().contains(&mine));
    match old {
        // Listed from the start, but never been up (only a running member publishes its client URLs).
        Some(old) if old.client_urls().is_empty() && old.name() == plan.me.name => return Ok(None),
        // Added by an earlier try of this very function, which did not get to start.
        Some(old) if old.client_urls().is_empty() => {}
        Some(old) => {
            let id = old.id();
            tracing::warn!(
                member = plan.me.name,
                because = "its etcd data is gone",
                "joining the etcd cluster under a new identity"
            );
            client.member_remove(id).await?;
            client.member_add([mine.as_str()], None).await?;
            members = client.member_list().await?.members().to_vec();
        }
        // An earlier try removed us and did not get to add us.
        None => {
            client.member_add([mine.as_str()], None).await?;
            members = client.member_list().await?.members().to_vec();
        }
    }
    let all = members.iter().flat_map(|member| {
        member.peer_urls().iter().map(|url| {
            let name = if *url == mine {
                plan.me.name.as_str()
            } else {
                member.name()
            };
            format!("{name}={url}")
        })
    });
    Ok(Some(flags(&all.collect::<Vec<_>>(), "existing")))
}
