//! The API servers behind the Service `kubernetes` (`bypass_api_service`): asked one by one, so that one of them that
//! hangs costs a part of the time and not all of it.
//!
//! Task: [`run`]. In: the Endpoints `default/kubernetes`, every ten seconds. Out: the pool's list of servers. Ends when
//! it is not allowed, or with [`super::Kubernetes`].

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{object::Object, pool::Pool};
use crate::dcs::DcsError;

const EVERY: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(3);
const PATH: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// So often in a row none of them answers, and their Service is asked again: all may have got new addresses.
const PATIENCE: u32 = 3;

pub(super) async fn run(pool: Arc<Pool>) {
    let mut failed = 0;
    loop {
        failed += 1;
        match pool.get(PATH, Instant::now() + LIMIT).await {
            Ok(Some(object)) => {
                failed = 0;
                let urls: Vec<http::Uri> = urls(&object);
                let shown: Vec<String> = urls.iter().map(http::Uri::to_string).collect();
                if pool.set_servers(urls) {
                    tracing::info!(servers = shown.join(" "), "asking the API servers themselves");
                }
            }
            Ok(None) => {}
            Err(error @ DcsError::Credentials { .. }) => {
                tracing::warn!(%error, "cannot look up the API servers (get endpoints/kubernetes in namespace default), using their Service");
                return;
            }
            Err(error) if failed >= PATIENCE => {
                tracing::warn!(%error, "no API server answers, asking their Service");
                pool.forget_servers();
                failed = 0;
            }
            Err(error) => tracing::debug!(%error, "cannot look up the API servers"),
        }
        sleep(EVERY).await;
    }
}

fn urls(object: &Object) -> Vec<http::Uri> {
    let mut urls = Vec::new();
    for subset in object.subsets.as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let https = ports
            .iter()
            .find(|port| port["name"] == "https")
            .or(ports.first());
        let Some(port) = https.and_then(|port| port["port"].as_u64()) else {
            continue;
        };
        let ips = subset["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|address| &address["ip"]);
        for ip in ips.filter_map(Value::as_str) {
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            urls.extend(format!("https://{host}:{port}/").parse::<http::Uri>());
        }
    }
    urls.sort_by_key(http::Uri::to_string);
    urls
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_servers_are_read_from_the_endpoints() {
        let object = Object {
            subsets: json!([{
                "addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
            }]),
            ..Object::default()
        };
        let found: Vec<String> = urls(&object).iter().map(http::Uri::to_string).collect();
        assert_eq!(
            found,
            [
                "https://10.0.0.1:6443/",
                "https://10.0.0.2:6443/",
                "https://[fd00::1]:6443/"
            ]
        );
        assert!(urls(&Object::default()).is_empty());
    }
}
