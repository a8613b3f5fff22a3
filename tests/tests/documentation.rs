//! What the documentation says of the suite is so.

use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::process::repository;

/// All Rust sources below a folder, as one text.
fn sources(folder: &Path, text: &mut String) -> Result {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Pages whose tables name tests in their last column, where those are, and how many at least.
const PAGES: [(&str, &[&str], usize); 2] = [
    ("docs/bad-input.md", &["data-plane", "proto", "tests"], 70),
    ("docs/xds-server.md", &["control-plane", "proto/xds", "proto/api", "tests"], 60),
];

#[test]
fn every_test_that_is_named_is_there() -> Result {
    for (page, folders, least) in PAGES {
        let rows = std::fs::read_to_string(repository().join(page)).context(page)?;
        let mut text = String::new();
        for folder in folders {
            sources(&repository().join(folder), &mut text)?;
        }
        let mut named = 0;
        for row in rows.lines().filter(|line| line.starts_with('|')) {
            let tests = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
            for test in tests.split('`').skip(1).step_by(2) {
                named += 1;
                ensure!(text.contains(&format!("fn {test}()")), "{page}: no test is called {test}");
            }
        }
        ensure!(named > least, "expected the tables of {page} to name tests, saw {named} names");
    }
    Ok(())
}
