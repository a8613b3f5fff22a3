//! Other ways to name resources, and how long they last: collections (xDS TP1), aliases, TTLs.

use culvert_api::Any;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapper};
use culvert_api::type_url::{
    CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, LISTENER, RESOURCE, ROUTE_CONFIGURATION as RDS, VIRTUAL_HOST,
};

use super::*;
use crate::Name;
use crate::resource::Extras;

const A: &str = "xdstp://dc/t/edge/a?env=prod&zone=1";
const B: &str = "xdstp://dc/t/edge/b?env=prod&zone=1";
const GLOB: &str = "xdstp://dc/t/edge/*?env=prod&zone=1";
/// The same, as somebody else would write it.
const GLOB_TOO: &str = "xdstp://dc/t/edge/*?zone=1&env=prod";

fn of(type_url: &str, names: &[&str]) -> Snapshot {
    let mut builder = Snapshot::builder();
    for name in names {
        builder.insert(Arc::new(Resource::new(&type_url.into(), *name, b"")));
    }
    builder.build()
}

/// Names, and `-` before removed ones.
fn names(peer: &mut Peer) -> Option<(Vec<String>, String)> {
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO)?;
    let names = response.resources().into_iter().map(|resource| resource.name().to_string());
    let removed = response.removed().iter().map(|name| format!("-{name}"));
    Some((names.chain(removed).collect(), response.nonce().to_string()))
}

#[track_caller]
fn expect(peer: &mut Peer, expected: &[&str]) -> String {
    let (seen, nonce) = names(peer).unwrap_or_else(|| panic!("expected {expected:?}, nothing was sent"));
    assert_eq!(seen, expected);
    nonce
}

