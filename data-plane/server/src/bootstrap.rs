//! The bootstrap: from text to validated values, with every mistake found in one run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::document::{self, Loaded, Problem, Syntax};
use culvert_api::envoy::config::bootstrap::v3 as api;
use culvert_api::pool;
use culvert_model::bootstrap::{self as model, Bootstrap};
use culvert_model::report::Finding;
use prost::Message;

use crate::options::Options;

/// A bootstrap, to be used if there are no errors.
#[derive(Debug)]
pub(crate) struct Started {
    /// Without what is wrong.
    pub bootstrap: Bootstrap,
    /// As it was given, for `/config_dump`.
    pub message: Arc<api::Bootstrap>,
    /// Fields that are set and not honoured, each with its place.
    pub warnings: Vec<String>,
    /// Every mistake so far, one line each: `FILE:LINE:COLUMN: PATH: REASON`. [`crate::check`] finds the others.
    pub errors: Vec<String>,
    /// For what is found wrong later.
    pub texts: Texts,
}

/// Reads, merges and parses what the options name.
///
/// # Errors
/// There is nothing that could be checked any further. Every mistake, as in [`Started::errors`].
pub(crate) fn load(options: &Options) -> Result<Started, Vec<String>> {
    // The text takes its time, and so do the descriptors by which it is understood. A thread that does not start is no loss:
    // they are made when they are asked for.
    drop(std::thread::Builder::new().name("descriptors".to_owned()).spawn(pool::pool));
    let mut texts = Texts::default();
    let mut errors = Vec::new();
    if let Some(path) = &options.config_path {
        match std::fs::read(path) {
            Ok(text) => texts.read(path, &text, Syntax::of(path).unwrap_or(Syntax::Yaml), &mut errors),
            Err(error) => {
                errors.push(format!("{}: cannot be read: {error}; check the path given with -c", path.display()))
            }
        }
    }
    if let Some(text) = &options.config_yaml {
        texts.read(Path::new("--config-yaml"), text.as_bytes(), Syntax::Yaml, &mut errors);
    }
    // What stands in a text that has no message would only seem to be missing.
    if texts.loaded.len() < usize::from(options.config_path.is_some()) + usize::from(options.config_yaml.is_some()) {
        return Err(errors);
    }
    let message = merge(&mut texts, options).map_err(|error| vec![error])?;
    let examined = model::examine(&message);
    let warnings = examined.warnings.iter().map(|finding| texts.place(finding)).collect();
    let new = examined.errors.iter().filter(|finding| !texts.explain(finding));
    errors.extend(new.map(|finding| texts.place(finding)));
    // What was refused was refused for a reason that is named.
    debug_assert!(errors.is_empty() || !examined.errors.is_empty() || !texts.problems.is_empty());
    Ok(Started { bootstrap: examined.bootstrap, message: Arc::new(message), warnings, errors, texts })
}

/// The texts that a bootstrap was read from.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    loaded: Vec<(PathBuf, Loaded<api::Bootstrap>)>,
    /// Mistakes in them.
    problems: Vec<Problem>,
}

impl Texts {
    fn read(&mut self, path: &Path, text: &[u8], syntax: Syntax, errors: &mut Vec<String>) {
        let problems = match document::load_in_spite::<api::Bootstrap>(text, syntax) {
            Ok((loaded, problems)) => {
                self.loaded.push((path.to_owned(), loaded));
                problems
            }
            Err(problems) => problems,
        };
        errors.extend(problems.iter().map(|problem| problem.in_file(path)));
        self.problems.extend(problems);
    }

    /// Whether a finding may only be a consequence of a mistake that was named already.
    pub(crate) fn explain(&self, finding: &Finding) -> bool {
        self.problems.iter().any(|problem| problem.explains(&finding.path))
    }

    /// A finding with the place in the text that it is about.
    #[must_use]
    pub(crate) fn place(&self, finding: &Finding) -> String {
        let Some((path, loaded)) = self.loaded.first() else { return finding.to_string() };
        let problem: Problem = loaded.problem(&finding.path, finding.reason.clone());
        problem.in_file(path)
    }
}

/// Protobuf's merge, in the order of the texts; then what the command line says of the node. The first text's message is taken,
/// since ten thousand clusters are long in copying.
fn merge(texts: &mut Texts, options: &Options) -> Result<api::Bootstrap, String> {
    let mut loaded = texts.loaded.iter_mut();
    let mut message = loaded.next().map(|(_, loaded)| std::mem::take(&mut loaded.message)).unwrap_or_default();
    for (path, loaded) in loaded {
        let encoded = loaded.message.encode_to_vec();
        message.merge(&*encoded).map_err(|error| format!("{}: cannot be merged: {error}", path.display()))?;
    }
    if options.service_node.is_some() || options.service_cluster.is_some() || options.service_zone.is_some() {
        let node = message.node.get_or_insert_default();
        if let Some(id) = &options.service_node {
            node.id.clone_from(id);
        }
        if let Some(cluster) = &options.service_cluster {
            node.cluster.clone_from(cluster);
        }
        if let Some(zone) = &options.service_zone {
            node.locality.get_or_insert_default().zone.clone_from(zone);
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(file: &Path, more: &[&str]) -> Options {
        let line = ["culvert-proxy", "-c", file.to_str().unwrap()];
        Options::try_parse_from(line.iter().chain(more)).unwrap()
    }

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bootstrap.yaml");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let text = "node: {id: a}\nstatic_resources:\n  listeners:\n  - nam: x\n  clusters:\n  - name: 7\n    connect_timeout: soon\n  - name: b\n    lb_policy: MAGLEV\n";
        let (_dir, file) = write(text);
        let errors = load(&options(&file, &[])).unwrap().errors;
        let place = |line: u32| format!("{}:{line}:", file.display());
        for line in [4, 7, 9] {
            assert!(
                errors.iter().any(|error| error.starts_with(&place(line))),
                "line {line} is wrong; got {errors:#?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let errors = load(&options(Path::new("/nonexistent/b.yaml"), &[])).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains("/nonexistent/b.yaml"), "got {errors:?}");
    }

    #[test]
    fn the_command_line_is_merged_into_the_file() {
        let (_dir, file) = write("node: {id: a, cluster: b}\n");
        let yaml = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}";
        let more = ["--config-yaml", yaml, "--service-node", "edge-7", "--service-zone", "z1"];
        let started = load(&options(&file, &more)).unwrap();
        let node = &started.bootstrap.node;
        assert_eq!((&*node.id, &*node.cluster), ("edge-7", "b"), "the flag replaces the id and leaves the cluster");
        assert_eq!(started.message.node.clone().unwrap().locality.unwrap().zone, "z1", "--service-zone");
        assert_eq!(started.bootstrap.admin.unwrap().address.port(), 9, "admin comes from --config-yaml");
    }
}
