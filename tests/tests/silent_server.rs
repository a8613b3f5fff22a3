//! A control plane that says nothing, not even headers, before it has something to say: a plain server on grpcio, or one on
//! go-control-plane that is asked for what it does not have.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use base64::Engine as _;
use culvert_api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use culvert_api::type_url::CLUSTER;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{Answer, send};
use culvert_tests::peer::{Peer, Running};
use culvert_tests::plane::{Plane, Way, envoy, listener};
use culvert_tests::process::repository;
use culvert_tests::scripted::resource;
use culvert_tests::wait::eventually;
use http::Request;
use http_body_util::Full;
use prost::Message;
use serde_json::json;
use tokio::process::Command;

/// A request to the cluster of this name.
async fn ask(address: SocketAddr, cluster: &str) -> Result<Answer> {
    let request = Request::get("/").header("host", "any").header("x-cluster", cluster);
    send(address, request.body(Full::<bytes::Bytes>::default())?).await
}

/// Nothing comes from it but what requests ask for, and of the first of that it knows nothing: the next one is asked for all the
/// same.
#[tokio::test]
async fn clusters_are_asked_for_though_nothing_was_ever_answered() -> Result {
    let Some(python) = Peer::Grpcio.find()? else { return Ok(()) };
    let script = repository().join("tests/peers/ads_server.py");
    let mut server = Running::start(Command::new(python).arg(script).arg("address"))?;
    let (address, backend) = (TcpListener::bind("127.0.0.1:0")?.local_addr()?, Backend::start("backend").await?);
    let mut listener = listener("in", address, "", json!({}));
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["route_config"]["virtual_hosts"][0]["routes"] =
        json!([{ "match": { "prefix": "/" }, "route": { "cluster_header": "x-cluster" } }]);
    let on_demand = json!({ "name": "on_demand", "typed_config": {
        "@type": envoy("extensions.filters.http.on_demand.v3.OnDemand"),
        "odcds": { "source": { "ads": {}, "resource_api_version": "V3" }, "timeout": "1s" } } });
    if let Some(filters) = manager["http_filters"].as_array_mut() {
        filters.insert(0, on_demand);
    }
    if let Some(fields) = listener.as_object_mut() {
        fields.remove("@type");
    }
    let mut plane = Plane::under(server.address().await?)?;
    let more = format!("\x20 listeners: [{listener}]");
    plane.start_proxy(Way { no_cds: true, no_lds: true, more: &more, ..Way::default() }).await?;
    plane.ready().await?;
    let answer = ask(address, "none").await?;
    ensure!(answer.status == 503, "{}", answer.status);
    server.says("ASKS", &format!("{CLUSTER} none")).await?;

    let cluster = json!({ "@type": CLUSTER, "name": "named", "type": "STATIC", "load_assignment": { "cluster_name": "named",
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
            "address": backend.address.ip().to_string(), "port_value": backend.address.port() } } } }] }] } });
    let response = DeltaDiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        nonce: "n1".to_owned(),
        resources: vec![resource("named", "1", &cluster)?],
        ..DeltaDiscoveryResponse::default()
    };
    let bytes = base64::engine::general_purpose::STANDARD.encode(response.encode_to_vec());
    // A request waits for a second.
    let answered = eventually("the cluster comes", async || {
        let answer = ask(address, "named").await?;
        ensure!(answer.text() == "backend\n", "{} {:?}", answer.status, answer.text());
        Ok(())
    });
    let told = async {
        server.says("ASKS", &format!("{CLUSTER} named")).await?;
        server.tell(&format!("{CLUSTER} {bytes}")).await
    };
    tokio::try_join!(answered, told).with_context(|| plane.proxy_log())?;
    plane.stop_proxy().await
}
