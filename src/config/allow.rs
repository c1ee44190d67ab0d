//! Who may send requests that change something: `restapi.allowlist` (contract: REST API §2).

use std::{fmt, net::IpAddr};

use super::address::host_name;

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// An address, or all addresses that share its first bits.
    Network(Network),
    /// A host name; its addresses are looked up when the configuration is loaded.
    Host(String),
}

/// Addresses that share their first bits. IPv4 addresses mapped into IPv6 count as what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Allowed {
    /// Reads an address, a network (`10.0.0.0/8`) or a host name; `None` if it is none of them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some((address, prefix)) = text.split_once('/') {
            let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
            let prefix = prefix.parse().ok().filter(|_| digits)?;
            return Network::new(address.parse().ok()?, prefix).map(Self::Network);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Network(Network::from(address)));
        }
        // A name of digits and dots only is a mistyped address.
        let name = host_name(text).filter(|name| name.contains(|c: char| c.is_ascii_alphabetic()))?;
        Some(Self::Host(name))
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Host(name) => f.write_str(name),
        }
    }
}

impl Network {
    /// The network of an address with this many common bits; `None` if an address has no so many.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (bits, canonical) = (bits(address), address.to_canonical());
        if prefix > bits {
            return None;
        }
        match canonical {
            // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
            IpAddr::V4(_) if address.is_ipv6() => Some(Self {
                address: canonical,
                prefix: prefix.checked_sub(96)?,
            }),
            _ => Some(Self { address, prefix }),
        }
    }

    /// Whether an address belongs to it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same_start(own.to_bits().into(), other.to_bits().into(), 32 - self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                same_start(own.to_bits(), other.to_bits(), 128 - self.prefix)
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self {
            address,
            prefix: bits(address),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.address) {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Whether two numbers are the same but for their last `rest` bits.
fn same_start(a: u128, b: u128, rest: u8) -> bool {
    (a ^ b).checked_shr(rest.into()).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_addresses_networks_or_names() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::/8", Some("fd00::/8")),
            ("::1", Some("::1")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            (" bastion.example ", Some("bastion.example")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("bastion/24", None),
            ("10.0.0", None),
            ("10.0.0.256", None),
            ("a b", None),
            ("*", None),
            ("", None),
        ] {
            let read = Allowed::parse(text).map(|allowed| allowed.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_network_contains_what_shares_its_first_bits() {
        for (network, address, expected) in [
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("10.1.0.0/16", "::ffff:10.1.2.3", true),
            ("10.1.2.3/16", "10.1.9.9", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("::/0", "10.0.0.1", false),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let Some(Allowed::Network(read)) = Allowed::parse(network) else {
                unreachable!("{network}");
            };
            let address: IpAddr = address.parse().expect("an IP");
            assert_eq!(read.contains(address), expected, "{network} {address}");
        }
    }
}
