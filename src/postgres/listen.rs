//! Whether the server's address is to be had. PostgreSQL says so too, but only in its log, and its exit status does not
//! tell a port that is taken from damaged data.

use std::{io, net::TcpListener};

/// The first address on which another process listens already, as `host:port`. What cannot be tried (a name that does not
/// resolve, an address of another host) is left to PostgreSQL, which says it better.
pub fn taken<'a>(hosts: impl IntoIterator<Item = &'a str>, port: u16) -> Option<String> {
    let address = |host: &'a str| if host == "*" { "0.0.0.0" } else { host };
    let in_use = |host: &&str| {
        TcpListener::bind((*host, port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let host = hosts.into_iter().map(str::trim).map(address).find(in_use)?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_address_that_another_process_has() {
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = other.local_addr().expect("bound").port();
        let named = Some(format!("127.0.0.1:{port}"));
        assert_eq!(taken(["no.such.host.invalid", "127.0.0.1"], port), named);
        assert_eq!(taken(["*"], port), Some(format!("0.0.0.0:{port}")));
        drop(other);
        assert_eq!(taken(["127.0.0.1", " localhost"], port), None);
    }
}
