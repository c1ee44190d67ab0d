//! Consul and ZooKeeper as the store (contract: environment §2.3).

use serde_json::Value;

use super::Builder;
use crate::config::{
    Secret,
    address::Address,
    types::{Consul, ConsulService, ZooKeeper},
};
use crate::tls::client::{Check, Tls};

const CONSUL_PORT: u16 = 8500;
const ZOOKEEPER_PORT: u16 = 2181;
const PERMISSIONS: [(&str, u32); 6] = [
    ("READ", 1),
    ("WRITE", 2),
    ("CREATE", 4),
    ("DELETE", 8),
    ("ADMIN", 16),
    ("ALL", 31),
];

impl Builder {
    pub(super) fn consul(&mut self) -> Consul {
        let (host, scheme) = self.consul_place();
        let tls = self.store_tls("consul", scheme == "https");
        if self.text("consul.consistency") == "stale" {
            let origin = self.all.settings.origin("consul.consistency");
            self.warn(&format!(
                "{origin}: whoever may lead is not decided by stale reads; default is used instead"
            ));
        }
        let interval = self.text("consul.service_check_interval");
        if !is_go_duration(&interval) {
            self.inconsistent(
                &["consul.service_check_interval"],
                &format!("{interval:?} is no time between two checks (allowed: 5s, 500ms, 1m)"),
            );
        }
        let service = self.flag("consul.register_service").then(|| ConsulService {
            tags: self.all.settings.list("consul.service_tags"),
            check_interval: interval,
            check_tls_server_name: self.all.settings.text("consul.service_check_tls_server_name"),
        });
        Consul {
            host,
            tls,
            token: self.all.settings.text("consul.token").map(Secret::new),
            dc: self.all.settings.text("consul.dc"),
            consistent: self.text("consul.consistency") == "consistent",
            checks: self.all.settings.list("consul.checks"),
            service,
        }
    }

    /// Address and protocol of the agent. A URL says both.
    fn consul_place(&mut self) -> (String, String) {
        const URL: &str = "consul.url";
        const HOST: &str = "consul.host";
        let given = self.all.settings.text("consul.scheme");
        let tls = ["cacert", "cert", "key"]
            .iter()
            .any(|part| self.all.settings.is_given(&format!("consul.{part}")));
        let mut scheme = given.unwrap_or_else(|| if tls { "https" } else { "http" }.to_owned());
        let port = self
            .all
            .settings
            .int("consul.port")
            .and_then(|port| u16::try_from(port).ok());
        let port = port.unwrap_or(CONSUL_PORT);
        let (from, text) = match self.all.settings.text(URL) {
            Some(url) => {
                let (protocol, rest) = url.split_once("://").unwrap_or(("", &url));
                if !matches!(protocol, "http" | "https") {
                    self.inconsistent(&[URL], "it must begin with http:// or https://");
                }
                if self.all.settings.is_given("consul.scheme") && scheme != protocol {
                    self.inconsistent(
                        &["consul.scheme", URL],
                        "the one says this and the other says that",
                    );
                }
                scheme = protocol.to_owned();
                (URL, rest.trim_end_matches('/').to_owned())
            }
            None => {
                self.all.settings.set_default(HOST, "127.0.0.1");
                (HOST, self.text(HOST))
            }
        };
        if tls && scheme == "http" {
            self.inconsistent(&[from], "certificates need https");
        }
        self.all.settings.set_default("consul.scheme", scheme.as_str());
        let address = Address::parse(&text, port).filter(|address| !address.is_wildcard());
        match address {
            Some(address) => {
                if from == HOST && self.all.settings.is_given("consul.port") && address.port != port {
                    self.inconsistent(&[HOST, "consul.port"], "they name two ports");
                }
                (address.to_string(), scheme)
            }
            None => {
                // Not shown: a password may stand in a URL.
                self.inconsistent(
                    &[from],
                    "it is not the address of an agent (allowed: host, host:port)",
                );
                (String::new(), scheme)
            }
        }
    }

