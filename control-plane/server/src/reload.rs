//! When the directory is read again: when it changed and was quiet for a while; at once when nothing but endpoints changed, and
//! on SIGHUP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_runtime::files::{Changes, FileWatcher};
use culvert_runtime::process::{Signal, Signals};
use culvert_store::Directory;

use crate::control::Control;

/// How long nothing may change before a change counts as finished.
const QUIET: Duration = Duration::from_millis(50);

/// Follows a directory from its content of this moment on.
pub(crate) fn watch(folder: &Path) -> Changes {
    FileWatcher::new().watch([folder.to_owned()], QUIET)
}

/// Whether a change of that file need not wait: endpoints come and go by themselves, and nothing else has to be written with
/// them. `None`: it is no configuration file.
fn is_urgent(folder: &Path, in_force: &Directory, file: &Path) -> Option<bool> {
    // What is beside the directory is watched for its own sake.
    let beside = !file.starts_with(folder);
    if beside || !culvert_store::is_content(file) {
        return None;
    }
    // An empty one is being written by somebody who opens it twice.
    let has_content = || std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0);
    Some(in_force.holds_endpoints_only(file) && has_content())
}

/// Reads the directory as it changes, until the process is told to end.
pub(crate) async fn until_terminated(control: &Arc<Control>, mut signals: Signals, mut changes: Option<Changes>) {
    if let Some(changes) = &mut changes {
        let control = Arc::clone(control);
        changes.hurry(move |file| is_urgent(&control.folder, &control.directory(), file));
    }
    loop {
        let signal = tokio::select! {
            signal = signals.next() => Some(signal),
            () = changed(changes.as_mut()) => None,
        };
        match signal {
            Some(Signal::Terminate) => return,
            Some(Signal::ReopenLogs) => {}
            Some(Signal::Reload) | None => read(control).await,
        }
    }
}

async fn read(control: &Arc<Control>) {
    let control = Arc::clone(control);
    // A panic was logged by the hook; what was in force stays.
    drop(tokio::task::spawn_blocking(move || control.reload()).await);
}

async fn changed(changes: Option<&mut Changes>) {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use culvert_store::{Options, load};

    use super::*;

    const ENDPOINTS: &str =
        "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: a\n";
    const CLUSTER: &str = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: b\n";

    /// Endpoints alone wait for no quiet, which is too long to be waited for here; nor do those that are renamed into place.
    /// What else changes in the same moment does wait, and so does a file that is empty.
    #[tokio::test]
    async fn endpoints_alone_are_read_at_once() {
        for (what, writes, at_once) in [
            ("endpoints", &[("eds.yaml", "# changed")][..], true),
            ("the same from beside", &[("eds.yaml.next", "# changed"), ("eds.yaml", "<eds.yaml.next")], true),
            ("with what does not count", &[("notes.txt", "a"), (".eds.yaml", "b"), ("eds.yaml", "# changed")], true),
            ("a cluster", &[("cds.yaml", "# changed")], false),
            ("both", &[("cds.yaml", "# changed"), ("eds.yaml", "# changed")], false),
            ("endpoints beside a cluster", &[("both.yaml", "# changed")], false),
            ("endpoints in a new file", &[("more.yaml", "# changed")], false),
            ("an empty file", &[("eds.yaml", "")], false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
            put("eds.yaml", ENDPOINTS);
            put("cds.yaml", CLUSTER);
            put("both.yaml", &format!("{}---\n{}", ENDPOINTS.replace(": a", ": c"), CLUSTER.replace(": b", ": d")));
            let mut changes = FileWatcher::new().watch([folder.path().to_owned()], Duration::from_secs(3600));
            let read = load(folder.path(), Options::default(), &Directory::default());
            let in_force = read.directory.unwrap_or_else(|| panic!("{:#?}", read.errors));
            let at = folder.path().to_owned();
            changes.hurry(move |file| is_urgent(&at, &in_force, file));
            for (name, text) in writes {
                match text.strip_prefix('<') {
                    Some(from) => std::fs::rename(folder.path().join(from), folder.path().join(name)).unwrap(),
                    None => put(name, text),
                }
            }
            let patience = Duration::from_millis(if at_once { 10_000 } else { 300 });
            let told = tokio::time::timeout(patience, changes.changed()).await;
            assert_eq!(told.is_ok(), at_once, "{what}: whether it was told of without quiet");
        }
    }
}
