//! A `RouteConfiguration` as RDS delivers it, taken to pieces on the wire: its routes one by one, and the rest.
//!
//! When one of ten thousand routes changes, all others come again. **What has the bytes of a route that was accepted before is
//! that route**: it is neither decoded nor parsed, and whoever compares finds the same value.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_api::envoy::config::route::v3 as api;
use foldhash::fast::RandomState;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

use super::parse::{configuration, configuration_with, route};
use super::{Place, Route, RouteConfiguration};
use crate::coverage;
use crate::report::{Parsed, Report};

/// Parses what RDS delivers. `before`: what was accepted under that name last, and its bytes.
pub(crate) fn discovered(bytes: &[u8], before: Option<(&[u8], &RouteConfiguration)>) -> Parsed<RouteConfiguration> {
    let Some(pieces) = Pieces::of(bytes) else {
        // Decoding the whole says what is wrong.
        return crate::resource::parse(bytes, |report, message| configuration(report, message, Place::Rds));
    };
    crate::resource::parse(&pieces.rest, |report, message: &api::RouteConfiguration| {
        let mut hosts = pieces.routes.iter();
        let mut known = None;
        configuration_with(report, message, Place::Rds, |report, _, max_body| {
            let known = known.get_or_insert_with(|| known_routes(before, max_body));
            let wires = hosts.next().into_iter().flatten().copied();
            report.items("routes", wires, |report, wire| one(report, wire, known, max_body))
        })
    })
}

/// The route at hand, which may be known.
fn one(report: &mut Report, wire: &[u8], known: &Known<'_>, max_body: u32) -> Option<Arc<Route>> {
    if let Some(route) = known.get(wire) {
        return report.admit_regex(route.regex_bytes).then(|| Arc::clone(route));
    }
    match api::Route::decode(wire) {
        Ok(message) => {
            coverage::walk(report, ROUTE, wire);
            route(report, &message, max_body).map(Arc::new)
        }
        Err(error) => {
            report.error(format!("does not decode as {ROUTE}: {error}"));
            None
        }
    }
}

/// Routes that were accepted, by their bytes.
type Known<'b> = HashMap<&'b [u8], &'b Arc<Route>, RandomState>;

fn known_routes<'b>(before: Option<(&'b [u8], &'b RouteConfiguration)>, max_body: u32) -> Known<'b> {
    // Whether a route is right depends on nothing else of its configuration.
    let same = before.filter(|(_, config)| config.max_direct_response_body == max_body);
    let Some((pieces, config)) = same.and_then(|(bytes, config)| Some((Pieces::of(bytes)?, config))) else {
        return Known::default();
    };
    let hosts = pieces.routes.into_iter().zip(&config.virtual_hosts);
    // Nothing is missing in what was accepted.
    let whole = hosts.filter(|(wires, host)| wires.len() == host.routes.len());
    whole.flat_map(|(wires, host)| wires.into_iter().zip(&host.routes)).collect()
}

/// A `RouteConfiguration` without its routes, and their bytes by virtual host.
#[derive(Default)]
struct Pieces<'b> {
    rest: Vec<u8>,
    routes: Vec<Vec<&'b [u8]>>,
}

impl<'b> Pieces<'b> {
    /// `None`: malformed.
    fn of(bytes: &'b [u8]) -> Option<Self> {
        let (mut pieces, mut rest) = (Self::default(), Vec::new());
        split(bytes, VIRTUAL_HOSTS, &mut rest, |rest, host| {
            let (mut routes, mut shell) = (Vec::new(), Vec::new());
            split(host, ROUTES, &mut shell, |_, route| {
                routes.push(route);
                Some(())
            })?;
            encode_key(VIRTUAL_HOSTS, WireType::LengthDelimited, rest);
            encode_varint(shell.len() as u64, rest);
            rest.extend_from_slice(&shell);
            pieces.routes.push(routes);
            Some(())
        })?;
        pieces.rest = rest;
        Some(pieces)
    }
}

/// Hands each message in field `number` to `found`, and copies everything else to `rest`.
fn split<'b>(
    mut bytes: &'b [u8],
    number: u32,
    rest: &mut Vec<u8>,
    mut found: impl FnMut(&mut Vec<u8>, &'b [u8]) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let field = bytes;
        let (tag, wire_type) = decode_key(&mut bytes).ok()?;
        if (tag, wire_type) == (number, WireType::LengthDelimited) {
            let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
            let (message, behind) = bytes.split_at_checked(length)?;
            bytes = behind;
            found(rest, message)?;
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).ok()?;
            rest.extend_from_slice(field.get(..field.len() - bytes.len())?);
        }
    }
    Some(())
}

