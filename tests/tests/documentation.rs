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
    ("docs/bad-input.md", &["control-plane", "data-plane", "proto", "tests"], 70),
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

/// The README and every page below docs/.
fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(repository().join("docs"))? {
        pages.push(format!("docs/{}", entry?.file_name().to_string_lossy()));
    }
    let read = |page: String| -> Result<(String, String)> {
        let text = std::fs::read_to_string(repository().join(&page)).with_context(|| page.clone())?;
        Ok((page, text))
    };
    pages.into_iter().map(read).collect()
}

/// Folders of the repository, by which a path in a text is known as one.
const FOLDERS: [&str; 7] = ["configs/", "control-plane/", "data-plane/", "docs/", "proto/", "scripts/", "tests/"];

#[test]
fn every_file_that_is_named_is_there() -> Result {
    let mut seen = 0;
    for (page, text) in pages()? {
        let folder = repository().join(&page).parent().context("a folder")?.to_owned();
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in linked.filter(|link| !link.is_empty() && !link.contains("://")) {
            seen += 1;
            ensure!(folder.join(link).exists(), "{page}: the link to {link} leads nowhere");
        }
        for path in
            text.split('`').skip(1).step_by(2).filter(|code| FOLDERS.iter().any(|folder| code.starts_with(folder)))
        {
            let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain {
                seen += 1;
                ensure!(repository().join(path).exists(), "{page}: there is no {path}");
            }
        }
    }
    ensure!(seen > 50, "expected the pages to name files, saw {seen} names");
    Ok(())
}

/// The flags that a file of `clap` arguments defines.
fn flags(source: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(repository().join(source)).context(source.to_owned())?;
    let mut flags = Vec::new();
    for argument in text.split("#[arg(").skip(1).filter(|argument| argument.contains("long")) {
        let field = argument.lines().find(|line| line.trim_end().ends_with(',') && line.contains(": "));
        let name = field.and_then(|field| field.trim().trim_start_matches("pub ").split(':').next());
        flags.push(format!("--{}", name.context("a field below #[arg]")?.replace('_', "-")));
    }
    Ok(flags)
}

#[test]
fn every_flag_is_documented() -> Result {
    for (source, page, least) in [
        ("control-plane/server/src/args.rs", "docs/control-plane.md", 25),
        ("data-plane/server/src/options.rs", "docs/client.md", 15),
    ] {
        let (flags, text) = (flags(source)?, std::fs::read_to_string(repository().join(page)).context(page)?);
        ensure!(flags.len() >= least, "expected {least} flags in {source}, saw {flags:?}");
        for flag in flags {
            let named = text.match_indices(&flag).any(|(at, _)| {
                let behind = text[at + flag.len()..].chars().next();
                !behind.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-')
            });
            ensure!(named, "{page} does not say what {flag} of {source} is");
        }
    }
    Ok(())
}
