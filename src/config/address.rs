//! Network addresses as settings: `host:port` to be reached at, `host[,host]:port` to listen on.

use std::{fmt, net::Ipv6Addr};

/// Where something can be reached: a host name or IP address (IPv6 without brackets) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl Address {
    /// Reads `host[:port]`, IPv6 as `[::1]:5432`; `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = split(text.trim(), default_port)?;
        Some(Self {
            host: host_name(host)?,
            port,
        })
    }

    /// Whether the host means "every address of this machine", which nobody can connect to.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        is_wildcard(&self.host)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// What to listen on: one or more addresses that share a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Host names or IP addresses without brackets, or `*`. Never empty.
    pub hosts: Vec<String>,
    /// TCP port, never 0.
    pub port: u16,
}

impl Listen {
    /// Reads `host[,host…][:port]`, the port once, at the end; `:port` alone means all addresses.
    #[must_use]
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let mut parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let (last, port) = split(parts.pop()?, default_port)?;
        let last = if parts.is_empty() && last.is_empty() && text.contains(':') {
            "*"
        } else {
            last
        };
        parts.push(last);
        let hosts = parts
            .into_iter()
            .map(|part| {
                let inner = part.strip_prefix('[').and_then(|p| p.strip_suffix(']'));
                host_name(inner.unwrap_or(part))
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { hosts, port })
    }

    /// The first host others may be able to reach: not a wildcard.
    #[must_use]
    pub fn specific(&self) -> Option<&str> {
        if self.hosts.iter().any(|host| is_wildcard(host)) {
            return None;
        }
        self.hosts.first().map(String::as_str)
    }

    /// The hosts as PostgreSQL's `listen_addresses` wants them.
    #[must_use]
    pub fn addresses(&self) -> String {
        self.hosts.join(",")
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(|host| bracketed(host)).collect();
        write!(f, "{}:{}", hosts.join(","), self.port)
    }
}

/// A host as it is written in front of a port or in a URL: IPv6 in brackets.
#[must_use]
pub fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

fn is_wildcard(host: &str) -> bool {
    matches!(host, "*" | "0.0.0.0" | "::")
}

fn split(text: &str, default_port: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':')?)),
        }
    } else if text.parse::<Ipv6Addr>().is_ok() {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    match port {
        None => Some((host, default_port)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((host, digits.parse().ok().filter(|port| *port > 0)?))
        }
        Some(_) => None,
    }
}

pub(super) fn host_name(host: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let ok = host == "*"
        || host.parse::<Ipv6Addr>().is_ok()
        || (!host.is_empty() && host.chars().all(plain))
        // A link-local address with its zone: fe80::1%eth0.
        || host.split_once('%').is_some_and(|(ip, zone)| {
            ip.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && zone.chars().all(plain)
        });
    ok.then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_every_kind_read_back_as_written() {
        for (text, expected) in [
            ("pg1:5433", Some("pg1:5433")),
            ("pg1", Some("pg1:5432")),
            ("10.0.0.1:1", Some("10.0.0.1:1")),
            ("[::1]:5433", Some("[::1]:5433")),
            ("[::1]", Some("[::1]:5432")),
            ("::1", Some("[::1]:5432")),
            ("[fe80::1%eth0]:5432", Some("[fe80::1%eth0]:5432")),
            ("my_host.example-1.org:65535", Some("my_host.example-1.org:65535")),
            ("", None),
            (":5432", None),
            ("pg1:", None),
            ("pg1:0", None),
            ("pg1:65536", None),
            ("pg1:+5", None),
            ("pg1:abc", None),
            ("a b:1", None),
            ("http://pg1:80", None),
            ("[::1", None),
            ("[pg1]x:1", None),
        ] {
            let read = Address::parse(text, 5432).map(|a| a.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn several_hosts_share_the_last_port() {
        for (text, expected) in [
            ("0.0.0.0:5432", Some(("0.0.0.0", 5432))),
            ("*", Some(("*", 5432))),
            ("127.0.0.1,[::1]:5433", Some(("127.0.0.1,::1", 5433))),
            ("[::1], 10.0.0.1:7", Some(("::1,10.0.0.1", 7))),
            ("[::]:5432", Some(("::", 5432))),
            (":8008", Some(("*", 8008))),
            ("a,:1", None),
            (":", None),
            ("a:1,b:2", None),
            ("a,,b:1", None),
            ("", None),
        ] {
            let read = Listen::parse(text, 5432);
            let read = read.as_ref().map(|l| (l.addresses(), l.port));
            assert_eq!(read, expected.map(|(h, p)| (h.to_owned(), p)), "{text}");
        }
    }

    #[test]
    fn a_wildcard_is_not_specific() {
        let specific = |text: &str| Listen::parse(text, 1).and_then(|l| l.specific().map(str::to_owned));
        assert_eq!(specific("0.0.0.0"), None);
        assert_eq!(specific("10.0.0.1,*"), None);
        assert_eq!(specific("10.0.0.1,127.0.0.1"), Some("10.0.0.1".into()));
    }
}
