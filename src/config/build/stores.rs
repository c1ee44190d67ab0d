//! The store of the cluster: which one, and an etcd of its own or the image's. `kubernetes` and `other_stores` have the rest.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Builder;
use crate::{
    config::{
        Origin,
        address::{Address, bracketed},
        types::{DcsConfig, Embedded, Etcd3, Peer, Postgresql},
        vars,
    },
    model::MemberName,
};

const CLIENT_PORT: u16 = 2379;

/// What asks for an external etcd.
const ETCD: [&str; 4] = ["etcd3.hosts", "etcd3.host", "etcd3.url", "etcd3.proxy"];

impl Builder {
    /// The one store that something asks for, else the embedded etcd.
    pub(super) fn dcs(&mut self, postgresql: &Postgresql) -> DcsConfig {
        let asked = self.asked_for();
        for (index, (what, path)) in asked.iter().enumerate() {
            for (other, other_path) in &asked[index + 1..] {
                self.inconsistent(
                    &[path, other_path],
                    &format!("{what} and {other} as the store exclude each other"),
                );
            }
        }
        match asked.first() {
            Some(("Kubernetes", _)) => DcsConfig::Kubernetes(Box::new(self.kubernetes())),
            Some(("Consul", _)) => DcsConfig::Consul(self.consul()),
            Some(("ZooKeeper", _)) => DcsConfig::ZooKeeper(self.zookeeper()),
            Some(("an external etcd", _)) => DcsConfig::Etcd3(self.etcd3()),
            _ => {
                let settings = vars::all().filter(|var| var.path.starts_with("etcd3."));
                let given: Vec<&str> = settings
                    .map(|var| var.path)
                    .filter(|path| self.all.settings.is_given(path))
                    .collect();
                if !given.is_empty() {
                    self.inconsistent(
                        &given,
                        "without an endpoint this has no effect; set HOWDAH_ETCD3_HOSTS",
                    );
                }
                DcsConfig::Embedded(self.embedded(postgresql))
            }
        }
    }

    /// All stores that something asks for, and what does.
    fn asked_for(&self) -> Vec<(&'static str, &'static str)> {
        let given = |path: &&'static str| self.all.settings.is_given(path);
        let consul = ["consul.host", "consul.url"].into_iter().find(given);
        let zookeeper = ["zookeeper.hosts"].into_iter().find(given);
        let candidates = [
            ("Kubernetes", self.kubernetes_asked_for()),
            ("Consul", consul.or_else(|| self.explicit("consul."))),
            ("ZooKeeper", zookeeper.or_else(|| self.explicit("zookeeper."))),
            ("an external etcd", ETCD.into_iter().find(given)),
            ("the embedded etcd", ["embedded.peers"].into_iter().find(given)),
        ];
        let asked = candidates.into_iter();
        asked.filter_map(|(what, path)| Some((what, path?))).collect()
    }

