//! What a proxy does to a request's head because it is a proxy: forwarding fields, the client's address, request ids,
//! Envoy's own fields. Envoy's `ConnectionManagerUtility::mutateRequestHeaders`; hop-by-hop fields are the codecs' part.

mod client_certificate;
pub(crate) mod path;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use culvert_http::{FieldLine, FieldName, Fields, RequestHead};
use culvert_model::http::{HttpConnectionManager, StripPort, UnderscoreAction};
use smallvec::SmallVec;

use crate::listener::Downstream;
use crate::routes::without_port;

const REQUEST_ID: FieldName = FieldName::of(b"x-request-id: ");
static FORWARDED_HTTP: FieldLine = FieldLine::of(b"x-forwarded-proto: http\r\n");
static FORWARDED_HTTPS: FieldLine = FieldLine::of(b"x-forwarded-proto: https\r\n");

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// The client's address as far as the configuration lets it be known.
    pub(crate) address: SocketAddr,
}

/// Makes the head of a request from outside one that may be routed and forwarded.
pub(crate) fn prepare(head: &mut RequestHead, config: &HttpConnectionManager, connection: &Downstream) -> Client {
    let seen = Seen::in_fields(&head.fields);
    normalize_host(head, config, connection);
    // Envoy: a request that others have forwarded is not believed to be internal.
    let direct = !config.internal_addresses.is_empty()
        && if config.use_remote_address {
            !seen.forwarded_for
        } else {
            is_one_address(&head.fields, config.xff_num_trusted_hops)
        };
    let address = client_address(head, config, connection, seen);
    let is_internal = direct && config.internal_addresses.iter().any(|range| range.contains(address.ip()));
    let is_edge = config.use_remote_address && !is_internal;
    if seen.envoys_own {
        remove_envoys_own(&mut head.fields, is_edge);
    }
    if is_internal {
        head.fields.set(b"x-envoy-internal", b"true");
    }
    if is_edge && config.xff_num_trusted_hops == 0 {
        let mut text = Text::default();
        text.write(format_args!("{}", address.ip()));
        head.fields.set(b"x-envoy-external-address", text.bytes());
    }
    client_certificate::forward(head, config, connection, seen.client_certificate);
    request_id(head, config, seen, is_edge);
    if !config.via.is_empty() {
        append(&mut head.fields, b"via", config.via.as_bytes());
    }
    Client { address }
}

/// Which of the fields that concern a proxy there are: one pass, so that the usual request pays for no other.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    forwarded_for: bool,
    forwarded_proto: bool,
    request_id: bool,
    client_certificate: bool,
    envoys_own: bool,
}

impl Seen {
    fn in_fields(fields: &Fields) -> Self {
        let mut seen = Self::default();
        for (name, _) in fields.iter() {
            // Most names are told by their first letter to be none of these.
            if name.first() != Some(&b'x') {
                continue;
            }
            match name {
                b"x-forwarded-for" => seen.forwarded_for = true,
                b"x-forwarded-proto" => seen.forwarded_proto = true,
                b"x-forwarded-client-cert" => seen.client_certificate = true,
                b"x-request-id" => seen.request_id = true,
                name => seen.envoys_own |= name.starts_with(b"x-envoy-"),
            }
        }
        seen
    }
}

/// Whether a header with an underscore in its name has to be refused; drops them if that is what is configured.
pub(crate) fn underscores(head: &mut RequestHead, action: UnderscoreAction) -> bool {
    match action {
        UnderscoreAction::Allow => false,
        UnderscoreAction::Reject => head.fields.iter().any(|(name, _)| name.contains(&b'_')),
        UnderscoreAction::Drop => {
            head.fields.retain(|name, _| !name.contains(&b'_'));
            false
        }
    }
}

/// `strip_matching_host_port`, `strip_any_host_port`, `strip_trailing_host_dot`.
fn normalize_host(head: &mut RequestHead, config: &HttpConnectionManager, connection: &Downstream) {
    if config.strip_port != StripPort::Keep {
        let host = without_port(head.authority.as_bytes()).len();
        let port = head.authority.get(host + 1..).and_then(|port| port.parse::<u16>().ok());
        let strip = match config.strip_port {
            StripPort::Keep => false,
            StripPort::Matching => port == Some(connection.local.port()),
            StripPort::Any => port.is_some(),
        };
        if strip {
            head.authority.truncate(host);
        }
    }
    if config.strip_trailing_host_dot {
        let host = without_port(head.authority.as_bytes()).len();
        if host > 1 && head.authority.as_bytes().get(host - 1) == Some(&b'.') {
            head.authority.remove(host - 1);
        }
    }
}

