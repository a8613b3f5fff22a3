//! Route configurations and their virtual hosts out of their messages.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_api::envoy::config::route::v3 as api;

use super::{Action, Body, DirectResponse, Place, RequireTls, Route, RouteConfiguration, VirtualHost};
use super::{action, headers, matches, retry};
use crate::http;
use crate::metadata;
use crate::on_demand;
use crate::report::{Report, clip};
use crate::scalar;
use crate::source::{self, DataSource};

/// Parses the `RouteConfiguration` at hand.
pub(crate) fn configuration(
    report: &mut Report,
    message: &api::RouteConfiguration,
    place: Place,
) -> Option<RouteConfiguration> {
    configuration_with(report, message, place, routes)
}

/// [`configuration`] whose `routes` are parsed by another one, which is asked for each virtual host in turn.
pub(super) fn configuration_with(
    report: &mut Report,
    message: &api::RouteConfiguration,
    place: Place,
    mut routes: impl FnMut(&mut Report, &api::VirtualHost, u32) -> Vec<Arc<Route>>,
) -> Option<RouteConfiguration> {
    // Over RDS the name is what the listener asked for.
    let name = match place {
        Place::Rds => scalar::name(report, "name", &message.name),
        Place::Inline => Some(message.name.as_str().into()),
    };
    let on_demand = http::per_filter_config(report, &message.typed_per_filter_config);
    let vhds =
        match (&message.vhds, place) {
            (Some(_), Place::Inline) => {
                report.error_at("vhds", "stands in routes that do not come by RDS; use rds");
                None
            }
            (Some(vhds), Place::Rds) => Some(report.field("vhds", |report| {
                on_demand::delta_source(report, "config_source", vhds.config_source.as_ref())
            })?),
            (None, _) => None,
        };
    let max_body = message.max_direct_response_body_size_bytes.unwrap_or(MAX_BODY);
    let virtual_hosts = report.items("virtual_hosts", &message.virtual_hosts, |report, message| {
        virtual_host(report, message, |report| routes(report, message, max_body))
    });
    distinct(report, &virtual_hosts);
    Some(RouteConfiguration {
        name: name?,
        virtual_hosts,
        headers: headers::of_routes(report, message),
        most_specific_header_mutations_wins: message.most_specific_header_mutations_wins,
        // Envoy: an inline table is checked by default, one from RDS is not.
        validate_clusters: message.validate_clusters.unwrap_or(place == Place::Inline),
        ignore_port_in_host: message.ignore_port_in_host_matching,
        max_direct_response_body: max_body,
        vhds,
        on_demand,
    })
}

/// Envoy: a domain, and the name of a virtual host, stand once in a whole route configuration.
fn distinct(report: &mut Report, hosts: &[VirtualHost]) {
    let mut names = HashSet::new();
    let mut domains: HashMap<&Arc<str>, &Arc<str>> = HashMap::new();
    for (index, host) in hosts.iter().enumerate() {
        report.item("virtual_hosts", index, |report| {
            if !names.insert(&host.name) {
                report.error_at("name", format!("{:?} names another virtual host as well", clip(&host.name)));
            }
            for domain in &host.domains {
                if let Some(other) = domains.insert(domain, &host.name) {
                    let (domain, other) = (clip(domain), clip(other));
                    report.error_at("domains", format!("{domain:?} stands in virtual host {other:?} already"));
                }
            }
        });
    }
}

/// Parses the `VirtualHost` at hand, which comes by VHDS. How long its bodies may be is known to its route configuration.
pub(crate) fn discovered_host(report: &mut Report, message: &api::VirtualHost) -> Option<VirtualHost> {
    virtual_host(report, message, |report| routes(report, message, u32::MAX))
}

fn routes(report: &mut Report, message: &api::VirtualHost, max_body: u32) -> Vec<Arc<Route>> {
    report.items("routes", &message.routes, |report, message| route(report, message, max_body).map(Arc::new))
}

