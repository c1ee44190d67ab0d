//! Where the configuration comes from, as traits: the environment with the files it points to, and the host.
//! Tests use [`MapEnv`] and [`FixedHost`].

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::Path,
};

use nix::net::if_::InterfaceFlags;

/// No setting is larger than this (bytes); a file that is was meant for something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The environment of the process and the files its `_FILE` variables point to.
pub trait Env {
    /// All variables. Bytes that are not UTF-8 come as U+FFFD.
    fn vars(&self) -> Vec<(String, String)>;

    /// The text of a file.
    ///
    /// # Errors
    /// Whatever the operating system says; `InvalidData` for text that is not UTF-8.
    fn read_file(&self, path: &Path) -> io::Result<String>;
}

/// The host the process runs on.
pub trait Host {
    /// The host's name, as `hostname` prints it.
    fn hostname(&self) -> Option<String>;

    /// The first address other hosts can reach: IPv4 before IPv6, neither loopback nor link-local.
    fn address(&self) -> Option<IpAddr>;
}

/// The environment and files of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn vars(&self) -> Vec<(String, String)> {
        std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect()
    }

    fn read_file(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        Ok(text)
    }
}

/// This host.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisHost;

impl Host for ThisHost {
    fn hostname(&self) -> Option<String> {
        let name = nix::unistd::gethostname().ok()?;
        name.into_string().ok().filter(|name| !name.is_empty())
    }

    fn address(&self) -> Option<IpAddr> {
        let interfaces = nix::ifaddrs::getifaddrs().ok()?;
        let addresses: Vec<IpAddr> = interfaces
            .filter(|interface| {
                interface
                    .flags
                    .contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING)
            })
            .filter_map(|interface| interface.address)
            .filter_map(|address| {
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
            })
            .collect();
        first_reachable(&addresses)
    }
}

/// The first address others can reach, IPv4 first.
fn first_reachable(addresses: &[IpAddr]) -> Option<IpAddr> {
    let reachable = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    let mut candidates = addresses.iter().filter(reachable);
    candidates
        .clone()
        .find(|address| address.is_ipv4())
        .or_else(|| candidates.next())
        .copied()
}

/// An environment made of maps, for tests.
#[derive(Debug, Clone, Default)]
pub struct MapEnv {
    vars: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

impl MapEnv {
    /// With these variables.
    #[must_use]
    pub fn new(vars: &[(&str, &str)]) -> Self {
        vars.iter()
            .fold(Self::default(), |env, (name, value)| env.var(name, value))
    }

    /// And this variable.
    #[must_use]
    pub fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.insert(name.to_owned(), value.to_owned());
        self
    }

    /// And this file.
    #[must_use]
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }
}

impl Env for MapEnv {
    fn vars(&self) -> Vec<(String, String)> {
        self.vars.clone().into_iter().collect()
    }

    fn read_file(&self, path: &Path) -> io::Result<String> {
        self.files
            .get(&*path.to_string_lossy())
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }
}

/// A host with fixed answers, for tests.
#[derive(Debug, Clone, Default)]
pub struct FixedHost {
    /// The name.
    pub hostname: Option<String>,
    /// The address.
    pub address: Option<IpAddr>,
}

impl Host for FixedHost {
    fn hostname(&self) -> Option<String> {
        self.hostname.clone()
    }

    fn address(&self) -> Option<IpAddr> {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_others_can_reach_is_chosen() {
        let pick = |texts: &[&str]| {
            let addresses: Vec<IpAddr> = texts.iter().map(|t| t.parse().expect("an IP")).collect();
            first_reachable(&addresses).map(|a| a.to_string())
        };
        assert_eq!(
            pick(&["127.0.0.1", "::1", "fd00::2", "10.1.0.2", "10.2.0.2"]).as_deref(),
            Some("10.1.0.2")
        );
        assert_eq!(
            pick(&["127.0.0.1", "fe80::1", "fd00::2"]).as_deref(),
            Some("fd00::2")
        );
        assert_eq!(pick(&["127.0.0.1", "169.254.3.4"]), None);
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, "pass\n").expect("written");
        assert_eq!(ProcessEnv.read_file(&path).expect("readable"), "pass\n");
        std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).expect("written");
        assert!(ProcessEnv.read_file(&path).is_err());
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(ProcessEnv.read_file(&path).is_err());
    }

    #[test]
    fn this_host_has_a_name() {
        assert!(ThisHost.hostname().is_some());
        assert!(ThisHost.address().is_none_or(|a| !a.is_loopback()));
    }
}
