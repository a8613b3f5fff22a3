//! Which page is asked for, and the short ones.

use std::collections::BTreeMap;

use culvert_api::json::{Secrets, to_json};
use culvert_runtime::log::Level;
use culvert_runtime::telemetry::{self, Filter};
use http::{Method, StatusCode};
use serde_json::json;

use super::query::Query;
use super::{Admin, certs, clusters, listeners, tunnels};

/// An answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Page {
    pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    pub(super) fn json(value: &serde_json::Value) -> Self {
        // Values of ours have string keys only, so this does not fail.
        let body = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
        Self { status: StatusCode::OK, content_type: "application/json", body }
    }

    fn ok(body: impl Into<String>) -> Self {
        Self::text(StatusCode::OK, body)
    }
}

/// What a GET shows, for the help page.
const GETS: [(&str, &str); 16] = [
    ("/certs", "certificates in use and when they expire"),
    ("/certs/usage", "the same, by who uses them"),
    ("/clusters", "clusters, their limits and hosts (?format=json)"),
    ("/config_dump", "bootstrap and dynamic configuration, secrets redacted (?include_eds, ?resource=, ?name_regex=)"),
    ("/help", "this page"),
    ("/init_dump", "what is waited for"),
    ("/listeners", "listeners and their addresses (?format=json)"),
    ("/logging", "log levels"),
    ("/ready", "200 LIVE or 503 and why not"),
    ("/runtime", "runtime keys, by layer"),
    ("/server_info", "version, state, options, node"),
    ("/stats", "metrics (?filter=REGEX, ?usedonly, ?format=json or prometheus)"),
    ("/stats/prometheus", "metrics for Prometheus (?filter=REGEX, ?usedonly)"),
    ("/tunnels", "tunnels: registered connections, agents and what they dial"),
    ("/xds", "every dynamic resource and where it stands: in force, warming, refused and why"),
    ("/", "this page"),
];

/// What a POST does.
const POSTS: [(&str, &str); 7] = [
    ("/drain_listeners", "stop accepting connections on every listener"),
    ("/healthcheck/fail", "/ready says 503 from now on"),
    ("/healthcheck/ok", "undo /healthcheck/fail"),
    ("/logging", "set log levels: ?level=debug, ?culvert_proxy=trace, ?paths=culvert_http:debug,culvert_tunnel:info"),
    ("/quitquitquit", "finish what is in flight and exit"),
    ("/reopen_logs", "open access-log files again"),
    ("/runtime_modify", "set runtime keys: ?key=value; an empty value takes it back"),
];

impl Admin {
    /// Answers a request.
    pub(super) async fn page(&self, method: &Method, path: &str, query: &str) -> Page {
        let query = Query::new(query);
        let is_get = method == Method::GET || method == Method::HEAD;
        let known = |pages: &[(&str, &str)]| pages.iter().any(|(known, _)| *known == path);
        match (is_get, method == Method::POST) {
            (true, _) if known(&GETS) => self.show(path, &query),
            (_, true) if known(&POSTS) => self.change(path, &query).await,
            _ if known(&POSTS) => Page::text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes POST\n")),
            _ if known(&GETS) => Page::text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes GET\n")),
            _ => Page::text(StatusCode::NOT_FOUND, format!("no page {path}; here are:\n{}", help())),
        }
    }

    fn show(&self, path: &str, query: &Query<'_>) -> Page {
        let looked = &self.looked;
        match path {
            "/ready" => self.ready(),
            "/runtime" => Page::json(&looked.overview.runtime.json()),
            "/server_info" => Page::json(&self.server_info()),
            "/config_dump" => self.config_dump(query),
            "/clusters" if query.is_json() => Page::json(&clusters::json(looked, &self.static_clusters)),
            "/clusters" => Page::ok(clusters::text(looked, &self.static_clusters)),
            "/listeners" if query.is_json() => Page::json(&listeners::json(&looked.overview)),
            "/listeners" => Page::ok(listeners::text(&looked.overview)),
            "/tunnels" => Page::json(&tunnels::json(looked)),
            "/certs" => Page::json(&certs::json(&looked.overview, std::time::SystemTime::now())),
            "/certs/usage" => Page::json(&certs::usage(&looked.overview)),
            "/xds" => Page::json(&self.client_config(true)),
            "/init_dump" => Page::json(&self.init_dump()),
            "/logging" => Page::ok(self.log_levels()),
            "/stats" => self.stats(query),
            "/stats/prometheus" => self.prometheus(query),
            _ => Page::ok(help()),
        }
    }

    async fn change(&self, path: &str, query: &Query<'_>) -> Page {
        let state = &self.looked.state;
        tracing::info!(path, "asked for over the admin interface");
        match path {
            "/logging" => return self.set_log_levels(query),
            "/runtime_modify" => return self.modify_runtime(query),
            "/drain_listeners" => self.apply.drain_listeners(self.drain_time).await,
            "/healthcheck/fail" => state.fail(),
            "/healthcheck/ok" => state.heal(),
            "/quitquitquit" => state.quit(),
            _ => self.looked.logs.reopen(),
        }
        Page::ok("OK\n")
    }

