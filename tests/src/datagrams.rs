//! UDP: a listener of datagrams, an edge that ends CONNECT-UDP, a host that sends everything back, and those that ask it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::UdpSocket;

use crate::Result;
use crate::wait::PATIENCE;

/// YAML of a listener of datagrams on a free port; `fields` are further ones of its `UdpProxyConfig`, in flow style.
#[must_use]
pub fn listener(name: &str, cluster: &str, fields: &str) -> String {
    const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3";
    format!(
        "  - name: {name}\n    address: {{socket_address: {{protocol: UDP, address: 127.0.0.1, port_value: 0}}}}\n    listener_filters:\n    - name: envoy.filters.udp_listener.udp_proxy\n      typed_config: {{\"@type\": {TYPES}.UdpProxyConfig, stat_prefix: {name}, matcher: {{on_no_match: {{action: {{name: route, typed_config: {{\"@type\": {TYPES}.Route, cluster: {cluster}}}}}}}}}, {fields}}}\n"
    )
}

/// Fields of a `UdpProxyConfig` that put sessions into CONNECT-UDP.
pub const TUNNELING: &str = "session_filters: [{name: http_capsule, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.session.http_capsule.v3.FilterConfig}}], tunneling_config: {proxy_host: edge, target_host: 10.0.0.53, default_target_port: 53, buffer_options: {}, retry_options: {max_connect_attempts: 2}}";

/// Routes that end CONNECT-UDP and lead to the cluster, and what the connection manager has to have for it.
#[must_use]
pub fn terminating(cluster: &str) -> (String, &'static str) {
    let routes = format!(
        "[{{match: {{connect_matcher: {{}}}}, route: {{cluster: {cluster}, upgrade_configs: [{{upgrade_type: CONNECT-UDP, connect_config: {{}}}}]}}}}]"
    );
    (routes, "http2_protocol_options: {allow_connect: true}\nupgrade_configs: [{upgrade_type: CONNECT-UDP}]")
}

/// A host that sends every datagram back.
#[derive(Debug)]
pub struct Echo {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Echo {
    pub async fn start() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            // An error is that of an answer to a socket that is gone.
            loop {
                if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    let _gone = socket.send_to(buffer.get(..length).unwrap_or_default(), from).await;
                }
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client with an address of its own.
#[derive(Debug, Clone)]
pub struct Asker(Arc<UdpSocket>);

impl Asker {
    pub async fn new(to: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(to).await?;
        Ok(Self(Arc::new(socket)))
    }

    /// Sends, and waits a moment for the same to come back.
    pub async fn ask(&self, datagram: &[u8]) -> Result {
        self.0.send(datagram).await?;
        let mut buffer = vec![0; 65_536];
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        loop {
            let received = tokio::time::timeout_at(deadline, self.0.recv(&mut buffer)).await;
            let length = received.context("nothing came back")??;
            let seen = buffer.get(..length).unwrap_or_default();
            if seen == datagram {
                return Ok(());
            }
            // An answer to an earlier one that was given up.
            ensure!(tokio::time::Instant::now() < deadline, "expected {} bytes back, saw {length}", datagram.len());
        }
    }

    /// [`Self::ask`] until it comes back: datagrams may be lost.
    pub async fn ask_again(&self, datagram: &[u8]) -> Result {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.ask(datagram).await {
                Ok(()) => return Ok(()),
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
