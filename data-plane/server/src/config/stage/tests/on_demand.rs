//! Scopes and virtual hosts, which come as a whole, and what requests ask for by name.

use culvert_proxy::{Order, Wanted};

use super::*;
use crate::config::references::ScopeSources;

/// A world whose control plane is asked in the delta variant.
fn world() -> World {
    let mut world = World::new();
    world.stage.ads_is_delta = true;
    world
}

/// A listener that goes by scopes.
pub(super) fn scoped(name: &str, more: &str) -> String {
    let ads = "{ads: {}, resource_api_version: V3}";
    listener(name, "r").replace(
        &format!("rds: {{route_config_name: r, config_source: {ads}}}"),
        &format!(
            "scoped_routes: {{name: s, scope_key_builder: {{fragments: [{{header_value_extractor: \
             {{name: x, index: 0}}}}]}}, rds_config_source: {{ads: {{}}, resource_api_version: V3{more}}}, \
             scoped_rds: {{scoped_rds_config_source: {ads}}}}}"
        ),
    )
}

pub(super) fn scope(name: &str, key: &str, more: &str) -> String {
    format!("name: {name}\nroute_configuration_name: r-{name}\nkey: {{fragments: [{{string_key: '{key}'}}]}}{more}")
}

fn whole(world: &World, kind: Kind) -> bool {
    world.stage.interests().into_iter().any(|(k, _, interest)| k == kind && interest.wildcard)
}

fn order(wanted: Wanted, name: &str) -> Order {
    let kind = ConfigSourceKind::Ads;
    let source = ConfigSource { kind, initial_fetch_timeout: Duration::from_secs(15) };
    Order { wanted, name: name.into(), source: (wanted == Wanted::Cluster).then_some(source) }
}

impl World {
    fn demand(&mut self, wanted: Wanted, name: &str) {
        assert_eq!(self.stage.demand(order(wanted, name), self.now), None, "{name} is asked for");
    }

    fn answers(&mut self) -> Vec<String> {
        self.stage.take_answers().into_iter().map(|(_, name)| name.to_string()).collect()
    }
}

#[test]
fn a_listener_waits_for_all_scopes_and_their_routes() {
    let mut world = world();
    world.receive(Kind::Listener, &[&scoped("l", "")]);
    assert_eq!(world.publish(), "");
    assert!(whole(&world, Kind::Scope), "all scopes are subscribed to");
    assert_eq!(world.waits(), "Listener l: ScopedRouteConfiguration *");
    world.receive(Kind::Scope, &[&scope("a", "1", ""), &scope("b", "2", "\non_demand: true")]);
    assert_eq!(world.interest(Kind::Routes), ["r-a"], "those of a scope on demand are not asked for");
    assert_eq!(world.publish(), "+Scope b");
    assert_eq!(world.waits(), "Listener l: ScopedRouteConfiguration *; Scope a: RouteConfiguration r-a");
    world.receive(Kind::Routes, &[&routes("r-a", "c")]);
    world.receive(Kind::Cluster, &[]);
    assert_eq!(world.publish(), "+Routes r-a +Scope a +Listener l");

    world.demand(Wanted::Scope, "b");
    assert_eq!(world.interest(Kind::Routes), ["r-a", "r-b"], "a request has asked for them");
    assert_eq!((world.publish().as_str(), world.answers()), ("", vec![]), "they have not come");
    world.receive_batch(Kind::Routes, &[&routes("r-b", "c")], &[], false);
    assert_eq!(world.publish(), "+Routes r-b");
    assert_eq!(world.answers(), ["b"]);

    world.receive(Kind::Scope, &[&scope("b", "2", "\non_demand: true")]);
    world.receive_batch(Kind::Scope, &[], &["a"], true);
    assert_eq!(world.publish_all(), "-Scope a | -Routes r-a");
    // Nobody goes by scopes any more.
    world.receive_batch(Kind::Listener, &[], &["l"], true);
    assert_eq!(world.publish_all(), "-Listener l | -Scope b | -Routes r-b");
    assert!(!whole(&world, Kind::Scope), "nor are they subscribed to");
}

