//! values.yaml, its schema and the table in the chart's README say the same.

use std::fmt::Write as _;

use serde_json::Value;

use crate::helm;

const MARKS: (&str, &str) = ("<!-- values -->\n", "<!-- end of values -->");

fn read(name: &str) -> String {
    std::fs::read_to_string(helm::chart().join(name)).unwrap()
}

fn values() -> Value {
    serde_yaml_ng::from_str(&read("values.yaml")).unwrap()
}

/// Path and words of every value that has a comment beginning with `--`.
fn documented(text: &str) -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut words: Option<String> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start();
        if let Some(comment) = rest.strip_prefix('#') {
            let comment = comment.trim();
            match (comment.strip_prefix("-- "), &mut words) {
                (Some(first), _) => words = Some(first.to_owned()),
                (None, Some(words)) => *words = format!("{words} {comment}"),
                (None, None) => {}
            }
            continue;
        }
        let Some((key, _)) = rest.split_once(':') else {
            continue;
        };
        path.truncate(indent / 2);
        path.push(key.to_owned());
        if let Some(words) = words.take() {
            found.push((path.clone(), words));
        }
    }
    found
}

fn at<'a>(values: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(values, |value, key| &value[key.as_str()])
}

fn table() -> String {
    let values = values();
    let mut table = "| Value | Meaning | Default |\n|---|---|---|\n".to_owned();
    for (path, words) in documented(&read("values.yaml")) {
        let default = at(&values, &path).to_string();
        writeln!(table, "| `{}` | {words} | `{default}` |", path.join(".")).unwrap();
    }
    table
}

/// Run with `HOWDAH_WRITE_README=1` to bring the table up to date.
#[test]
fn the_table_in_the_readme_is_what_values_yaml_says() {
    let readme = read("README.md");
    let (before, rest) = readme.split_once(MARKS.0).expect("README has the first mark");
    let (_, after) = rest.split_once(MARKS.1).expect("README has the second mark");
    let current = format!("{before}{}\n{}\n{}{after}", MARKS.0, table(), MARKS.1);
    if std::env::var_os("HOWDAH_WRITE_README").is_some() {
        std::fs::write(helm::chart().join("README.md"), &current).unwrap();
    }
    assert!(
        read("README.md") == current,
        "the table of values is out of date: run this test with HOWDAH_WRITE_README=1"
    );
}

#[test]
fn every_value_is_documented() {
    let documented = documented(&read("values.yaml"));
    fn leaves(value: &Value, path: &[String], covered: &dyn Fn(&[String]) -> bool, bare: &mut Vec<String>) {
        if covered(path) {
            return;
        }
        match value.as_object() {
            Some(fields) if !fields.is_empty() => {
                for (key, value) in fields {
                    leaves(value, &[path, std::slice::from_ref(key)].concat(), covered, bare);
                }
            }
            _ => bare.push(path.join(".")),
        }
    }
    let covered = |path: &[String]| documented.iter().any(|(known, _)| known == path);
    let mut bare = Vec::new();
    leaves(&values(), &[], &covered, &mut bare);
    assert_eq!(bare, Vec::<String>::new());
}

/// Where they differ.
fn differences(values: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    if schema["additionalProperties"] != false {
        found.push(format!("{path} allows what it does not name"));
    }
    // What is empty says nothing of what may be in it.
    let Some(fields) = values.as_object().filter(|fields| !fields.is_empty()) else {
        return;
    };
    for key in properties.keys() {
        // Helm itself hands it down.
        if !fields.contains_key(key) && key != "global" {
            found.push(format!("{path}.{key} is in the schema alone"));
        }
    }
    for (key, value) in fields {
        match properties.get(key) {
            Some(schema) => differences(value, schema, &format!("{path}.{key}"), found),
            None => found.push(format!("{path}.{key} is not in the schema")),
        }
    }
}

#[test]
fn the_schema_names_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut found = Vec::new();
    differences(&values(), &schema, "", &mut found);
    assert_eq!(found, Vec::<String>::new());
}
