//! Resources in a file (`path_config_source`): a `DiscoveryResponse` as JSON, YAML or binary.
//!
//! The file goes through the protocol's client half like a state-of-the-world response, so that duplicates, absences and
//! refusals mean the same. **A file that cannot be read, or does not decode, changes nothing.**

use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_api::document::{self, Syntax};
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::DiscoveryResponse;
use culvert_xds::Variant;
use culvert_xds::client::{Client, ClientConfig, ResourceTimer};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::{Outcome, Source, Sources};
use crate::apply::Kind;
use crate::config::type_url_of;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", .0.join("; "))]
    Text(Vec<String>),
    #[error("{}: does not decode: {source}", path.display())]
    Binary { path: PathBuf, source: prost::DecodeError },
}

/// Reads the file whenever its content, or what is wanted of it, changes.
pub(super) async fn run(sources: &Sources, source: &Source, kind: Kind, path: &Path, directory: Option<&Path>) {
    // Kubernetes swaps a directory; otherwise the file itself is replaced or written.
    let watched =
        directory.map_or_else(|| vec![path.to_owned()], |directory| vec![directory.to_owned(), path.to_owned()]);
    let mut changes = sources.watcher.watch(watched, QUIET);
    let mut interests = sources.configuration.watch_interests();
    let mut client = Client::new(ClientConfig {
        variant: Variant::Sotw,
        node: Node::default(),
        node_on_first_message_only: true,
        resource_timer: ResourceTimer::DoesNotExist,
        fail_on_data_errors: false,
    });
    client.on_connected();
    let mut seen = None;
    loop {
        let wanted = sources.interests_of(source).into_iter().find(|(k, _)| *k == kind).map(|(_, interest)| interest);
        let wanted = wanted.unwrap_or_default();
        if seen.as_ref() != Some(&wanted) {
            client.watch(type_url_of(kind), wanted.clone());
            while client.poll_request(Duration::ZERO).is_some() {}
            take(sources, &mut client, kind, path).await;
            seen = Some(wanted);
        }
        tokio::select! {
            () = changes.changed() => take(sources, &mut client, kind, path).await,
            changed = interests.changed() => if changed.is_err() { return },
        }
    }
}

async fn take(sources: &Sources, client: &mut Client, kind: Kind, path: &Path) {
    let first = client.accepted_version(type_url_of(kind)).is_none();
    sources.metrics.count(kind, Outcome::Attempt);
    let response = match load(path, type_url_of(kind)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(%error, "what is in force stays");
            sources.metrics.count(kind, Outcome::Failure);
            return;
        }
    };
    match client.on_response(response) {
        Ok(update) => {
            let rejections = sources.take(kind, &update, true, first).await;
            // There is nobody to tell; what is refused was logged.
            drop(if rejections.is_empty() { update.ack() } else { update.nack(rejections) });
        }
        Err(error) => tracing::warn!(path = %path.display(), %error, "what is in force stays"),
    }
}

async fn load(path: &Path, type_url: &str) -> Result<DiscoveryResponse, FileError> {
    let named = path.to_owned();
    let fail = |source| FileError::Read { path: path.to_owned(), source };
    let read = tokio::task::spawn_blocking(move || culvert_runtime::files::read(&named, MAX)).await;
    let bytes = read.map_err(|error| fail(error.into()))?.map_err(fail)?;
    decode(path, &bytes, type_url)
}

/// By the extension: `.json`, `.yaml`, `.yml`, else binary if it decodes so, else YAML.
pub(super) fn decode(path: &Path, bytes: &[u8], type_url: &str) -> Result<DiscoveryResponse, FileError> {
    let text = |syntax| {
        document::load::<DiscoveryResponse>(bytes, syntax)
            .map(|loaded| loaded.message)
            .map_err(|problems| FileError::Text(problems.iter().map(|problem| problem.in_file(path)).collect()))
    };
    let binary =
        || DiscoveryResponse::decode(bytes).map_err(|source| FileError::Binary { path: path.to_owned(), source });
    let mut response = match Syntax::of(path) {
        Some(syntax) => text(syntax)?,
        None if path.extension().is_some_and(|extension| extension == "pb") => binary()?,
        None => binary().or_else(|_| text(Syntax::Yaml))?,
    };
    if response.type_url.is_empty() {
        type_url.clone_into(&mut response.type_url);
    }
    if response.version_info.is_empty() {
        response.version_info = format!("{:016x}", xxh3_64(bytes));
    }
    // The protocol wants one; a file has none.
    "file".clone_into(&mut response.nonce);
    Ok(response)
}

/// Bytes of one file: as much as a response over gRPC may have.
const MAX: u64 = 256 << 20;
/// How long a file must be left alone before it counts as written.
const QUIET: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use culvert_api::Any;
    use culvert_api::type_url::CLUSTER;

    use super::*;

    const YAML: &str = "version_info: v1\nresources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: c\n  connect_timeout: 1s\n";

    #[test]
    fn json_yaml_and_binary_say_the_same() {
        let yaml = decode(Path::new("cds.yaml"), YAML.as_bytes(), CLUSTER).unwrap();
        let json = r#"{"version_info":"v1","resources":[{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"c","connect_timeout":"1s"}]}"#;
        assert_eq!(decode(Path::new("cds.json"), json.as_bytes(), CLUSTER).unwrap(), yaml);
        for name in ["cds.pb", "cds"] {
            assert_eq!(decode(Path::new(name), &yaml.encode_to_vec(), CLUSTER).unwrap(), yaml, "{name}");
        }
        assert_eq!(yaml.resources.iter().map(|any: &Any| any.type_url.as_str()).collect::<Vec<_>>(), [CLUSTER]);
    }

    #[test]
    fn a_file_without_a_version_has_that_of_its_content() {
        let decoded = decode(Path::new("cds.yaml"), b"resources: []", CLUSTER).unwrap();
        assert_eq!((decoded.version_info.len(), decoded.type_url.as_str()), (16, CLUSTER));
    }

    #[test]
    fn what_does_not_decode_is_an_error_with_its_place() {
        let error = decode(Path::new("cds.yaml"), b"resources:\n- nonsense: 1\n", CLUSTER).unwrap_err();
        assert!(error.to_string().contains("cds.yaml:2"), "{error}");
        assert!(decode(Path::new("cds.pb"), b"\xff\xff", CLUSTER).is_err());
    }
}
