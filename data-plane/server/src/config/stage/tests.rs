//! Stage, warm and publish on values: what comes into force, when, and in which order.

mod deletions;
mod expiry;
mod extensions;
mod floods;
mod hostile;
mod on_demand;
mod swaps;

use culvert_api::document::{self, Syntax};
use culvert_api::envoy::config::bootstrap::v3 as bootstrap_api;

use super::*;
use crate::apply::Change;
use crate::config::judge;

/// A stage and its clock. Everything published is applied at once, and shown as `+Kind name`, `-Kind name`,
/// or `0Kind name` for an empty stand-in.
struct World {
    stage: Stage,
    now: Duration,
}

impl World {
    fn new() -> Self {
        Self::with_bootstrap("")
    }

    fn with_bootstrap(more: &str) -> Self {
        let text = format!(
            "node: {{id: n, cluster: c}}\n\
             dynamic_resources:\n\
             \x20 ads_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n\
             \x20 cds_config: {{ads: {{}}, resource_api_version: V3}}\n\
             \x20 lds_config: {{ads: {{}}, resource_api_version: V3}}\n\
             static_resources:\n\
             \x20 clusters:\n\
             \x20 - name: xds\n\
             \x20   connect_timeout: 1s\n\
             \x20   type: STATIC\n\
             \x20   load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}\n\
             {more}"
        );
        let loaded = document::load::<bootstrap_api::Bootstrap>(text.as_bytes(), Syntax::Yaml).unwrap();
        let bootstrap = culvert_model::bootstrap::parse(&loaded.message).value.unwrap();
        Self { stage: Stage::new(&bootstrap, DeletionGuard::default()), now: Duration::from_secs(100) }
    }

    /// A state-of-the-world response of one kind; what is absent is removed if the kind is subscribed to as a whole.
    fn receive(&mut self, kind: Kind, resources: &[&str]) {
        self.receive_batch(kind, resources, &[], true);
    }

    fn receive_batch(&mut self, kind: Kind, resources: &[&str], removed: &[&str], whole: bool) {
        let resources = resources.iter().map(|text| judged(kind, text)).collect();
        let removed = removed.iter().map(|name| Name::from(*name)).collect();
        self.stage.receive(
            Batch { kind, resources, removed, aliases: Vec::new(), malformed: Vec::new(), whole, first: false },
            self.now,
        );
    }

    fn publish(&mut self) -> String {
        let mut seen = Vec::new();
        loop {
            let publication = self.stage.publish(self.now);
            if publication.steps.is_empty() {
                self.check();
                return seen.join(" ");
            }
            for step in &publication.steps {
                let sign = match &step.change {
                    Change::Set(_) if step.given.is_some() => '+',
                    Change::Set(_) => '0',
                    Change::Remove { .. } => '-',
                };
                seen.push(format!("{sign}{:?} {}", step.key.0, step.key.1));
                self.stage.applied(step, Went::Well, self.now);
            }
        }
    }

    /// What is kept beside the slots is as it would be found among them.
    fn check(&self) {
        let stage = &self.stage;
        let forgotten = stage.slots.iter().filter(|(key, slot)| !slot.is_idle() && !stage.busy.contains(*key));
        assert_eq!(forgotten.map(|(key, _)| key).collect::<Vec<_>>(), [] as [&Key; 0], "not idle, and not looked at");
        let referred: BTreeSet<Key> = stage.references().map(|one| (one.kind, Arc::clone(&one.name))).collect();
        assert!(stage.known.0 == stage.referred, "a change of what is referred to was not looked at");
        assert_eq!(stage.known.1, referred, "what is referred to");
    }

    /// As [`World::publish`], again and again a second later until nothing is left to do; what came at once stands between
    /// bars.
    fn publish_all(&mut self) -> String {
        let mut seen = vec![self.publish()];
        loop {
            self.pass(1);
            match self.publish() {
                nothing if nothing.is_empty() => return seen.join(" | "),
                more => seen.push(more),
            }
        }
    }

