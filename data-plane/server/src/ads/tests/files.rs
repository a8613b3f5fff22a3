//! Resources in a file.

use super::*;

/// Kubernetes swaps the folder beside it; editors put another file in its place.
#[tokio::test]
async fn a_file_is_followed_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let clusters = |names: &[&str]| {
        let one = |name: &&str| format!("- {{'@type': {CLUSTER}, name: {name}, connect_timeout: 1s, type: STATIC}}\n");
        format!("resources:\n{}", names.iter().map(one).collect::<String>())
    };
    // What is watched is a link; the file is read through it.
    let swap = |version: &str, text: &str| {
        std::fs::create_dir(path(version)).unwrap();
        write(&format!("{version}/cds.yaml"), text);
        std::os::unix::fs::symlink(version, path("next")).unwrap();
        std::fs::rename(path("next"), path("data")).unwrap();
    };
    swap("v1", &clusters(&["a"]));
    let (file, watched) = (path("data/cds.yaml"), dir.path());
    let source = format!("{{path: {}, watched_directory: {{path: {}}}}}", file.display(), watched.display());
    let bootstrap =
        format!("node: {{id: n, cluster: c}}\ndynamic_resources:\n  cds_config: {{path_config_source: {source}}}\n");
    let data = DataPlane::booted(&bootstrap, None).await;
    eventually("+a".to_owned(), || data.applied()).await;
    swap("v2", "resources: [\n");
    eventually("1".to_owned(), || data.metric("cluster_manager.cds.update_failure")).await;
    swap("v3", &clusters(&["a", "b"]));
    eventually("+a +b".to_owned(), || data.applied()).await;
    // A deletion would have its time: it would have counted at once.
    assert_eq!(data.metric("cluster_manager.cds.update_success"), "2", "what does not decode says nothing");
    write("v3/new", &clusters(&["b"]));
    std::fs::rename(path("v3/new"), &file).unwrap();
    eventually("+a +b -a".to_owned(), || data.applied()).await;
}
