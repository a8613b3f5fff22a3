//! `culvert.control.v1.ControlService`: what operators, and tools for them, ask.

mod diff;
mod view;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::control_service_server::ControlService;
use culvert_runtime::drain::Watch;
use culvert_store::{Catalog, Load, Options, load, load_files};
use culvert_xds::{NodeIdentity, Snapshot};
use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::control::Control;
use crate::export::Export;
use crate::history;
use crate::identity::Peer;

pub(crate) const SERVICE: &str = "culvert.control.v1.ControlService";

/// Largest request: a directory of files.
pub(crate) const MAX_REQUEST: usize = 64 << 20;

/// Longest text of an operator that is kept.
const MAX_REASON: usize = 1024;

#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) control: Arc<Control>,
    pub(crate) drain: Watch,
}

/// Messages that are made one by one, when the transport asks.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answers<T: Send + 'static>(items: impl Iterator<Item = T> + Send + 'static) -> Response<Answers<T>> {
    Response::new(Box::pin(futures_util::stream::iter(items.map(Ok))))
}

#[tonic::async_trait]
impl ControlService for Operator {
    type GetResourcesStream = Answers<api::ResourceView>;
    type DiffStream = Answers<api::NodeDiff>;
    type WatchPushStream = Answers<api::PushStatus>;

    async fn get_resources(
        &self,
        request: Request<api::GetResourcesRequest>,
    ) -> Result<Response<Self::GetResourcesStream>, Status> {
        self.admit(&request)?;
        let api::GetResourcesRequest { node, filter, without_contents } = request.into_inner();
        let filter = view::Filter::new(filter.as_ref());
        let Some(node) = node else {
            let directory = self.control.directory();
            // What there is is looked at entry by entry: a directory may have 512 MB.
            let places = directory.resources().enumerate();
            let wanted: Vec<usize> =
                places.filter(|(_, (resource, ..))| filter.covers(resource)).map(|(place, _)| place).collect();
            return Ok(answers(
                wanted
                    .into_iter()
                    .filter_map(move |place| directory.at(place).map(|entry| view::placed(entry, without_contents))),
            ));
        };
        let snapshot = self.wanted(&node)?;
        let resources: Vec<_> = snapshot.types().flat_map(|(_, set)| set.resources().cloned()).collect();
        let wanted = resources.into_iter().filter(move |resource| filter.covers(resource));
        Ok(answers(wanted.map(move |resource| view::resource(&resource, without_contents))))
    }

    async fn validate(
        &self,
        request: Request<api::ValidateRequest>,
    ) -> Result<Response<api::ValidateResponse>, Status> {
        self.admit(&request)?;
        let api::ValidateRequest { files, strict } = request.into_inner();
        let options = Options { strict: strict || self.control.options.strict, ..self.control.options };
        let load = self.load(files, options).await?;
        Ok(Response::new(api::ValidateResponse {
            accepted: load.directory.is_some(),
            errors: load.errors.iter().map(view::finding).collect(),
            warnings: load.warnings.iter().map(view::finding).collect(),
            files: view::count(load.files),
            resources: load.directory.map_or(0, |directory| view::count(directory.len())),
        }))
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        self.admit(&request)?;
        let api::DiffRequest { nodes, files, filter, without_contents } = request.into_inner();
        let catalog = if files.is_empty() { None } else { Some(self.candidate(files).await?) };
        let compared = diff::nodes(&self.control, &nodes)?;
        let mut diff = diff::Diff {
            control: Arc::clone(&self.control),
            catalog,
            filter: view::Filter::new(filter.as_ref()),
            without_contents,
        };
        Ok(answers(compared.into_iter().map(move |node| diff.of(&node))))
    }

    async fn get_history(
        &self,
        request: Request<api::GetHistoryRequest>,
    ) -> Result<Response<api::GetHistoryResponse>, Status> {
        self.admit(&request)?;
        let limit = match request.get_ref().limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let canary = self
            .control
            .canary()
            .map(|(generation, nodes)| api::Canary { generation, node_ids: nodes.into_iter().collect() });
        Ok(Response::new(api::GetHistoryResponse {
            entries: history::entries(&self.control).into_iter().take(limit).map(view::past).collect(),
            generation: self.control.generation(),
            canary,
        }))
    }

    async fn roll_back(
        &self,
        request: Request<api::RollBackRequest>,
    ) -> Result<Response<api::RollBackResponse>, Status> {
        let who = self.admit(&request)?;
        let api::RollBackRequest { to, reason } = request.into_inner();
        let reason = said(&who, &reason)?;
        if to == 0 {
            if !self.control.end_canary(None, Some(&format!("{reason} took it back"))) {
                return Err(no_canary());
            }
        } else if self.control.roll_back(to, Some(reason)).is_none() {
            return Err(Status::not_found(format!("generation {to} is not remembered; see GetHistory")));
        }
        Ok(Response::new(api::RollBackResponse { generation: self.control.generation() }))
    }

    async fn promote(&self, request: Request<api::PromoteRequest>) -> Result<Response<api::PromoteResponse>, Status> {
        let who = self.admit(&request)?;
        if !self.control.end_canary(None, None) {
            return Err(no_canary());
        }
        tracing::info!(operator = &*who, "an operator gave the change to all");
        Ok(Response::new(api::PromoteResponse { generation: self.control.generation() }))
    }

