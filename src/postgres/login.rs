//! A role's name and password as the rest of this folder needs them.

use std::fmt;

/// A password that never shows itself: `Debug` prints a placeholder, there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself; only for what is handed to PostgreSQL.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Credentials of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the role.
    pub username: String,
    /// Its password; `None` when it authenticates by other means (client certificate).
    pub password: Option<Password>,
}

impl Login {
    /// Credentials with a password.
    #[must_use]
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: Some(Password::new(password)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        let shown = format!("{:?}", Login::new("postgres", "s3cret"));
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("postgres"));
    }
}
