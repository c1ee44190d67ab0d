//! Asking all members at once how they are (contract: REST API §14).

use std::{collections::BTreeMap, time::Duration};

use super::Client;
use crate::model::{MemberName, PeerStatus};

/// GET `api_url` of every member in parallel. `None`: not reachable within `timeout`, or no usable answer;
/// one that cannot be reached delays nobody else.
pub async fn probe_peers(
    client: &Client,
    members: &[(MemberName, String)],
    timeout: Duration,
) -> BTreeMap<MemberName, Option<PeerStatus>> {
    let asked = members.iter().map(async |(name, api_url)| {
        let status = match client.get(api_url, timeout).await {
            Ok(answer) if answer.status == 200 => answer.json().as_ref().and_then(PeerStatus::from_json),
            Ok(answer) => {
                tracing::debug!(member = %name, status = answer.status, "peer answered with an error");
                None
            }
            Err(error) => {
                tracing::debug!(member = %name, %error, "peer not reachable");
                None
            }
        };
        (name.clone(), status)
    });
    futures::future::join_all(asked).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::handle::fixtures::HEALTHY, api::test_server::server, model::Role};

    #[tokio::test]
    async fn a_silent_peer_delays_nobody() {
        let server = server(HEALTHY).await;
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let silent_at = silent.local_addr().expect("bound").to_string();
        let members: Vec<(MemberName, String)> = [
            ("up", server.address.as_str()),
            ("refusing", "127.0.0.1:1"),
            ("silent1", &silent_at),
            ("silent2", &silent_at),
        ]
        .map(|(name, address)| (name.into(), format!("http://{address}/patroni")))
        .into();
        let begun = std::time::Instant::now();
        let found = probe_peers(&server.client, &members, Duration::from_secs(1)).await;
        assert!(
            begun.elapsed() < Duration::from_millis(1900),
            "asked one after the other"
        );
        assert_eq!(found.len(), 4);
        let up = found[&"up".into()].as_ref().expect("reachable");
        assert_eq!(up.role, Role::Primary);
        assert!(found.values().flatten().count() == 1);
    }
}
