//! Opening the listening socket, with errors that name the address and the way out.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Why the REST API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The text is not `host:port`.
    #[error("REST API listen address '{address}' is not host:port (for example 0.0.0.0:8008)")]
    Syntax {
        /// As configured.
        address: String,
    },
    /// The host has no address here.
    #[error("REST API listen address '{address}': the host cannot be resolved: {reason}")]
    Resolve {
        /// As configured.
        address: String,
        /// The resolver's words.
        reason: String,
    },
    /// Somebody else listens there.
    #[error(
        "REST API cannot listen on {address}: another process already does; stop it or choose another port"
    )]
    InUse {
        /// As configured.
        address: String,
    },
    /// A port below 1024 without the right to it, or an address of another host.
    #[error("REST API cannot listen on {address}: {source}")]
    Refused {
        /// As configured.
        address: String,
        /// The system's words.
        source: io::Error,
    },
}

/// Listens on every one of `hosts` (IPv6 with or without brackets), all of them or none.
pub async fn bind_all(hosts: &[String], port: u16) -> Result<Vec<TcpListener>, BindError> {
    let has = |host: &str| hosts.iter().any(|other| other == host);
    // One socket takes both families; next to it there is nothing left to listen on.
    let all = has("*") || (has("::") && has("0.0.0.0"));
    let everywhere = ["*".to_owned()];
    let mut listeners = Vec::new();
    for host in if all { &everywhere } else { hosts } {
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        listeners.push(bind(&format!("{host}:{port}")).await?);
    }
    Ok(listeners)
}

/// Listens on `host:port`. An empty host or `*` means all addresses, IPv6 included where the host has it.
pub async fn bind(address: &str) -> Result<TcpListener, BindError> {
    let owned = || address.to_owned();
    let syntax = || BindError::Syntax { address: owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(syntax)?;
    let port: u16 = port.parse().map_err(|_| syntax())?;
    let candidates: Vec<SocketAddr> = if host.is_empty() || host == "*" {
        vec![([0u16; 8], port).into(), ([0u8; 4], port).into()]
    } else {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::time::timeout(Duration::from_secs(5), lookup_host((host, port))).await;
        let resolve = |reason| BindError::Resolve {
            address: owned(),
            reason,
        };
        let found = found.map_err(|_| resolve("no answer within 5 s".to_owned()))?;
        found.map_err(|error| resolve(error.to_string()))?.collect()
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in candidates {
        match listen(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(BindError::InUse { address: owned() });
            }
            Err(error) => last = error,
        }
    }
    Err(BindError::Refused {
        address: owned(),
        source: last,
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0").await.expect("a free port");
        let address = first.local_addr().expect("bound").to_string();
        let error = bind(&address).await.expect_err("taken");
        assert!(matches!(&error, BindError::InUse { address: named } if *named == address));
        assert!(error.to_string().contains("another process"), "{error}");
    }

    #[tokio::test]
    async fn an_empty_host_is_every_address() {
        for all in [":0", "*:0", "0.0.0.0:0"] {
            let listener = bind(all).await.expect("a free port");
            let port = listener.local_addr().expect("bound").port();
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .expect("reachable by IPv4");
        }
    }

    #[tokio::test]
    async fn every_host_is_listened_on() {
        let free = bind("127.0.0.1:0").await.expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let hosts = ["127.0.0.1".to_owned(), "127.0.0.2".to_owned()];
        let listeners = bind_all(&hosts, port).await.expect("both are free");
        let bound: Vec<String> = listeners
            .iter()
            .map(|listener| listener.local_addr().expect("bound").ip().to_string())
            .collect();
        assert_eq!(bound, hosts);
        drop(listeners);
        for all in [&["::", "0.0.0.0"][..], &["127.0.0.1", "*"]] {
            let hosts: Vec<String> = all.iter().map(|host| (*host).to_owned()).collect();
            assert_eq!(bind_all(&hosts, 0).await.expect("free").len(), 1, "{all:?}");
        }
    }

    #[tokio::test]
    async fn nonsense_is_named() {
        for address in ["", "8008", "host:", "host:99999"] {
            assert!(
                matches!(bind(address).await, Err(BindError::Syntax { .. })),
                "{address}"
            );
        }
        assert!(matches!(
            bind("no.such.host.invalid:1").await,
            Err(BindError::Resolve { .. })
        ));
        assert!(matches!(
            bind("192.0.2.1:0").await,
            Err(BindError::Refused { .. })
        ));
    }
}