    fn waits(&self) -> String {
        let warming = self.stage.warming(self.now);
        warming
            .iter()
            .map(|((kind, name), on)| format!("{kind:?} {name}: {}", on.join(", ")))
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn interest(&self, kind: Kind) -> Vec<String> {
        let interests = self.stage.interests().into_iter();
        let of_kind = interests.filter(|(k, source, _)| *k == kind && *source == ConfigSourceKind::Ads);
        of_kind.flat_map(|(_, _, interest)| interest.names).map(|name| name.to_string()).collect()
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

fn judged(kind: Kind, text: &str) -> Judged {
    let text = format!("'@type': {}\n{text}", type_url_of(kind));
    let tree = document::parse(text.as_bytes(), Syntax::Yaml, &document::Limits::default()).unwrap().remove(0);
    let any = document::load_any(&tree).unwrap();
    let name = culvert_api::pool::resource_name(&any.type_url, &any.value).unwrap();
    judge(&any.type_url, &Name::from(name), "v", &any, None)
}

fn eds(name: &str) -> String {
    format!(
        "name: {name}\nconnect_timeout: 1s\ntype: EDS\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}"
    )
}

fn assignment(name: &str, port: u16) -> String {
    format!(
        "cluster_name: {name}\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]"
    )
}

fn listener(name: &str, routes: &str) -> String {
    format!(
        "name: {name}\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nfilter_chains:\n\
         - filters:\n\
         \x20 - name: envoy.filters.network.http_connection_manager\n\
         \x20   typed_config:\n\
         \x20     '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20     stat_prefix: x\n\
         \x20     rds: {{route_config_name: {routes}, config_source: {{ads: {{}}, resource_api_version: V3}}}}\n\
         \x20     http_filters:\n\
         \x20     - name: envoy.filters.http.router\n\
         \x20       typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    )
}

fn tls_listener(name: &str, routes: &str, secret: &str) -> String {
    format!(
        "{}\n\
         \x20 transport_socket:\n\
         \x20   name: envoy.transport_sockets.tls\n\
         \x20   typed_config:\n\
         \x20     '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n\
         \x20     common_tls_context:\n\
         \x20       tls_certificate_sds_secret_configs:\n\
         \x20       - {{name: {secret}, sds_config: {{ads: {{}}, resource_api_version: V3}}}}",
        listener(name, routes)
    )
}

fn routes(name: &str, cluster: &str) -> String {
    format!(
        "name: {name}\nvirtual_hosts: [{{name: h, domains: ['*'], routes: \
         [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]"
    )
}

#[test]
fn nothing_comes_into_force_before_what_it_needs_and_everything_in_order() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    assert_eq!(world.publish(), "");
    assert_eq!(world.waits(), "Cluster c: ClusterLoadAssignment c; Listener l: RouteConfiguration r");
    assert_eq!((world.interest(Kind::Endpoints), world.interest(Kind::Routes)), (vec!["c".into()], vec!["r".into()]));
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "", "routes lead to a cluster that is not warm");
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    assert_eq!(world.publish(), "+Cluster c +Endpoints c +Routes r +Listener l");
    assert_eq!(world.waits(), "");
    assert_eq!(world.publish(), "", "nothing is applied twice");
}

#[test]
fn waiting_ends_with_the_initial_fetch_timeout() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    assert_eq!(world.publish(), "");
    assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(15)));
    world.pass(14);
    assert_eq!(world.publish(), "");
    world.pass(1);
    assert_eq!(world.publish(), "+Cluster c 0Routes r +Listener l");
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "+Routes r");
    world.receive_batch(Kind::Listener, &[], &["l"], true);
    assert_eq!(world.publish_all(), "-Listener l | -Routes r");
}

#[test]
fn whoever_waits_for_what_is_not_delivered_waits_as_long_as_its_source_says() {
    let with_timeout =
        |timeout: &str| eds("c").replace("ads: {}", &format!("initial_fetch_timeout: {timeout}, ads: {{}}"));
    for (timeout, ends) in [("1s", Some(1)), ("60s", Some(60)), ("0s", None)] {
        let mut world = World::new();
        world.receive(Kind::Cluster, &[&with_timeout(timeout)]);
        assert_eq!(world.publish(), "", "{timeout}");
        assert_eq!(
            world.stage.next_look(world.now),
            ends.map(|ends| world.now + Duration::from_secs(ends)),
            "{timeout}"
        );
        for passed in 1..=100 {
            world.pass(1);
            if passed == 15 {
                // The stream's own timer (gRFC A53).
                world.stage.unanswered((Kind::Endpoints, "c".into()), world.now);
            }
            let expected = if ends == Some(passed) { "+Cluster c" } else { "" };
            assert_eq!(world.publish(), expected, "{timeout}: after {passed} s");
        }
    }
}

#[test]
fn what_does_not_exist_is_not_waited_for() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    assert_eq!(world.publish(), "");
    world.stage.not_found((Kind::Endpoints, "c".into()));
    assert_eq!(world.publish(), "+Cluster c");
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive_batch(Kind::Routes, &[], &["r"], false);
    assert_eq!(world.publish(), "0Routes r +Listener l");
    world.receive_batch(Kind::Listener, &[], &["l"], true);
    assert_eq!(world.publish_all(), "-Listener l | -Routes r", "the stand-in goes too");
}

