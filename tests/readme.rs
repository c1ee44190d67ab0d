//! README's table of settings is generated from the code, its table of exit statuses is not; this keeps both true.
#![allow(missing_docs)]

use howdah::{config::markdown, exit::Exit};

/// Run with `HOWDAH_WRITE_README=1` to bring the table up to date.
#[test]
fn the_table_of_settings_is_what_the_code_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).expect("README.md");
    let current = markdown::update(&readme).expect("README has the markers of the table");
    if std::env::var_os("HOWDAH_WRITE_README").is_some() {
        std::fs::write(path, &current).expect("write README.md");
    }
    let shown = std::fs::read_to_string(path).expect("README.md");
    assert!(
        shown == current,
        "README's table is out of date: run this test with HOWDAH_WRITE_README=1"
    );
}

#[test]
fn the_table_of_exit_statuses_is_the_one_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).expect("README.md");
    let (_, table) = readme
        .split_once("| status | meaning |\n|---|---|\n")
        .expect("README has the table");
    let shown: Vec<&str> = table
        .lines()
        .map_while(|line| line.strip_prefix("| ")?.split(" |").next())
        .collect();
    let codes: Vec<String> = Exit::ALL.iter().map(|exit| exit.code().to_string()).collect();
    assert_eq!(shown, codes);
}
