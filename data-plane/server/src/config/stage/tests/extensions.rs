//! What comes by name besides assignments, routes and secrets: configurations of filters, layers of the runtime.

use super::*;

const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A listener whose filter `f` comes by name; `more` are further fields of the source.
pub(super) fn asking(name: &str, more: &str) -> String {
    format!(
        "name: {name}\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nfilter_chains:\n\
         - filters:\n\
         \x20 - name: f\n\
         \x20   config_discovery:\n\
         \x20     config_source: {{ads: {{}}, resource_api_version: V3}}\n\
         \x20     type_urls: ['{TCP}', '{HCM}']\n\
         {more}"
    )
}

pub(super) fn tcp(name: &str, cluster: &str) -> String {
    format!("name: {name}\ntyped_config: {{'@type': {TCP}, stat_prefix: t, cluster: {cluster}}}")
}

fn manager(name: &str, routes: &str) -> String {
    format!(
        "name: {name}\ntyped_config:\n\
         \x20 '@type': {HCM}\n\
         \x20 stat_prefix: x\n\
         \x20 rds: {{route_config_name: {routes}, config_source: {{ads: {{}}, resource_api_version: V3}}}}\n\
         \x20 http_filters:\n\
         \x20 - name: envoy.filters.http.router\n\
         \x20   typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    )
}

fn default(more: &str) -> String {
    format!("\x20     default_config: {{'@type': {TCP}, stat_prefix: t, cluster: spare}}\n{more}")
}

#[test]
fn a_listener_that_lacks_its_filter_stays_warming_without_end_and_names_it() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&asking("l", "")]);
    assert_eq!(world.publish(), "");
    assert_eq!(world.interest(Kind::Extension), ["f"], "it is subscribed to by its name");
    assert_eq!(world.waits(), "Listener l: TypedExtensionConfig f");
    world.stage.not_found((Kind::Extension, "f".into()));
    world.pass(3600);
    assert_eq!(world.publish(), "", "nothing stands in for it");
    world.receive_batch(Kind::Extension, &[&tcp("f", "c")], &[], false);
    assert_eq!(world.publish(), "+Extension f +Listener l");
    let other = tcp("f", "c").replace("stat_prefix: t", "stat_prefix: u");
    world.receive_batch(Kind::Extension, &[&other], &[], false);
    assert_eq!(world.publish(), "", "nobody has announced its cluster yet");
    world.pass(2);
    assert_eq!(world.publish(), "+Extension f", "the listener itself did not change");
    world.receive_batch(Kind::Extension, &[], &["f"], false);
    assert_eq!(world.publish_all(), "", "what is taken away serves until another one comes");
    world.receive_batch(Kind::Listener, &[], &["l"], true);
    assert_eq!(world.publish_all(), "-Listener l | -Extension f", "nobody asks for it any more");
    assert_eq!(world.interest(Kind::Extension), [] as [&str; 0]);
}

#[test]
fn a_default_holds_after_the_time_of_its_source_or_at_once_or_when_there_is_none() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&asking("l", &default(""))]);
    assert_eq!(world.publish(), "");
    assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(15)));
    world.pass(15);
    assert_eq!(world.publish(), "+Listener l");

    let mut world = World::new();
    let at_once = default("\x20     apply_default_config_without_warming: true\n");
    world.receive(Kind::Listener, &[&asking("l", &at_once)]);
    assert_eq!(world.publish(), "+Listener l");
    world.receive_batch(Kind::Extension, &[&tcp("f", "c")], &[], false);
    assert_eq!(world.publish(), "+Extension f", "what comes later counts");

    let mut world = World::new();
    world.receive(Kind::Listener, &[&asking("l", &default(""))]);
    assert_eq!(world.publish(), "");
    world.receive_batch(Kind::Extension, &[], &["f"], false);
    assert_eq!(world.publish(), "+Listener l", "the control plane has none");
}

#[test]
fn a_filter_that_comes_waits_for_what_it_needs_and_its_clusters_stay() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive_batch(Kind::Endpoints, &[&assignment("c", 1)], &[], true);
    world.receive(Kind::Listener, &[&asking("l", "")]);
    world.receive_batch(Kind::Extension, &[&manager("f", "r")], &[], false);
    assert_eq!(world.publish(), "+Cluster c +Endpoints c");
    assert_eq!(world.waits(), "Listener l: TypedExtensionConfig f; Extension f: RouteConfiguration r");
    assert_eq!(world.interest(Kind::Routes), ["r"], "its routes are subscribed to");
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "+Routes r +Extension f +Listener l");
    world.receive_batch(Kind::Extension, &[&tcp("f", "c")], &[], false);
    assert_eq!(world.publish_all(), "+Extension f | -Routes r");
    world.receive_batch(Kind::Cluster, &[], &["c"], true);
    world.pass(10);
    assert_eq!(world.publish(), "", "traffic in force goes to the cluster");
}

#[test]
fn a_filter_of_a_type_that_nobody_allows_is_a_misfit() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&asking("l", "")]);
    world.publish();
    let misfit = |text: &str| world.stage.misfit(&judged(Kind::Extension, text).verdict.expect("a filter"), &mut None);
    let router = "typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}";
    let words = misfit(&format!("name: f\n{router}")).expect("a router is no network filter");
    assert!(words.contains("Router") && words.contains("TcpProxy"), "{words}");
    assert_eq!(misfit(&format!("name: g\n{router}")), None, "nobody asks for that one");
    assert_eq!(misfit(&tcp("f", "c")), None);
}

#[test]
fn layers_of_the_runtime_are_asked_for_by_name_and_go_when_they_are_taken_away() {
    let layered = || {
        let source = "{ads: {}, resource_api_version: V3}";
        let rtds = format!("layers: [{{name: c, rtds_layer: {{name: r, rtds_config: {source}}}}}]");
        World::with_bootstrap(&format!("layered_runtime: {{{rtds}}}\n"))
    };
    let mut world = layered();
    assert_eq!(world.interest(Kind::Runtime), ["r"]);
    assert!(!world.stage.has_fixed(), "it may still come");
    world.receive_batch(Kind::Runtime, &["name: r\nlayer: {a: 1}"], &[], false);
    assert_eq!(world.publish(), "+Runtime r");
    assert!(world.stage.has_fixed());
    world.receive_batch(Kind::Runtime, &[], &["r"], false);
    assert_eq!(world.publish_all(), "-Runtime r", "it has no values any more");
    assert_eq!(world.interest(Kind::Runtime), ["r"]);

    let mut world = layered();
    world.receive_batch(Kind::Runtime, &[], &["r"], false);
    assert!(world.stage.has_fixed(), "the control plane has none");
}
