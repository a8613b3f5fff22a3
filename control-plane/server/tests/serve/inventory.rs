//! Where every agent is: what servers report, and what operators see of it.

use culvert_api::culvert::tunnel::v1::tunnel_inventory_client::TunnelInventoryClient;
use culvert_api::culvert::tunnel::v1::{ListTunnelsRequest, TunnelDetails};
use culvert_api::envoy::config::core::v3::HealthStatus;
use culvert_api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::reverse_tunnel_reporting_service_client::ReverseTunnelReportingServiceClient;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::{
    ReverseTunnel, StreamReverseTunnelsRequest, StreamReverseTunnelsResponse, TunnelInitiatorIdentity,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Daemon, Folder, Stream, cluster, node};

type Reports = Stream<StreamReverseTunnelsRequest, StreamReverseTunnelsResponse>;

async fn reports(daemon: &Daemon) -> Reports {
    let (mut stream, queue) = Stream::queue();
    let mut client = ReverseTunnelReportingServiceClient::new(daemon.channel().await);
    stream.responses = Some(client.stream_reverse_tunnels(queue).await.unwrap().into_inner());
    stream
}

fn tunnel(name: &str, agent: &str) -> ReverseTunnel {
    let identity =
        TunnelInitiatorIdentity { tenant_id: "t".into(), cluster_id: "edge".into(), node_id: agent.to_owned() };
    ReverseTunnel { name: name.to_owned(), identity: Some(identity), ..ReverseTunnel::default() }
}

fn report(server: &str, nonce: i64, added_tunnels: Vec<ReverseTunnel>) -> StreamReverseTunnelsRequest {
    StreamReverseTunnelsRequest {
        node: node(server),
        added_tunnels,
        full_push: nonce == 1,
        nonce,
        ..Default::default()
    }
}

async fn shown(daemon: &Daemon, query: &str) -> Value {
    serde_json::from_str(&daemon.get(&format!("/tunnels{query}")).await).unwrap()
}

#[tokio::test]
async fn what_servers_report_is_shown_until_their_streams_end() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    // As Envoy's contrib reporter does: nothing but what its API has.
    let mut envoy = reports(&daemon).await;
    envoy.send(report("envoy-1", 1, vec![tunnel("t1", "edge-1"), tunnel("t2", "edge-2")])).await;
    let answer = envoy.next().await;
    assert_eq!((answer.node_id.as_str(), answer.request_nonce), ("envoy-1", 1), "{answer:?}");
    assert!(answer.error_detail.is_none() && answer.report_interval.is_some(), "{answer:?}");
    // And one of ours, with what else it knows.
    let mut ours = reports(&daemon).await;
    let mut detailed = tunnel("t1", "edge-1");
    detailed.details =
        Some(TunnelDetails { peer: "192.0.2.7:4711".into(), weight: 10, draining: true, ..Default::default() });
    ours.send(report("proxy-1", 1, vec![detailed])).await;
    ours.next().await;

    let page = shown(&daemon, "?agent=edge-1").await;
    assert_eq!(page["total"], json!(2), "{page}");
    let servers: Vec<_> = page["tunnels"].as_array().unwrap().iter().map(|tunnel| &tunnel["server"]).collect();
    assert_eq!(servers, ["envoy-1", "proxy-1"], "{page}");
    assert_eq!(page["servers"].as_array().map(Vec::len), Some(2), "{page}");

    let mut client = TunnelInventoryClient::new(daemon.channel().await);
    let first = ListTunnelsRequest { page_size: 2, ..Default::default() };
    let listed = client.list_tunnels(first.clone()).await.unwrap().into_inner();
    assert_eq!((listed.tunnels.len(), listed.total), (2, 3), "{listed:?}");
    let rest = ListTunnelsRequest { page_token: listed.next_page_token, ..first };
    let rest = client.list_tunnels(rest).await.unwrap().into_inner();
    assert_eq!((rest.tunnels.len(), rest.next_page_token.as_str()), (1, ""), "{rest:?}");

    let request = ListTunnelsRequest { server: "proxy-1".into(), ..Default::default() };
    let endpoints = client.list_endpoints(request).await.unwrap().into_inner();
    let assignment = &endpoints.assignments[0];
    assert_eq!(assignment.cluster_name, "edge", "{assignment:?}");
    let endpoint = &assignment.endpoints[0].lb_endpoints[0];
    assert_eq!(endpoint.health_status(), HealthStatus::Draining, "{endpoint:?}");
    assert!(endpoint.metadata.as_ref().unwrap().filter_metadata.contains_key("culvert.tunnel"), "{endpoint:?}");
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
    assert_eq!(host.hostname, "edge-1", "{endpoint:?}");

    let gone =
        StreamReverseTunnelsRequest { removed_tunnel_names: vec!["t2".into()], ..report("envoy-1", 2, Vec::new()) };
    envoy.send(gone).await;
    assert_eq!(envoy.next().await.request_nonce, 2, "each report is answered");
    assert_eq!(shown(&daemon, "?agent=edge-2").await["total"], json!(0), "reported as gone");
    drop(envoy);
    daemon.eventually("/tunnels", |text| text.contains("\"total\": 1,")).await;
    drop(ours);
    daemon.eventually("/metrics", |text| text.contains("culvert_control_tunnels 0\n")).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn a_report_that_is_refused_ends_its_stream_with_a_reason() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = reports(&daemon).await;
    stream.send(report("s", 1, vec![tunnel("", "edge-1")])).await;
    let refusal = stream.next().await.error_detail.unwrap();
    assert!(refusal.message.contains("added_tunnels[0].name"), "{refusal:?}");
    assert!(stream.ended().await, "a refusal is the last word");
    let mut nobody = reports(&daemon).await;
    nobody.send(StreamReverseTunnelsRequest { node: None, ..report("s", 1, Vec::new()) }).await;
    assert_eq!(nobody.failure().await.code(), Code::InvalidArgument, "a report of nobody");
    let mut client = TunnelInventoryClient::new(daemon.channel().await);
    for request in [
        ListTunnelsRequest { page_size: 10_001, ..Default::default() },
        ListTunnelsRequest { page_token: "[1".into(), ..Default::default() },
    ] {
        let refused = client.list_tunnels(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}: {refused:?}");
    }
    assert!(daemon.get("/tunnels?page_size=x").await.contains("no number"), "a mistake in a query is said");
    daemon.terminate().await;
}