    async fn watch_push(
        &self,
        request: Request<api::WatchPushRequest>,
    ) -> Result<Response<Self::WatchPushStream>, Status> {
        self.admit(&request)?;
        let place =
            request.extensions().get::<Peer>().map(|peer| self.control.access.begin_stream(peer)).transpose()?;
        let drain = self.drain.clone();
        let watcher = watch::Watcher::new(Arc::clone(&self.control), drain, place.flatten(), request.into_inner())?;
        Ok(Response::new(Box::pin(watch::statuses(watcher))))
    }

    async fn export_snapshot(
        &self,
        request: Request<api::ExportSnapshotRequest>,
    ) -> Result<Response<api::ExportSnapshotResponse>, Status> {
        let who = self.admit(&request)?;
        let api::ExportSnapshotRequest { node, folder, with_secrets } = request.into_inner();
        let node = node.unwrap_or_default();
        if with_secrets && !self.control.options.may_serve_secrets {
            return Err(Status::failed_precondition("secrets leave only through TLS, or for this machine"));
        }
        if !folder.starts_with('/') {
            return Err(Status::invalid_argument(format!("folder {folder:?} is no absolute path")));
        }
        let identity = match diff::status(&self.control, &node) {
            Some(known) => NodeIdentity::clone(&known.identity),
            None => identity(&node)?,
        };
        tracing::info!(operator = &*who, node = identity.id, with_secrets, "a node's content is exported");
        let export = Export::new(&identity, &*self.wanted(&node)?, &folder, with_secrets);
        let file = |(path, text): (String, String)| api::File { path, content: text.into() };
        Ok(Response::new(api::ExportSnapshotResponse {
            files: export.files.into_iter().map(file).collect(),
            version: export.version,
            warnings: export.warnings,
        }))
    }

    async fn get_load(&self, request: Request<api::GetLoadRequest>) -> Result<Response<api::GetLoadResponse>, Status> {
        self.admit(&request)?;
        let wanted = request.into_inner().clusters;
        let loads = &self.control.loads;
        let clusters = if wanted.is_empty() {
            // Endpoints of all clusters would be more than a client takes in one message.
            loads.without_endpoints()
        } else {
            loads.clusters(|key| wanted.contains(&key.cluster))
        };
        Ok(Response::new(api::GetLoadResponse {
            clusters: clusters.into_iter().map(view::load).collect(),
            nodes: view::count(loads.reporters()),
        }))
    }
}

impl Operator {
    /// Who asks, if that is an operator.
    fn admit<T>(&self, request: &Request<T>) -> Result<Arc<str>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::internal("the request belongs to no connection"))?;
        self.control.access.admit_operator(peer)?;
        Ok(Arc::clone(peer.certificate.as_ref().unwrap_or(&peer.address)))
    }

    /// What a node should have.
    fn wanted(&self, node: &api::NodeSelector) -> Result<Arc<Snapshot>, Status> {
        if let Some(known) = diff::status(&self.control, node) {
            return Ok(known.snapshot);
        }
        let identity = identity(node)?;
        Ok(Arc::clone(&self.control.place(&identity, &Snapshot::default()).snapshot))
    }

    async fn load(&self, files: Vec<api::File>, options: Options) -> Result<Load, Status> {
        let control = Arc::clone(&self.control);
        let load = tokio::task::spawn_blocking(move || {
            if files.is_empty() {
                return load(&control.folder, options, &control.directory());
            }
            let files = files.into_iter().map(|file| (PathBuf::from(file.path), file.content.to_vec())).collect();
            load_files(files, options, &control.directory())
        });
        load.await.map_err(|_| Status::internal("the files were not read to the end"))
    }

    /// What is not in force, but could be.
    async fn candidate(&self, files: Vec<api::File>) -> Result<Catalog, Status> {
        let load = self.load(files, self.control.options).await?;
        load.directory.map(Catalog::new).ok_or_else(|| {
            let errors: Vec<String> = load.errors.iter().take(20).map(ToString::to_string).collect();
            Status::invalid_argument(format!("the files are refused, see Validate: {}", errors.join("; ")))
        })
    }
}

/// A node that is not connected, as somebody describes it.
pub(crate) fn identity(node: &api::NodeSelector) -> Result<NodeIdentity, Status> {
    let described = culvert_api::envoy::config::core::v3::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: node.metadata.clone(),
        ..Default::default()
    };
    let identity =
        NodeIdentity::new(Some(described)).map_err(|refused| Status::invalid_argument(refused.to_string()))?;
    Ok(NodeIdentity { certificate_names: node.identities.clone(), ..identity })
}

fn said(who: &str, reason: &str) -> Result<String, Status> {
    if reason.len() > MAX_REASON {
        return Err(Status::invalid_argument(format!("reason has {} bytes; at most {MAX_REASON}", reason.len())));
    }
    Ok(if reason.is_empty() { format!("operator {who}") } else { format!("operator {who} ({reason})") })
}

fn no_canary() -> Status {
    Status::failed_precondition("there is no change that only some nodes have")
}
