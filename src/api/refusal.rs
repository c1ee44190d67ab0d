//! A "no" with its status code and text, as the rules of the contract give it.

/// Why a request is not carried out. The text is part of the contract: scripts and `patronictl` match on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// Body.
    pub text: String,
}

impl Refusal {
    /// A refusal with any status.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// 400.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(400, text)
    }

    /// 503.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(503, text)
    }
}

impl From<crate::dcs::DcsError> for Refusal {
    fn from(error: crate::dcs::DcsError) -> Self {
        Self::unavailable(format!("cannot reach the DCS: {error}"))
    }
}

impl From<crate::agent::handle::AskError> for Refusal {
    fn from(error: crate::agent::handle::AskError) -> Self {
        Self::unavailable(error.to_string())
    }
}
