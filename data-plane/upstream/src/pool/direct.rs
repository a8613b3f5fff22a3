//! Connections that nobody pools: for what the process itself asks of a cluster, off the workers.

use std::sync::Arc;

use culvert_http::{Io, Version};
use rustls::pki_types::ServerName;

use super::DownstreamProtocol;
use super::dial::{self, Offer, Wire};
use crate::balance::Cursors;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;

/// A connection to a host of the cluster, and what is to be spoken on it, within the cluster's `connect_timeout`.
/// `authority`: whom the request will be for, which names the host where the cluster has `auto_sni`. Counts neither in the
/// cluster's limits nor in its statistics.
///
/// # Errors
/// There is no such cluster, no host that can be dialled (the other end of a tunnel cannot), or no connection to it.
pub async fn connect(clusters: &Clusters, cluster: &str, authority: &str) -> Result<(Io, Version), UpstreamFailure> {
    let slot = clusters.lookup(cluster).ok_or(UpstreamFailure::NoCluster)?;
    let generation = slot.current().load_full();
    let config = generation.config.as_ref().ok_or(UpstreamFailure::NoCluster)?;
    let host = {
        let mut cursors = Cursors::new(fastrand::Rng::new());
        let choice = generation.hosts.pick(&mut cursors).ok_or(UpstreamFailure::NoHealthyHost)?;
        Arc::clone(choice.host)
    };
    let name = || {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        ServerName::try_from(host.to_owned()).ok()
    };
    let asked = config.cluster.auto_sni.as_ref().and_then(|_| name());
    let offer = Offer::of(config, DownstreamProtocol::Http1);
    let dialled = dial::dial(config, &host, offer, asked.as_ref()).await?;
    let version = match dialled.wire {
        Wire::Http1 => Version::Http11,
        Wire::Http2 => Version::Http2,
    };
    Ok((dialled.io, version))
}
