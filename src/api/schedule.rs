//! The moment of a scheduled action, as users write it (contract: REST API §10 rule 5).

use jiff::{Timestamp, civil};

use super::refusal::Refusal;

/// Why a text is no usable moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// A date and time without an offset.
    NoTimeZone,
    /// Not a date and time.
    Unparsable,
}

/// Reads ISO 8601 with an offset; a blank between date, time and offset and a trailing `UTC` are fine too.
pub fn parse(text: &str) -> Result<Timestamp, Unusable> {
    let text = text.trim();
    let zulu = text
        .strip_suffix("UTC")
        .or_else(|| text.strip_suffix("GMT"))
        .map(|rest| format!("{}Z", rest.trim_end()));
    let text = zulu.as_deref().unwrap_or(text);
    let joined = text.replace(" +", "+").replace(" -", "-");
    if let Ok(moment) = joined.parse::<Timestamp>() {
        return Ok(moment);
    }
    let is_local = text.parse::<civil::DateTime>().is_ok() || text.parse::<civil::Time>().is_ok();
    Err(if is_local {
        Unusable::NoTimeZone
    } else {
        Unusable::Unparsable
    })
}

/// The same for a request; `action` (`switchover`, `restart`) goes into the refusal. The past is refused.
pub fn in_future(text: &str, action: &str, now: Timestamp) -> Result<Timestamp, Refusal> {
    match parse(text) {
        Ok(moment) if moment < now => Err(Refusal::new(422, format!("Cannot schedule {action} in the past"))),
        Ok(moment) => Ok(moment),
        Err(Unusable::NoTimeZone) => Err(Refusal::bad_request(format!(
            "Timezone information is mandatory for the scheduled {action}"
        ))),
        Err(Unusable::Unparsable) => Err(Refusal::new(
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_the_usual_spellings() {
        let three: Timestamp = "2026-02-01T03:00:00Z".parse().expect("valid");
        for text in [
            "2026-02-01T03:00:00+00:00",
            "2026-02-01T03:00+00:00",
            "2026-02-01 05:00:00.000000+02:00",
            "2026-02-01 01:00:00 -02",
            "2026-02-01T03:00Z",
            "2026-02-01 03:00 UTC",
        ] {
            assert_eq!(parse(text), Ok(three), "{text}");
        }
        for text in ["2026-02-01T03:00", "2026-02-01 03:00:00", "03:00"] {
            assert_eq!(parse(text), Err(Unusable::NoTimeZone), "{text}");
        }
        for text in ["", "soon", "2026-13-01T00:00Z", "now"] {
            assert_eq!(parse(text), Err(Unusable::Unparsable), "{text}");
        }
    }

    #[test]
    fn the_past_is_refused() {
        let now = "2026-02-01T03:00:00Z".parse().expect("valid");
        let refused = in_future("2026-02-01T02:59:59Z", "restart", now);
        assert_eq!(
            refused,
            Err(Refusal::new(422, "Cannot schedule restart in the past"))
        );
    }
}
