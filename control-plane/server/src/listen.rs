//! The sockets, and what is served on them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use culvert_api::DESCRIPTOR_SET;
use culvert_api::culvert::control::v1::control_service_server::ControlServiceServer;
use culvert_api::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingServiceServer;
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
use crate::connections::{self, Settings, What};
use crate::control::Control;
use crate::csds::Csds;
use crate::discovery::SERVICES;
use crate::inventory;
use crate::lrs::{self, Lrs};
use crate::operator::{self, Operator};
use crate::tls::Tls;

/// Largest status request.
const MAX_STATUS_REQUEST: usize = 1 << 20;

const CSDS: &str = "envoy.service.status.v3.ClientStatusDiscoveryService";

/// A process that serves.
#[derive(Debug)]
pub(crate) struct Running {
    /// Of nodes.
    served: Vec<JoinHandle<()>>,
    /// They end with the process.
    rest: Vec<JoinHandle<()>>,
}

impl Running {
    /// Waits until every stream has ended, but no longer than `within`.
    pub(crate) async fn stopped(self, within: Duration) {
        if tokio::time::timeout(within, futures_util::future::join_all(self.served)).await.is_err() {
            tracing::warn!("some streams did not end in time");
        }
        self.rest.iter().for_each(JoinHandle::abort);
    }
}

/// Binds all sockets, writes their addresses where they are wanted, and serves. `tls`: of gRPC and of polling.
pub(crate) async fn start(
    args: &Args,
    tls: (Option<Arc<Tls>>, Option<Arc<Tls>>),
    control: &Arc<Control>,
    drain: &Watch,
) -> anyhow::Result<Running> {
    warn(args);
    let (grpc_socket, grpc_address) = listen(args.listen).context("--listen")?;
    let (admin_socket, admin_address) = listen(args.admin).context("--admin")?;
    let rest_socket = args.rest.map(listen).transpose().context("--rest")?;
    let max_age = (args.max_connection_age > 0).then(|| Duration::from_secs(args.max_connection_age));
    let serve = |socket, tls, what| {
        let settings = Settings { tls, max_age, what };
        tokio::spawn(connections::serve(socket, settings, Arc::clone(control), drain.clone()))
    };
    let routes = services(args, control, drain).await?;
    let mut served = vec![serve(grpc_socket, tls.0, What::Grpc(routes))];
    let mut rest = vec![tokio::spawn(admin::serve(admin_socket, Arc::clone(control)))];
    rest.extend(control.access.follow());
    if let Some((socket, address)) = rest_socket {
        served.push(serve(socket, tls.1, What::Rest));
        write_address(args.rest_address_path.as_deref(), address)?;
        tracing::info!(rest = %address, "serving clients that poll");
    }
    // Last: who reads an address finds somebody there.
    write_address(args.listen_address_path.as_deref(), grpc_address)?;
    write_address(args.admin_address_path.as_deref(), admin_address)?;
    tracing::info!(xds = %grpc_address, admin = %admin_address, "serving");
    Ok(Running { served, rest })
}

/// Says what the command line lets happen.
fn warn(args: &Args) {
    let proves = args.tls_client_ca.is_some() || args.tokens.is_some();
    let beyond = args.addresses().any(|(_, address)| !address.ip().is_loopback());
    if beyond && args.tls_cert.is_none() {
        tracing::warn!("--allow-plaintext: anybody on the way can read and change what nodes are sent");
    }
    if beyond && !proves {
        tracing::warn!(
            "clients prove nothing; anybody can ask for any node's resources and secrets, use --tls-client-ca or --tokens"
        );
    } else if proves && args.client_identity.is_empty() {
        tracing::warn!(
            "no --client-identity: whoever has a certificate or token can ask for any node's resources and secrets"
        );
    }
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

async fn services(args: &Args, control: &Arc<Control>, drain: &Watch) -> anyhow::Result<Routes> {
    let (health, health_service) = tonic_health::server::health_reporter();
    follow_readiness(control, health).await;
    let operator = Operator { control: Arc::clone(control), drain: drain.clone() };
    let interval = Duration::from_secs(args.load_report_interval);
    let endpoints = args.load_report_endpoints;
    let lrs = Lrs { control: Arc::clone(control), drain: drain.clone(), interval, endpoints };
    let csds = Csds { control: Arc::clone(control), drain: drain.clone() };
    let inventory = inventory::Service { control: Arc::clone(control), drain: drain.clone() };
    let routes = inventory
        .add_to(Routes::default())
        .add_service(ClientStatusDiscoveryServiceServer::new(csds).max_decoding_message_size(MAX_STATUS_REQUEST))
        .add_service(ControlServiceServer::new(operator).max_decoding_message_size(operator::MAX_REQUEST))
        .add_service(LoadReportingServiceServer::new(lrs).max_decoding_message_size(lrs::MAX_REPORT))
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
        .with_service_name(lrs::SERVICE)
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
    let others = ["", CSDS, lrs::SERVICE, operator::SERVICE, inventory::REPORTING, inventory::LISTING];
    for name in SERVICES.iter().map(|service| service.name).chain(others) {
        health.set_service_status(name, status).await;
    }
}