#[test]
fn a_glob_is_one_level_of_a_collection_with_the_same_parameters() {
    let others =
        ["plain", "xdstp://dc/t/edge/a", "xdstp://dc/t/edge/deep/a?env=prod&zone=1", "xdstp://dc/t/a?env=prod&zone=1"];
    let with = |names: &[&'static str]| of(LISTENER, &[names, &others].concat());
    let mut peer = Peer::new(Variant::Delta, with(&[A, B]));
    peer.delta(LISTENER, &[GLOB_TOO], &[]);
    let nonce = expect(&mut peer, &[A, B]);
    peer.delta_answer(LISTENER, &nonce, None);
    // What comes and goes in it is told by its own name.
    peer.publish(with(&[B, "xdstp://dc/t/edge/c?env=prod&zone=1"]));
    let nonce = expect(&mut peer, &["xdstp://dc/t/edge/c?env=prod&zone=1", &format!("-{A}")]);
    peer.delta_answer(LISTENER, &nonce, None);
    // One that is asked for by name too stays with its name.
    peer.delta(LISTENER, &[B], &[]);
    let nonce = expect(&mut peer, &[B]);
    peer.delta_answer(LISTENER, &nonce, None);
    peer.delta(LISTENER, &[], &[GLOB]);
    peer.publish(with(&[A]));
    let nonce = expect(&mut peer, &[&format!("-{B}")]);
    peer.delta_answer(LISTENER, &nonce, None);
    peer.expect_silence();
}

#[test]
fn who_comes_back_with_a_glob_is_sent_what_changed_of_it() {
    let mut peer = Peer::new(Variant::Delta, of(LISTENER, &[A, B]));
    let version = Resource::new(&LISTENER.into(), A, b"").version().to_string();
    peer.delta_with(
        LISTENER,
        &[GLOB],
        &[(A, &version), (B, "another"), ("xdstp://dc/t/edge/gone?env=prod&zone=1", "1")],
    );
    let nonce = expect(&mut peer, &[B, "-xdstp://dc/t/edge/gone?env=prod&zone=1"]);
    peer.delta_answer(LISTENER, &nonce, None);
    peer.expect_silence();
}

#[test]
fn collections_are_limited() {
    let mut peer = Peer::new(Variant::Delta, of(LISTENER, &[A]));
    let globs: Vec<String> = (0..1001).map(|number| format!("xdstp://dc/t/{number}/*")).collect();
    let globs: Vec<&str> = globs.iter().map(String::as_str).collect();
    let refused = peer.session.on_delta_request(peer.stream, &delta(LISTENER, &globs, &[])).unwrap_err();
    assert_eq!(refused.code(), 8, "{refused}");
    assert_eq!(refused.to_string(), format!("more than 1000 collections of {LISTENER} on one stream"));
}

#[test]
fn of_an_empty_collection_the_glob_does_not_exist() {
    let mut peer = Peer::new(Variant::Delta, of(LISTENER, &["plain"]));
    peer.delta(LISTENER, &[GLOB], &[]);
    let nonce = expect(&mut peer, &[&format!("-{GLOB}")]);
    peer.delta_answer(LISTENER, &nonce, None);
    peer.publish(of(LISTENER, &["plain", A]));
    let nonce = expect(&mut peer, &[A]);
    peer.delta_answer(LISTENER, &nonce, None);
    peer.expect_silence();
}

#[test]
fn a_glob_in_state_of_the_world_is_the_state_of_its_collection() {
    for (type_url, after_removal) in [(LISTENER, Some(vec![B.to_owned()])), (RDS, None)] {
        let mut peer = Peer::new(Variant::Sotw, of(type_url, &[A, B, "plain"]));
        peer.sotw(type_url, &[GLOB_TOO], "", "");
        let nonce = expect(&mut peer, &[A, B]);
        peer.sotw(type_url, &[GLOB_TOO], "", &nonce);
        peer.expect_silence();
        peer.publish(of(type_url, &[B, "plain"]));
        let seen = names(&mut peer).map(|(names, _)| names);
        assert_eq!(seen, after_removal, "{type_url}: one is gone");
    }
}

#[test]
fn a_grpc_client_is_told_that_a_collection_does_not_exist_only_if_that_is_empty() {
    for (members, told) in [(&[A, B][..], vec![]), (&[], vec![GLOB])] {
        let node = NodeIdentity { user_agent: "gRPC C-core linux".into(), ..NodeIdentity::default() };
        let mut session = Session::new(SessionConfig::default(), Arc::new(node), Arc::new(of(RDS, members)));
        session.open(StreamId(1), StreamKind { variant: Variant::Sotw, type_url: None }).unwrap();
        session.on_request(StreamId(1), &sotw(RDS, &[GLOB], "", "")).unwrap();
        let response = session.poll_stream(StreamId(1), Duration::ZERO).expect("an answer").to_sotw();
        assert_eq!(response.resources.len(), members.len());
        let names = response.resource_errors.into_iter().map(|error| error.resource_name.unwrap().name);
        assert_eq!(names.collect::<Vec<_>>(), told, "of a collection of {members:?}");
    }
}

#[test]
fn a_grpc_client_is_told_each_time_that_a_collection_has_become_empty() {
    let node = NodeIdentity { user_agent: "gRPC C-core linux".into(), ..NodeIdentity::default() };
    let mut session = Session::new(SessionConfig::default(), Arc::new(node), Arc::new(of(RDS, &[A])));
    session.open(StreamId(1), StreamKind { variant: Variant::Sotw, type_url: None }).unwrap();
    let (mut nonce, mut now) = (String::new(), Duration::ZERO);
    for (members, told) in [(&[A][..], vec![]), (&[], vec![GLOB]), (&[B], vec![]), (&[], vec![GLOB])] {
        let mut next = session.snapshot().successor();
        for name in members {
            next.insert(Arc::new(Resource::new(&RDS.into(), *name, b"")));
        }
        session.on_snapshot(Arc::new(next.build()), now);
        session.on_request(StreamId(1), &sotw(RDS, &[GLOB], "", &nonce)).unwrap();
        // What is removed goes in the last step.
        let response = (0..10).find_map(|_| {
            now += Duration::from_millis(100);
            session.poll_stream(StreamId(1), now)
        });
        let response = response.expect("a response").to_sotw();
        assert_eq!(response.resources.len(), members.len());
        nonce = response.nonce;
        let names = response.resource_errors.into_iter().map(|error| error.resource_name.unwrap().name);
        assert_eq!(names.collect::<Vec<_>>(), told, "of a collection that has come to be {members:?}");
    }
}

fn host(aliases: &[&str], mark: &str) -> Arc<Resource> {
    let extras = Extras { aliases: aliases.iter().map(|alias| Name::from(*alias)).collect(), ttl: None };
    Arc::new(Resource::with(&VIRTUAL_HOST.into(), "r/host", mark.as_bytes(), extras))
}

fn with(resource: Arc<Resource>) -> Snapshot {
    let mut builder = Snapshot::builder();
    builder.insert(resource);
    builder.build()
}

#[test]
fn a_resource_is_found_by_its_aliases_and_says_them() {
    let mut peer = Peer::new(Variant::Delta, with(host(&["r/a", "r/b"], "\n\x06r/host")));
    peer.delta(VIRTUAL_HOST, &["r/a", "r/b", "r/c"], &[]);
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap();
    let mut bytes = Vec::new();
    response.encode(&mut bytes);
    let decoded = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
    assert_eq!(decoded, response.to_delta(), "both ways to say it are the same");
    let seen: Vec<_> = decoded
        .resources
        .iter()
        .map(|one| (one.name.as_str(), one.aliases.join(" "), one.resource.is_some()))
        .collect();
    let expected = [("r/host", "r/a r/b".to_owned(), true), ("r/c", "r/c".to_owned(), false)];
    assert_eq!(seen, expected, "once for both of its names; what does not exist has no body");
    peer.delta_answer(VIRTUAL_HOST, &response.nonce().to_string(), None);
    peer.expect_silence();
    assert!(peer.status(VIRTUAL_HOST).contains("r/a=Synced"), "{}", peer.status(VIRTUAL_HOST));

    // Refused under an alias it is not sent again; changed it is.
    peer.publish(with(host(&["r/a", "r/b"], "\n\x06r/host2")));
    let nonce = expect(&mut peer, &["r/host"]);
    peer.delta_answer(VIRTUAL_HOST, &nonce, Some("no"));
    peer.expect_silence();
    peer.publish(with(host(&["r/a"], "\n\x06r/host3")));
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap().to_delta();
    let seen: Vec<_> = response.resources.iter().map(|one| (one.name.as_str(), one.resource.is_some())).collect();
    assert_eq!(seen, [("r/host", true), ("r/b", false)], "an alias that is gone is gone");
}

/// What is asked for by another name goes by its own, too: that is the one that the client has it by.
#[test]
fn a_virtual_host_that_is_gone_is_removed_by_its_own_name() {
    for (asked, removed, hollow) in [
        (&["r/a"][..], &["r/host"][..], &["r/a"][..]),
        (&["r/host"], &["r/host"], &[]),
        (&["r/a", "r/b", "r/host"], &["r/host"], &["r/a", "r/b"]),
    ] {
        let mut peer = Peer::new(Variant::Delta, with(host(&["r/a", "r/b"], "\n\x06r/host")));
        peer.delta(VIRTUAL_HOST, asked, &[]);
        let nonce = expect(&mut peer, &["r/host"]);
        peer.delta_answer(VIRTUAL_HOST, &nonce, None);
        peer.publish(Snapshot::default());
        let gone = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap().to_delta();
        assert_eq!(gone.removed_resources, removed, "asked for as {asked:?}");
        assert!(gone.resources.iter().all(|one| one.resource.is_none()));
        let bodyless: Vec<_> = gone.resources.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(bodyless, hollow, "asked for as {asked:?}");
        // Who asks for it now is told as ever.
        peer.delta_answer(VIRTUAL_HOST, &gone.nonce, None);
        peer.delta(VIRTUAL_HOST, &["r/host"], &[]);
        let again = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap().to_delta();
        assert_eq!((again.removed_resources.len(), again.resources.len()), (0, 1), "asked for as {asked:?}");
    }
}

fn brief(type_url: &str) -> Snapshot {
    let extras = Extras { aliases: Arc::default(), ttl: Some(Duration::from_secs(30)) };
    let mut builder = Snapshot::builder();
    builder.insert(Arc::new(Resource::with(&type_url.into(), "brief", b"\x0a\x05brief", extras)));
    builder.insert(Arc::new(Resource::new(&type_url.into(), "lasting", b"\x0a\x07lasting")));
    builder.build()
}

fn at(peer: &mut Peer, seconds: u64) -> Option<Response> {
    peer.session.poll_stream(peer.stream, Duration::from_secs(seconds))
}

#[test]
fn a_ttl_goes_with_its_resource_and_begins_anew_three_times() {
    let mut peer = Peer::new(Variant::Delta, brief(CLUSTER));
    peer.delta(CLUSTER, &[], &[]);
    let first = at(&mut peer, 0).unwrap().to_delta();
    let ttls = |response: &DeltaDiscoveryResponse| -> Vec<_> {
        let one = |one: &Wrapper| (one.name.clone(), one.ttl.map(|ttl| ttl.seconds), one.resource.is_some());
        response.resources.iter().map(one).collect()
    };
    assert_eq!(ttls(&first), [("brief".into(), Some(30), true), ("lasting".into(), None, true)]);
    assert!(at(&mut peer, 20).is_none(), "nothing more before the first is answered");
    peer.delta_answer(CLUSTER, &first.nonce, None);
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(Duration::from_secs(10)));
    assert!(at(&mut peer, 9).is_none(), "it is too early");
    for seconds in [10, 20, 30] {
        let response = at(&mut peer, seconds).unwrap_or_else(|| panic!("nothing was sent at {seconds} s"));
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        assert_eq!(bytes.len(), response.encoded_len());
        let beat = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!(ttls(&beat), [("brief".into(), Some(30), false)], "without a body, at {seconds} s");
        assert_eq!(beat.resources[0].version, first.resources[0].version);
        assert!(at(&mut peer, seconds).is_none());
        peer.delta_answer(CLUSTER, &beat.nonce, None);
    }
    assert_eq!(peer.status(CLUSTER), "brief=Synced lasting=Synced");
    peer.delta(CLUSTER, &[], &["*"]);
    assert!(at(&mut peer, 100).is_none(), "who no longer asks hears no more");
}

