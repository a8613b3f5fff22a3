//! Format strings: literals and Envoy's command operators (`%REQ(X?Y):10%`).

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::report::{Report, clip};
use crate::scalar;

/// A format string, cut into literals and operators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Format {
    pub parts: Vec<Part>,
    /// `omit_empty_values`: an absent value is nothing instead of `-`.
    pub omit_empty: bool,
}

impl Format {
    /// Cuts a format string into its parts.
    ///
    /// # Errors
    /// What is wrong: an operator that is not known (with the nearest one that is), an argument that it does not take,
    /// or a `%` that begins nothing (`%%` is a percent sign).
    pub fn parse(text: &str, omit_empty: bool) -> Result<Self, String> {
        Self::parse_of(text, omit_empty, Subject::Request)
    }

    /// As [`Self::parse`], for a format of that subject.
    ///
    /// # Errors
    /// As [`Self::parse`], and an operator that the subject has nothing for.
    pub(crate) fn parse_of(text: &str, omit_empty: bool, subject: Subject) -> Result<Self, String> {
        let parts = parts(text)?;
        let metadata = |part: &Part| matches!(part, Part::Operator { operator: Operator::DynamicMetadata { .. }, .. });
        if subject == Subject::Request && parts.iter().any(metadata) {
            return Err("`%DYNAMIC_METADATA%`: requests have no dynamic metadata; tunnels have".to_owned());
        }
        Ok(Self { parts, omit_empty })
    }

    /// Envoy's default line.
    #[must_use]
    pub fn default_line() -> Self {
        Self::parse(DEFAULT_LINE, false).unwrap_or_default()
    }

    /// As [`Self::parse`], reporting at `field`.
    pub(crate) fn report(report: &mut Report, field: &'static str, text: &str, omit_empty: bool) -> Option<Self> {
        Self::parse(text, omit_empty).map_err(|reason| report.error_at(field, reason)).ok()
    }

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Literal(Arc<str>),
    Operator { operator: Operator, max_length: Option<usize> },
}

/// What a format speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A request or a connection.
    Request,
    /// An event in a tunnel's life.
    Tunnel,
}

/// Cuts a format string into literals and operators.
pub(crate) fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        let (part, after) = operator(after)?;
        parts.push(part);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(parts)
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
    /// `alt_stat_name` where there is one.
    UpstreamCluster,
    UpstreamClusterRaw,
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
    DownstreamPeerDnsSan,
    DownstreamPeerSubject,
    DownstreamPeerFingerprint256,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    FilterChainName,
    ConnectionId,
    StreamId,
    Hostname,
    /// `OK`, `InvalidArgument`.
    GrpcStatus,
    /// `OK`, `INVALID_ARGUMENT`.
    GrpcStatusSnake,
    GrpcStatusNumber,
    /// `NAMESPACE:KEY:KEY`; no key: the whole namespace, as JSON.
    DynamicMetadata {
        namespace: Arc<str>,
        path: Vec<Arc<str>>,
    },
}

impl Operator {
    /// As it stands in formats.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::StartTime(_) => "START_TIME",
            Self::RequestHeader { .. } => "REQ",
            Self::ResponseHeader { .. } => "RESP",
            Self::ResponseTrailer { .. } => "TRAILER",
            Self::GrpcStatus | Self::GrpcStatusSnake => "GRPC_STATUS",
            Self::DynamicMetadata { .. } => "DYNAMIC_METADATA",
            plain => PLAIN.iter().find(|(_, operator)| operator == plain).map_or("", |(name, _)| name),
        }
    }
}

/// Parses what stands behind an opening `%`; also yields what stands behind the closing one.
fn operator(text: &str) -> Result<(Part, &str), String> {
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    if name.is_empty() {
        return Err(format!(
            "`%{}`: a command operator in upper case follows `%`; write `%%` for a percent sign",
            clip(text)
        ));
    }
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(rest) => argument(name, rest).map(|(argument, rest)| (Some(argument), rest))?,
        None => (None, rest),
    };
    let unclosed = || format!("`%{name}` is not closed by a `%`");
    let (length, rest) = match rest.strip_prefix(':') {
        Some(rest) => {
            let (digits, rest) = rest.split_once('%').ok_or_else(unclosed)?;
            let length = digits.parse().map_err(|_| format!("`%{name}`: {:?} is not a length", clip(digits)))?;
            (Some(length), rest)
        }
        None => (None, rest.strip_prefix('%').ok_or_else(unclosed)?),
    };
    Ok((Part::Operator { operator: named(name, argument)?, max_length: length }, rest))
}

