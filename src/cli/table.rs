//! A table in the four output formats (contract: ctl §2). Pure.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::args::Format;
use crate::api::json;

/// A column: its name in machine formats, its heading in the drawn table, its alignment.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: Cow<'static, str>,
    pub(super) heading: Cow<'static, str>,
    pub(super) right: bool,
    /// Left out of the drawn table because the title says it.
    pub(super) in_title: bool,
}

impl Column {
    pub(super) const fn left(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            heading: Cow::Borrowed(name),
            right: false,
            in_title: false,
        }
    }

    pub(super) const fn right(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            heading: Cow::Borrowed(name),
            right: true,
            in_title: false,
        }
    }

    /// Of a query's result.
    pub(super) fn named(name: &str) -> Self {
        Self {
            name: Cow::Owned(name.to_owned()),
            heading: Cow::Owned(name.to_owned()),
            right: false,
            in_title: false,
        }
    }

    pub(super) fn headed(mut self, heading: &'static str) -> Self {
        self.heading = Cow::Borrowed(heading);
        self
    }

    pub(super) const fn in_title(mut self) -> Self {
        self.in_title = true;
        self
    }
}

/// Rows of values under columns. An empty text is an empty cell.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Spliced into the first rule. With a title, machine formats leave empty cells out.
    pub(super) title: Option<String>,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Value>>,
}

impl Table {
    /// The table in that format, without a final newline.
    pub(super) fn render(&self, format: Format) -> String {
        match format {
            Format::Pretty => self.draw(),
            Format::Tsv => self.tsv(),
            Format::Json => json::text(&self.objects(false)),
            Format::Yaml | Format::Yml => serde_yaml_ng::to_string(&self.objects(true))
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
        }
    }

    fn objects(&self, sorted: bool) -> Vec<Map<String, Value>> {
        let object = |row: &Vec<Value>| {
            let mut object: Map<String, Value> = self
                .columns
                .iter()
                .zip(row)
                .filter(|(_, value)| self.title.is_none() || value.as_str() != Some(""))
                .map(|(column, value)| (column.name.to_string(), value.clone()))
                .collect();
            if sorted {
                object.sort_keys();
            }
            object
        };
        self.rows.iter().map(object).collect()
    }

    fn tsv(&self) -> String {
        let mut lines = vec![
            self.columns
                .iter()
                .map(|column| &*column.name)
                .collect::<Vec<_>>()
                .join("\t"),
        ];
        for row in &self.rows {
            lines.push(row.iter().map(flow).collect::<Vec<_>>().join("\t"));
        }
        lines.join("\n")
    }

    fn draw(&self) -> String {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|index| !self.columns[*index].in_title)
            .collect();
        let rows: Vec<Vec<Vec<String>>> = self
            .rows
            .iter()
            .map(|row| {
                shown
                    .iter()
                    .map(|index| block(row.get(*index).unwrap_or(&Value::Null)))
                    .collect()
            })
            .collect();
        let widths: Vec<usize> = shown
            .iter()
            .enumerate()
            .map(|(place, index)| {
                let cells = rows
                    .iter()
                    .flat_map(|row| &row[place])
                    .map(|line| line.chars().count());
                cells
                    .chain([self.columns[*index].heading.chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let rule = widths
            .iter()
            .fold("+".to_owned(), |rule, width| rule + &"-".repeat(width + 2) + "+");
        let line = |cells: &[&str]| {
            let mut text = String::from("|");
            for ((cell, width), index) in cells.iter().zip(&widths).zip(&shown) {
                let padding = " ".repeat(width - cell.chars().count());
                text += &if self.columns[*index].right {
                    format!(" {padding}{cell} |")
                } else {
                    format!(" {cell}{padding} |")
                };
            }
            text
        };
        let headings: Vec<&str> = shown.iter().map(|index| &*self.columns[*index].heading).collect();
        let mut out = vec![self.first_rule(&rule), line(&headings), rule.clone()];
        let ruled = rows.iter().flatten().any(|cell| cell.len() > 1);
        for (number, row) in rows.iter().enumerate() {
            if ruled && number > 0 {
                out.push(rule.clone());
            }
            for height in 0..row.iter().map(Vec::len).max().unwrap_or(0) {
                let cells: Vec<&str> = row
                    .iter()
                    .map(|cell| cell.get(height).map_or("", String::as_str))
                    .collect();
                out.push(line(&cells));
            }
        }
        if !rows.is_empty() {
            out.push(rule);
        }
        out.join("\n")
    }

    fn first_rule(&self, rule: &str) -> String {
        let Some(title) = &self.title else {
            return rule.to_owned();
        };
        let head = format!("+ {title} ");
        let tail: String = rule.chars().skip(head.chars().count()).collect();
        if tail.is_empty() {
            format!("{head}+")
        } else {
            head + &tail
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One line: objects as `{a: 1, b: x}`.
fn flow(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let pairs: Vec<String> = object
                .iter()
                .map(|(key, value)| format!("{key}: {}", flow(value)))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => scalar(other).replace('\n', ", ").replace('\t', " "),
    }
}

/// Lines of a drawn cell: objects one line per key.
fn block(value: &Value) -> Vec<String> {
    let lines: Vec<String> = match value {
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| format!("{key}: {}", flow(value)))
            .collect(),
        other => scalar(other).lines().map(str::to_owned).collect(),
    };
    if lines.is_empty() {
        vec![String::new()]
    } else {
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(title: Option<&str>) -> Table {
        Table {
            title: title.map(str::to_owned),
            columns: vec![
                Column::left("Cluster").in_title(),
                Column::left("Name"),
                Column::right("TL").headed("T"),
            ],
            rows: vec![
                vec!["c".into(), json!({"b": 1, "a": "x"}), 12.into()],
                vec!["c".into(), "é".into(), "".into()],
            ],
        }
    }

    #[test]
    fn drawn_with_a_title_and_rules_between_tall_rows() {
        let drawn = table(Some("It")).render(Format::Pretty);
        let expected = "+ It --+----+\n| Name |  T |\n+------+----+\n| b: 1 | 12 |\n| a: x |    |\n+------+----+\n| é    |    |\n+------+----+";
        assert_eq!(drawn, expected);
        let long = table(Some("A very long title")).render(Format::Pretty);
        assert!(long.starts_with("+ A very long title +\n"), "{long}");
    }

    #[test]
    fn machine_formats_keep_all_columns() {
        assert_eq!(
            table(None).render(Format::Tsv),
            "Cluster\tName\tTL\nc\t{b: 1, a: x}\t12\nc\té\t"
        );
        assert_eq!(
            table(Some("t")).render(Format::Json),
            r#"[{"Cluster": "c", "Name": {"b": 1, "a": "x"}, "TL": 12}, {"Cluster": "c", "Name": "\u00e9"}]"#
        );
        assert_eq!(
            table(Some("t")).render(Format::Yaml),
            "- Cluster: c\n  Name:\n    b: 1\n    a: x\n  TL: 12\n- Cluster: c\n  Name: é"
        );
    }
}
