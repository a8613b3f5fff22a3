//! The load reporting service: what nodes say of the load of their clusters.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingService;
use culvert_api::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use culvert_api::type_url;
use culvert_runtime::drain::Watch;
use culvert_xds::{NodeIdentity, Snapshot};
use futures_util::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::access::StreamPlace;
use crate::control::Control;
use crate::identity::Peer;
use crate::loads::Reporter;

pub(crate) const SERVICE: &str = "envoy.service.load_stats.v3.LoadReportingService";

/// Largest report.
pub(crate) const MAX_REPORT: usize = 16 << 20;

/// How long a stream may take to say who it is.
const FIRST_REPORT: Duration = Duration::from_secs(60);

/// By which a client says that it knows `send_all_clusters`.
const ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

#[derive(Debug)]
pub(crate) struct Lrs {
    pub(crate) control: Arc<Control>,
    pub(crate) drain: Watch,
    /// How often nodes are to report; at least a second.
    pub(crate) interval: Duration,
    /// They are to tell endpoints apart.
    pub(crate) endpoints: bool,
}

#[tonic::async_trait]
impl LoadReportingService for Lrs {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the request belongs to no connection"))?;
        let place = self.control.access.begin_stream(&peer)?;
        let reports = Reports {
            _place: place,
            generations: self.control.generations(),
            control: Arc::clone(&self.control),
            drain: self.drain.clone(),
            interval: self.interval,
            endpoints: self.endpoints,
            peer,
            requests: request.into_inner(),
            node: None,
        };
        let answers = futures_util::stream::unfold(Some(reports), |reports| async move {
            let mut reports = reports?;
            match reports.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(reports))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Reports {
    _place: Option<StreamPlace>,
    control: Arc<Control>,
    drain: Watch,
    interval: Duration,
    endpoints: bool,
    peer: Peer,
    requests: Streaming<LoadStatsRequest>,
    generations: watch::Receiver<u64>,
    /// From the first report on.
    node: Option<Reporting>,
}

struct Reporting {
    identity: NodeIdentity,
    reporter: Reporter,
    /// The clusters that it was asked about; `None`: about all, whichever they are.
    asked: Option<BTreeSet<String>>,
}

impl Reports {
    /// The next that there is to say to the node; `None`: the stream is over.
    async fn next(&mut self) -> Result<Option<LoadStatsResponse>, Status> {
        loop {
            let known = self.node.is_some();
            let late = async {
                if known {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(FIRST_REPORT).await;
            };
            tokio::select! {
                biased;
                _ = self.drain.draining() => return Ok(None),
                () = late => return Err(Status::deadline_exceeded("no report came on this stream")),
                changed = self.generations.changed(), if known => {
                    if changed.is_err() {
                        return Ok(None);
                    }
                    if let Some(response) = self.ask_again() {
                        return Ok(Some(response));
                    }
                }
                request = self.requests.message() => {
                    let Some(request) = request? else { return Ok(None) };
                    if let Some(response) = self.hear(request)? {
                        return Ok(Some(response));
                    }
                }
            }
        }
    }

    /// Takes a report; the first one is answered with what is wanted.
    fn hear(&mut self, report: LoadStatsRequest) -> Result<Option<LoadStatsResponse>, Status> {
        self.control.metrics.load_reports.add();
        if let Some(node) = &self.node {
            node.reporter.report(&report.cluster_stats);
            return Ok(None);
        }
        let identity = self.identify(report.node)?;
        let takes_all = identity.client_features.iter().any(|feature| feature == ALL_CLUSTERS);
        let asked = (!takes_all).then(|| self.clusters(&identity));
        let response = self.response(asked.as_ref());
        let reporter = self.control.loads.reporter();
        reporter.report(&report.cluster_stats);
        self.node = Some(Reporting { identity, reporter, asked });
        Ok(Some(response))
    }

    fn identify(&self, node: Option<Node>) -> Result<NodeIdentity, Status> {
        self.peer.identify(&self.control, node).inspect_err(|status| {
            tracing::warn!(peer = &*self.peer.address, "a stream of load reports is refused: {}", status.message());
        })
    }

    /// A node that has to be told each cluster is told of new ones.
    fn ask_again(&mut self) -> Option<LoadStatsResponse> {
        let node = self.node.as_ref()?;
        let before = node.asked.as_ref()?;
        let now = self.clusters(&node.identity);
        if now == *before {
            return None;
        }
        let response = self.response(Some(&now));
        if let Some(node) = &mut self.node {
            node.asked = Some(now);
        }
        Some(response)
    }

    fn clusters(&self, identity: &NodeIdentity) -> BTreeSet<String> {
        let placement = self.control.place(identity, &Snapshot::default());
        let clusters = placement.snapshot.of_type(type_url::CLUSTER).map(|set| set.resources());
        clusters.into_iter().flatten().map(|cluster| cluster.name().to_string()).collect()
    }

    fn response(&self, clusters: Option<&BTreeSet<String>>) -> LoadStatsResponse {
        LoadStatsResponse {
            clusters: clusters.into_iter().flatten().cloned().collect(),
            send_all_clusters: clusters.is_none(),
            load_reporting_interval: prost_types::Duration::try_from(self.interval).ok(),
            report_endpoint_granularity: self.endpoints,
        }
    }
}