/// The argument ends at the first `)` behind which the operator ends: times hold `%` and parentheses.
fn argument<'t>(name: &str, text: &'t str) -> Result<(&'t str, &'t str), String> {
    for (at, _) in text.match_indices(')') {
        let (argument, rest) = text.split_at_checked(at).unwrap_or((text, ""));
        let rest = rest.strip_prefix(')').unwrap_or(rest);
        let behind = rest.strip_prefix(':').map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        if behind.starts_with('%') {
            return Ok((argument, rest));
        }
    }
    Err(format!("`%{name}(`: the argument is not closed by `)%` or by `):`, a length and `%`"))
}

fn named(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let header = || headers(name, argument);
    match name {
        "START_TIME" => return Ok(Operator::StartTime(argument.unwrap_or_default().into())),
        "REQ" | "REQUEST_HEADER" => {
            return header().map(|(name, alternative)| Operator::RequestHeader { name, alternative });
        }
        "RESP" | "RESPONSE_HEADER" => {
            return header().map(|(name, alternative)| Operator::ResponseHeader { name, alternative });
        }
        "TRAILER" | "RESPONSE_TRAILER" => {
            return header().map(|(name, alternative)| Operator::ResponseTrailer { name, alternative });
        }
        "DYNAMIC_METADATA" => {
            let mut words = argument.unwrap_or_default().split(':').map(Arc::<str>::from);
            let namespace = words.next().filter(|namespace| !namespace.is_empty());
            let namespace = namespace.ok_or("`%DYNAMIC_METADATA()%` names no namespace; write NAMESPACE:KEY")?;
            return Ok(Operator::DynamicMetadata { namespace, path: words.collect() });
        }
        "GRPC_STATUS" => {
            return match argument {
                None | Some("" | "CAMEL_STRING") => Ok(Operator::GrpcStatus),
                Some("SNAKE_STRING") => Ok(Operator::GrpcStatusSnake),
                Some("NUMBER") => Ok(Operator::GrpcStatusNumber),
                Some(other) => {
                    Err(format!("`%GRPC_STATUS({})%`: the format is CAMEL_STRING, SNAKE_STRING or NUMBER", clip(other)))
                }
            };
        }
        _ => {}
    }
    let Some((_, operator)) = PLAIN.iter().find(|(known, _)| *known == name) else {
        let nearest = nearest(name);
        return Err(format!("`%{}%` is not a known operator; the nearest is `%{nearest}%`", clip(name)));
    };
    match argument {
        None | Some("") => Ok(operator.clone()),
        Some(argument) => Err(format!("`%{name}({})%`: the operator takes no argument", clip(argument))),
    }
}

/// `X?Y`: a header and the one that stands in for it.
fn headers(name: &str, argument: Option<&str>) -> Result<(Arc<str>, Option<Arc<str>>), String> {
    let argument = argument.unwrap_or_default();
    let (first, alternative) = match argument.split_once('?') {
        Some((first, alternative)) => (first, Some(alternative)),
        None => (argument, None),
    };
    let valid = |header: &str| {
        let plain = header.strip_prefix(':').unwrap_or(header);
        !plain.is_empty() && plain.bytes().all(scalar::is_token)
    };
    if !valid(first) || alternative.is_some_and(|alternative| !valid(alternative)) {
        return Err(format!("`%{name}({})%`: the argument is a header name, or two as in `X?Y`", clip(argument)));
    }
    let lower = |header: &str| header.to_ascii_lowercase().into();
    Ok((lower(first), alternative.map(lower)))
}

/// The known operator that takes the fewest edits to reach.
fn nearest(name: &str) -> &'static str {
    let known = PLAIN.iter().map(|(known, _)| *known).chain(WITH_ARGUMENT.iter().copied());
    known.min_by_key(|known| distance(name, known)).unwrap_or_default()
}

