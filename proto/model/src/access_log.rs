//! Access logs: where lines go, and formats compiled from Envoy's command operators.

use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    pub sink: Sink,
    pub format: LogFormat,
    pub filter: Option<Filter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    File(PathBuf),
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LogFormat {
    Text(Format),
    /// Keys in order; a nested object is a nested `Json`.
    Json(Vec<(Arc<str>, JsonValue)>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue {
    /// One operator alone keeps its type (number, string); several make a string.
    Format(Format),
    Object(Vec<(Arc<str>, Self)>),
    Number(f64),
    Bool(bool),
}

/// A format string, cut into literals and operators.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Format {
    pub parts: Vec<Part>,
    /// `omit_empty_values`: an absent value is nothing instead of `-`.
    pub omit_empty: bool,
}

impl Format {
    /// The text, when the format holds no operator.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Literal(Arc<str>),
    Operator { operator: Operator, max_length: Option<usize> },
}

/// Envoy's command operators that culvert-proxy knows; any other is refused with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// strftime format; empty is `%Y-%m-%dT%H:%M:%S.%3fZ`.
    StartTime(Arc<str>),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    BytesReceived,
    BytesSent,
    UpstreamWireBytesReceived,
    UpstreamWireBytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    /// Header or, when absent, the alternative.
    RequestHeader {
        name: Arc<str>,
        alternative: Option<Arc<str>>,
    },
    ResponseHeader {
        name: Arc<str>,
        alternative: Option<Arc<str>>,
    },
    ResponseTrailer {
        name: Arc<str>,
        alternative: Option<Arc<str>>,
    },
    UpstreamHost,
    UpstreamHostName,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    UpstreamTransportFailureReason,
    UpstreamRequestAttemptCount,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamRemotePort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    DownstreamPeerUriSan,
    DownstreamPeerSubject,
    DownstreamPeerFingerprint256,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    FilterChainName,
    ConnectionId,
    StreamId,
    Hostname,
    GrpcStatus,
}

/// Which requests are logged.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    StatusCode {
        op: Comparison,
        value: u32,
    },
    Duration {
        op: Comparison,
        milliseconds: u64,
    },
    Header(crate::matcher::HeaderMatcher),
    ResponseFlags(Vec<Arc<str>>),
    /// Of 1,000,000.
    Runtime(u32),
    NotHealthCheck,
    And(Vec<Self>),
    Or(Vec<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    GreaterOrEqual,
    LessOrEqual,
}
