//! Files that configuration names, as they change.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::apply::ApplyHandle;
use culvert_runtime::files::FileWatcher;
use tokio::sync::mpsc;

/// A certificate's chain and key.
type Pair = (String, String);

/// Chain and key in files of a folder.
struct Files(TempDir);

impl Files {
    fn new(pair: &Pair) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(pair);
        files
    }

    fn write(&self, (chain, key): &Pair) {
        std::fs::write(self.0.path().join("chain.pem"), chain).unwrap();
        std::fs::write(self.0.path().join("key.pem"), key).unwrap();
    }

    /// A listener that presents what is in the files.
    fn listener(&self, name: &str) -> Listener {
        let source = |file: &str| DataSource::File { path: self.path().join(file), watched_directory: None };
        let of_files = TlsCertificate { chain: source("chain.pem"), key: source("key.pem") };
        let context = common(vec![SecretRef::Inline(of_files)]);
        let mut tls = listener(name, ANY, name);
        let mut chain = (*tls.filter_chains[0]).clone();
        chain.tls = Some(Arc::new(DownstreamTls { common: context, require_client_certificate: false }));
        tls.filter_chains = vec![Arc::new(chain)];
        tls
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The certificates that listeners present.
fn presented(overview: &Overview) -> BTreeSet<String> {
    let views = overview.certificates().into_iter();
    views.flat_map(|(_, view)| view.presented).map(|certificate| certificate.sha256).collect()
}

#[tokio::test]
async fn certificate_files_rotate_and_a_bad_one_keeps_the_old() {
    let (one, two) = (certificate("edge.test"), certificate("edge.test"));
    let files = Files::new(&one);
    let mut site = Site::new();
    assert_eq!(site.apply(vec![set(files.listener("a"))]).await, [Ok(Applied::Active)], "the files are there");
    let first = presented(&site.overview);
    files.write(&two);
    site.applier.refresh().await;
    let second = presented(&site.overview);
    assert_ne!(first, second, "the new certificate is in force");
    files.write(&(one.0, two.1));
    site.applier.refresh().await;
    assert_eq!(presented(&site.overview), second, "a key that does not fit changes nothing");
    let samples = site.applier.process.registry.samples();
    let rejected = samples.iter().find(|sample| sample.full_name() == "server.tls_update_rejected").unwrap();
    assert_eq!(rejected.value, Value::Counter(1), "and is counted");
}

/// A push that brings other files comes before a change was looked at.
#[tokio::test]
async fn a_change_of_files_outlives_a_push_that_brings_others() {
    let (files, others) = (Files::new(&certificate("edge.test")), Files::new(&certificate("other.test")));
    let site = Site::new();
    let overview = Arc::clone(&site.overview);
    let (queue, commands) = mpsc::channel(8);
    let handle = ApplyHandle::new(queue);
    let running = tokio::spawn(site.applier.run(commands, FileWatcher::new()));
    assert!(handle.apply(vec![set(files.listener("a"))]).await[0].is_ok(), "the files are there");
    let before = presented(&overview);
    files.write(&certificate("edge.test"));
    assert!(handle.apply(vec![set(others.listener("b"))]).await[0].is_ok(), "so are the others");
    let rotated = async {
        while !presented(&overview).is_disjoint(&before) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let rotated = tokio::time::timeout(Duration::from_secs(5), rotated).await;
    assert!(rotated.is_ok(), "the new certificate was not noticed within 5 s");
    handle.end().await;
    running.await.unwrap();
}
