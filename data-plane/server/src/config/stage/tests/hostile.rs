//! Responses of a control plane, whole and damaged, from their bytes until they are in force: what the fuzz target
//! `xds-response` does, and on through judgement, stage and publication. Time passes meanwhile, streams end, TTLs are over, and
//! what is applied may fail.

use std::collections::BTreeMap;

use culvert_api::Any;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapper};
use culvert_xds::Variant;
use culvert_xds::client::{Absence, Client, ClientConfig, Rejection, ResourceTimer, Update};
use prost::Message;

use super::*;

const KINDS: [Kind; 11] = [
    Kind::Secret,
    Kind::Cluster,
    Kind::Endpoints,
    Kind::Routes,
    Kind::Listener,
    Kind::Agent,
    Kind::Policy,
    Kind::Extension,
    Kind::Runtime,
    Kind::Scope,
    Kind::VirtualHost,
];
const SEEDS: u64 = 64;
const STEPS: usize = 80;
/// More rounds of publishing than any change could need.
const ROUNDS: usize = 100;

/// A resource that nothing is wrong with, under one of few names.
fn good(kind: Kind, random: &mut fastrand::Rng) -> Any {
    let name = *random.choice(&["a", "b", "c"]).unwrap();
    let other = *random.choice(&["a", "b", "xds", "nowhere"]).unwrap();
    let text = match kind {
        Kind::Cluster if random.bool() => eds(name),
        Kind::Cluster => format!("name: {name}\nconnect_timeout: {}s\ntype: STATIC", random.u8(1..4)),
        Kind::Endpoints => assignment(name, random.u16(1..4)),
        Kind::Listener => match random.u8(0..4) {
            0 => listener(name, other),
            1 => tls_listener(name, other, "a"),
            2 => on_demand::scoped(name, ""),
            _ => extensions::asking(name, ""),
        },
        Kind::Routes => routes(name, other),
        Kind::Secret => expiry::SECRET.replace("name: cert", &format!("name: {name}")),
        Kind::Agent => {
            format!("name: {name}\ncluster: {other}\nhosting_listener: l\nservers: [{{address: 't:1'}}]")
        }
        Kind::Policy => {
            format!("name: {name}\nrules: [{{name: r, principals: [{{uri: 'spiffe://x/*'}}], clusters: [{other}]}}]")
        }
        Kind::Extension => extensions::tcp("f", other),
        Kind::Runtime => format!("name: {name}\nlayer: {{k: {}}}", random.u8(..)),
        Kind::Scope => on_demand::scope(name, other, ""),
        Kind::VirtualHost => {
            format!(
                "name: a/{name}\ndomains: [{name}]\nroutes: [{{match: {{prefix: /}}, route: {{cluster: {other}}}}}]"
            )
        }
    };
    let text = format!("'@type': {}\n{text}", type_url_of(kind));
    let tree = document::parse(text.as_bytes(), Syntax::Yaml, &document::Limits::default()).unwrap().remove(0);
    document::load_any(&tree).unwrap_or_else(|problems| panic!("{text}: {problems:?}"))
}

