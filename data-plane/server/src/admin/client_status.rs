//! Client status discovery (CSDS) and reflection over gRPC, on the admin interface's address: what `/xds` says.
//!
//! A connection of the admin interface lives a minute, and a stream on it no longer.

use std::pin::Pin;
use std::sync::Arc;

use culvert_api::DESCRIPTOR_SET;
use culvert_api::document::{self, Syntax};
use culvert_api::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use culvert_api::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ClientStatusResponse};
use futures_util::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::Admin;

/// The services.
///
/// # Errors
/// The descriptors that this build was made with are broken.
pub(super) fn services(admin: &Arc<Admin>) -> Result<Routes, tonic_reflection::server::Error> {
    let status = ClientStatusDiscoveryServiceServer::new(ClientStatus { admin: Arc::clone(admin) });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .with_service_name("envoy.service.status.v3.ClientStatusDiscoveryService")
            .with_service_name("grpc.reflection.v1.ServerReflection")
            .with_service_name("grpc.reflection.v1alpha.ServerReflection")
    };
    let services = Routes::new(status.max_decoding_message_size(MAX_REQUEST));
    Ok(services.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?).prepare())
}

#[derive(Debug)]
struct ClientStatus {
    admin: Arc<Admin>,
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for ClientStatus {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let admin = Arc::clone(&self.admin);
        let answers = request.into_inner().then(move |request| {
            let admin = Arc::clone(&admin);
            async move { answer(admin, request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        answer(Arc::clone(&self.admin), request.into_inner()).await.map(Response::new)
    }
}

async fn answer(admin: Arc<Admin>, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
    // gRFC A40: a client knows no node but itself.
    if !request.node_matchers.is_empty() {
        return Err(Status::invalid_argument("node_matchers: this is the client itself; ask without them"));
    }
    // Ten thousand resources take their time.
    let config = tokio::task::spawn_blocking(move || config(&admin, request.exclude_resource_contents)).await;
    let config = config.map_err(|error| Status::internal(error.to_string()))??;
    Ok(ClientStatusResponse { config: vec![config] })
}

/// The message of `/xds`: what is secret is not in there either.
fn config(admin: &Admin, without_contents: bool) -> Result<ClientConfig, Status> {
    let text = admin.client_config(!without_contents).to_string();
    let loaded = document::load_in_spite::<ClientConfig>(text.as_bytes(), Syntax::Json);
    let (loaded, problems) = loaded.map_err(|problems| Status::internal(format!("{problems:?}")))?;
    for problem in problems {
        // What stands for a secret may not be of its field's type.
        tracing::debug!(?problem, "left out of the client's status");
    }
    Ok(loaded.message)
}

/// Of a request, in bytes.
const MAX_REQUEST: usize = 64 << 10;