/// `RouteConfiguration.virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;
/// `VirtualHost.routes`.
const ROUTES: u32 = 3;
const ROUTE: &str = "envoy.config.route.v3.Route";

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(prefix: &str, cluster: &str) -> api::Route {
        let action = api::RouteAction {
            cluster_specifier: Some(api::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        };
        let path = api::route_match::PathSpecifier::Prefix(prefix.to_owned());
        api::Route {
            r#match: Some(api::RouteMatch { path_specifier: Some(path), ..Default::default() }),
            action: Some(api::route::Action::Route(action)),
            ..Default::default()
        }
    }

    fn direct(length: usize) -> api::Route {
        use culvert_api::envoy::config::core::v3::{DataSource, data_source::Specifier};
        let body = DataSource { specifier: Some(Specifier::InlineString("x".repeat(length))), ..Default::default() };
        let response = api::DirectResponseAction { status: 200, body: Some(body), ..Default::default() };
        api::Route { action: Some(api::route::Action::DirectResponse(response)), ..forwarding("/direct", "") }
    }

    fn host(name: &str, routes: Vec<api::Route>) -> api::VirtualHost {
        api::VirtualHost { name: name.to_owned(), domains: vec![name.to_owned()], routes, ..Default::default() }
    }

    fn of(virtual_hosts: Vec<api::VirtualHost>) -> api::RouteConfiguration {
        api::RouteConfiguration { name: "r".to_owned(), virtual_hosts, ..Default::default() }
    }

    /// How many routes of `after` are those of `before`, and how many there are.
    fn kept(before: &api::RouteConfiguration, after: &api::RouteConfiguration) -> (usize, usize) {
        let (old, new) = (before.encode_to_vec(), after.encode_to_vec());
        let first = discovered(&old, None).value.expect("it is right");
        let second = discovered(&new, Some((&old, &first))).value.expect("it is right");
        assert_eq!(second, discovered(&new, None).value.expect("it is right"), "what was before makes no difference");
        assert_eq!(Ok(&second), super::super::parse(after).value.as_ref(), "nor do the pieces");
        let routes = |config: &RouteConfiguration| -> Vec<Arc<Route>> {
            config.virtual_hosts.iter().flat_map(|host| host.routes.iter().cloned()).collect()
        };
        let (first, second) = (routes(&first), routes(&second));
        let same = |route: &&Arc<Route>| first.iter().any(|other| Arc::ptr_eq(other, route));
        (second.iter().filter(same).count(), second.len())
    }

    #[test]
    fn only_what_has_changed_is_parsed() {
        let all = |last: &str| {
            (0..100).map(|index| forwarding(&format!("/{index}"), if index == 50 { last } else { "c" })).collect()
        };
        let hosts = |last| vec![host("a", all(last)), host("b", vec![forwarding("/", "c")])];
        let moved = || vec![host("b", vec![forwarding("/", "c")]), host("a", all("c").into_iter().rev().collect())];
        let shorter = |max| api::RouteConfiguration {
            max_direct_response_body_size_bytes: max,
            ..of(vec![host("a", vec![direct(10)])])
        };
        for (what, before, after, expected) in [
            ("one of them", of(hosts("c")), of(hosts("d")), (100, 101)),
            ("nothing", of(hosts("c")), of(hosts("c")), (101, 101)),
            ("their order", of(hosts("c")), of(moved()), (101, 101)),
            ("a virtual host is gone", of(hosts("c")), of(vec![host("b", vec![forwarding("/", "c")])]), (1, 1)),
            ("what bodies may be", shorter(None), shorter(Some(10)), (0, 1)),
            ("all", of(vec![]), of(hosts("c")), (0, 101)),
        ] {
            assert_eq!(kept(&before, &after), expected, "kept of all when this changes: {what}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let good = of(vec![host("a", vec![forwarding("/", "c")])]).encode_to_vec();
        let before = discovered(&good, None).value.expect("it is right");
        let bad = of(vec![host("a", vec![forwarding("/", "c")]), host("b", vec![forwarding("/?", "c"), direct(5000)])]);
        let found = discovered(&bad.encode_to_vec(), Some((&good, &before))).value.expect_err("two routes are wrong");
        let paths: Vec<&str> = found.iter().map(|finding| finding.path.as_str()).collect();
        assert_eq!(
            paths,
            ["virtual_hosts[1].routes[0].match.prefix", "virtual_hosts[1].routes[1].direct_response.body"],
            "of {found:?}"
        );
        for (what, broken) in [("cut off", &good[..good.len() - 1]), ("no message at all", b"\xff\xff\xff")] {
            let found = discovered(broken, Some((&good, &before))).value.expect_err(what);
            assert!(found[0].reason.starts_with("does not decode as"), "{what}: {found:?}");
        }
    }

    #[test]
    fn what_is_kept_counts_against_the_limit_of_expressions() {
        let matcher = culvert_api::envoy::r#type::matcher::v3::RegexMatcher {
            regex: "/[a-z]{1,200}".to_owned(),
            ..Default::default()
        };
        let path = api::route_match::PathSpecifier::SafeRegex(matcher);
        let matches = api::RouteMatch { path_specifier: Some(path), ..Default::default() };
        let wire = api::Route { r#match: Some(matches), ..forwarding("", "c") }.encode_to_vec();
        let (mut first, mut second) = (Report::default(), Report::default());
        let route = one(&mut first, &wire, &Known::default(), 0).expect("it is right");
        let known = Known::from_iter([(wire.as_slice(), &route)]);
        let again = one(&mut second, &wire, &known, 0).expect("it is right");
        assert!(Arc::ptr_eq(&route, &again), "it is known");
        assert!(first.regex_bytes() > 0, "an expression takes memory");
        assert_eq!(second.regex_bytes(), first.regex_bytes(), "and takes it still where it is kept");
    }
}