/// A client that was slow to answer, or a control plane that stood still: by then the resources may be gone at the client, to
/// which a heartbeat without a body means nothing.
#[test]
fn a_heartbeat_that_is_late_says_again_what_it_keeps_alive() {
    let mut peer = Peer::new(Variant::Delta, brief(CLUSTER));
    peer.delta(CLUSTER, &[], &[]);
    let mut nonce = at(&mut peer, 0).unwrap().nonce().to_string();
    for (seconds, has_body) in [(19, false), (30, false), (50, true), (60, false), (99, true)] {
        assert!(at(&mut peer, seconds).is_none(), "nothing more before the one before is answered");
        peer.delta_answer(CLUSTER, &nonce, None);
        let beat = at(&mut peer, seconds).unwrap_or_else(|| panic!("nothing was sent at {seconds} s")).to_delta();
        let said: Vec<_> = beat.resources.iter().map(|one| (one.name.as_str(), one.resource.is_some())).collect();
        assert_eq!(said, [("brief", has_body)], "at {seconds} s");
        nonce = beat.nonce;
    }
}

/// Nobody knows for how long a client that comes back may still use what it has.
#[test]
fn what_a_client_comes_back_with_begins_anew_at_once() {
    let version = |name: &str| brief(CLUSTER).of_type(CLUSTER).unwrap().get(name).unwrap().version().to_string();
    let mut peer = Peer::new(Variant::Delta, brief(CLUSTER));
    peer.session.tell_time(Duration::from_secs(100));
    peer.delta_with(CLUSTER, &[], &[("brief", &version("brief")), ("lasting", &version("lasting"))]);
    let first = at(&mut peer, 100).unwrap().to_delta();
    let said: Vec<_> = first.resources.iter().map(|one| (one.name.as_str(), one.resource.is_some())).collect();
    assert_eq!(said, [("brief", true)]);
    peer.delta_answer(CLUSTER, &first.nonce, None);
    assert!(at(&mut peer, 109).is_none() && at(&mut peer, 110).is_some(), "and so on");

    let mut peer = Peer::with_features(Variant::Sotw, brief(CLUSTER), &["xds.config.resource-in-sotw"]);
    peer.session.tell_time(Duration::from_secs(100));
    peer.sotw(CLUSTER, &[], &brief(CLUSTER).of_type(CLUSTER).unwrap().version().to_string(), "");
    let first = at(&mut peer, 100).expect("it has the version, and what it has of it may be about to be over");
    assert_eq!(first.resources().len(), 2, "a full state");
    peer.sotw(CLUSTER, &[], "", &first.nonce().to_string());
    assert!(at(&mut peer, 109).is_none() && at(&mut peer, 110).is_some(), "and so on");
}