    pub(super) fn zookeeper(&mut self) -> ZooKeeper {
        let (hosts, chroot) = self.ensemble();
        let certificates = ["cacert", "cert", "key"]
            .iter()
            .any(|part| self.all.settings.is_given(&format!("zookeeper.{part}")));
        self.all.settings.set_default("zookeeper.use_ssl", certificates);
        let ssl = self.flag("zookeeper.use_ssl");
        if certificates && !ssl {
            self.inconsistent(
                &["zookeeper.use_ssl"],
                "certificates are for TLS, which is switched off",
            );
        }
        let tls = self.store_tls("zookeeper", ssl);
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let auth = self.all.settings.map("zookeeper.auth_data").into_iter();
        let auth = auth
            .map(|(scheme, value)| (scheme, Secret::new(text(value))))
            .collect();
        ZooKeeper {
            hosts,
            chroot,
            tls,
            auth,
            acls: self.acls(),
        }
    }

    /// The servers, and the path that their clients see as the root (`zk1,zk2:2181/chroot`, behind the last one).
    fn ensemble(&mut self) -> (Vec<String>, String) {
        const HOSTS: &str = "zookeeper.hosts";
        let (mut hosts, mut chroot) = (Vec::new(), String::new());
        let given = self.all.settings.list(HOSTS);
        for (index, text) in given.iter().enumerate() {
            let (place, path) = text.split_once('/').unwrap_or((text, ""));
            if !path.is_empty() {
                if index + 1 < given.len() {
                    self.inconsistent(
                        &[HOSTS],
                        "a path stands behind the last host only, and is for all of them",
                    );
                }
                chroot = format!("/{}", path.trim_matches('/'));
            }
            match Address::parse(place, ZOOKEEPER_PORT).filter(|address| !address.is_wildcard()) {
                Some(address) => hosts.push(address.to_string()),
                None => self.inconsistent(
                    &[HOSTS],
                    &format!("{text:?} is not a server (allowed: host, host:port)"),
                ),
            }
        }
        if given.is_empty() {
            self.missing(HOSTS, "ZooKeeper is to be the store");
        }
        (hosts, chroot)
    }

    /// Principals and what they may do, as bits. A principal without a scheme is the subject of a certificate.
    fn acls(&mut self) -> Vec<(String, String, u32)> {
        const ACLS: &str = "zookeeper.set_acls";
        const SCHEMES: [&str; 6] = ["x509:", "digest:", "ip:", "world:", "sasl:", "auth:"];
        let mut acls = Vec::new();
        for (principal, value) in self.all.settings.map(ACLS) {
            let words: Vec<String> = match &value {
                Value::Array(items) => items
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_uppercase)
                    .collect(),
                Value::String(text) => text
                    .split([',', ' '])
                    .filter(|word| !word.is_empty())
                    .map(str::to_uppercase)
                    .collect(),
                _ => Vec::new(),
            };
            let bit = |word: &String| {
                PERMISSIONS
                    .iter()
                    .find(|(name, _)| name == word)
                    .map(|(_, bit)| *bit)
            };
            let bits: Option<Vec<u32>> = words.iter().map(bit).collect();
            match bits {
                Some(bits) if !bits.is_empty() => {
                    let (scheme, id) = match SCHEMES.iter().find(|scheme| principal.starts_with(**scheme)) {
                        Some(scheme) => principal.split_at(scheme.len()),
                        None => ("x509:", principal.as_str()),
                    };
                    let scheme = scheme.trim_end_matches(':').to_owned();
                    acls.push((scheme, id.to_owned(), bits.into_iter().fold(0, |all, bit| all | bit)));
                }
                _ => self.inconsistent(
                    &[ACLS],
                    &format!("{principal}: {value} is no list of permissions (allowed: CREATE, READ, WRITE, DELETE, ADMIN, ALL)"),
                ),
            }
        }
        acls
    }

    fn store_tls(&mut self, section: &str, on: bool) -> Option<Tls> {
        let at = |part: &str| format!("{section}.{part}");
        let cacert = self.path(&at("cacert"));
        let identity = self.identity(&at("cert"), &at("key"), &at("key_password"));
        let verify = self.all.settings.flag(&at("verify")).unwrap_or(true);
        on.then_some(Tls {
            cacert,
            identity,
            check: if verify { Check::Whole } else { Check::Nothing },
        })
    }
}

/// A time as Consul reads it.
fn is_go_duration(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    matches!(unit, "ms" | "s" | "m" | "h") && number.parse::<f64>().is_ok_and(|number| number > 0.0)
}
