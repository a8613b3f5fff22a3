//! Who may do what beyond xDS.

use tonic::Status;

use crate::args::Args;
use crate::identity::{Identities, Peer};

/// The rules of the command line.
#[derive(Debug)]
pub(crate) struct Access {
    /// Clients prove who they are.
    authenticated: bool,
    /// Whose certificate makes an operator; `None`: nobody's.
    operators: Option<Identities>,
}

impl Access {
    pub(crate) fn new(args: &Args) -> Self {
        Self {
            authenticated: args.tls_client_ca.is_some(),
            operators: (!args.operator_identity.is_empty()).then(|| Identities::new(&args.operator_identity)),
        }
    }

    /// Lets operators in: whoever `--operator-identity` names, and where clients prove nothing, whoever is on this machine.
    pub(crate) fn admit_operator(&self, peer: &Peer) -> Result<(), Status> {
        let refusal = match &self.operators {
            Some(operators) if operators.allow(&peer.names, "", "") => return Ok(()),
            None if !self.authenticated && peer.local => return Ok(()),
            Some(_) => "the client is no operator; see --operator-identity",
            None if self.authenticated => "nobody is an operator without --operator-identity",
            None => "clients prove nothing here, so that only this machine's are operators; see --operator-identity",
        };
        tracing::warn!(peer = &*peer.address, names = ?peer.names, "a request for operators is refused: {refusal}");
        Err(Status::permission_denied(refusal))
    }
}
