//! Counters of the process, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts up, or up and down.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) streams_active: Count,
    pub(crate) streams_opened: Count,
    pub(crate) streams_refused: Count,
    pub(crate) slow_readers: Count,
    pub(crate) requests: Count,
    pub(crate) responses: Count,
    pub(crate) response_bytes: Count,
    pub(crate) acks: Count,
    pub(crate) nacks: Count,
    pub(crate) stale_requests: Count,
    pub(crate) unknown_types: Count,
    pub(crate) fetches: Count,
    pub(crate) load_reports: Count,
    pub(crate) rest_requests: Count,
    pub(crate) unauthenticated: Count,
    pub(crate) revoked: Count,
    pub(crate) loads_accepted: Count,
    pub(crate) loads_refused: Count,
    pub(crate) load_errors: Count,
    pub(crate) load_warnings: Count,
    pub(crate) files: Count,
    pub(crate) resources: Count,
    pub(crate) admin_requests: Count,
    pub(crate) connections_opened: Count,
    pub(crate) connections_refused: Count,
    pub(crate) connections_retired: Count,
    pub(crate) handshakes_failed: Count,
    pub(crate) identities_refused: Count,
    pub(crate) tls_loads_accepted: Count,
    pub(crate) tls_loads_refused: Count,
    pub(crate) canaries_taken_back: Count,
    pub(crate) tunnel_reports: Count,
    pub(crate) tunnel_reports_refused: Count,
}

impl Count {
    pub(crate) fn add_many(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Metrics {
    /// All of them; `more` are gauges that are looked up and not counted.
    pub(crate) fn prometheus(&self, more: &[(&str, &str, u64)]) -> String {
        let counters = [
            ("streams_opened_total", "Discovery streams since the start.", &self.streams_opened),
            (
                "streams_refused_total",
                "Discovery streams ended because of what their client sent.",
                &self.streams_refused,
            ),
            ("slow_readers_total", "Streams reset because their client did not read.", &self.slow_readers),
            ("requests_total", "Requests on discovery streams.", &self.requests),
            ("responses_total", "Responses on discovery streams.", &self.responses),
            ("response_bytes_total", "Bytes of responses on discovery streams.", &self.response_bytes),
            ("acks_total", "Responses that nodes accepted.", &self.acks),
            ("nacks_total", "Responses that nodes refused.", &self.nacks),
            ("stale_requests_total", "Requests that crossed a response.", &self.stale_requests),
            (
                "unknown_types_total",
                "Subscriptions to types that are neither served nor of the API; the log has their names.",
                &self.unknown_types,
            ),
            ("rest_requests_total", "Requests on --rest.", &self.rest_requests),
            ("unauthenticated_total", "gRPC requests without a good token or certificate.", &self.unauthenticated),
            ("revoked_total", "Streams ended because their token was taken back.", &self.revoked),
            ("load_reports_total", "Load reports of nodes.", &self.load_reports),
            ("fetches_total", "Unary fetches.", &self.fetches),
            ("config_loads_accepted_total", "Times the directory was read and is in force.", &self.loads_accepted),
            ("config_loads_refused_total", "Times the directory was read and refused.", &self.loads_refused),
            ("admin_requests_total", "Requests to the admin pages.", &self.admin_requests),
            ("connections_opened_total", "gRPC connections since the start.", &self.connections_opened),
            ("connections_refused_total", "gRPC connections beyond the limit.", &self.connections_refused),
            ("connections_retired_total", "gRPC connections ended for their age.", &self.connections_retired),
            ("handshakes_failed_total", "TLS handshakes that failed or took too long.", &self.handshakes_failed),
            ("identities_refused_total", "Nodes that a certificate did not let be.", &self.identities_refused),
            ("tls_loads_accepted_total", "Times the files of TLS changed and are used.", &self.tls_loads_accepted),
            (
                "canaries_taken_back_total",
                "Changes taken back from the nodes that had them first.",
                &self.canaries_taken_back,
            ),
            ("tunnel_reports_total", "Reports of tunnel servers.", &self.tunnel_reports),
            ("tunnel_reports_refused_total", "Of these, refused.", &self.tunnel_reports_refused),
            ("tls_loads_refused_total", "Times the files of TLS changed and were bad.", &self.tls_loads_refused),
        ];
        let gauges = [
            ("streams_active", "Discovery streams that are open.", &self.streams_active),
            ("config_errors", "Errors of the latest reading of the directory; 0: it is in force.", &self.load_errors),
            ("config_warnings", "Warnings of the latest reading of the directory.", &self.load_warnings),
            ("config_files", "Files of the latest reading of the directory.", &self.files),
            ("config_resources", "Resources in force.", &self.resources),
        ];
        let mut text = String::new();
        for (name, help, count) in counters {
            line(&mut text, "counter", name, help, count.get());
        }
        for (name, help, count) in gauges {
            line(&mut text, "gauge", name, help, count.get());
        }
        for (name, help, value) in more {
            line(&mut text, "gauge", name, help, *value);
        }
        text
    }
}

fn line(text: &mut String, kind: &str, name: &str, help: &str, value: u64) {
    let name = format!("culvert_control_{name}");
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}