#[test]
fn a_listener_waits_for_its_secret_and_says_so() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&tls_listener("l", "r", "cert")]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "+Routes r");
    assert_eq!(world.waits(), "Listener l: Secret cert");
    world.receive_batch(Kind::Secret, &[], &["cert"], false);
    world.pass(60);
    assert_eq!(world.publish(), "", "nothing stands in for a secret, even for one that does not exist");
    assert_eq!(world.waits(), "Listener l: Secret cert");
    world.receive(
        Kind::Secret,
        &["name: cert\ntls_certificate: {certificate_chain: {inline_string: a}, private_key: {inline_string: b}}"],
    );
    assert_eq!(world.publish(), "+Secret cert +Listener l");
}

#[test]
fn removals_go_backwards() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    world.publish();
    world.receive_batch(Kind::Cluster, &[], &["c"], true);
    world.receive_batch(Kind::Listener, &[], &["l"], true);
    assert_eq!(world.publish_all(), "-Listener l | -Routes r | -Cluster c | -Endpoints c");
}

#[test]
fn a_refused_resource_keeps_its_last_good_value_and_the_others_apply() {
    let mut world = World::new();
    let plain = |name: &str, timeout: u32| {
        format!(
            "name: {name}\nconnect_timeout: {timeout}s\ntype: STATIC\nload_assignment: {{{}}}",
            assignment(name, 1).replace('\n', ", ")
        )
    };
    world.receive(Kind::Cluster, &[&plain("a", 1), &plain("b", 1)]);
    assert_eq!(world.publish(), "+Cluster a +Cluster b");
    let mut bad = judged(Kind::Cluster, &plain("a", 9));
    bad.verdict = Err("no".into());
    let batch = Batch {
        kind: Kind::Cluster,
        resources: vec![bad, judged(Kind::Cluster, &plain("b", 2))],
        removed: Vec::new(),
        aliases: Vec::new(),
        malformed: Vec::new(),
        whole: true,
        first: false,
    };
    world.stage.receive(batch, world.now);
    assert_eq!(world.publish(), "+Cluster b");
    assert_eq!(world.stage.accepted().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_routes_or_assignment_removal_keeps_what_serves() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.publish();
    world.receive_batch(Kind::Endpoints, &[], &["c"], false);
    assert_eq!(world.publish(), "");
}

#[test]
fn a_static_name_wins_and_is_never_removed() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("xds")]);
    assert_eq!(world.publish(), "");
    world.receive_batch(Kind::Cluster, &[], &["xds"], true);
    assert_eq!(world.publish(), "");
    assert!(world.stage.accepted().is_empty(), "nothing static is kept on disk");
}

#[test]
fn a_failure_to_apply_keeps_the_old_one_and_is_not_repeated_until_something_changes() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    let publication = world.stage.publish(world.now);
    for step in &publication.steps {
        let went = if step.key.0 == Kind::Cluster { Went::Wrong } else { Went::Well };
        world.stage.applied(step, went, world.now);
    }
    assert_eq!(world.publish(), "");
    world.stage.not_found((Kind::Endpoints, "other".into()));
    assert_eq!(world.publish(), "", "it would fail again");
    world.receive(Kind::Cluster, &[&eds("c")]);
    assert_eq!(world.publish(), "+Cluster c", "sent again, and now found good in rehearsal");
    world.receive(Kind::Cluster, &[&eds("c").replace("1s", "2s")]);
    assert_eq!(world.publish(), "+Cluster c");
}

#[test]
fn cached_resources_serve_at_once_and_leave_when_live_ones_have_taken_over() {
    let mut world = World::new();
    world.stage.load_cached(vec![
        judged(Kind::Cluster, &eds("kept")),
        judged(Kind::Cluster, &eds("stale")),
        judged(Kind::Endpoints, &assignment("kept", 1)),
        judged(Kind::Endpoints, &assignment("stale", 1)),
        judged(Kind::Listener, &listener("l", "r")),
        judged(Kind::Listener, &listener("stale-listener", "r")),
        judged(Kind::Routes, &routes("r", "stale")),
    ]);
    assert_eq!(
        world.publish(),
        "+Cluster kept +Cluster stale +Endpoints kept +Endpoints stale +Routes r +Listener l +Listener stale-listener"
    );
    assert_eq!(world.stage.cached(Kind::Endpoints), ["kept".into(), "stale".into()] as [Name; 2]);
    world.receive(Kind::Cluster, &[&eds("kept")]);
    assert_eq!(world.publish(), "", "cached clusters stay until live listeners and routes are accepted");
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    assert_eq!(world.publish(), "-Listener stale-listener");
    world.receive(Kind::Routes, &[&routes("r", "kept")]);
    assert_eq!(world.publish_all(), "+Routes r | -Cluster stale | -Endpoints stale");
}