struct Run {
    random: fastrand::Rng,
    client: Client,
    variant: Variant,
    world: World,
    heard: BTreeSet<Kind>,
    nonces: u32,
    /// What was applied, as it came.
    in_force: BTreeMap<Key, Option<Given>>,
    /// How often something came into force, and how often something was refused.
    counts: (usize, usize),
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let variant = if random.bool() { Variant::Sotw } else { Variant::Delta };
        let mut client = Client::new(ClientConfig {
            variant,
            node: Node::default(),
            node_on_first_message_only: true,
            resource_timer: if random.bool() { ResourceTimer::DoesNotExist } else { ResourceTimer::TransientError },
            fail_on_data_errors: random.bool(),
        });
        client.on_connected();
        let mut world = World::with_bootstrap(expiry::OURS);
        world.stage.ads_is_delta = variant == Variant::Delta;
        let (heard, in_force) = (BTreeSet::new(), BTreeMap::new());
        Self { random, client, variant, world, heard, nonces: 0, in_force, counts: (0, 0) }
    }

    fn step(&mut self) {
        match self.random.u8(0..10) {
            0 => self.world.pass(self.random.u64(1..20)),
            1 if self.random.u8(0..4) == 0 => {
                self.client.on_connected();
                self.heard.clear();
            }
            _ => self.respond(),
        }
        self.ask();
        self.publish();
    }

    /// What the stage refers to is asked for, and whose time is up is said.
    fn ask(&mut self) {
        let interests = self.world.stage.interests();
        for kind in KINDS {
            let found = interests.iter().find(|(of, _, _)| *of == kind).map(|(_, _, interest)| interest.clone());
            self.client.watch(type_url_of(kind), found.unwrap_or_default());
        }
        let now = self.world.now;
        while self.client.poll_request(now).is_some() {}
        while let Some(missing) = self.client.poll_timeout(now) {
            let key = (kind_of(&missing.type_url).unwrap(), Arc::clone(&missing.name));
            match missing.why {
                Absence::Unanswered => self.world.stage.unanswered(key, now),
                Absence::Unavailable => self.world.stage.unavailable(&key),
                Absence::Expired => self.world.stage.expire(key, now),
            }
        }
    }

    fn respond(&mut self) {
        let random = &mut self.random;
        let kind = random.choice(KINDS).unwrap();
        self.nonces += 1;
        let (type_url, nonce) = (type_url_of(kind).to_owned(), self.nonces.to_string());
        let resources: Vec<Any> = (0..random.usize(0..4)).map(|_| good(kind, random)).collect();
        let ttl = |random: &mut fastrand::Rng| {
            (random.u8(0..8) == 0).then(|| prost_types::Duration { seconds: random.i64(0..30), nanos: 0 })
        };
        let mut bytes = match self.variant {
            Variant::Sotw => {
                let version_info = nonce.clone();
                DiscoveryResponse { type_url, nonce, version_info, resources, ..Default::default() }.encode_to_vec()
            }
            Variant::Delta => {
                let wrap = |body: Any| Wrapper {
                    name: culvert_api::pool::resource_name(&body.type_url, &body.value).unwrap(),
                    version: nonce.clone(),
                    ttl: ttl(random),
                    resource: Some(body),
                    ..Wrapper::default()
                };
                let resources: Vec<_> = resources.into_iter().map(wrap).collect();
                let removed = *random.choice(&["a", "b", "c", "f", "a/a", "nobody"]).unwrap();
                let removed_resources = if random.u8(0..4) == 0 { vec![removed.to_owned()] } else { Vec::new() };
                DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, ..Default::default() }
                    .encode_to_vec()
            }
        };
        if random.u8(0..3) == 0 {
            for _ in 0..random.usize(1..4) {
                let at = random.usize(0..bytes.len());
                bytes[at] ^= 1 << random.u8(0..8);
            }
        }
        let update = match self.variant {
            Variant::Sotw => DiscoveryResponse::decode(&*bytes).ok().map(|one| self.client.on_response(one)),
            Variant::Delta => {
                DeltaDiscoveryResponse::decode(&*bytes).ok().map(|one| self.client.on_delta_response(one))
            }
        };
        if let Some(Ok(update)) = update {
            let rejections = stage(&mut self.world, &mut self.heard, &update, self.variant == Variant::Sotw);
            self.counts.1 += rejections.len() + update.rejections().len();
            let _answer = if rejections.is_empty() { update.ack() } else { update.nack(rejections) };
        }
    }

    /// Publishes until there is nothing left; what is applied may fail.
    fn publish(&mut self) {
        let now = self.world.now;
        for _ in 0..ROUNDS {
            let publication = self.world.stage.publish(now);
            if publication.steps.is_empty() {
                return self.check();
            }
            for step in &publication.steps {
                let went = match self.random.u8(0..20) {
                    0 => Went::Wrong,
                    1 => Went::ForNow,
                    _ => Went::Well,
                };
                match &step.change {
                    Change::Set(resource) => {
                        self.look_at(step, resource);
                        if went == Went::Well {
                            self.counts.0 += 1;
                            self.in_force.insert(step.key.clone(), step.given.clone());
                        }
                    }
                    Change::Remove { .. } => {
                        assert!(self.in_force.remove(&step.key).is_some(), "{:?} was not in force", step.key);
                    }
                }
                self.world.stage.applied(step, went, now);
            }
        }
        panic!("there is something to publish without end: {}", self.world.waits());
    }

    /// What comes into force is what its bytes say, under its own name.
    fn look_at(&self, step: &Step, resource: &Resource) {
        assert_eq!(references::key_of(resource), step.key, "the name");
        assert_ne!(step.key, (Kind::Cluster, "xds".into()), "a static resource is never replaced");
        if let Some(given) = &step.given {
            let any = &given.resource;
            let again = judge(&any.type_url, &step.key.1, &given.version, any, None).verdict;
            assert_eq!(again.as_ref(), Ok(resource), "{:?}: what its bytes say", step.key);
        }
    }

    fn check(&self) {
        self.world.check();
        let slots = self.world.stage.slots.iter().filter(|(_, slot)| slot.active.is_some() && !slot.fixed);
        let active: Vec<&Key> = slots.map(|(key, _)| key).collect();
        assert_eq!(active, self.in_force.keys().collect::<Vec<_>>(), "what is in force");
    }
}

/// What the driver of a stream does with a response; what of it is refused.
fn stage(world: &mut World, heard: &mut BTreeSet<Kind>, update: &Update<'_>, whole: bool) -> Vec<Rejection> {
    let kind = kind_of(update.type_url()).unwrap();
    let mut scopes = None;
    let judged = update.resources().iter().map(|one| {
        let before = world.stage.accepted_last(kind, &one.name);
        let mut judged = judge(update.type_url(), &one.name, &one.version, &one.body, before.as_ref());
        let misfit = judged.verdict.as_ref().ok().and_then(|resource| world.stage.misfit(resource, &mut scopes));
        if let Some(misfit) = misfit {
            judged.verdict = Err(misfit);
        }
        judged
    });
    let resources: Vec<Judged> = judged.collect();
    let rejections: Vec<Rejection> = resources.iter().filter_map(Judged::rejection).collect();
    let malformed = update.rejections().iter().map(|rejection| rejection.name.as_str().into()).collect();
    let (removed, aliases, first) = (update.removed().to_vec(), update.aliases().to_vec(), heard.insert(kind));
    world.stage.receive(Batch { kind, resources, removed, aliases, malformed, whole, first }, world.now);
    rejections
}

#[test]
fn whatever_a_control_plane_sends_only_what_is_good_comes_into_force_and_publishing_ends() {
    let mut counts = (0, 0);
    for seed in 0..SEEDS {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        run.ask();
        for _ in 0..STEPS {
            run.step();
        }
        counts = (counts.0 + run.counts.0, counts.1 + run.counts.1);
    }
    assert!(counts.0 > 500 && counts.1 > 100, "too little came into force, or was refused: {counts:?}");
}
