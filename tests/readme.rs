//! README's table of settings is generated from the code, and this keeps it true.
#![allow(missing_docs)]

use howdah::config::markdown;

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
