//! Access logs of the life of tunnels (`access_log` of Envoy's bootstrap extensions of reverse tunnels): what the tunnel crate
//! tells, written as these logs are.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_model::access_log::{AccessLog, Filter, Operator};
use culvert_runtime::access_log::LogWriter;
use culvert_tunnel::lifecycle::{Journal, Lifecycle};

use crate::Process;
use crate::access_log::{FilterShares, LogError, bind, compare, destination, is_sampled, write_line};
use crate::format::{Values, quoted, write_time};

/// The logs of one extension; their destinations are open. One writer for all workers: events are rare.
#[derive(Debug)]
pub struct TunnelLogs {
    logs: Vec<(Arc<AccessLog>, FilterShares, LogWriter)>,
    hostname: Arc<str>,
}

impl TunnelLogs {
    /// `None`: nothing is to be logged.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(logs: &[Arc<AccessLog>], process: &Process) -> Result<Option<Arc<dyn Journal>>, LogError> {
        if logs.is_empty() {
            return Ok(None);
        }
        let open = |log: &Arc<AccessLog>| {
            let shares = log.filter.as_ref().map(|filter| bind(filter, &process.shares)).unwrap_or_default();
            Ok((Arc::clone(log), shares, process.logs.writer(&destination(&log.sink))?))
        };
        let logs = logs.iter().map(open).collect::<Result<_, LogError>>()?;
        Ok(Some(Arc::new(Self { logs, hostname: Arc::clone(&process.hostname) })))
    }
}

impl Journal for TunnelLogs {
    fn log(&self, event: &Lifecycle<'_>) {
        let told = Told { event, hostname: &self.hostname };
        for (log, shares, writer) in &self.logs {
            if log.filter.as_ref().is_none_or(|filter| passes(filter, shares, event)) {
                writer.append(|line| write_line(&log.format, &told, line));
            }
        }
    }
}

/// An event has no request, hence no status, header or flag. A filter that asks for one finds none, as in Envoy.
fn passes(filter: &Filter, shares: &FilterShares, event: &Lifecycle<'_>) -> bool {
    match filter {
        Filter::StatusCode { op, value } => compare(*op, 0, u64::from(*value)),
        Filter::Duration { op, milliseconds: limit } => compare(*op, milliseconds(event), *limit),
        Filter::Header(_) | Filter::ResponseFlags(_) => false,
        Filter::Runtime(share) => is_sampled(share, shares),
        Filter::NotHealthCheck => true,
        Filter::And(filters) => filters.iter().all(|filter| passes(filter, shares, event)),
        Filter::Or(filters) => filters.iter().any(|filter| passes(filter, shares, event)),
    }
}

fn milliseconds(event: &Lifecycle<'_>) -> u64 {
    u64::try_from(event.age.as_millis()).unwrap_or(u64::MAX)
}

struct Told<'a> {
    event: &'a Lifecycle<'a>,
    hostname: &'a str,
}

impl Told<'_> {
    /// A field, or all of them as a JSON object.
    fn write_metadata(&self, namespace: &str, path: &[Arc<str>], out: &mut Vec<u8>) -> bool {
        if namespace != self.event.namespace {
            return false;
        }
        let fields = &self.event.fields;
        match path {
            [] => {
                out.push(b'{');
                for ((name, value), index) in fields.iter().zip(0_usize..) {
                    if index > 0 {
                        out.push(b',');
                    }
                    quoted(out, |out| out.extend_from_slice(name.as_bytes()));
                    out.push(b':');
                    quoted(out, |out| out.extend_from_slice(value.as_bytes()));
                }
                out.push(b'}');
                true
            }
            [name] => text(fields.iter().find(|(known, _)| **known == **name).map(|(_, value)| &**value), out),
            _ => false,
        }
    }
}

impl Values for Told<'_> {
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let event = self.event;
        if let Some(number) = self.number(operator) {
            return write!(out, "{number}").is_ok();
        }
        let names = |names: Option<&Vec<String>>| names.map(|names| names.join(","));
        match operator {
            Operator::DynamicMetadata { namespace, path } => self.write_metadata(namespace, path, out),
            Operator::StartTime(format) => {
                write_time(format, SystemTime::now(), out);
                true
            }
            Operator::Hostname => text(Some(self.hostname), out),
            Operator::DownstreamPeerUriSan => text(names(event.names.map(|names| &names.uris)).as_deref(), out),
            Operator::DownstreamPeerDnsSan => text(names(event.names.map(|names| &names.dns)).as_deref(), out),
            Operator::DownstreamRemoteAddress | Operator::DownstreamDirectRemoteAddress => {
                event.remote.is_some_and(|address| write!(out, "{address}").is_ok())
            }
            Operator::DownstreamRemoteAddressWithoutPort | Operator::DownstreamDirectRemoteAddressWithoutPort => {
                event.remote.is_some_and(|address| write!(out, "{}", address.ip()).is_ok())
            }
            Operator::DownstreamLocalAddress => event.local.is_some_and(|address| write!(out, "{address}").is_ok()),
            Operator::DownstreamLocalAddressWithoutPort => {
                event.local.is_some_and(|address| write!(out, "{}", address.ip()).is_ok())
            }
            // Of requests.
            _ => false,
        }
    }

    fn number(&self, operator: &Operator) -> Option<u64> {
        match operator {
            Operator::Duration => Some(milliseconds(self.event)),
            Operator::BytesReceived => Some(self.event.received),
            Operator::BytesSent => Some(self.event.sent),
            Operator::DownstreamRemotePort => Some(u64::from(self.event.remote?.port())),
            Operator::DownstreamLocalPort => Some(u64::from(self.event.local?.port())),
            _ => None,
        }
    }
}

fn text(value: Option<&str>, out: &mut Vec<u8>) -> bool {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return false };
    // A name that an agent chose must not begin a line of its own.
    out.extend(value.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    true
}
