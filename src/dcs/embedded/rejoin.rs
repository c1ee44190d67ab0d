//! As what this etcd joins: a founding member, or the replacement of one that lost its disk.
//!
//! A member that has voted and then forgot everything must not come back under its old identity: raft counts on its
//! word. etcd itself refuses that. So when our directory is empty and a running cluster knows us as a member that has
//! once been up, the old identity is removed and a new one added, and we join as "existing".
//!
//! A member that its cluster does not know is added to it: so a cluster of one grows. Where it comes in the place of one that
//! is not listed any more and does not answer, that one is removed before, or the dead would count in every vote.
//!
//! The same way back is for a member whose identity was removed by somebody else (`etcdctl member remove`): etcd ends
//! at once with that data, for ever. Its data is put aside, never deleted.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, Member};
use tokio::time::{sleep, timeout};

use super::{
    LOCAL, Peer, Plan, is_loopback,
    log::Identity,
    process::{ProcessError, etcd_dir, failed},
};

const PATIENCE: Duration = Duration::from_secs(2);
/// Removing and adding go through raft, each; and whoever may be lost is asked before.
const CHANGE_PATIENCE: Duration = Duration::from_secs(8);
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);

/// The flags that tell etcd about its cluster.
///
/// # Errors
/// We have to be replaced and the cluster is not ready for that: etcd accepts no new member until the others have
/// been connected for 5 s. To be tried again.
pub(super) async fn membership(plan: &Plan) -> Result<Vec<String>, String> {
    if !plan.others.is_empty() && !etcd_dir(&plan.dir).join("member").exists() {
        for peer in &plan.others {
            let Some((mut client, _, members)) = ask(peer).await else {
                continue;
            };
            if awaits_us(plan, &members) {
                break;
            }
            if let Some(moving) = moving(plan, &members) {
                return Err(format!("{moving} has not told the others its address yet"));
            }
            let replaced = timeout(CHANGE_PATIENCE, replace(plan, &mut client, &members)).await;
            return match replaced {
                Ok(Ok(members)) => Ok(flags(&members, "existing")),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer".into()),
            };
        }
    }
    let all = plan.others.iter().chain([&plan.me]);
    let mut members: Vec<String> = all
        .map(|peer| format!("{}={}", peer.name, peer.peer_url()))
        .collect();
    members.sort();
    Ok(flags(&members, "new"))
}

fn flags(members: &[String], state: &str) -> Vec<String> {
    vec![
        format!("--initial-cluster={}", members.join(",")),
        format!("--initial-cluster-state={state}"),
    ]
}

/// Puts our data aside if a peer of the same cluster knows no member with our identity any more.
///
/// # Errors
/// The directory cannot be renamed.
pub(super) async fn put_aside_if_removed(plan: &Plan, us: Identity) -> Result<(), ProcessError> {
    for peer in &plan.others {
        let Some((_, cluster, members)) = ask(peer).await else {
            continue;
        };
        // One answer settles it: a peer without a leader gives none.
        if cluster != us.cluster || members.iter().any(|member| member.id() == us.member) {
            return Ok(());
        }
        let data = etcd_dir(&plan.dir);
        let stamp = jiff::Timestamp::now().as_second();
        let aside = plan.dir.join(format!("data.removed-{stamp}"));
        tracing::warn!(
            member = plan.me.name,
            id = format_args!("{:x}", us.member),
            aside = %aside.display(),
            because = "its identity was removed from the etcd cluster",
            "putting the etcd data aside to join as a new member"
        );
        return std::fs::rename(&data, &aside).map_err(failed(format!("rename {}", data.display())));
    }
    Ok(())
}

/// A peer's client, its cluster and the members it knows, if it answers.
async fn ask(peer: &Peer) -> Option<(Client, u64, Vec<Member>)> {
    match timeout(PATIENCE, members(peer)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(peer = peer.name, %error, "cannot ask for the members");
            None
        }
        Err(_) => {
            tracing::debug!(peer = peer.name, "no answer about the members");
            None
        }
    }
}

async fn members(peer: &Peer) -> Result<(Client, u64, Vec<Member>), Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(PATIENCE / 2)
        .with_require_leader(true);
    let mut client = Client::connect([peer.client_endpoint()], Some(options)).await?;
    let answer = client.member_list().await?;
    let cluster = answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
    let members = answer.members().to_vec();
    Ok((client, cluster, members))
}

