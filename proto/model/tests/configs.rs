//! The files in configs/ that are culvert-proxy's, through the API's rules and the model: no findings at all.

#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail")]

use std::path::{Path, PathBuf};

use culvert_api::document::{self, Limits, Node, Syntax};
use culvert_api::envoy::config::bootstrap::v3::Bootstrap;
use culvert_model::{parse_any, report::Parsed};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn yaml(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut files: Vec<_> = paths.filter(|path| Syntax::of(path).is_some()).collect();
    files.sort();
    files
}

fn clean<T>(parsed: &Parsed<T>, what: &str) {
    assert!(parsed.warnings.is_empty(), "{what}: {:#?}", parsed.warnings);
    if let Err(errors) = &parsed.value {
        panic!("{what}: {errors:#?}");
    }
}

#[test]
fn bootstraps_are_clean() {
    let mut seen = 0;
    // envoy.yaml is for a real Envoy.
    for path in yaml(&configs()).into_iter().filter(|path| !path.ends_with("envoy.yaml")) {
        let text = std::fs::read(&path).expect("the file can be read");
        let loaded = document::load::<Bootstrap>(&text, Syntax::Yaml);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{}: {problems:#?}", path.display()));
        clean(&culvert_model::bootstrap::parse(&loaded.message), &path.display().to_string());
        seen += 1;
    }
    assert!(seen >= 2, "expected the cloud's and the edge's bootstrap, saw {seen} files");
}

#[test]
fn resources_are_clean() {
    let mut seen = 0;
    for folder in ["cloud", "edge"] {
        for path in yaml(&configs().join("control").join(folder)) {
            let text = std::fs::read(&path).expect("the file can be read");
            let documents = document::parse(&text, Syntax::Yaml, &Limits::default());
            for node in documents.unwrap_or_else(|problems| panic!("{}: {problems:#?}", path.display())) {
                for resource in resources(&node) {
                    let any = document::load_any(resource);
                    let any = any.unwrap_or_else(|problems| panic!("{}: {problems:#?}", path.display()));
                    clean(&parse_any(&any.type_url, &any.value), &format!("{} {}", path.display(), any.type_url));
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 4, "expected listeners, routes, clusters and an agent, saw {seen} resources");
}

/// A file holds one resource, a list, or a mapping with a list of `resources`.
fn resources(node: &Node) -> Vec<&Node> {
    let list = node.get("resources").unwrap_or(node);
    match &list.value {
        document::Value::Sequence(items) => items.iter().collect(),
        _ => vec![list],
    }
}
