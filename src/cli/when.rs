//! The moment of a scheduled action as typed: `now`, or a time whose zone may be left out.

use jiff::{Timestamp, civil, tz::TimeZone};

use super::CliError;
use crate::api::schedule::{self, Unusable};

/// `None` for `now` and nothing; a time without a zone is local.
pub(super) fn read(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Option<Timestamp>, CliError> {
    let text = text.trim();
    if text.is_empty() || text == "now" {
        return Ok(None);
    }
    let local = || -> Option<Timestamp> {
        let moment = match text.parse::<civil::DateTime>() {
            Ok(moment) => moment,
            Err(_) => now
                .to_zoned(zone.clone())
                .date()
                .to_datetime(text.parse::<civil::Time>().ok()?),
        };
        Some(moment.to_zoned(zone.clone()).ok()?.timestamp())
    };
    let unparsable = || {
        CliError::refused(format!(
            "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO 8601)"
        ))
    };
    match schedule::parse(text) {
        Ok(moment) => Ok(Some(moment)),
        Err(Unusable::NoTimeZone) => local().map(Some).ok_or_else(unparsable),
        Err(Unusable::Unparsable) => Err(unparsable()),
    }
}

/// As sent to a member.
pub(super) fn iso(moment: Timestamp) -> String {
    moment.display_with_offset(jiff::tz::Offset::UTC).to_string()
}

/// An example for a prompt: in an hour.
pub(super) fn example(now: Timestamp, zone: &TimeZone) -> String {
    let later = now
        .saturating_add(jiff::SignedDuration::from_hours(1))
        .unwrap_or(now);
    later
        .to_zoned(zone.clone())
        .strftime("%Y-%m-%dT%H:%M")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_zone_is_the_local_one() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now: Timestamp = "2026-02-01T01:00:00Z".parse().expect("valid");
        let read = |text| {
            read(text, &zone, now)
                .map(|at| at.map(iso))
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("now"), Ok(None));
        assert_eq!(read(" "), Ok(None));
        let three = Ok(Some("2026-02-01T03:00:00+00:00".to_owned()));
        for text in [
            "2026-02-01T05:00",
            "05:00",
            "2026-02-01T03:00Z",
            "2026-02-01 05:00:00",
        ] {
            assert_eq!(read(text), three, "{text}");
        }
        assert!(
            read("soon")
                .expect_err("nonsense")
                .starts_with("Unable to parse scheduled timestamp (soon).")
        );
        assert_eq!(example(now, &zone), "2026-02-01T04:00");
    }
}