/// What has a TTL loses it, and who asks for something else has nothing to do for that.
#[test]
fn without_a_ttl_nothing_is_to_be_said_at_a_time() {
    let mut peer = Peer::new(Variant::Delta, brief(CLUSTER));
    peer.delta(CLUSTER, &["lasting"], &[]);
    let nonce = at(&mut peer, 0).unwrap().nonce().to_string();
    peer.delta_answer(CLUSTER, &nonce, None);
    let mut builder = Snapshot::builder();
    builder.insert(Arc::new(Resource::new(&CLUSTER.into(), "brief", b"\x0a\x05brief")));
    builder.insert(Arc::new(Resource::new(&CLUSTER.into(), "lasting", b"\x0a\x07lasting")));
    peer.session.on_snapshot(Arc::new(builder.build()), Duration::from_secs(1));
    assert!(at(&mut peer, 60).is_none());
    assert_eq!(peer.session.poll_timeout(peer.stream), None, "the stream's driver would be woken without end");
}

/// Neither other changes nor a client that is slow to answer may let a resource expire, or keep the driver from resting.
#[test]
fn changes_do_not_put_off_what_keeps_a_resource_alive() {
    let changed = |mark: u64| {
        let mut builder = Snapshot::builder();
        let brief = brief(CLUSTER);
        builder.insert(Arc::clone(brief.of_type(CLUSTER).unwrap().get("brief").unwrap()));
        builder.insert(resource(CLUSTER, &format!("lasting={mark}")));
        builder.build()
    };
    let mut peer = Peer::new(Variant::Delta, changed(0));
    peer.delta(CLUSTER, &[], &[]);
    let mut alive = Vec::new();
    for seconds in 0..60 {
        if seconds % 4 == 0 {
            peer.session.on_snapshot(Arc::new(changed(seconds)), Duration::from_secs(seconds));
        }
        while let Some(response) = at(&mut peer, seconds) {
            let response = response.to_delta();
            if response.resources.iter().any(|one| one.name == "brief") {
                alive.push(seconds);
            }
            let rests = |peer: &Peer| {
                let timeout = peer.session.poll_timeout(peer.stream);
                assert!(
                    timeout.is_none_or(|at| at > Duration::from_secs(seconds)),
                    "polled again at once: {timeout:?}"
                );
            };
            rests(&peer);
            peer.delta_answer(CLUSTER, &response.nonce, None);
        }
        let timeout = peer.session.poll_timeout(peer.stream);
        assert!(timeout.is_some_and(|at| at > Duration::from_secs(seconds)), "{timeout:?} at {seconds} s");
    }
    let gaps: Vec<u64> = alive.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 4 && gaps.iter().all(|gap| *gap <= 15), "alive at {alive:?}");
}

