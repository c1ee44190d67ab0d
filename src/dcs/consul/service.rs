//! This member as a service in Consul's catalog (contract: DCS layout §7), so that clients find the primary by DNS.
//!
//! Follows what the member publishes of itself. It is the agent of this host that holds the registration and makes the
//! health check; that it cannot be asked now delays nothing and is tried again with the next publication.

use std::{sync::Mutex, time::Duration};

use ::http::Method;
use serde_json::{Value, json};

use super::{
    encoded,
    http::{Agent, Ask},
    lock,
};

const WITHIN: Duration = Duration::from_secs(1);
/// Consul deregisters what was critical for so many TTLs of the session.
const DEREGISTER_AFTER: u32 = 10;
const LONGEST_NAME: usize = 230;

/// How a member is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Tags besides the role.
    pub tags: Vec<String>,
    /// Time between two health checks, as Consul reads it (`5s`).
    pub check_interval: String,
    /// Name to expect in the certificate of the REST API.
    pub check_tls_server_name: Option<String>,
}

/// Keeps the registration.
pub(super) struct Registrar {
    service: Service,
    scope: String,
    name: String,
    /// What was last registered; `None` if that is not known.
    done: Mutex<Option<Wish>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Registered(Value),
    Gone,
}

impl Registrar {
    pub(super) fn new(service: Service, scope: &str, name: &str) -> Self {
        Self {
            service,
            scope: scope.to_owned(),
            name: name.to_owned(),
            done: Mutex::default(),
        }
    }

    /// Registers what the member says of itself, if that has changed.
    pub(super) async fn follow(&self, agent: &Agent, member: &str, ttl: Duration) {
        let member: Value = serde_json::from_str(member).unwrap_or_default();
        let Some(wish) = self.wish(&member, ttl) else {
            return;
        };
        if *lock(&self.done) == Some(wish.clone()) {
            return;
        }
        let (path, body) = match &wish {
            Wish::Registered(service) => ("/v1/agent/service/register".to_owned(), service.to_string()),
            Wish::Gone => (
                format!(
                    "/v1/agent/service/deregister/{}",
                    encoded(&self.id()).replace('/', "%2F")
                ),
                String::new(),
            ),
        };
        let ask = Ask {
            method: Method::PUT,
            path,
            body: body.into(),
        };
        match agent.ask_once(&ask, WITHIN).await {
            Ok(_) => *lock(&self.done) = Some(wish),
            Err(error) => {
                tracing::warn!(%error, "could not change the service in consul's catalog");
                *lock(&self.done) = None;
            }
        }
    }

    fn id(&self) -> String {
        format!("{}/{}", self.scope, self.name)
    }

    /// What has to be registered for a member in this state; `None`: nothing changes.
    fn wish(&self, member: &Value, ttl: Duration) -> Option<Wish> {
        let role = member["role"].as_str()?;
        match member["state"].as_str()? {
            "stopped" => return Some(Wish::Gone),
            "running" if matches!(role, "primary" | "replica" | "standby_leader") => {}
            _ => return None,
        }
        let (host, port) = host_and_port(member["conn_url"].as_str()?)?;
        let api = member["api_url"].as_str()?;
        let api = api
            .split_once("://")
            .map_or(api, |(scheme, rest)| match rest.find('/') {
                Some(end) => &api[..scheme.len() + 3 + end],
                None => api,
            });
        let mut tags = self.service.tags.clone();
        tags.push(role.to_owned());
        if role == "primary" {
            tags.push("master".to_owned());
        }
        let mut check = json!({
            "HTTP": format!("{api}/{}", role.replace('_', "-")),
            "Interval": self.service.check_interval,
            "DeregisterCriticalServiceAfter": format!("{}s", (ttl / 2 * DEREGISTER_AFTER).as_secs().max(1)),
        });
        if let Some(name) = &self.service.check_tls_server_name {
            check["TLSServerName"] = name.clone().into();
        }
        Some(Wish::Registered(json!({
            "ID": self.id(),
            "Name": service_name(&self.scope),
            "Address": host,
            "Port": port,
            "Tags": tags,
            "Check": check,
            "EnableTagOverride": true,
        })))
    }
}

/// Those of `postgres://host:port/database`.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let rest = url.split_once("://")?.1;
    let place = rest.split(['/', '?']).next()?;
    let place = crate::dcs::dial::Place::parse(place, 5432)?;
    Some((place.host, place.port))
}

/// A cluster's name as one that DNS can carry.
fn service_name(scope: &str) -> String {
    let mut name = String::new();
    for c in scope.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => name.push(c),
            '.' | '_' | ' ' => name.push('-'),
            other => name.push_str(&format!("u{:04}", u32::from(other))),
        }
    }
    name.truncate(LONGEST_NAME);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registrar() -> Registrar {
        let service = Service {
            tags: vec!["eu".into()],
            check_interval: "5s".into(),
            check_tls_server_name: None,
        };
        Registrar::new(service, "My_db", "n1")
    }

    fn member(state: &str, role: &str) -> Value {
        json!({"state": state, "role": role, "conn_url": "postgres://10.1.0.2:5433/postgres",
            "api_url": "http://10.1.0.2:8008/patroni"})
    }

    #[test]
    fn a_primary_is_registered_with_its_check_and_both_names_of_its_role() {
        let wish = registrar().wish(&member("running", "primary"), Duration::from_secs(30));
        let expected = json!({
            "ID": "My_db/n1", "Name": "my-db", "Address": "10.1.0.2", "Port": 5433,
            "Tags": ["eu", "primary", "master"],
            "Check": {"HTTP": "http://10.1.0.2:8008/primary", "Interval": "5s",
                "DeregisterCriticalServiceAfter": "150s"},
            "EnableTagOverride": true,
        });
        assert_eq!(wish, Some(Wish::Registered(expected)));
    }

    #[test]
    fn only_a_member_that_serves_is_registered_and_only_one_that_stopped_is_removed() {
        let ttl = Duration::from_secs(30);
        let wish = |state: &str, role: &str| registrar().wish(&member(state, role), ttl);
        assert!(matches!(
            wish("running", "standby_leader"),
            Some(Wish::Registered(_))
        ));
        assert_eq!(wish("starting", "replica"), None);
        assert_eq!(wish("running", "uninitialized"), None);
        assert_eq!(wish("stopped", "replica"), Some(Wish::Gone));
    }

    #[test]
    fn a_services_name_is_one_that_dns_can_carry() {
        assert_eq!(service_name("Pg.Main_1 x"), "pg-main-1-x");
        assert_eq!(service_name("a!"), "au0033");
        assert_eq!(service_name(&"a".repeat(300)).len(), 230);
    }
}