    /// The first setting of a section that somebody who knows this software, or Patroni, has given. Shorter names may be
    /// there for others' sake (`CONSUL_CACERT`, `KUBERNETES_LABELS`).
    pub(super) fn explicit(&self, section: &str) -> Option<&'static str> {
        let mut all = vars::all().filter(|var| var.path.starts_with(section));
        all.find(|var| {
            let origins = self
                .all
                .settings
                .get(var.path)
                .map(|setting| setting.origins.as_slice());
            origins.unwrap_or_default().iter().any(is_explicit)
        })
        .map(|var| var.path)
    }

    fn etcd3(&mut self) -> Etcd3 {
        let cacert = self.path("etcd3.cacert");
        let client_certificate = match (self.path("etcd3.cert"), self.path("etcd3.key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                self.missing("etcd3.key", "a client certificate is given");
                None
            }
            (None, Some(_)) => {
                self.missing("etcd3.cert", "its key is given");
                None
            }
        };
        let tls = cacert.is_some() || client_certificate.is_some();
        self.all
            .settings
            .set_default("etcd3.protocol", if tls { "https" } else { "http" });
        let protocol = self.text("etcd3.protocol");
        if tls && protocol == "http" {
            self.inconsistent(&["etcd3.protocol"], "certificates need https");
        }
        self.take_credentials_out_of_urls();
        let endpoints = self.endpoints(&protocol);
        Etcd3 {
            endpoints,
            credentials: self.credentials("etcd3"),
            cacert,
            client_certificate,
        }
    }

    /// `http://user:password@etcd1:2379` is split up before anything can show it.
    fn take_credentials_out_of_urls(&mut self) {
        for path in ["etcd3.proxy", "etcd3.hosts", "etcd3.url"] {
            let Some(setting) = self.all.settings.get(path).cloned() else {
                continue;
            };
            let mut take = |text: &str| match split_credentials(text) {
                None => text.to_owned(),
                Some((found, rest)) => {
                    self.found_credentials(path, found, &setting.origins);
                    rest
                }
            };
            let bare = match &setting.value {
                Value::String(text) => Value::from(take(text)),
                Value::Array(items) => {
                    let texts = items.iter().filter_map(Value::as_str);
                    texts.map(take).collect()
                }
                other => other.clone(),
            };
            self.all.settings.amend(path, bare);
        }
    }

    /// Credentials of a URL count as those of etcd; there can be only one pair.
    fn found_credentials(&mut self, path: &str, found: Option<(String, String)>, origins: &[Origin]) {
        let Some((username, password)) = found else {
            self.inconsistent(&[path], "what stands before the @ of a URL must be user:password");
            return;
        };
        for (key, value) in [("etcd3.username", username), ("etcd3.password", password)] {
            match self.all.settings.text(key) {
                Some(given) if given == value => {}
                Some(_) => self.inconsistent(
                    &[path, key],
                    "the URL and this setting, or two URLs, name different credentials",
                ),
                None => {
                    let origin = origins.first().cloned().unwrap_or(Origin::Default);
                    self.all.settings.set(key, value.into(), origin);
                }
            }
        }
    }

    fn endpoints(&mut self, protocol: &str) -> Vec<String> {
        // A proxy hides what is behind it; else all that is given is one cluster.
        let paths: &[&str] = if self.all.settings.is_given("etcd3.proxy") {
            &["etcd3.proxy"]
        } else {
            &["etcd3.hosts", "etcd3.host", "etcd3.url"]
        };
        let (mut endpoints, mut seen): (Vec<String>, bool) = (Vec::new(), false);
        for path in paths {
            let single = self.all.settings.text(path);
            for text in self.all.settings.list(path).into_iter().chain(single) {
                seen = true;
                match endpoint(&text, protocol) {
                    Some(url) if endpoints.contains(&url) => {}
                    Some(url) => endpoints.push(url),
                    None => self.inconsistent(&[path], &format!("{text:?} is not an endpoint (allowed: host:port, http://host:port, https://host:port)")),
                }
            }
        }
        if !seen {
            self.inconsistent(&[paths[0]], "there is no endpoint in it");
        }
        if endpoints.iter().any(|url| url.starts_with("http:"))
            && endpoints.iter().any(|url| url.starts_with("https:"))
        {
            self.inconsistent(paths, "the endpoints speak partly http and partly https");
        }
        endpoints
    }

    fn embedded(&mut self, postgresql: &Postgresql) -> Embedded {
        // Beside the data directory: on the same volume if that is mounted one level up, and never inside data
        // that a clone may replace.
        let beside = postgresql
            .data_dir
            .parent()
            .unwrap_or(Path::new("/"))
            .join("etcd");
        self.all
            .settings
            .set_default("embedded.data_dir", beside.to_string_lossy().into_owned());
        let data_dir = PathBuf::from(self.text("embedded.data_dir"));
        if data_dir.starts_with(&postgresql.data_dir) || postgresql.data_dir.starts_with(&data_dir) {
            self.inconsistent(
                &["embedded.data_dir", "postgresql.data_dir"],
                "one is inside the other; they must be apart",
            );
        }
        let mut this = Peer {
            name: MemberName(self.text("name")),
            host: "127.0.0.1".to_owned(),
            peer_port: self.port("embedded.peer_port"),
            client_port: self.port("embedded.client_port"),
        };
        let mut peers: Vec<Peer> = Vec::new();
        for text in self.all.settings.list("embedded.peers") {
            match peer(&text, &this) {
                None => self.inconsistent(&["embedded.peers"], &format!("{text:?} is not a peer (allowed: name, name=host, name=host:peerport, name=host:peerport/clientport)")),
                Some(peer) if peers.iter().any(|other| other.name == peer.name) => {
                    self.inconsistent(&["embedded.peers"], &format!("{} is there twice", peer.name));
                }
                Some(peer) => peers.push(peer),
            }
        }
        self.all.settings.set_default(
            "embedded.listen",
            if peers.is_empty() { "127.0.0.1" } else { "0.0.0.0" },
        );
        let listen = self.text("embedded.listen");
        if Address::parse(&bracketed(&listen), CLIENT_PORT).is_none_or(|a| a.host != listen) {
            self.inconsistent(
                &["embedded.listen"],
                &format!("{listen:?} is not a host name or address"),
            );
        }
        match peers.iter().find(|peer| peer.name == this.name).cloned() {
            Some(own) => {
                self.own_ports(&own);
                this = own;
            }
            None if peers.is_empty() => peers.push(this.clone()),
            None => {
                let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
                self.inconsistent(
                    &["embedded.peers"],
                    &format!(
                        "this member, {} (HOWDAH_NAME), is not among {}",
                        this.name,
                        names.join(", ")
                    ),
                );
            }
        }
        if peers.len().is_multiple_of(2) {
            self.warn(&format!(
                "HOWDAH_EMBEDDED_PEERS: {} members survive no more failures than {}; an odd number is better",
                peers.len(),
                peers.len() - 1
            ));
        }
        if this.peer_port == this.client_port {
            self.inconsistent(
                &["embedded.client_port", "embedded.peer_port"],
                "the two ports must differ",
            );
        }
        Embedded {
            data_dir,
            listen,
            this,
            peers,
        }
    }

    /// The ports this member listens on are those the others are told.
    fn own_ports(&mut self, own: &Peer) {
        for (path, port) in [
            ("embedded.peer_port", own.peer_port),
            ("embedded.client_port", own.client_port),
        ] {
            if self.port(path) != port {
                if self.all.settings.is_given(path) {
                    self.inconsistent(
                        &[path, "embedded.peers"],
                        &format!("{} and {port} are both this member's port", self.port(path)),
                    );
                } else {
                    self.all.settings.amend(path, port.into());
                }
            }
        }
    }

    fn port(&self, path: &str) -> u16 {
        let port = self
            .all
            .settings
            .int(path)
            .and_then(|port| u16::try_from(port).ok());
        port.unwrap_or(1)
    }
}