/// The client's address by Envoy's rules, with `x-forwarded-for` and `x-forwarded-proto` brought up to date.
fn client_address(
    head: &mut RequestHead,
    config: &HttpConnectionManager,
    connection: &Downstream,
    seen: Seen,
) -> SocketAddr {
    let hops = config.xff_num_trusted_hops;
    let mut address = connection.remote;
    if config.use_remote_address {
        if hops > 0
            && seen.forwarded_for
            && let Some(named) = forwarded_for(&head.fields, hops - 1)
        {
            address = SocketAddr::new(named, 0);
        }
        if !config.skip_xff_append {
            let mut text = Text::default();
            text.write(format_args!("{}", connection.remote.ip().to_canonical()));
            append(&mut head.fields, b"x-forwarded-for", text.bytes());
        }
    } else if seen.forwarded_for
        && let Some(named) = forwarded_for(&head.fields, hops)
    {
        address = SocketAddr::new(named, 0);
    }
    let secure = connection.tls.is_some();
    if (config.use_remote_address && hops == 0) || !seen.forwarded_proto {
        if seen.forwarded_proto {
            head.fields.remove(b"x-forwarded-proto");
        }
        head.fields.push_line(if secure { &FORWARDED_HTTPS } else { &FORWARDED_HTTP });
    } else if let Some(proto) = head.fields.get(b"x-forwarded-proto") {
        // Whoever is trusted with the client's address is trusted with its scheme.
        head.scheme = match proto {
            b"https" => "https",
            b"http" => "http",
            _ => head.scheme,
        };
    }
    if let Some(scheme) = &config.scheme_override {
        head.scheme = if &**scheme == "https" { "https" } else { "http" };
    }
    address
}

/// Whether `x-forwarded-for` is one element and no more, and names the client by it.
fn is_one_address(fields: &Fields, hops: u32) -> bool {
    let values = || fields.iter().filter(|(name, _)| *name == b"x-forwarded-for").map(|(_, value)| value);
    values().count() == 1 && values().all(|value| !value.contains(&b',')) && forwarded_for(fields, hops).is_some()
}

/// The address in `x-forwarded-for` that `skip` others follow.
fn forwarded_for(fields: &Fields, skip: u32) -> Option<IpAddr> {
    // Several fields are one list: the last field's last element comes last.
    let mut elements: SmallVec<[&[u8]; 8]> = SmallVec::new();
    for (name, value) in fields.iter() {
        if name == b"x-forwarded-for" {
            elements.extend(value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
        }
    }
    let element = elements.iter().rev().nth(usize::try_from(skip).ok()?)?;
    std::str::from_utf8(element).ok()?.parse().ok()
}

/// Adds `value` to a list field.
pub(crate) fn append(fields: &mut Fields, name: &[u8], value: &[u8]) {
    let joined: Option<SmallVec<[u8; 256]>> = fields.get(name).map(|before| {
        let mut joined: SmallVec<[u8; 256]> = before.into();
        joined.extend_from_slice(b",");
        joined.extend_from_slice(value);
        joined
    });
    match joined {
        Some(joined) => fields.set(name, &joined),
        None => fields.push(name, value),
    };
}

/// What only a trusted peer may say. Envoy's `cleanInternalHeaders`.
fn remove_envoys_own(fields: &mut Fields, is_edge: bool) {
    fields.retain(|name, _| {
        let Some(rest) = name.strip_prefix(b"x-envoy-") else { return true };
        match rest {
            b"internal"
            | b"retry-on"
            | b"retry-grpc-on"
            | b"max-retries"
            | b"retriable-status-codes"
            | b"retriable-header-names"
            | b"upstream-alt-stat-name"
            | b"upstream-rq-timeout-ms"
            | b"upstream-rq-per-try-timeout-ms"
            | b"upstream-rq-timeout-alt-response"
            | b"upstream-stream-duration-ms"
            | b"expected-rq-timeout-ms"
            | b"force-trace"
            | b"ip-tags"
            | b"original-url"
            | b"hedge-on-per-try-timeout" => false,
            b"decorator-operation"
            | b"downstream-service-cluster"
            | b"downstream-service-node"
            | b"original-path"
            | b"external-address" => !is_edge,
            _ => true,
        }
    });
}

fn request_id(head: &mut RequestHead, config: &HttpConnectionManager, seen: Seen, is_edge: bool) {
    if config.generate_request_id {
        if !seen.request_id || (is_edge && !config.preserve_external_request_id) {
            if seen.request_id {
                head.fields.remove(b"x-request-id");
            }
            head.fields.push_known(REQUEST_ID, &uuid4());
        }
    } else if is_edge && !config.preserve_external_request_id && seen.request_id {
        head.fields.remove(b"x-request-id");
    }
}

/// RFC 9562 §5.4, as text.
fn uuid4() -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    /// Where each byte's two digits stand.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    for (place, byte) in PLACES.into_iter().zip(bytes) {
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 15)];
    }
    text
}

/// A short text on the stack.
#[derive(Debug, Default)]
pub(crate) struct Text(SmallVec<[u8; 64]>);

impl Text {
    pub(crate) fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // A `SmallVec` takes everything; what was formatted cannot have failed either.
        if std::fmt::Write::write_fmt(self, arguments).is_err() {
            self.0.clear();
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