#[test]
fn in_state_of_the_world_a_ttl_is_sent_to_who_takes_it_and_never_to_an_envoy_that_it_would_kill() {
    let feature = ["xds.config.resource-in-sotw"];
    for (type_url, user_agent, features, wrapped) in [
        (CLUSTER, "gRPC C-core", &feature[..], true),
        (CLUSTER, "gRPC C-core", &[], false),
        (CLUSTER, "envoy 1.40", &feature, true),
        (EDS, "envoy 1.40", &feature, false),
        (RDS, "envoy 1.40", &feature, false),
        (EDS, "gRPC C-core", &feature, true),
    ] {
        let client_features = features.iter().map(ToString::to_string).collect();
        let node = NodeIdentity { user_agent: user_agent.into(), client_features, ..NodeIdentity::default() };
        let mut session = Session::new(SessionConfig::default(), Arc::new(node), Arc::new(brief(type_url)));
        session.open(StreamId(0), StreamKind { variant: Variant::Sotw, type_url: None }).unwrap();
        session.on_request(StreamId(0), &sotw(type_url, &["brief", "lasting"], "", "")).unwrap();
        let mut nonce = String::new();
        for seconds in [0, 10, 20] {
            let case = format!("{type_url} to {user_agent} at {seconds} s");
            let response = session.poll_stream(StreamId(0), Duration::from_secs(seconds));
            let Some(response) = response else {
                assert!(!wrapped && seconds > 0, "{case}: nothing was sent");
                continue;
            };
            assert!(wrapped || seconds == 0, "{case}: nobody is kept alive");
            let mut bytes = Vec::new();
            response.encode(&mut bytes);
            let decoded = DiscoveryResponse::decode(&*bytes).unwrap();
            assert_eq!(decoded, response.to_sotw(), "both ways to say it are the same");
            assert_eq!(bytes.len(), response.encoded_len());
            let of = |any: &Any| any.type_url.clone();
            let types: Vec<_> = decoded.resources.iter().map(of).collect();
            let brief = if wrapped { RESOURCE } else { type_url };
            // A type whose responses are a full state carries all; of another, what is to live on.
            let alone = seconds > 0 && type_url != CLUSTER;
            let expected = if alone { vec![brief] } else { vec![brief, type_url] };
            assert_eq!(types, expected, "{case}");
            if wrapped {
                let inner = Wrapper::decode(&*decoded.resources[0].value).unwrap();
                assert_eq!((inner.name.as_str(), inner.ttl.map(|ttl| ttl.seconds)), ("brief", Some(30)), "{case}");
                assert!(inner.resource.is_some(), "{case}: gRPC's clients refuse one without a body");
            }
            nonce = response.nonce().to_string();
            session.on_request(StreamId(0), &sotw(type_url, &["brief", "lasting"], "", &nonce)).unwrap();
        }
        assert!(!nonce.is_empty());
    }
}

/// The version of what one name has is not that of everything, whatever it was sent with.
#[test]
fn who_had_one_name_and_comes_back_for_everything_is_sent_everything() {
    let routes = || snapshot(&[(RDS, "a=1"), (RDS, "b=1")]);
    for (first, again) in [(&["a"][..], Some("RouteConfiguration a=1 b=1")), (&["*"][..], None)] {
        let mut peer = Peer::new(Variant::Sotw, routes());
        peer.sotw(RDS, first, "", "");
        let response = peer.session.poll_stream(peer.stream, Duration::ZERO).expect("what was asked for");
        let (version, nonce) = (response.version_info().to_string(), response.nonce().to_string());
        peer.sotw(RDS, first, &version, &nonce);
        peer.reconnect(Variant::Sotw);
        peer.sotw(RDS, &["*"], &version, "");
        assert_eq!(peer.poll().map(|(seen, _)| seen).as_deref(), again, "after {first:?}");
    }
}
