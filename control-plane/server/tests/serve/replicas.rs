//! Several control planes on one directory, and a directory that is not whole: nobody is sent anything twice, and nothing is
//! taken for a deletion.

use std::collections::BTreeMap;

use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::type_url::CLUSTER;

use crate::harness::{Daemon, Folder, asks, cluster, cluster_names, delta_asks, names};

#[tokio::test]
async fn who_moves_to_another_replica_is_sent_nothing_twice() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("b.yaml", &cluster("b", 1))]);
    let one = Daemon::start(&folder, &[]).await;
    let (_stream, first) = one.settled("n").await;
    let mut deltas = one.delta().await;
    deltas.send(delta_asks("d", CLUSTER)).await;
    let held = deltas.next().await;
    deltas.answer(&held, None).await;
    let versions: BTreeMap<_, _> = held.resources.into_iter().map(|one| (one.name, one.version)).collect();
    one.terminate().await;

    let other = Daemon::start(&folder, &[]).await;
    let mut stream = other.sotw().await;
    stream.send(DiscoveryRequest { version_info: first.version_info, ..asks("n", CLUSTER) }).await;
    let mut deltas = other.delta().await;
    let request = DeltaDiscoveryRequest { initial_resource_versions: versions, ..delta_asks("d", CLUSTER) };
    deltas.send(request).await;
    let again = deltas.next().await;
    assert_eq!((names(&again), again.removed_resources.len()), (vec![], 0), "it has all of it");
    deltas.answer(&again, None).await;
    assert!(stream.is_quiet().await, "a wildcard at the present version is sent nothing");
    folder.write("a.yaml", &cluster("a", 2));
    assert_eq!(names(&deltas.next().await), ["a"], "only what changed since");
    assert_eq!(cluster_names(&stream.next().await.resources), ["a", "b"]);
    other.terminate().await;
}

#[tokio::test]
async fn a_directory_that_is_gone_or_in_part_is_no_deletion() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("b.yaml", &cluster("b", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, _) = daemon.settled("n").await;
    let refused = |text: &str| text.contains("cannot be read");
    folder.remove("b.yaml");
    folder.dangle("b.yaml");
    daemon.hang_up();
    daemon.eventually("/config", refused).await;
    assert!(stream.is_quiet().await, "a file that cannot be read is not gone");
    let mut newcomer = daemon.sotw().await;
    newcomer.send(asks("newcomer", CLUSTER)).await;
    assert_eq!(cluster_names(&newcomer.next().await.resources), ["a", "b"], "it is served from memory");

    folder.remove("b.yaml");
    folder.write("b.yaml", &cluster("b", 1));
    daemon.hang_up();
    daemon.eventually("/config", |text| !refused(text)).await;
    folder.set_there(false);
    daemon.hang_up();
    daemon.eventually("/config", refused).await;
    assert!(stream.is_quiet().await, "nor is a directory");
    folder.set_there(true);
    folder.write("a.yaml", &cluster("a", 2));
    daemon.hang_up();
    assert_eq!(cluster_names(&stream.next().await.resources), ["a", "b"], "what changed meanwhile is served");
    daemon.terminate().await;
}
