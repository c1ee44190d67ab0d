//! Numbers of parameters with their units, as PostgreSQL reads and shows them (PostgreSQL: `convert_to_base_unit` and
//! `convert_int_from_base_unit` in `guc.c`).

/// Bytes in a unit of memory.
const MEMORY: &[(&str, f64)] = &[
    ("TB", 1_099_511_627_776.0),
    ("GB", 1_073_741_824.0),
    ("MB", 1_048_576.0),
    ("kB", 1024.0),
    ("B", 1.0),
];
/// Milliseconds in a unit of time.
const TIME: &[(&str, f64)] = &[
    ("d", 86_400_000.0),
    ("h", 3_600_000.0),
    ("min", 60_000.0),
    ("s", 1000.0),
    ("ms", 1.0),
    ("us", 0.001),
];

/// A base unit as `pg_settings.unit` names it (`8kB`, `ms`): the units of its kind, and how much it is of the smallest.
fn base(unit: &str) -> Option<(&'static [(&'static str, f64)], f64)> {
    let digits = unit.find(|c: char| !c.is_ascii_digit()).unwrap_or(unit.len());
    let (count, name) = unit.split_at(digits);
    let count: f64 = if count.is_empty() {
        1.0
    } else {
        count.parse().ok()?
    };
    [MEMORY, TIME].into_iter().find_map(|units| {
        let (_, factor) = units.iter().find(|(known, _)| *known == name)?;
        Some((units, count * factor))
    })
}

/// Takes a text like `1.5 GB` apart into number and unit; `None` if it does not begin with a decimal number. (What else
/// PostgreSQL reads as a number, it has to judge itself.)
#[must_use]
pub fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let hexadecimal = text
        .trim_start_matches(['-', '+'])
        .get(..2)
        .is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    let end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && matches!(c, '-' | '+'))))
        .map_or(text.len(), |(at, _)| at);
    let (number, unit) = text.split_at(end);
    // An exponent would be taken for a unit.
    let exponent = unit.len() > 1 && unit.starts_with(['e', 'E']);
    if hexadecimal || exponent {
        return None;
    }
    Some((number.parse().ok()?, unit.trim()))
}

/// The number a text means in the base unit of its parameter; `None` where that cannot be told.
#[must_use]
pub fn in_base_unit(text: &str, unit: Option<&str>) -> Option<f64> {
    match (split(text)?, unit) {
        ((number, ""), _) => Some(number),
        ((number, given), Some(unit)) => {
            let (units, size) = base(unit)?;
            let (_, factor) = units.iter().find(|(known, _)| *known == given)?;
            Some(number * factor / size)
        }
        ((_, _), None) => None,
    }
}

/// A setting as `SHOW` prints it: with the largest unit of which it is a whole number. Anything that is no positive whole
/// number with a unit stays as it is.
#[must_use]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
pub fn shown(setting: &str, unit: Option<&str>) -> String {
    let number = setting.parse::<i64>().ok().filter(|number| *number > 0);
    let (Some(number), Some((units, size))) = (number, unit.and_then(base)) else {
        return setting.to_owned();
    };
    let total = number as f64 * size;
    let whole = units
        .iter()
        .find(|(_, factor)| total >= *factor && (total / factor).fract() == 0.0);
    match whole {
        Some((name, factor)) => format!("{}{name}", (total / factor) as i64),
        None => setting.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_shown_with_the_largest_unit_that_fits() {
        for (setting, unit, expected) in [
            ("16384", Some("8kB"), "128MB"),
            ("16385", Some("8kB"), "131080kB"),
            ("1048576", Some("kB"), "1GB"),
            ("300", Some("s"), "5min"),
            ("1500", Some("ms"), "1500ms"),
            ("86400000", Some("ms"), "1d"),
            ("-1", Some("8kB"), "-1"),
            ("0", Some("ms"), "0"),
            ("100", None, "100"),
            ("on", None, "on"),
            ("5", Some("parsecs"), "5"),
        ] {
            assert_eq!(shown(setting, unit), expected, "{setting} {unit:?}");
        }
    }

    #[test]
    fn texts_are_read_in_the_base_unit() {
        for (text, unit, expected) in [
            ("128MB", Some("8kB"), Some(16384.0)),
            ("1.5 GB", Some("kB"), Some(1_572_864.0)),
            ("5min", Some("s"), Some(300.0)),
            ("-1", Some("ms"), Some(-1.0)),
            ("64", None, Some(64.0)),
            ("0x10", None, None),
            ("1e3", None, None),
            ("64kb", Some("kB"), None),
            ("64kB", None, None),
            ("", None, None),
            ("é", None, None),
        ] {
            assert_eq!(in_base_unit(text, unit), expected, "{text} {unit:?}");
        }
    }
}
