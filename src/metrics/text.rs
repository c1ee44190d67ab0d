//! Lines of Prometheus' text format (version 0.0.4), all of one member.

use std::fmt::{Display, Write as _};

use crate::model::MemberName;

/// What is written so far.
#[derive(Debug)]
pub struct Page {
    text: String,
    /// `scope="demo",name="n1"`.
    labels: String,
}

/// A kind of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up only, as far as the contract is concerned.
    Counter,
}

impl Page {
    /// An empty page; every line gets these two labels.
    #[must_use]
    pub fn new(scope: &str, member: &MemberName) -> Self {
        let labels = format!(
            r#"scope="{}",name="{}""#,
            escaped(scope),
            escaped(member.as_str())
        );
        Self {
            text: String::with_capacity(8 << 10),
            labels,
        }
    }

    /// One metric with one value.
    pub fn put(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.head(name, kind, help, None);
        self.line(name, "", value);
    }

    /// The same as a yes or no.
    pub fn flag(&mut self, name: &str, help: &str, set: bool) {
        self.put(name, Kind::Gauge, help, u8::from(set));
    }

    /// The describing lines of a metric; `remark` goes between them.
    pub fn head(&mut self, name: &str, kind: Kind, help: &str, remark: Option<&str>) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.write(format_args!("# HELP {name} {help}\n"));
        if let Some(remark) = remark {
            self.write(format_args!("# {remark}\n"));
        }
        self.write(format_args!("# TYPE {name} {kind}\n"));
    }

    /// One value. `more`: further labels, with a comma at their end.
    pub fn line(&mut self, name: &str, more: &str, value: impl Display) {
        let Self { text, labels } = self;
        // Writing into a string does not fail.
        let _ = writeln!(text, "{name}{{{more}{labels}}} {value}");
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(text);
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

/// A label's value as it is written between quotes.
#[must_use]
pub fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', r#"\""#)
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::new("a\"b", &"c\\d".into());
        page.put("up", Kind::Gauge, "Up.", 1);
        page.line("down", r#"slot="x","#, 0.5);
        let text = String::from_utf8(page.into_bytes()).expect("text");
        insta::assert_snapshot!(text, @r##"
        # HELP up Up.
        # TYPE up gauge
        up{scope="a\"b",name="c\\d"} 1
        down{slot="x",scope="a\"b",name="c\\d"} 0.5
        "##);
    }
}
