//! Evaluates formats: cut into literals and command operators when they were parsed, written straight into a buffer.

mod json;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;

use culvert_http::{Fields, RequestHead, Version};
use culvert_model::access_log::{Format, Operator, Part};
use tokio::time::Instant;

pub(crate) use json::{quoted, write_json};
pub(crate) use time::{http_date, write_time};

use crate::flags::ResponseFlag;
use crate::record::Scene;

/// What the operators of a format stand for.
pub(crate) trait Values {
    /// Appends an operator's value; whether there is one.
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool;

    /// Values that are numbers, also in JSON.
    fn number(&self, operator: &Operator) -> Option<u64>;
}

impl Values for Scene<'_> {
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        write_operator(operator, self, out)
    }

    fn number(&self, operator: &Operator) -> Option<u64> {
        number(operator, self)
    }
}

/// Appends what `format` makes of `values`. An absent value is `-`, or nothing if the format or the caller says so.
pub(crate) fn write_format(format: &Format, omit_empty: Absent, values: &impl Values, out: &mut Vec<u8>) {
    for part in &format.parts {
        match part {
            Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Part::Operator { operator, max_length } => {
                let start = out.len();
                if values.write(operator, out) {
                    truncate(out, start, *max_length);
                } else if omit_empty == Absent::Dash && !format.omit_empty {
                    out.push(b'-');
                }
            }
        }
    }
}

/// What stands for a value that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Dash,
    Nothing,
}

/// Cuts what was written from `start` on to `max` bytes, at a character's boundary where the text is UTF-8.
fn truncate(out: &mut Vec<u8>, start: usize, max: Option<usize>) {
    let Some(end) = max.map(|max| start + max).filter(|end| *end < out.len()) else { return };
    let is_continuation = |byte: Option<&u8>| byte.is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    let end = (end.saturating_sub(3)..=end).rev().find(|end| !is_continuation(out.get(*end))).unwrap_or(end);
    out.truncate(end.max(start));
}

/// Appends an operator's value; whether there is one.
fn write_operator(operator: &Operator, scene: &Scene<'_>, out: &mut Vec<u8>) -> bool {
    let record = scene.record;
    if let Some(number) = number(operator, scene) {
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(digits.format(number).as_bytes());
        return true;
    }
    match operator {
        Operator::StartTime(format) => write_time(format, wall_clock(record.start), out),
        Operator::RequestHeader { name, alternative } => {
            let value = |name: &str| scene.request.and_then(|head| request_value(head, name));
            return bytes(value(name).or_else(|| value(alternative.as_deref()?)), out);
        }
        Operator::ResponseHeader { name, alternative } => {
            let fields = scene.response.map(|head| &head.fields);
            return bytes(field(fields, name, alternative.as_deref()), out);
        }
        Operator::ResponseTrailer { name, alternative } => {
            return bytes(field(scene.trailers, name, alternative.as_deref()), out);
        }
        Operator::ResponseFlags => return write_flags(scene, ResponseFlag::short, out),
        Operator::ResponseFlagsLong => return write_flags(scene, ResponseFlag::long, out),
        Operator::GrpcStatus => return bytes(grpc_status(scene), out),
        operator => {
            if let Some(text) = text(operator, scene) {
                out.extend_from_slice(text.as_bytes());
                return !text.is_empty();
            }
            return match address(operator, scene) {
                Some((address, With::Port)) => write!(out, "{address}").is_ok(),
                Some((address, With::NoPort)) => write!(out, "{}", address.ip()).is_ok(),
                None => false,
            };
        }
    }
    true
}

/// Values that are numbers, also in JSON.
fn number(operator: &Operator, scene: &Scene<'_>) -> Option<u64> {
    let record = scene.record;
    let since_start = |at: Option<Instant>| at.map(|at| milliseconds(record.start, at));
    match operator {
        Operator::ResponseCode => Some(u64::from(record.status)),
        Operator::BytesReceived => Some(record.bytes_received),
        Operator::BytesSent => Some(record.bytes_sent),
        Operator::UpstreamWireBytesReceived => Some(record.upstream_received),
        Operator::UpstreamWireBytesSent => Some(record.upstream_sent),
        Operator::Duration => since_start(record.end),
        Operator::RequestDuration => since_start(record.request_done),
        Operator::ResponseDuration => since_start(record.response_begun),
        Operator::ResponseTxDuration => Some(milliseconds(record.response_begun?, record.end?)),
        Operator::UpstreamRequestAttemptCount => Some(u64::from(record.attempts)),
        Operator::DownstreamRemotePort => Some(u64::from(record.remote.port())),
        Operator::DownstreamLocalPort => Some(u64::from(record.connection.local.port())),
        Operator::ConnectionId => Some(record.connection.id),
        _ => None,
    }
}

