//! User and password of the REST API (basic authentication, RFC 7617).

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;

/// User and password; the password never shows in Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    fn encoded(&self) -> String {
        STANDARD.encode(format!("{}:{}", self.username, self.password))
    }

    /// Value of the `Authorization` header.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Basic {}", self.encoded())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether an `Authorization` header carries these. Takes the same time whatever is wrong with it.
    #[must_use]
    pub fn accept(&self, header: &[u8]) -> bool {
        let Some((scheme, given)) = header.split_first_chunk::<6>() else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Basic ") && same(given.trim_ascii(), self.encoded().as_bytes())
    }
}

/// Compares every byte of `given`, so that the time taken tells nothing about where a difference is.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = u8::from(given.len() != wanted.len());
    for (index, byte) in given.iter().enumerate() {
        let other = wanted.get(index % wanted.len().max(1)).copied().unwrap_or(0);
        difference |= std::hint::black_box(byte ^ other);
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_ones_are_accepted() {
        let credentials = Credentials {
            username: "admin".into(),
            password: "s3:cret".into(),
        };
        let header = credentials.header().expect("plain text");
        assert!(credentials.accept(header.as_bytes()));
        assert!(credentials.accept(&[b"basic ", &header.as_bytes()[6..]].concat()));
        let doubled = [header.as_bytes(), &header.as_bytes()[6..]].concat();
        for wrong in [&b""[..], b"Basic ", b"Bearer x", b"Basic YWRtaW46eA==", &doubled] {
            assert!(!credentials.accept(wrong));
        }
        assert!(!format!("{credentials:?}").contains("s3"));
    }
}
