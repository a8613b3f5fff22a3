//! The bootstrap of gRPC's own clients and servers (gRFC A27, A36, A47): where their control plane is, and who they are.

use anyhow::ensure;
use culvert_xds::NodeIdentity;
use serde_json::json;

use crate::args::Args;
use crate::export::described;

/// What `GRPC_XDS_BOOTSTRAP_CONFIG` may hold, or the file that `GRPC_XDS_BOOTSTRAP` names.
pub(crate) fn text(args: &Args, node: &NodeIdentity) -> anyhow::Result<String> {
    ensure!(!node.id.is_empty(), "--export-node: a client needs an id");
    // gRFC A65: without files of its own a client goes by the authorities of its machine.
    let credentials = match args.tls_cert {
        Some(_) => json!({ "type": "tls", "config": {} }),
        None => json!({ "type": "insecure" }),
    };
    let mut node = described(node);
    // gRPC for Node insists on it.
    node["locality"] = json!({});
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": args.listen.to_string(),
            "channel_creds": [credentials],
            "server_features": ["xds_v3"],
        }],
        "node": node,
        "client_default_listener_resource_name_template": "%s",
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
    });
    Ok(format!("{bootstrap:#}\n"))
}
