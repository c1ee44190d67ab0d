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
            Ok(answer) if answer.status == 200 => {
                answer.json().as_ref().and_then(PeerStatus::from_json)
            }
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
