//! A connection to a server of a store: TCP, and TLS if it is asked for.
//!
//! Certificates are read again for every connection, so that rotated files are used without a restart.

use std::{fmt, io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::tls::client::Tls;

/// A way to a server and back.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A server's address. `Display` is `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Name or address, without brackets.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
}

impl Place {
    /// Reads `host`, `host:port` or `[::1]:port`.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, port.parse().ok()?),
                    None if rest.is_empty() => (host, default_port),
                    None => return None,
                }
            }
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (text, default_port),
            },
        };
        (!host.is_empty() && port > 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Connects. Has no deadline of its own.
pub(super) async fn dial(place: &Place, tls: Option<&Tls>) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect((place.host.as_str(), place.port)).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Box::new(tcp));
    };
    let config = tls.config().map_err(io::Error::other)?;
    let name = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_and_without_ports_and_brackets() {
        let read = |text: &str| Place::parse(text, 7).map(|place| place.to_string());
        assert_eq!(read("h").as_deref(), Some("h:7"));
        assert_eq!(read("h:9").as_deref(), Some("h:9"));
        assert_eq!(read("[::1]:9").as_deref(), Some("[::1]:9"));
        assert_eq!(read("[::1]").as_deref(), Some("[::1]:7"));
        for wrong in ["", ":9", "h:x", "h:0", "[::1]9", "h:99999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
