//! What is published: a few names per type, few contents, some of which the client refuses.

use bytes::Bytes;
use culvert_api::envoy::config::cluster::v3::{Cluster, cluster};
use culvert_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use culvert_api::envoy::config::listener::v3::Listener;
use culvert_api::envoy::config::route::v3::RouteConfiguration;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION};
use culvert_xds::Name;
use prost::Message;

pub(crate) const TYPES: [&str; 4] = [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION];
pub(crate) const NAMES: usize = 6;

pub(crate) fn name_of(of: &str, index: usize) -> Name {
    // An assignment goes by the name of its cluster.
    let prefix = if of == LISTENER || of == ROUTE_CONFIGURATION { "x" } else { "c" };
    format!("{prefix}{index}").into()
}

pub(crate) fn content(of: &str, name: &str, mark: &str) -> Bytes {
    let name = name.to_owned();
    let mark = format!("mark-{mark}");
    match of {
        CLUSTER => {
            let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
            let cluster =
                Cluster { name, alt_stat_name: mark, cluster_discovery_type: Some(eds), ..Cluster::default() };
            cluster.encode_to_vec()
        }
        CLUSTER_LOAD_ASSIGNMENT => {
            let named_endpoints = [(mark, Default::default())].into();
            ClusterLoadAssignment { cluster_name: name, named_endpoints, ..Default::default() }.encode_to_vec()
        }
        LISTENER => Listener { name, stat_prefix: mark, ..Listener::default() }.encode_to_vec(),
        _ => RouteConfiguration { name, internal_only_headers: vec![mark], ..Default::default() }.encode_to_vec(),
    }
    .into()
}

pub(crate) fn is_bad(content: &[u8]) -> bool {
    content.windows(8).any(|window| window == b"mark-bad")
}