#[test]
fn a_first_delta_response_may_be_one_of_several() {
    let mut world = World::new();
    world.stage.load_cached(vec![judged(Kind::Listener, &listener("l", "r")), judged(Kind::Routes, &routes("r", "c"))]);
    world.publish();
    world.receive_batch(Kind::Listener, &[], &[], false);
    assert_eq!(world.publish(), "");
    world.pass(15);
    assert_eq!(world.publish_all(), "-Listener l | -Routes r");
}

#[test]
fn secrets_are_never_among_what_is_kept() {
    let mut world = World::new();
    world.receive(Kind::Listener, &[&tls_listener("l", "r", "cert")]);
    world.receive(
        Kind::Secret,
        &["name: cert\ntls_certificate: {certificate_chain: {inline_string: a}, private_key: {inline_string: b}}"],
    );
    let kept: Vec<String> = world.stage.accepted().into_iter().map(|(name, _)| name).collect();
    assert_eq!(kept, ["l"]);
}

#[test]
fn a_static_listener_that_takes_its_routes_from_the_control_plane_is_served() {
    let listener = listener("fixed", "r").replace('\n', "\n    ");
    let mut world = World::with_bootstrap(&format!("  listeners:\n  - {listener}\n"));
    assert_eq!(world.interest(Kind::Routes), ["r"]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "+Routes r");
    world.stage.not_found((Kind::Routes, "r".into()));
    assert_eq!(world.publish(), "", "what serves stays");
}

#[test]
fn a_static_listener_whose_routes_do_not_exist_gets_empty_ones() {
    let listener = listener("fixed", "r").replace('\n', "\n    ");
    let mut world = World::with_bootstrap(&format!("  listeners:\n  - {listener}\n"));
    world.stage.not_found((Kind::Routes, "r".into()));
    assert_eq!(world.publish(), "0Routes r");
}

#[test]
fn a_change_that_arrives_while_one_is_applied_is_not_lost() {
    let mut world = World::new();
    let cluster = eds("c");
    world.receive(Kind::Cluster, &[&cluster]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    let publication = world.stage.publish(world.now);
    world.receive(Kind::Cluster, &[&cluster.replace("1s", "2s")]);
    for step in &publication.steps {
        world.stage.applied(step, Went::Well, world.now);
    }
    assert_eq!(world.publish(), "+Cluster c");
    world.receive(Kind::Cluster, &[&cluster.replace("1s", "2s")]);
    let publication = world.stage.publish(world.now);
    assert_eq!((publication.steps.len(), publication.confirmed.len()), (0, 1), "the same content is only confirmed");
}

#[test]
fn what_fails_for_what_may_pass_is_tried_again_and_the_last_good_one_is_what_is_kept() {
    let mut world = World::new();
    let at = |port: u16| listener("l", "r").replace("port_value: 0", &format!("port_value: {port}"));
    world.receive(Kind::Listener, &[&at(1)]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    assert_eq!(world.publish(), "+Routes r +Listener l");
    let kept = |world: &World| world.stage.accepted().into_iter().find(|(name, _)| name == "l").unwrap().1.resource;
    let good = kept(&world);
    let mut hindered = judged(Kind::Listener, &at(2));
    hindered.hindrance = Some("in use".into());
    assert_eq!(hindered.rejection().unwrap().reason, "in use");
    let batch = |judged| Batch {
        kind: Kind::Listener,
        resources: vec![judged],
        removed: Vec::new(),
        aliases: Vec::new(),
        malformed: Vec::new(),
        whole: true,
        first: false,
    };
    world.stage.receive(batch(hindered), world.now);
    for delay in [1, 2, 4, 8, 16, 30, 30] {
        let publication = world.stage.publish(world.now);
        assert_eq!(publication.steps.len(), 1, "a try before a delay of {delay} s");
        world.stage.applied(&publication.steps[0], Went::ForNow, world.now);
        assert_eq!(world.publish(), "", "not at once again");
        assert_eq!(kept(&world), good, "the last good one is what a cold start would begin with");
        assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(delay)));
        world.pass(delay);
    }
    assert_eq!(world.publish(), "+Listener l", "the address is free");
    assert_ne!(kept(&world), good, "now the new one is kept");
    assert_eq!(world.publish(), "", "and that was it");
}

#[test]
fn what_is_sent_again_without_a_hindrance_is_tried_at_once() {
    let mut world = World::new();
    let plain = format!("name: c\nconnect_timeout: 1s\ntype: STATIC\nload_assignment: {{{}}}", "cluster_name: c");
    world.receive(Kind::Cluster, &[&plain]);
    let publication = world.stage.publish(world.now);
    world.stage.applied(&publication.steps[0], Went::ForNow, world.now);
    assert_eq!(world.publish(), "");
    world.receive(Kind::Cluster, &[&plain]);
    assert_eq!(world.publish(), "+Cluster c");
}