fn text<'a>(operator: &Operator, scene: &Scene<'a>) -> Option<Cow<'a, str>> {
    let record = scene.record;
    let tls = record.connection.tls.as_ref();
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let text = match operator {
        Operator::Protocol => version(scene.request.map(|head| head.version).or(record.protocol)?),
        Operator::UpstreamProtocol => version(record.upstream.as_ref()?.protocol?),
        Operator::ResponseCodeDetails => &record.details,
        Operator::UpstreamHostName => record.upstream.as_ref()?.host_name.as_deref()?,
        Operator::UpstreamCluster => record.cluster.as_deref()?,
        Operator::UpstreamTransportFailureReason => record.transport_failure.as_deref()?,
        Operator::DownstreamTlsVersion => tls?.version,
        Operator::DownstreamTlsCipher => &tls?.cipher,
        Operator::DownstreamPeerUriSan => return peer.map(|peer| Cow::Owned(peer.uri_sans.join(","))),
        Operator::DownstreamPeerDnsSan => return peer.map(|peer| Cow::Owned(peer.dns_sans.join(","))),
        Operator::DownstreamPeerSubject => &peer?.subject,
        Operator::DownstreamPeerFingerprint256 => &peer?.sha256,
        Operator::RequestedServerName => record.connection.server_name.as_deref()?,
        Operator::RouteName => record.route,
        Operator::VirtualHostName => record.virtual_host,
        Operator::FilterChainName => &record.connection.chain,
        Operator::Hostname => scene.hostname,
        Operator::StreamId => std::str::from_utf8(scene.request?.fields.get(b"x-request-id")?).ok()?,
        _ => return None,
    };
    Some(Cow::Borrowed(text))
}

enum With {
    Port,
    NoPort,
}

fn address(operator: &Operator, scene: &Scene<'_>) -> Option<(SocketAddr, With)> {
    let record = scene.record;
    let connection = record.connection;
    let upstream = record.upstream.as_ref();
    Some(match operator {
        Operator::DownstreamRemoteAddress => (record.remote, With::Port),
        Operator::DownstreamRemoteAddressWithoutPort => (record.remote, With::NoPort),
        Operator::DownstreamDirectRemoteAddress => (connection.remote, With::Port),
        Operator::DownstreamDirectRemoteAddressWithoutPort => (connection.remote, With::NoPort),
        Operator::DownstreamLocalAddress => (connection.local, With::Port),
        Operator::DownstreamLocalAddressWithoutPort => (connection.local, With::NoPort),
        Operator::UpstreamHost => (upstream?.host?, With::Port),
        Operator::UpstreamLocalAddress => (upstream?.local?, With::Port),
        Operator::UpstreamRemoteAddress => (upstream?.remote?, With::Port),
        _ => return None,
    })
}

fn write_flags(scene: &Scene<'_>, name: fn(ResponseFlag) -> &'static str, out: &mut Vec<u8>) -> bool {
    for (flag, index) in scene.record.flags.iter().zip(0_usize..) {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    if scene.record.flags.is_empty() {
        // A value of its own, in JSON too, where what is absent is null.
        out.push(b'-');
    }
    true
}

/// A request header, pseudo-headers included.
pub(crate) fn request_value<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    match name {
        ":method" => Some(head.method.as_str().as_bytes()),
        ":path" => Some(head.path.as_bytes()),
        ":authority" | "host" => Some(head.authority.as_bytes()).filter(|authority| !authority.is_empty()),
        ":scheme" => Some(head.scheme.as_bytes()),
        name => head.fields.get(name.as_bytes()),
    }
}

fn field<'a>(fields: Option<&'a Fields>, name: &str, alternative: Option<&str>) -> Option<&'a [u8]> {
    let fields = fields?;
    fields.get(name.as_bytes()).or_else(|| fields.get(alternative?.as_bytes()))
}

fn grpc_status<'a>(scene: &Scene<'a>) -> Option<&'a [u8]> {
    let in_head = || scene.response.and_then(|head| head.fields.get(b"grpc-status"));
    let value = scene.trailers.and_then(|trailers| trailers.get(b"grpc-status")).or_else(in_head)?;
    let code = std::str::from_utf8(value).ok()?.parse::<usize>().ok()?;
    Some(GRPC_CODES.get(code).map_or(value, |name| name.as_bytes()))
}

fn bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return false };
    out.extend_from_slice(value);
    true
}

fn milliseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock's reading at a moment of the monotonic one.
fn wall_clock(at: Instant) -> std::time::SystemTime {
    let now = std::time::SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

/// As Envoy prints it.
pub(crate) const fn version(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
        Version::Http2 => "HTTP/2",
    }
}

const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
