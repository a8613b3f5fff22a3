//! TTLs that are over: what came as one of all there are goes; what is referred to by name serves until another one comes.

use super::*;

fn in_force() -> World {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.receive(Kind::Listener, &[&tls_listener("l", "r", "cert")]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    world.receive(Kind::Secret, &[SECRET]);
    assert_eq!(world.publish_all(), "+Secret cert +Cluster c +Endpoints c +Routes r +Listener l");
    world
}

pub(super) const SECRET: &str =
    "name: cert\ntls_certificate: {certificate_chain: {inline_string: c}, private_key: {inline_string: k}}";

#[test]
fn what_expires_of_all_there_is_goes() {
    let mut world = in_force();
    world.stage.expire((Kind::Listener, "l".into()), world.now);
    assert_eq!(world.publish_all(), "-Listener l | -Routes r -Secret cert");
    world.stage.expire((Kind::Cluster, "c".into()), world.now);
    assert_eq!(world.publish_all(), " | -Cluster c | -Endpoints c");
    // It is the TTL that was over, not the name.
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    assert_eq!(world.publish_all(), "+Cluster c +Endpoints c");
}

pub(super) const OURS: &str = "bootstrap_extensions:
- name: culvert.tunnel_agents
  typed_config:
    '@type': type.googleapis.com/culvert.tunnel.v1.TunnelAgents
    agents_config: {ads: {}, resource_api_version: V3}
- name: culvert.tunnel_policies
  typed_config:
    '@type': type.googleapis.com/culvert.tunnel.v1.TunnelPolicies
    policies_config: {ads: {}, resource_api_version: V3}
";

#[test]
fn agents_policies_and_scopes_that_expire_go() {
    let scope = on_demand::scope("a", "1", "");
    for (kind, text) in [
        (Kind::Agent, "name: a\ncluster: c\nhosting_listener: l\nservers: [{address: 't:1'}]"),
        (Kind::Policy, "name: a\nrules: [{name: r, principals: [{uri: 'spiffe://x/*'}], clusters: [c]}]"),
        (Kind::Scope, &scope),
    ] {
        let mut world = World::with_bootstrap(OURS);
        if kind == Kind::Scope {
            world.receive(Kind::Listener, &[&on_demand::scoped("l", "")]);
            world.receive(Kind::Routes, &[&routes("r-a", "xds")]);
        }
        world.receive(kind, &[text]);
        assert!(world.publish_all().contains(&format!("+{kind:?} a")), "{kind:?} is in force");
        world.stage.expire((kind, "a".into()), world.now);
        let gone = world.publish_all();
        assert!(gone.starts_with(&format!("-{kind:?} a")), "{kind:?}: its TTL is over, saw {gone:?}");
        assert!(!world.stage.knows(&(kind, "a".into())), "{kind:?} is forgotten");
        // It is the TTL that was over, not the name. What only it referred to has gone with it.
        world.receive(kind, &[text]);
        world.receive(Kind::Routes, &[&routes("r-a", "xds")]);
        assert!(world.publish_all().contains(&format!("+{kind:?} a")), "{kind:?} comes again");
    }
}

#[test]
fn a_filter_that_expires_serves_until_another_one_comes() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&extensions::asking("l", "")]);
    world.receive(Kind::Extension, &[&extensions::tcp("f", "xds")]);
    assert_eq!(world.publish_all(), "+Extension f +Listener l");
    world.stage.expire((Kind::Extension, "f".into()), world.now);
    assert_eq!(world.publish_all(), "", "nothing else says what to do instead");
    world.receive(Kind::Extension, &[&extensions::tcp("f", "xds").replace("prefix: t", "prefix: u")]);
    assert_eq!(world.publish_all(), "+Extension f", "the next one");
}

#[test]
fn what_expires_and_is_referred_to_by_name_serves_until_another_one_comes() {
    for (kind, name, next) in [
        (Kind::Endpoints, "c", assignment("c", 2)),
        (Kind::Routes, "r", routes("r", "xds")),
        (Kind::Secret, "cert", SECRET.replace("string: c", "string: d")),
    ] {
        let mut world = in_force();
        world.stage.expire((kind, name.into()), world.now);
        assert_eq!(world.publish_all(), "", "{kind:?}: nothing else says what to do instead");
        world.receive(kind, &[&next]);
        assert_eq!(world.publish_all(), format!("+{kind:?} {name}"), "{kind:?}: the next one");
    }
}