    fn modify_runtime(&self, query: &Query<'_>) -> Page {
        let pairs: Vec<(String, String)> = query.pairs().collect();
        if pairs.is_empty() {
            return Page::text(StatusCode::BAD_REQUEST, "usage: /runtime_modify?key1=value1&key2=value2\n");
        }
        match self.looked.overview.runtime.modify(pairs, &self.looked.process) {
            Ok(()) => Page::ok("OK\n"),
            Err(error) => Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }

    fn ready(&self) -> Page {
        let state = &self.looked.state;
        if state.is_ready() {
            return Page::ok("LIVE\n");
        }
        let waiting: String = state.readiness.pending().iter().map(|name| format!("waits for {name}\n")).collect();
        Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n{waiting}", state.word()))
    }

    /// `envoy.admin.v3.UnreadyTargetsDumps`: what waits, and for what.
    fn init_dump(&self) -> serde_json::Value {
        let overview = &self.looked.overview;
        let listeners = overview.listeners.lock().clone();
        let clusters = overview.warming_clusters.lock().clone();
        let awaiting = listeners.into_iter().map(|(name, view)| (format!("Listener {name}"), view.awaiting));
        let awaiting = awaiting.chain(clusters.into_iter().map(|(name, on)| (format!("Cluster {name}"), on)));
        // What is applied already is looked up where it waits; the rest was staged and has not got that far.
        let mut waiting: BTreeMap<String, Vec<String>> = self.inventory.waiting().into_iter().collect();
        waiting.extend(awaiting);
        waiting.retain(|_, on| !on.is_empty());
        let dumps = waiting.iter().map(|(name, on)| json!({ "name": name, "target_names": on }));
        json!({ "unready_targets_dumps": dumps.collect::<Vec<_>>() })
    }

    fn server_info(&self) -> serde_json::Value {
        let options = &self.options;
        let uptime = format!("{}s", self.looked.started.elapsed().as_secs());
        let node = self.bootstrap.node.as_ref().map(|node| to_json(node, Secrets::Redact));
        json!({
            "version": format!("culvert/{}", env!("CARGO_PKG_VERSION")),
            "state": self.looked.state.word(),
            "uptime_current_epoch": uptime,
            "uptime_all_epochs": uptime,
            "hot_restart_version": "disabled",
            "command_line_options": {
                "concurrency": self.looked.concurrency,
                "config_path": options.config_path,
                "config_yaml": options.config_yaml.as_ref().map(|_| "[given]"),
                "log_level": options.log_level.word(),
                "service_node": options.service_node,
                "service_cluster": options.service_cluster,
                "service_zone": options.service_zone,
                "admin_address_path": options.admin_address_path,
                "drain_time": format!("{}s", options.drain_time_s),
            },
            "node": node,
        })
    }

    fn stats(&self, query: &Query<'_>) -> Page {
        if query.get("format").is_some_and(|format| format == "prometheus") {
            return self.prometheus(query);
        }
        let filter = match filter(query) {
            Ok(filter) => filter,
            Err(refusal) => return refusal,
        };
        let samples = self.looked.process.registry.samples();
        if query.is_json() {
            let body = telemetry::json(&samples, &filter) + "\n";
            return Page { status: StatusCode::OK, content_type: "application/json", body };
        }
        Page::ok(telemetry::text(&samples, &filter))
    }

    fn prometheus(&self, query: &Query<'_>) -> Page {
        let filter = match filter(query) {
            Ok(filter) => filter,
            Err(refusal) => return refusal,
        };
        let body = telemetry::prometheus(&self.looked.process.registry.samples(), &filter);
        Page { status: StatusCode::OK, content_type: "text/plain; version=0.0.4; charset=UTF-8", body }
    }

    fn log_levels(&self) -> String {
        let (default, targets) = self.looked.log.levels();
        let lines = targets.iter().map(|(target, level)| format!("  {target}: {}\n", level.word()));
        std::iter::once(format!("active loggers:\n  default: {}\n", default.word())).chain(lines).collect()
    }

    fn set_log_levels(&self, query: &Query<'_>) -> Page {
        let wanted = match wanted_levels(query) {
            Ok(wanted) => wanted,
            Err(error) => return Page::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        for (target, level) in wanted {
            if target == "level" { self.looked.log.set_all(level) } else { self.looked.log.set(&target, level) }
        }
        Page::ok(self.log_levels())
    }
}

/// `level=debug`, `TARGET=debug`, `paths=TARGET:debug,TARGET:info`.
fn wanted_levels(query: &Query<'_>) -> Result<Vec<(String, Level)>, culvert_runtime::log::UnknownLevel> {
    let mut wanted = Vec::new();
    for (key, value) in query.pairs() {
        if key == "paths" {
            for pair in value.split(',') {
                let (target, level) = pair.rsplit_once(':').unwrap_or((pair, ""));
                wanted.push((target.to_owned(), level.parse()?));
            }
        } else {
            wanted.push((key, value.parse()?));
        }
    }
    Ok(wanted)
}

fn filter(query: &Query<'_>) -> Result<Filter, Page> {
    let name =
        query.get("filter").map(|pattern| regex::Regex::new(&pattern)).transpose().map_err(|error| {
            Page::text(StatusCode::BAD_REQUEST, format!("filter is no regular expression: {error}\n"))
        })?;
    Ok(Filter { name, used_only: query.get("usedonly").is_some() })
}

fn help() -> String {
    let line = |method: &str, (path, what): &(&str, &str)| format!("  {method:<4} {path:<20} {what}\n");
    let gets = GETS.iter().map(|page| line("GET", page));
    let posts = POSTS.iter().map(|page| line("POST", page));
    std::iter::once("admin commands are:\n".to_owned()).chain(gets).chain(posts).collect()
}