#[test]
fn all_listeners_take_their_scopes_from_one_place() {
    let mut world = world();
    let verdict = |world: &World, text: &str, scopes: &mut Option<ScopeSources>| {
        world.stage.misfit(&judged(Kind::Listener, text).verdict.unwrap(), scopes)
    };
    let other = scoped("m", ", initial_fetch_timeout: 1s");
    assert_eq!(verdict(&world, &other, &mut None), None, "it is the only one");
    let mut together = None;
    assert_eq!(verdict(&world, &scoped("l", ""), &mut together), None);
    assert!(verdict(&world, &other, &mut together).is_some(), "one of the same response");
    world.receive(Kind::Listener, &[&scoped("l", "")]);
    assert!(verdict(&world, &other, &mut None).unwrap().contains("scoped_routes"), "one that is there");
    let same = scoped("l", ", initial_fetch_timeout: 1s");
    assert_eq!(verdict(&world, &same, &mut None), None, "its own successor");
    world.receive(Kind::Scope, &[&scope("a", "1", "")]);
    world.receive(Kind::Listener, &[&same]);
    let references = &world.stage.slots[&(Kind::Scope, "a".into())].wanted.as_ref().unwrap().references;
    assert_eq!(references[0].source.initial_fetch_timeout, Duration::from_secs(1), "scopes follow their listener");
}

fn with_vhds(name: &str) -> String {
    format!("name: {name}\nvhds: {{config_source: {{ads: {{}}, resource_api_version: V3}}}}")
}

fn host(name: &str) -> String {
    format!("name: {name}\ndomains: [{name}]\nroutes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]")
}

#[test]
fn hosts_are_asked_for_until_it_is_known_that_there_are_none() {
    let mut world = world();
    world.receive(Kind::Cluster, &[]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&with_vhds("r")]);
    assert_eq!(world.publish(), "");
    assert!(whole(&world, Kind::VirtualHost), "all hosts are subscribed to");
    world.receive_batch(Kind::VirtualHost, &[&host("r/a"), &host("q/b")], &[], false);
    assert_eq!(world.publish(), "+VirtualHost q/b +VirtualHost r/a +Routes r +Listener l");
    assert_eq!(world.publish_all(), " | -VirtualHost q/b", "one of routes that nobody has");

    for name in ["r/x", "r/y", "none/z"] {
        world.demand(Wanted::VirtualHost, name);
    }
    assert_eq!(world.interest(Kind::VirtualHost), ["r/x", "r/y"]);
    assert_eq!(world.answers(), [] as [&str; 0]);
    world.receive_batch(Kind::VirtualHost, &[], &["r/x"], false);
    assert_eq!(world.answers(), ["r/x"], "it does not exist");
    let alias = Batch {
        aliases: vec!["r/y".into()],
        kind: Kind::VirtualHost,
        resources: vec![judged(Kind::VirtualHost, &host("r/c"))],
        removed: Vec::new(),
        malformed: Vec::new(),
        whole: false,
        first: false,
    };
    world.stage.receive(alias, world.now);
    assert_eq!(world.answers(), [] as [&str; 0], "it is not in force yet");
    assert_eq!(world.publish(), "+VirtualHost r/c");
    assert_eq!(world.answers(), ["r/y"]);
    world.demand(Wanted::VirtualHost, "r/x");
    assert_eq!(world.answers(), ["r/x"], "known not to exist");
    world.pass(31);
    world.demand(Wanted::VirtualHost, "r/x");
    assert_eq!(world.answers(), [] as [&str; 0], "it is asked for anew");
    assert_eq!(world.interest(Kind::VirtualHost), ["r/x", "r/y"]);
    world.stage.unanswered((Kind::VirtualHost, "r/x".into()), world.now);
    assert_eq!(world.answers(), ["r/x"], "nobody knows");
}

#[test]
fn names_that_lead_to_nothing_are_bounded() {
    let mut world = world();
    for index in 0..1000 {
        world.demand(Wanted::Cluster, &index.to_string());
    }
    let answer = world.stage.demand(order(Wanted::Cluster, "1000"), world.now);
    assert_eq!(answer, Some((Wanted::Cluster, "1000".into())), "one too many is answered at once");
    assert_eq!(world.interest(Kind::Cluster).len(), 1000, "and not asked for");
    world.pass(31);
    world.demand(Wanted::Cluster, "again");
    assert_eq!(world.interest(Kind::Cluster), ["again"], "all are forgotten");
    world.receive_batch(Kind::Cluster, &["name: again\nconnect_timeout: 1s\ntype: STATIC"], &[], false);
    assert_eq!(world.publish(), "+Cluster again");
    assert_eq!(world.answers(), ["again"]);
    world.pass(31);
    world.demand(Wanted::Cluster, "other");
    assert_eq!(world.interest(Kind::Cluster), ["again", "other"], "what exists is kept");
}

#[test]
fn single_names_are_asked_for_on_delta_streams_only() {
    let mut world = World::new();
    let routes = judged(Kind::Routes, &with_vhds("r")).verdict.unwrap();
    assert!(world.stage.misfit(&routes, &mut None).unwrap().contains("DELTA_GRPC"));
    world.stage.ads_is_delta = true;
    assert_eq!(world.stage.misfit(&routes, &mut None), None);
}
