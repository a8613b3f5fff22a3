//! What the lifecycle logs are told of an agent's connections.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_http::Meter;
use tokio::time::Instant;

use super::connection::Connection;
use crate::lifecycle::{AGENT, Lifecycle, worker};

/// A tunnel that stands, or stood.
#[derive(Debug)]
pub(super) struct Stood {
    pub(super) local: SocketAddr,
    pub(super) began: Instant,
    pub(super) meter: Arc<Meter>,
}

impl<H> Connection<H> {
    /// Tells whoever logs. `stood`: the tunnel that it is about, if one stands or stood.
    pub(super) fn tell(&self, event: &'static str, error: &str, stood: Option<&Stood>) {
        let Some(journal) = &self.agent.inputs.journal else { return };
        let config = &self.agent.config;
        let envoy = config.envoy.as_ref();
        let local = stood.map(|stood| stood.local);
        let text = |value: Option<SocketAddr>| Cow::Owned(value.map_or_else(String::new, |value| value.to_string()));
        let fields = vec![
            // Ours.
            ("agent", Cow::Borrowed(&*config.name)),
            ("cluster_id", Cow::Borrowed(&*config.cluster)),
            ("connection_id", Cow::Owned(self.index.to_string())),
            ("connection_key", text(local)),
            ("error", Cow::Borrowed(error)),
            ("event", Cow::Borrowed(event)),
            ("host_address", text(Some(self.peer.address))),
            ("node_id", Cow::Borrowed(self.agent.host_name())),
            ("tenant_id", Cow::Borrowed(envoy.map_or("", |envoy| &*envoy.tenant))),
            ("upstream_cluster", Cow::Borrowed(envoy.map_or("", |envoy| &*envoy.upstream_cluster))),
            ("worker_id", Cow::Owned(worker(self.worker))),
        ];
        journal.log(&Lifecycle {
            namespace: AGENT,
            fields,
            age: stood.map(|stood| stood.began.elapsed()).unwrap_or_default(),
            remote: Some(self.peer.address),
            local,
            received: stood.map_or(0, |stood| stood.meter.read()),
            sent: stood.map_or(0, |stood| stood.meter.written()),
            names: None,
        });
    }
}
