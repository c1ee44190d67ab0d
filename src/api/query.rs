//! The query string of a request and the sizes in it.

/// Parameters of a query string. The first value of a name counts; names without a value count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=1&b=x%20y`; anything that does not look like that is skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            let (name, value) = (decode(name), decode(value));
            if !value.is_empty() && !pairs.iter().any(|(known, _)| *known == name) {
                pairs.push((name, value));
            }
        }
        Self(pairs)
    }

    /// The value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(known, _)| known == name)?;
        Some(&pair.1)
    }

    /// The `tag_<name>=<value>` parameters, without the prefix.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("tag_")?, value.as_str())))
    }

    /// The `lag` parameter in bytes; `None` if absent or not a size, which means "no limit" (contract §3).
    #[must_use]
    pub fn lag(&self) -> Option<i64> {
        parse_size(self.get("lag")?)
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Bytes from PostgreSQL's spelling of a size: a decimal, fractional or hexadecimal number with an optional
/// unit `B`, `kB`, `MB`, `GB`, `TB` (upper and lower case matter). Fractions are rounded.
#[must_use]
pub fn parse_size(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let is_hex = unsigned.starts_with("0x") || unsigned.starts_with("0X");
    let (number, unit) = if is_hex {
        let digits = &unsigned[2..];
        let end = digits
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        // `0x10B` is all digits: a unit must not start with a hexadecimal letter, so `B` cannot follow one.
        #[allow(clippy::cast_precision_loss)]
        let number = i64::from_str_radix(&digits[..end], 16).ok()? as f64;
        (number, &digits[end..])
    } else {
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        (unsigned[..end].parse().ok()?, &unsigned[end..])
    };
    let factor = match unit.trim() {
        "" | "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes: f64 = number * factor;
    #[allow(clippy::cast_possible_truncation)]
    (bytes.is_finite() && bytes < 9.2e18).then(|| sign * bytes.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_spelled_as_in_postgres() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("100", Some(100)),
            ("16kB", Some(16_384)),
            ("1.5MB", Some(1_572_864)),
            ("2 GB", Some(2 << 30)),
            ("1TB", Some(1 << 40)),
            ("0x10", Some(16)),
            ("0x10kB", Some(16_384)),
            ("-1", Some(-1)),
            ("16KB", None),
            ("kB", None),
            ("", None),
            ("1.2.3", None),
            ("0x", None),
            ("99999999999999999999TB", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn the_first_value_counts_and_empty_ones_do_not() {
        let query = Query::parse(
            "lag=1%6bB&tag_a=&tag_a=x+y&tag_a=z&junk&=&%&replication_state=in%20archive+recovery",
        );
        assert_eq!(query.lag(), Some(1024));
        assert_eq!(query.tags().collect::<Vec<_>>(), [("a", "x y")]);
        assert_eq!(query.get("replication_state"), Some("in archive recovery"));
        assert_eq!(query.get("junk"), None);
    }
}
