//! What a node that polls has asked for and was given, as far as it is remembered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_api::google::rpc;
use culvert_xds::server::TypeStatus;
use culvert_xds::{NodeIdentity, Resource, Session, SessionConfig, Snapshot, StreamId, StreamKind, Variant};

/// Bytes that all names take in a request that is remembered for the node's status; one with more is answered, and shown as nothing that
/// it asked for.
const MAX_NAMES: usize = 64 << 10;
/// Of what a node says of a response that it refuses, in characters.
const MAX_REASON: usize = 1024;
/// Of a version, in characters: more than ours have.
const MAX_VERSION: usize = 64;

/// The latest request of each type.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(BTreeMap<&'static str, Latest>);

#[derive(Debug, Clone)]
struct Latest {
    request: DiscoveryRequest,
    at: Duration,
    /// What it was answered from, and with which version.
    served: Arc<Snapshot>,
    given: String,
    /// What the version was made from that it says it has, as long as that is known.
    holds: Option<Arc<Snapshot>>,
}

impl Asked {
    /// The node asks, and is answered from a snapshot.
    pub(super) fn note(&mut self, of: &'static str, request: &DiscoveryRequest, served: &Arc<Snapshot>, at: Duration) {
        let before = self.0.remove(of);
        // Empty ones take memory too.
        let taken = request.resource_names.iter().map(|name| name.len() + size_of::<String>());
        if taken.sum::<usize>() > MAX_NAMES {
            return;
        }
        let holds = before.and_then(|before| match request.version_info.as_str() {
            version if version == before.given => Some(before.served),
            version if version == before.request.version_info => before.holds,
            _ => None,
        });
        let served = Arc::clone(served);
        self.0.insert(of, Latest { request: remembered(of, request), at, served, given: String::new(), holds });
    }

    /// With this version.
    pub(super) fn answered(&mut self, of: &'static str, given: &str) {
        let Some(latest) = self.0.get_mut(of) else { return };
        given.clone_into(&mut latest.given);
        if latest.request.version_info == given {
            latest.holds = Some(Arc::clone(&latest.served));
        }
    }

    /// What the requests say of what the node would be served now.
    pub(super) fn status(
        self,
        config: SessionConfig,
        identity: Arc<NodeIdentity>,
        present: Arc<Snapshot>,
    ) -> Vec<TypeStatus> {
        let mut session = begin(config, identity, present);
        for (of, latest) in self.0 {
            replay(&mut session, of, latest);
        }
        session.status()
    }

    /// What the requests say that the node holds.
    pub(super) fn held(self, config: &SessionConfig, identity: &Arc<NodeIdentity>) -> Vec<Arc<Resource>> {
        let of_type = |(of, mut latest): (&'static str, Latest)| {
            let snapshot = latest.holds.take()?;
            // What it refused is not what it holds.
            latest.request.error_detail = None;
            let mut session = begin(config.clone(), Arc::clone(identity), snapshot);
            replay(&mut session, of, latest);
            Some(session.held().cloned().collect::<Vec<_>>())
        };
        self.0.into_iter().filter_map(of_type).flatten().collect()
    }
}

fn remembered(of: &'static str, request: &DiscoveryRequest) -> DiscoveryRequest {
    let error_detail = request.error_detail.as_ref().map(|error| {
        let message = error.message.chars().take(MAX_REASON).collect();
        rpc::Status { code: error.code, message, details: Vec::new() }
    });
    DiscoveryRequest {
        type_url: of.to_owned(),
        resource_names: request.resource_names.clone(),
        // A version that is none of ours is none that could be held.
        version_info: request.version_info.chars().take(MAX_VERSION).collect(),
        error_detail,
        ..DiscoveryRequest::default()
    }
}

const ONLY: StreamId = StreamId(0);

fn begin(config: SessionConfig, identity: Arc<NodeIdentity>, snapshot: Arc<Snapshot>) -> Session {
    let mut session = Session::new(config, identity, snapshot);
    let opened = session.open(ONLY, StreamKind { variant: Variant::Sotw, type_url: None });
    debug_assert!(opened.is_ok(), "the first stream of a session");
    session
}

/// As a stream with this request and the answer to it.
fn replay(session: &mut Session, of: &'static str, Latest { request, at, .. }: Latest) {
    session.tell_time(at);
    let first = DiscoveryRequest { version_info: String::new(), error_detail: None, ..request.clone() };
    if let Err(error) = session.on_request(ONLY, &first) {
        // The node was told so when it asked.
        tracing::trace!(%error, type_url = of, "a node that polls has asked for what cannot be answered");
        return;
    }
    let mut responses = std::iter::from_fn(|| session.poll_stream(ONLY, at)).map(|response| response.to_sotw());
    let Some(response) = responses.find(|response| response.type_url == of) else { return };
    let holds = request.version_info == response.version_info;
    if holds || request.error_detail.is_some() {
        let error_detail = request.error_detail.clone().filter(|_| !holds);
        let answer = DiscoveryRequest { response_nonce: response.nonce, error_detail, ..request };
        if let Err(error) = session.on_request(ONLY, &answer) {
            tracing::debug!(%error, type_url = of, "what a node that polls has said is no answer");
        }
    }
}
