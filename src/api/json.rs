//! JSON text as Python's `json.dumps` writes it: `", "` and `": "` between items, non-ASCII escaped.
//! Scripts that compare answers as text were written against that (contract: REST API §1).

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

struct Python;

fn separator<W: ?Sized + Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separator(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separator(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for c in fragment.chars() {
            if c.is_ascii() && c != '\x7f' {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// The text of a value; empty only if its `Serialize` fails, which plain data cannot.
#[must_use]
pub fn text(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = value.serialize(&mut Serializer::with_formatter(&mut bytes, Python)) {
        tracing::error!(%error, "an answer cannot be written as JSON");
    }
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn looks_as_python_writes_it() {
        let value = json!({"a": [1, 2.5, null, true], "b": {}, "c": [], "ü\"\n": "x\u{7f}😀"});
        assert_eq!(
            super::text(&value),
            r#"{"a": [1, 2.5, null, true], "b": {}, "c": [], "\u00fc\"\n": "x\u007f\ud83d\ude00"}"#
        );
    }
}
