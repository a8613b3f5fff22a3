//! The two gRPC services of the inventory: servers report, operators ask.

use std::pin::Pin;
use std::sync::Arc;

use culvert_api::culvert::tunnel::v1::tunnel_inventory_server::{TunnelInventory, TunnelInventoryServer};
use culvert_api::culvert::tunnel::v1::{ListEndpointsResponse, ListTunnelsRequest, ListTunnelsResponse};
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::reverse_tunnel_reporting_service_server::{
    ReverseTunnelReportingService, ReverseTunnelReportingServiceServer,
};
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::{
    StreamReverseTunnelsRequest, StreamReverseTunnelsResponse,
};
use prost_types::Duration;
use culvert_api::google::rpc;
use culvert_runtime::drain::Watch;
use futures_util::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Lease, Page, Query, Server, shown};
use crate::access::StreamPlace;
use crate::control::Control;
use crate::identity::Peer;

pub(crate) const REPORTING: &str =
    "envoy.extensions.reverse_tunnel_reporters.v3alpha.clients.grpc_client.ReverseTunnelReportingService";
pub(crate) const LISTING: &str = "culvert.tunnel.v1.TunnelInventory";

/// Both services.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) control: Arc<Control>,
    pub(crate) drain: Watch,
}

impl Service {
    pub(crate) fn add_to(&self, routes: Routes) -> Routes {
        routes
            .add_service(ReverseTunnelReportingServiceServer::new(self.clone()).max_decoding_message_size(MAX_REPORT))
            .add_service(TunnelInventoryServer::new(self.clone()).max_decoding_message_size(MAX_QUERY))
    }

    /// What a request asks for, and which servers who makes it may see: whoever may be some nodes only sees those.
    fn query(&self, request: &Request<ListTunnelsRequest>) -> Result<(Query, impl Fn(&Server) -> bool), Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let identities = &self.control.identities;
        let visible = move |server: &Server| identities.allow(&peer.names, &server.id, &server.cluster);
        Ok((Query::from_request(request.get_ref())?, visible))
    }

    fn page(&self, request: &Request<ListTunnelsRequest>) -> Result<Page, Status> {
        let (query, visible) = self.query(request)?;
        Ok(self.control.inventory.find(&query, visible))
    }
}

/// One server's stream.
struct Reports {
    service: Service,
    peer: Peer,
    _place: Option<StreamPlace>,
    /// From its first request on.
    lease: Option<(Lease, String)>,
}

impl Reports {
    fn answer(&mut self, mut request: StreamReverseTunnelsRequest) -> Result<StreamReverseTunnelsResponse, Status> {
        let control = &self.service.control;
        control.metrics.tunnel_reports.add();
        let (nonce, node) = (request.nonce, request.node.take());
        let first = self.lease.is_none();
        let (lease, node_id) = match &mut self.lease {
            Some(known) => known,
            none => {
                let identity = self.peer.identify(control, node)?;
                let server = Server {
                    id: identity.id.as_str().into(),
                    cluster: identity.cluster.as_str().into(),
                    peer: Arc::clone(&self.peer.address),
                };
                tracing::info!(server = %server.id, peer = %server.peer, "a tunnel server reports");
                none.insert((control.inventory.begin(server), identity.id))
            }
        };
        let error_detail = lease.report(request).err().map(|refused| {
            control.metrics.tunnel_reports_refused.add();
            tracing::warn!(server = %node_id, error = %refused, "a report of tunnels is refused");
            rpc::Status { code: Code::InvalidArgument.into(), message: refused.to_string(), details: Vec::new() }
        });
        let node_id = node_id.clone();
        let report_interval = first.then_some(Duration { seconds: INTERVAL_SECONDS, nanos: 0 });
        Ok(StreamReverseTunnelsResponse { node_id, report_interval, request_nonce: nonce, error_detail })
    }
}

#[tonic::async_trait]
impl ReverseTunnelReportingService for Service {
    type StreamReverseTunnelsStream = Pin<Box<dyn Stream<Item = Result<StreamReverseTunnelsResponse, Status>> + Send>>;

    async fn stream_reverse_tunnels(
        &self,
        request: Request<Streaming<StreamReverseTunnelsRequest>>,
    ) -> Result<Response<Self::StreamReverseTunnelsStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let drain = self.drain.clone();
        let requests = request.into_inner().take_until(async move { drain.draining().await });
        let place = self.control.access.begin_stream(&peer)?;
        let reports = Reports { service: self.clone(), peer, _place: place, lease: None };
        let answers = futures_util::stream::unfold(Some((Box::pin(requests), reports)), |open| async {
            let (mut requests, mut reports) = open?;
            let answer = requests.next().await?.and_then(|request| reports.answer(request));
            // A refusal is said, and ends the stream.
            let goes_on = answer.as_ref().is_ok_and(|answer| answer.error_detail.is_none());
            Some((answer, goes_on.then_some((requests, reports))))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl TunnelInventory for Service {
    async fn list_tunnels(
        &self,
        request: Request<ListTunnelsRequest>,
    ) -> Result<Response<ListTunnelsResponse>, Status> {
        self.page(&request).map(|page| Response::new(shown::tunnels(&page)))
    }

    async fn list_ended_tunnels(
        &self,
        request: Request<ListTunnelsRequest>,
    ) -> Result<Response<ListTunnelsResponse>, Status> {
        let (query, visible) = self.query(&request)?;
        Ok(Response::new(shown::tunnels(&self.control.inventory.find_ended(&query, visible))))
    }

    async fn list_endpoints(
        &self,
        request: Request<ListTunnelsRequest>,
    ) -> Result<Response<ListEndpointsResponse>, Status> {
        self.page(&request).map(|page| Response::new(shown::endpoints(&page, &request.get_ref().cluster)))
    }
}

/// Largest report: an Envoy says all that it has at once.
const MAX_REPORT: usize = 64 << 20;
const MAX_QUERY: usize = 64 << 10;
/// How often servers are asked to report.
const INTERVAL_SECONDS: i64 = 1;
