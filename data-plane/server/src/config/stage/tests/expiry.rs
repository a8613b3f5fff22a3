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

const SECRET: &str =
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