/// Levenshtein's distance, of the first characters of a hostile name.
fn distance(left: &str, right: &str) -> usize {
    let left = left.get(..left.len().min(64)).unwrap_or(left);
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(right.bytes()) {
            let above = *cell;
            last = (diagonal + usize::from(a != b)).min(above + 1).min(last + 1);
            *cell = last;
            diagonal = above;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

const WITH_ARGUMENT: &[&str] = &[
    "START_TIME",
    "REQ",
    "REQUEST_HEADER",
    "RESP",
    "RESPONSE_HEADER",
    "TRAILER",
    "RESPONSE_TRAILER",
    "GRPC_STATUS",
    "DYNAMIC_METADATA",
];

/// Operators that take no argument.
const PLAIN: &[(&str, Operator)] = &[
    ("PROTOCOL", Operator::Protocol),
    ("UPSTREAM_PROTOCOL", Operator::UpstreamProtocol),
    ("RESPONSE_CODE", Operator::ResponseCode),
    ("RESPONSE_CODE_DETAILS", Operator::ResponseCodeDetails),
    ("CONNECTION_TERMINATION_DETAILS", Operator::ConnectionTerminationDetails),
    ("RESPONSE_FLAGS", Operator::ResponseFlags),
    ("RESPONSE_FLAGS_LONG", Operator::ResponseFlagsLong),
    ("BYTES_RECEIVED", Operator::BytesReceived),
    ("BYTES_SENT", Operator::BytesSent),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", Operator::UpstreamWireBytesReceived),
    ("UPSTREAM_WIRE_BYTES_SENT", Operator::UpstreamWireBytesSent),
    ("DURATION", Operator::Duration),
    ("REQUEST_DURATION", Operator::RequestDuration),
    ("RESPONSE_DURATION", Operator::ResponseDuration),
    ("RESPONSE_TX_DURATION", Operator::ResponseTxDuration),
    ("UPSTREAM_HOST", Operator::UpstreamHost),
    ("UPSTREAM_HOST_NAME", Operator::UpstreamHostName),
    ("UPSTREAM_CLUSTER", Operator::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Operator::UpstreamClusterRaw),
    ("UPSTREAM_LOCAL_ADDRESS", Operator::UpstreamLocalAddress),
    ("UPSTREAM_REMOTE_ADDRESS", Operator::UpstreamRemoteAddress),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Operator::UpstreamTransportFailureReason),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Operator::UpstreamRequestAttemptCount),
    ("DOWNSTREAM_REMOTE_ADDRESS", Operator::DownstreamRemoteAddress),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Operator::DownstreamRemoteAddressWithoutPort),
    ("DOWNSTREAM_REMOTE_PORT", Operator::DownstreamRemotePort),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Operator::DownstreamDirectRemoteAddress),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Operator::DownstreamDirectRemoteAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_ADDRESS", Operator::DownstreamLocalAddress),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Operator::DownstreamLocalAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_PORT", Operator::DownstreamLocalPort),
    ("DOWNSTREAM_TLS_VERSION", Operator::DownstreamTlsVersion),
    ("DOWNSTREAM_TLS_CIPHER", Operator::DownstreamTlsCipher),
    ("DOWNSTREAM_PEER_URI_SAN", Operator::DownstreamPeerUriSan),
    ("DOWNSTREAM_PEER_DNS_SAN", Operator::DownstreamPeerDnsSan),
    ("DOWNSTREAM_PEER_SUBJECT", Operator::DownstreamPeerSubject),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", Operator::DownstreamPeerFingerprint256),
    ("REQUESTED_SERVER_NAME", Operator::RequestedServerName),
    ("ROUTE_NAME", Operator::RouteName),
    ("VIRTUAL_HOST_NAME", Operator::VirtualHostName),
    ("FILTER_CHAIN_NAME", Operator::FilterChainName),
    ("CONNECTION_ID", Operator::ConnectionId),
    ("STREAM_ID", Operator::StreamId),
    ("HOSTNAME", Operator::Hostname),
    ("GRPC_STATUS_NUMBER", Operator::GrpcStatusNumber),
];

/// Envoy's default format of HTTP and TCP access logs.
const DEFAULT_LINE: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);
