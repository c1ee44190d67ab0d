//! A text that must not be seen: passwords and keys. Also the rule that derives the passwords nobody chose.

use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Whether a text, or the name of something, speaks of a secret: `password=…`, `Authorization`, `ssl_passphrase_command`.
pub(super) fn names_a_secret(text: &str) -> bool {
    const WORDS: &[&str] = &[
        "password",
        "passphrase",
        "secret",
        "token",
        "authorization",
        "conninfo",
    ];
    let text = text.to_ascii_lowercase();
    WORDS.iter().any(|word| text.contains(word)) && !text.contains("encryption")
}

/// A secret text. Neither `Debug` nor `Display` shows it; whoever needs it says so with [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Never for a log, an error message or the environment of a child.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The password of an internal role that was given none: the hexadecimal HMAC-SHA256 of `howdah/<role>`
    /// under this (the superuser's) password. Members that share the superuser password agree on it without
    /// talking to each other, and it does not give the superuser password away.
    #[must_use]
    pub fn derive(&self, role: &str) -> Self {
        // HMAC takes keys of any length; an error here cannot happen, and an empty password would be refused later.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()) else {
            return Self(String::new());
        };
        mac.update(b"howdah/");
        mac.update(role.as_bytes());
        let mut hex = String::with_capacity(64);
        for byte in mac.finalize().into_bytes() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self(hex)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn derived_passwords_depend_on_role_and_superuser_password() {
        let derived = Secret::new("secret").derive("replicator");
        // printf howdah/replicator | openssl dgst -sha256 -hmac secret
        assert_eq!(
            derived.reveal(),
            "c295456ab8c30ed7b465293c2262f94d67ce86196e560b7e7821d6b2ad71ca09"
        );
        assert_ne!(derived, Secret::new("secret").derive("rewinder"));
        assert_ne!(derived, Secret::new("other").derive("replicator"));
    }
}
