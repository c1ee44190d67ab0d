//! Who may change something (contract: REST API §2), and what every answer carries: the part of the configuration that a reload replaces.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::net::lookup_host;

use crate::{
    client::Credentials,
    config::{Allowed, Network, RestApi},
    model::Cluster,
};

/// How long the addresses of a name may take; a name that cannot be looked up lets nobody in.
const LOOKUP_WITHIN: Duration = Duration::from_secs(2);

/// Credentials, allowlist and headers in force.
#[derive(Debug, Clone, Default)]
pub struct Access {
    credentials: Option<Credentials>,
    networks: Vec<Network>,
    members: bool,
    limited: bool,
    headers: HeaderMap,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its address.
    pub(super) address: IpAddr,
    /// Whether a certificate is wanted of whoever changes something, and none was shown.
    pub(super) lacks_certificate: bool,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            lacks_certificate: false,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// Why a request that would change something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// 403: it comes from elsewhere.
    Address,
    /// 403: it has shown no certificate.
    Certificate,
    /// 401, with its text.
    Credentials(&'static str),
}

impl Access {
    /// What the configuration asks for. Names in the allowlist are looked up now and not again until the next load.
    pub async fn load(config: &RestApi) -> Self {
        let mut networks = Vec::new();
        for allowed in &config.allowlist {
            match allowed {
                Allowed::Network(network) => networks.push(*network),
                Allowed::Host(name) => {
                    let found = addresses(name).await;
                    if found.is_empty() {
                        tracing::warn!(name, "a host in the allowlist of the REST API has no address");
                    }
                    networks.extend(found.into_iter().map(Network::from));
                }
            }
        }
        let given = config.authentication.as_ref();
        Self {
            credentials: given.map(|given| Credentials {
                username: given.username.clone(),
                password: given.password.reveal().to_owned(),
            }),
            networks,
            members: config.allowlist_include_members,
            limited: !config.allowlist.is_empty(),
            headers: headers(config),
        }
    }

    /// Only asks for these credentials.
    #[must_use]
    pub fn with_credentials(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            ..Self::default()
        }
    }

    /// Headers of every answer that has a body.
    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Whether a request may change something: first by where it comes from, then by what it shows. A question among
    /// members about failsafe mode is not held to be from a member (`ask_members`): it is asked when the list of
    /// members may be out of reach.
    pub(super) async fn check(
        &self,
        peer: Peer,
        headers: &HeaderMap,
        cluster: Option<&Cluster>,
        ask_members: bool,
    ) -> Result<(), Denied> {
        let Peer {
            address: peer,
            lacks_certificate,
        } = peer;
        let members = self.members && ask_members;
        let from_here = (!self.limited && !members)
            || self.networks.iter().any(|network| network.contains(peer))
            || (members && is_member(peer, cluster).await);
        if !from_here {
            return Err(Denied::Address);
        }
        if lacks_certificate {
            return Err(Denied::Certificate);
        }
        match (&self.credentials, headers.get(header::AUTHORIZATION)) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Denied::Credentials("no auth header received")),
            (Some(wanted), Some(given)) if wanted.accept(given.as_bytes()) => Ok(()),
            (Some(_), Some(_)) => Err(Denied::Credentials("not authenticated")),
        }
    }
}

fn headers(config: &RestApi) -> HeaderMap {
    let pairs = config.extra_headers.iter().filter_map(|(name, value)| {
        Some((
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_str(value).ok()?,
        ))
    });
    pairs.collect()
}

/// Whether the address is that of a member's REST API. Names are looked up with every request: members come and go,
/// and such requests are rare.
async fn is_member(peer: IpAddr, cluster: Option<&Cluster>) -> bool {
    let hosts: Vec<&str> = cluster
        .into_iter()
        .flat_map(|cluster| &cluster.members)
        .filter_map(|member| host_of(&member.data.api_url))
        .collect();
    let found = futures::future::join_all(hosts.into_iter().map(addresses)).await;
    found
        .iter()
        .flatten()
        .any(|address| Network::from(*address).contains(peer))
}

/// The host of a URL, without brackets.
fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(inner) = authority.strip_prefix('[') {
        return inner.split(']').next();
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

async fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    match tokio::time::timeout(LOOKUP_WITHIN, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address: SocketAddr| address.ip()).collect(),
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "no address");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::cluster;

    fn access(networks: &[&str], members: bool) -> Access {
        let read = |text: &&str| match Allowed::parse(text) {
            Some(Allowed::Network(network)) => network,
            other => unreachable!("{text}: {other:?}"),
        };
        Access {
            networks: networks.iter().map(read).collect(),
            limited: !networks.is_empty(),
            members,
            ..Access::default()
        }
    }

    #[tokio::test]
    async fn only_those_on_the_list_and_members_get_through() {
        let cluster = cluster(&[
            ("members/a", r#"{"api_url":"http://10.0.0.1:8008/patroni"}"#),
            ("members/b", r#"{"api_url":"http://[fd00::2]:8008/patroni"}"#),
            ("members/c", r#"{"api_url":"http://localhost:8008/patroni"}"#),
            (
                "members/d",
                r#"{"api_url":"http://no.such.host.invalid:8008/patroni"}"#,
            ),
            ("members/e", r#"{"api_url":""}"#),
        ]);
        let nets: &[&str] = &["192.0.2.0/24"];
        for (networks, members, ask_members, peer, expected) in [
            (&[][..], false, true, "203.0.113.9", true),
            (nets, false, true, "192.0.2.7", true),
            (nets, false, true, "::ffff:192.0.2.7", true),
            (nets, false, true, "203.0.113.9", false),
            (nets, false, true, "10.0.0.1", false),
            (nets, true, true, "10.0.0.1", true),
            (nets, true, true, "192.0.2.7", true),
            (&[], true, true, "10.0.0.1", true),
            (&[], true, true, "fd00::2", true),
            (&[], true, true, "127.0.0.1", true),
            (&[], true, true, "203.0.113.9", false),
            (&[], true, false, "203.0.113.9", true),
            (nets, true, false, "10.0.0.1", false),
        ] {
            let peer_address: IpAddr = peer.parse().expect("an IP");
            let checked = access(networks, members)
                .check(
                    peer_address.into(),
                    &HeaderMap::new(),
                    Some(&cluster),
                    ask_members,
                )
                .await;
            assert_eq!(
                checked.is_ok(),
                expected,
                "{networks:?} {members} {ask_members} {peer}"
            );
        }
    }

    #[test]
    fn the_host_of_a_url() {
        for (url, expected) in [
            ("http://10.0.0.1:8008/patroni", Some("10.0.0.1")),
            ("http://[::1]:8008/patroni", Some("::1")),
            ("https://u:p@pg1/patroni", Some("pg1")),
            ("http:///patroni", None),
            ("pg1:8008", None),
        ] {
            assert_eq!(host_of(url), expected, "{url}");
        }
    }
}