/// Whether the cluster knows us as a founder that has not been up yet: founders are named from the start, and only
/// a running member publishes its client URLs.
fn awaits_us(plan: &Plan, members: &[Member]) -> bool {
    let ours = |member: &&Member| member.peer_urls().contains(&plan.me.peer_url());
    let us = members.iter().find(ours);
    us.is_some_and(|us| us.name() == plan.me.name && us.client_urls().is_empty())
}

/// A listed member whose address the cluster has not heard of: it was alone before and is about to say it.
fn moving<'a>(plan: &'a Plan, members: &[Member]) -> Option<&'a str> {
    let others = plan.others.iter().filter(|peer| {
        let known = members.iter().find(|member| member.name() == peer.name);
        known.is_some_and(|known| !known.peer_urls().contains(&peer.peer_url()))
    });
    others.map(|peer| peer.name.as_str()).next()
}

/// Tells the cluster under which address our etcd is reached by its peers, if that has changed: a member that was alone has
/// said that it is reached on loopback. Tries until it is so.
pub(super) async fn announce(plan: &Plan) {
    if plan.others.is_empty() {
        return;
    }
    let local = Peer {
        host: if is_loopback(&plan.me.host) {
            plan.me.host.clone()
        } else {
            LOCAL.to_owned()
        },
        ..plan.me.clone()
    };
    let mine = plan.me.peer_url();
    loop {
        if let Some((mut client, _, members)) = ask(&local).await {
            let Some(us) = members.iter().find(|member| member.name() == plan.me.name) else {
                return;
            };
            if us.peer_urls() == [mine.clone()] {
                return;
            }
            match timeout(CHANGE_PATIENCE, client.member_update(us.id(), vec![mine.clone()])).await {
                Ok(Ok(_)) => {
                    tracing::info!(
                        from = us.peer_urls().join(","),
                        to = mine,
                        because = "it has peers now",
                        "told the etcd cluster our address"
                    );
                    return;
                }
                Ok(Err(error)) => tracing::debug!(%error, "cannot tell our address yet"),
                Err(_) => {}
            }
        }
        sleep(ANNOUNCE_AGAIN).await;
    }
}

/// A member that is not listed any more and does not answer: the one whose place we take.
async fn lost<'a>(plan: &Plan, members: &'a [Member]) -> Option<&'a Member> {
    let listed = |member: &&Member| {
        let peers = plan.others.iter().chain([&plan.me]);
        peers
            .into_iter()
            .any(|peer| peer.name == member.name() || member.peer_urls().contains(&peer.peer_url()))
    };
    for member in members
        .iter()
        .filter(|member| !listed(member) && !member.name().is_empty())
    {
        let asked = member.client_urls().iter().map(|url| alive(url));
        if !futures::future::join_all(asked).await.contains(&true) {
            return Some(member);
        }
    }
    None
}

/// Whether an etcd answers there, whatever it says.
async fn alive(url: &str) -> bool {
    let options = ConnectOptions::new().with_connect_timeout(PATIENCE / 2);
    let asked = async { Client::connect([url], Some(options)).await?.status().await };
    matches!(timeout(PATIENCE, asked).await, Ok(Ok(_)))
}

/// Makes the cluster expect us under a new identity; its members as etcd wants them.
async fn replace(plan: &Plan, client: &mut Client, members: &[Member]) -> Result<Vec<String>, Error> {
    let mine = plan.me.peer_url();
    let known = members.iter().find(|member| member.peer_urls().contains(&mine));
    // Nameless: added by an earlier try that did not get to start.
    if known.is_none_or(|known| !known.name().is_empty()) {
        if let Some(known) = known {
            client.member_remove(known.id()).await?;
            tracing::warn!(
                member = plan.me.name,
                because = "it has lost its etcd data",
                "removed our old identity from the etcd cluster"
            );
        }
        if known.is_none()
            && let Some(lost) = lost(plan, members).await
        {
            client.member_remove(lost.id()).await?;
            tracing::warn!(
                member = lost.name(),
                because = "it is not among our peers and does not answer",
                "removed a lost member from the etcd cluster"
            );
        }
        client.member_add([mine.as_str()], None).await?;
        tracing::warn!(member = plan.me.name, "added to the etcd cluster as a new member");
    }
    let members = client.member_list().await?;
    let named = members.members().iter().flat_map(|member| {
        member.peer_urls().iter().map(|url| match *url == mine {
            true => format!("{}={url}", plan.me.name),
            false => format!("{}={url}", member.name()),
        })
    });
    Ok(named.collect())
}
