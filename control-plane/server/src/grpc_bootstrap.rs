//! The bootstrap of gRPC's own clients and servers (gRFC A27, A36, A47): where their control plane is, and who they are.

use std::collections::BTreeSet;

use anyhow::ensure;
use culvert_api::type_url;
use culvert_xds::{NodeIdentity, Snapshot};
use serde_json::{Map, Value, json};

use crate::args::Args;
use crate::export::described;

/// What `GRPC_XDS_BOOTSTRAP_CONFIG` may hold, or the file that `GRPC_XDS_BOOTSTRAP` names.
pub(crate) fn text(args: &Args, node: &NodeIdentity, snapshot: &Snapshot) -> anyhow::Result<String> {
    ensure!(!node.id.is_empty(), "--export-node: a client needs an id");
    // gRFC A65: without files of its own a client goes by the authorities of its machine.
    let credentials = match args.tls_cert {
        Some(_) => json!({ "type": "tls", "config": {} }),
        None => json!({ "type": "insecure" }),
    };
    let mut node = described(node);
    // gRPC for Node insists on it.
    node["locality"] = json!({});
    // gRFC A88: what does not exist is said (`resource_errors`); silence means that something is wrong here.
    let features = ["xds_v3", "resource_timer_is_transient_error"].map(str::to_owned);
    let features: Vec<String> = features.into_iter().chain(args.grpc_server_feature.iter().cloned()).collect();
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": args.listen.to_string(),
            "channel_creds": [credentials],
            "server_features": features,
        }],
        "authorities": authorities(snapshot),
        "node": node,
        "client_default_listener_resource_name_template": "%s",
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
    });
    Ok(format!("{bootstrap:#}\n"))
}

/// gRFC A47: those of the resources' names. Each is served here, so that none needs servers of its own.
fn authorities(snapshot: &Snapshot) -> Map<String, Value> {
    let names = snapshot.types().flat_map(|(_, set)| set.resources().map(|resource| resource.name()));
    let authorities: BTreeSet<&str> =
        names.filter_map(|name| name.strip_prefix("xdstp://")?.split('/').next()).collect();
    let listener = type_url::message_name(type_url::LISTENER);
    // A target `xds://AUTHORITY/NAME` is this listener.
    let template = |authority: &str| json!({ "client_listener_resource_name_template": format!("xdstp://{authority}/{listener}/%s") });
    authorities.into_iter().map(|authority| (authority.to_owned(), template(authority))).collect()
}
