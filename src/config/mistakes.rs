//! What can be wrong with a configuration, one line each. All of them are collected before anything is said.

use std::fmt;

use super::settings::Origin;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A value of the wrong form or outside its range. `shown` is absent where it must not be seen.
    #[error("{origin}: {}{what} (allowed: {allowed})", shown.as_ref().map_or_else(|| "the value is not ".to_owned(), |v| format!("{v:?} is not ")))]
    Invalid {
        /// Where it came from.
        origin: Origin,
        /// The value, unless it is secret or long.
        shown: Option<String>,
        /// What it should have been: "a number of seconds".
        what: String,
        /// The values that would do.
        allowed: String,
    },
    /// Two places give one setting different values.
    #[error("{first} and {second} are both set and differ; remove one of them")]
    Conflict {
        /// The one that would have won.
        first: Origin,
        /// The other.
        second: Origin,
    },
    /// A name nobody reads.
    #[error("{name}: there is no such setting{}", meant(suggestion.as_deref()))]
    Unknown {
        /// Variable, or variable and path in the document.
        name: String,
        /// The nearest name that exists.
        suggestion: Option<String>,
    },
    /// A setting without which there is no way to start.
    #[error("{names} must be set: {why}")]
    Missing {
        /// The variables that could give it.
        names: String,
        /// Why there is no default.
        why: String,
    },
    /// A `_FILE` variable points to a file that cannot be read.
    #[error("{variable}: cannot read {path}: {reason}")]
    Unreadable {
        /// The variable.
        variable: String,
        /// The file.
        path: String,
        /// In the operating system's words.
        reason: String,
    },
    /// A setting that exists, with a meaning this build cannot give it.
    #[error("{name}: {what} not supported in this build")]
    Unsupported {
        /// Variable or origin.
        name: String,
        /// What, with its verb: "TLS for the REST API is".
        what: String,
    },
    /// Values that are fine each but not together.
    #[error("{names}: {why}")]
    Inconsistent {
        /// The settings concerned.
        names: String,
        /// What does not fit, with the values.
        why: String,
    },
}

fn meant(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// Everything that is wrong, in the order of the table of settings. Displays as one line per mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            // A value may contain line breaks; a mistake is one line all the same.
            f.write_str(&mistake.to_string().replace('\n', "\\n"))?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
