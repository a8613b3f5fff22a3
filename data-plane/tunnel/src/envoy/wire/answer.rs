//! What a responder answers: Envoy's own statuses and words, and honest ones where Envoy says 200 and closes.

use super::{TLS_KEPT, UPGRADE};

/// An answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Answer {
    #[error("accepted")]
    Accepted {
        /// 101 instead of 200.
        upgrade: bool,
        /// To a peer that keeps its TLS session, and only to it.
        tls_kept: bool,
    },
    #[error("not a request that can be read")]
    BadRequest,
    #[error("not a reverse tunnel request")]
    NotFound,
    #[error("no upgrade to {UPGRADE}, which is demanded here")]
    UpgradeRequired,
    #[error("HTTP/1.0")]
    HttpVersion,
    #[error("a head of more than 64 KiB or 100 fields")]
    HeadTooLarge,
    #[error("a body")]
    Body,
    #[error("node, cluster or tenant id missing")]
    HeadersMissing,
    #[error("an empty tenant id")]
    TenantEmpty,
    /// Envoy answers 200 and closes.
    #[error("an empty node id")]
    NodeEmpty,
    #[error("an empty cluster id")]
    ClusterEmpty,
    /// Twice, longer than 8 KiB, or no UTF-8: Envoy takes the first, or the bytes.
    #[error("an id twice, too long, or not text")]
    IdInvalid,
    #[error("an id with a colon, where tenants are kept apart")]
    IdColon,
    #[error("upstream cluster name missing")]
    UpstreamClusterMissing,
    #[error("another upstream cluster name than demanded")]
    UpstreamClusterWrong,
    #[error("no credential, or a wrong one")]
    Unauthenticated,
    #[error("ids are not those that the validation demands, or the cluster is not allowed")]
    ValidationFailed,
    #[error("leaves TLS after the handshake, which is not allowed here")]
    TlsLeft,
    #[error("as many connections as allowed")]
    TooMany,
    #[error("no such cluster")]
    ClusterUnknown,
    #[error("takes no tunnels now")]
    Unavailable,
}

impl Answer {
    /// Its bytes. A refusal says that the connection closes, as it does.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let (status, body) = self.parts();
        if let Self::Accepted { upgrade, tls_kept } = self {
            let kept = if tls_kept { format!("{TLS_KEPT}: kept\r\n") } else { String::new() };
            let fields = if upgrade {
                format!("connection: upgrade\r\nupgrade: {UPGRADE}\r\n")
            } else {
                "content-length: 0\r\n".to_owned()
            };
            return format!("HTTP/1.1 {status}\r\n{fields}{kept}\r\n").into_bytes();
        }
        let more = match self {
            Self::UpgradeRequired => format!("upgrade: {UPGRADE}\r\n"),
            Self::TooMany | Self::Unavailable => "retry-after: 1\r\n".to_owned(),
            _ => String::new(),
        };
        format!(
            "HTTP/1.1 {status}\r\n{more}content-type: text/plain\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             {:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
        .into_bytes()
    }

    /// Status line without the version, and body.
    fn parts(self) -> (&'static str, &'static str) {
        const BAD: &str = "400 Bad Request";
        const FORBIDDEN: &str = "403 Forbidden";
        match self {
            Self::Accepted { upgrade: false, .. } => ("200 OK", ""),
            Self::Accepted { upgrade: true, .. } => ("101 Switching Protocols", ""),
            Self::BadRequest => (BAD, "Bad Request"),
            Self::NotFound => ("404 Not Found", "Not a reverse tunnel request"),
            Self::UpgradeRequired => ("426 Upgrade Required", "Upgrade: reverse-tunnel required"),
            Self::HttpVersion => ("426 Upgrade Required", "Upgrade Required"),
            Self::HeadTooLarge => ("431 Request Header Fields Too Large", "Request Header Fields Too Large"),
            Self::Body => (BAD, "Reverse tunnel handshake must not carry a body"),
            Self::HeadersMissing => (BAD, "Missing required reverse tunnel headers"),
            Self::TenantEmpty => (BAD, "Empty tenant-id header value"),
            Self::NodeEmpty => (BAD, "Empty node-id header value"),
            Self::ClusterEmpty => (BAD, "Empty cluster-id header value"),
            Self::IdInvalid => (BAD, "Invalid reverse tunnel identifiers"),
            Self::IdColon => (BAD, "Reverse tunnel identifiers must not contain ':' when tenant isolation is enabled"),
            Self::UpstreamClusterMissing => (BAD, "Missing upstream cluster name header"),
            Self::UpstreamClusterWrong => (BAD, "Cluster name mismatch"),
            Self::Unauthenticated => ("401 Unauthorized", "JWT authentication failed"),
            Self::ValidationFailed => (FORBIDDEN, "validation_failed"),
            Self::TlsLeft => (FORBIDDEN, "TLS must cover the whole tunnel"),
            Self::TooMany => ("429 Too Many Requests", "rejected"),
            Self::ClusterUnknown => (FORBIDDEN, "cluster_unknown"),
            Self::Unavailable => ("503 Service Unavailable", "unavailable"),
        }
    }
}
