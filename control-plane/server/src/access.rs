//! Who is let in, and who may do what beyond xDS.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, header};
use parking_lot::Mutex;
use tonic::Status;

use crate::args::Args;
use crate::identity::{Identities, Peer};
use crate::tokens::{Given, Tokens};

/// The rules of the command line.
#[derive(Debug)]
pub(crate) struct Access {
    /// Clients prove who they are.
    authenticated: bool,
    tokens: Option<Arc<Tokens>>,
    /// Whose certificate or token makes an operator; `None`: nobody's.
    operators: Option<Identities>,
    /// Streams of each identity.
    streams: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    max_streams: usize,
}

/// A place among the streams of one identity.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    streams: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    identity: Arc<str>,
}

impl Access {
    pub(crate) fn new(args: &Args, tokens: Option<Arc<Tokens>>) -> Self {
        Self {
            authenticated: args.tls_client_ca.is_some() || tokens.is_some(),
            tokens,
            operators: (!args.operator_identity.is_empty()).then(|| Identities::new(&args.operator_identity)),
            streams: Arc::default(),
            max_streams: args.max_streams_per_identity,
        }
    }

    /// Reads the tokens as they change, for ever.
    pub(crate) fn follow(&self) -> Option<tokio::task::JoinHandle<()>> {
        self.tokens.clone().map(|tokens| tokio::spawn(tokens.follow()))
    }

    /// Who makes a request: the connection's peer, with the name of the token that the request carries, and that token.
    pub(crate) fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<(Peer, Option<Given>), Status> {
        let Some(tokens) = &self.tokens else { return Ok((peer.clone(), None)) };
        let given = headers.get(header::AUTHORIZATION);
        let token = given.and_then(|value| value.to_str().ok()).and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        match (given, token.and_then(|(_, token)| tokens.find(token.trim()))) {
            (_, Some(token)) => Ok((peer.with_name(&token.name), Some(token))),
            // A certificate is as good.
            (None, None) if peer.certificate.is_some() => Ok((peer.clone(), None)),
            (None, None) => Err(Status::unauthenticated("a bearer token or a client certificate is needed here")),
            (Some(_), None) => Err(Status::unauthenticated("the token is not known here")),
        }
    }

    /// A place for one more stream; `None`: nobody knows whose it is.
    pub(crate) fn begin_stream(&self, peer: &Peer) -> Result<Option<StreamPlace>, Status> {
        let Some(identity) = &peer.certificate else { return Ok(None) };
        let mut streams = self.streams.lock();
        let count = streams.entry(Arc::clone(identity)).or_default();
        if *count >= self.max_streams {
            let limit = self.max_streams;
            let reason = format!("{identity} has {limit} streams already; see --max-streams-per-identity");
            return Err(Status::resource_exhausted(reason));
        }
        *count += 1;
        Ok(Some(StreamPlace { streams: Arc::clone(&self.streams), identity: Arc::clone(identity) }))
    }

    /// Lets operators in: whoever `--operator-identity` names, and where clients prove nothing, whoever is on this machine.
    pub(crate) fn admit_operator(&self, peer: &Peer) -> Result<(), Status> {
        if self.is_operator(peer) {
            return Ok(());
        }
        let refusal = match &self.operators {
            Some(_) => "the client is no operator; see --operator-identity",
            None if self.authenticated => "nobody is an operator without --operator-identity",
            None => "clients prove nothing here, so that only this machine's are operators; see --operator-identity",
        };
        tracing::warn!(peer = &*peer.address, names = ?peer.names, "a request for operators is refused: {refusal}");
        Err(Status::permission_denied(refusal))
    }

    pub(crate) fn is_operator(&self, peer: &Peer) -> bool {
        match &self.operators {
            Some(operators) => operators.allow(&peer.names, "", ""),
            None => !self.authenticated && peer.local,
        }
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        if let Some(count) = streams.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.identity);
            }
        }
    }
}