/// Whether somebody who knows this software, or Patroni, has said it.
pub(super) fn is_explicit(origin: &Origin) -> bool {
    match origin {
        Origin::Variable(name) | Origin::File { variable: name, .. } => {
            name.starts_with("HOWDAH_") || name.starts_with("PATRONI_")
        }
        Origin::Document { .. } => true,
        Origin::Default => false,
    }
}

/// User and password.
type Pair = (String, String);

/// A URL without what stands before its `@`, and that; `None` inside if it is not `user:password`.
fn split_credentials(text: &str) -> Option<(Option<Pair>, String)> {
    let (scheme, rest) = text
        .split_once("://")
        .map_or(("", text), |(scheme, rest)| (&text[..scheme.len() + 3], rest));
    // A password may hold a slash or an @ that somebody forgot to encode; the last @ is the one before the host.
    let (before, host) = rest.rsplit_once('@')?;
    let pair = before.split_once(':').and_then(|(user, password)| {
        let (user, password) = (decoded(user)?, decoded(password)?);
        (!user.is_empty() && !password.is_empty()).then_some((user, password))
    });
    Some((pair, format!("{scheme}{host}")))
}

/// A text with its `%40` decoded; `None` if that is no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let hex = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) if byte == b'%' => {
                bytes.push(value);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// The URL of an endpoint given as `host[:port]` or URL.
fn endpoint(text: &str, protocol: &str) -> Option<String> {
    let (protocol, rest) = match text.split_once("://") {
        Some((protocol @ ("http" | "https"), rest)) => (protocol, rest.trim_end_matches('/')),
        Some(_) => return None,
        None => (protocol, text),
    };
    let address = Address::parse(rest, CLIENT_PORT).filter(|address| !address.is_wildcard())?;
    Some(format!("{protocol}://{address}"))
}

/// `name[=host[:peerport[/clientport]]]`; the host is the name and the ports are ours unless given.
fn peer(text: &str, this: &Peer) -> Option<Peer> {
    let (name, rest) = text
        .split_once('=')
        .map_or((text, None), |(name, rest)| (name, Some(rest)));
    let name = name.trim();
    if name.is_empty() || name.contains(['/', ':', ',']) || name.contains(char::is_whitespace) {
        return None;
    }
    let (address, client_port) = match rest {
        None => (name, this.client_port),
        Some(rest) => match rest.rsplit_once('/') {
            Some((address, port)) => (address, port.parse().ok().filter(|port| *port > 0)?),
            None => (rest, this.client_port),
        },
    };
    let address = Address::parse(address, this.peer_port).filter(|address| !address.is_wildcard())?;
    Some(Peer {
        name: MemberName(name.to_owned()),
        host: address.host,
        peer_port: address.port,
        client_port,
    })
}
