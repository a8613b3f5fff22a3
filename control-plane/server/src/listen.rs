//! The sockets, and what is served on them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use culvert_api::DESCRIPTOR_SET;
use culvert_api::culvert::control::v1::control_service_server::ControlServiceServer;
use culvert_api::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer;
use culvert_runtime::drain::Watch;
use culvert_runtime::sockets::{ListenOptions, bind};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::admin;
use crate::args::Args;
use crate::connections;
use crate::control::Control;
use crate::csds::Csds;
use crate::discovery::{Discovery, SERVICES};
use crate::inventory;
use crate::operator::{self, Operator};
use crate::tls::Tls;

/// Largest status request.
const MAX_STATUS_REQUEST: usize = 1 << 20;

const CSDS: &str = "envoy.service.status.v3.ClientStatusDiscoveryService";

/// A process that serves.
#[derive(Debug)]
pub(crate) struct Running {
    grpc: JoinHandle<()>,
    admin: JoinHandle<()>,
}

impl Running {
    /// Waits until every stream has ended, but no longer than `within`.
    pub(crate) async fn stopped(self, within: Duration) {
        if tokio::time::timeout(within, self.grpc).await.is_err() {
            tracing::warn!("some streams did not end in time");
        }
        self.admin.abort();
    }
}

/// Binds both sockets, writes their addresses where they are wanted, and serves.
pub(crate) async fn start(
    args: &Args,
    tls: Option<Arc<Tls>>,
    control: &Arc<Control>,
    drain: &Watch,
) -> anyhow::Result<Running> {
    if args.tls_cert.is_none() && !args.listen.ip().is_loopback() {
        tracing::warn!(
            "--listen {}: plaintext beyond this machine; anybody can ask for any node's resources",
            args.listen
        );
    } else if args.tls_client_ca.is_some() && args.client_identity.is_empty() {
        tracing::warn!(
            "--tls-client-ca without --client-identity: whoever has a certificate can ask for any node's resources and secrets"
        );
    } else if args.tls_client_ca.is_none() && !args.listen.ip().is_loopback() {
        tracing::warn!(
            "--listen {}: clients need no certificate; anybody can ask for any node's resources and secrets, use \
             --tls-client-ca",
            args.listen
        );
    }
    let (grpc_socket, grpc_address) = listen(args.listen).context("--listen")?;
    let (admin_socket, admin_address) = listen(args.admin).context("--admin")?;
    let routes = services(control, drain).await?;
    let settings = connections::Settings {
        tls,
        max_age: (args.max_connection_age > 0).then(|| Duration::from_secs(args.max_connection_age)),
    };
    let grpc = tokio::spawn(connections::serve(grpc_socket, settings, routes, Arc::clone(control), drain.clone()));
    let admin = tokio::spawn(admin::serve(admin_socket, Arc::clone(control)));
    // Last: who reads an address finds somebody there.
    write_address(args.listen_address_path.as_deref(), grpc_address)?;
    write_address(args.admin_address_path.as_deref(), admin_address)?;
    tracing::info!(xds = %grpc_address, admin = %admin_address, "serving");
    Ok(Running { grpc, admin })
}

fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let socket = bind(address, 1, ListenOptions::default())?.pop().context("no socket")?;
    let listener = TcpListener::from_std(socket)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// By a rename: a reader never sees half an address.
fn write_address(path: Option<&Path>, address: SocketAddr) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, address.to_string())
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn services(control: &Arc<Control>, drain: &Watch) -> anyhow::Result<Routes> {
    let (health, health_service) = tonic_health::server::health_reporter();
    follow_readiness(control, health).await;
    let operator = Operator { control: Arc::clone(control), drain: drain.clone() };
    let csds = Csds { control: Arc::clone(control), drain: drain.clone() };
    let mut routes = Routes::default();
    let mut router = std::mem::take(routes.axum_router_mut());
    for service in &SERVICES {
        let discovery = Discovery { service, control: Arc::clone(control) };
        router = router.route_service(&format!("/{}/{{method}}", service.name), discovery);
    }
    *routes.axum_router_mut() = router;
    let inventory = inventory::Service { control: Arc::clone(control), drain: drain.clone() };
    let routes = inventory
        .add_to(routes)
        .add_service(ClientStatusDiscoveryServiceServer::new(csds).max_decoding_message_size(MAX_STATUS_REQUEST))
        .add_service(ControlServiceServer::new(operator).max_decoding_message_size(operator::MAX_REQUEST))
        .add_service(health_service)
        .add_service(reflection().build_v1().context("reflection")?)
        .add_service(reflection().build_v1alpha().context("reflection")?);
    Ok(routes.prepare())
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(CSDS)
        .with_service_name(operator::SERVICE)
        .with_service_name(inventory::REPORTING)
        .with_service_name(inventory::LISTING)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .with_service_name("grpc.reflection.v1alpha.ServerReflection");
    SERVICES.iter().fold(builder, |builder, service| builder.with_service_name(service.name))
}

/// The process and each of its services are healthy until it drains.
async fn follow_readiness(control: &Control, health: HealthReporter) {
    let mut readiness = control.readiness();
    set_health(&health, ServingStatus::Serving).await;
    tokio::spawn(async move {
        if readiness.wait_for(|ready| !ready).await.is_ok() {
            set_health(&health, ServingStatus::NotServing).await;
        }
    });
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let others = ["", CSDS, operator::SERVICE, inventory::REPORTING, inventory::LISTING];
    for name in SERVICES.iter().map(|service| service.name).chain(others) {
        health.set_service_status(name, status).await;
    }
}