fn virtual_host(
    report: &mut Report,
    message: &api::VirtualHost,
    routes: impl FnOnce(&mut Report) -> Vec<Arc<Route>>,
) -> Option<VirtualHost> {
    use api::virtual_host::TlsRequirementType;
    let name = scalar::name(report, "name", &message.name);
    let domains = report.items("domains", &message.domains, |report, name| domain(report, name));
    if message.domains.is_empty() {
        report.error_at("domains", "is empty; `*` matches every host");
    }
    let on_demand = http::per_filter_config(report, &message.typed_per_filter_config);
    let routes = routes(report);
    let require_tls = match scalar::enumeration(report, "require_tls", message.require_tls)? {
        TlsRequirementType::None => RequireTls::None,
        TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
        TlsRequirementType::All => RequireTls::All,
    };
    let retry = message.retry_policy.as_ref();
    let retry = retry.and_then(|message| report.field("retry_policy", |report| retry::policy(report, message)));
    Some(VirtualHost {
        name: name?,
        domains,
        routes,
        require_tls,
        headers: headers::of_virtual_host(report, message),
        retry: retry.map(Arc::new),
        include_attempt_count_in_request: message.include_request_attempt_count,
        include_attempt_count_in_response: message.include_attempt_count_in_response,
        on_demand,
    })
}

fn domain(report: &mut Report, domain: &str) -> Option<Arc<str>> {
    let stars = domain.bytes().filter(|byte| *byte == b'*').count();
    let at_an_end = domain.starts_with('*') || domain.ends_with('*');
    let printable = domain.bytes().all(|byte| byte.is_ascii_graphic());
    if domain.is_empty() || stars > 1 || (stars == 1 && !at_an_end) || !printable {
        let reason = "is not a domain: a name, `*` at one of its ends, or `*` alone";
        report.error(format!("{:?} {reason}", clip(domain)));
        return None;
    }
    Some(domain.to_ascii_lowercase().into())
}

pub(super) fn route(report: &mut Report, message: &api::Route, max_body: u32) -> Option<Route> {
    let regex_bytes = report.regex_bytes();
    let on_demand = http::per_filter_config(report, &message.typed_per_filter_config);
    let matches = match &message.r#match {
        Some(matches) => report.field("match", |report| matches::route_match(report, matches)),
        None => {
            report.error_at("match", "is missing; `prefix: /` matches every path");
            None
        }
    };
    let agent = metadata::agent(report, "metadata", message.metadata.as_ref());
    let action = match &message.action {
        Some(api::route::Action::Route(action)) => {
            let action = report.field("route", |report| action::forward(report, action, agent));
            action.map(|action| Action::Forward(Arc::new(action)))
        }
        Some(api::route::Action::Redirect(redirect)) => {
            let redirect = report.field("redirect", |report| action::redirect(report, redirect));
            redirect.map(|redirect| Action::Redirect(Arc::new(redirect)))
        }
        Some(api::route::Action::DirectResponse(response)) => {
            let response = report.field("direct_response", |report| direct_response(report, response, max_body));
            response.map(|response| Action::Direct(Arc::new(response)))
        }
        Some(api::route::Action::NonForwardingAction(_)) => Some(Action::NonForwarding),
        // The coverage tables have refused it.
        Some(api::route::Action::FilterAction(_)) => None,
        None => {
            report.error("names no action; set route, redirect or direct_response");
            None
        }
    };
    let name = message.name.as_str().into();
    let headers = headers::of_route(report, message);
    let regex_bytes = report.regex_bytes() - regex_bytes;
    Some(Route { name, matches: matches?, action: action?, headers, on_demand, regex_bytes })
}

fn direct_response(report: &mut Report, message: &api::DirectResponseAction, max_body: u32) -> Option<DirectResponse> {
    let status = u16::try_from(message.status).ok().filter(|status| (200..600).contains(status));
    if status.is_none() {
        report.error_at("status", format!("{} is not a status from 200 to 599", message.status));
    }
    let body = match &message.body {
        None => Body::Empty,
        Some(body) => Body::Source(report.field("body", |report| source::data_source(report, body, None))?),
    };
    if let Body::Source(DataSource::Inline(bytes)) = &body
        && u32::try_from(bytes.len()).is_ok_and(|length| length > max_body)
    {
        let reason = format!("has {} bytes, more than max_direct_response_body_size_bytes ({max_body})", bytes.len());
        report.error_at("body", reason);
    }
    Some(DirectResponse { status: status?, body })
}

/// Envoy's default.
const MAX_BODY: u32 = 4096;
