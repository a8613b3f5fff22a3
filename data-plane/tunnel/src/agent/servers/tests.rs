use std::cell::{Cell, RefCell};
use std::collections::BTreeMap as Map;

use culvert_model::endpoint::{Endpoint, Locality};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server(text: &str, name: &str) -> Server {
    Server { address: address(text), name: name.into(), place: Place::default() }
}

fn draining(text: &str, name: &str) -> Server {
    Server { place: Place { drains: true, ..Place::default() }, ..server(text, name) }
}

fn endpoint(target: Address, hostname: &str, health: Health) -> Endpoint {
    Endpoint { address: target, hostname: hostname.into(), weight: 1, health, metadata: Arc::default() }
}

fn assignment(endpoints: Vec<Endpoint>) -> Arc<Endpoints> {
    let locality =
        Locality { region: "".into(), zone: "".into(), sub_zone: "".into(), priority: 0, weight: None, endpoints };
    Arc::new(Endpoints {
        cluster: "servers".into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    })
}

#[test]
fn lists_are_merged_and_an_address_counts_once() {
    let mut merge = Merge::default();
    let merged =
        merge.take(Update { source: 1, servers: vec![server("10.0.0.1:9", "eds"), server("10.0.0.2:9", "eds")] });
    assert_eq!(merged.len(), 2);
    let merged = merge.take(Update {
        source: 0,
        servers: vec![server("10.0.0.1:9", "static"), server("10.0.0.1:9", "again"), server("10.0.0.3:9", "static")],
    });
    let names: Map<_, _> = merged.iter().map(|(address, server)| (address.to_string(), &*server.name)).collect();
    let expected = Map::from([
        ("10.0.0.1:9".to_owned(), "static"),
        ("10.0.0.2:9".to_owned(), "eds"),
        ("10.0.0.3:9".to_owned(), "static"),
    ]);
    assert_eq!(names, expected, "the earlier source's name counts");
    let merged = merge.take(Update { source: 0, servers: Vec::new() });
    let left: Vec<String> = merged.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["10.0.0.1:9", "10.0.0.2:9"], "each list replaces only its own");
}

#[test]
fn draining_servers_are_left_unless_all_of_them_drain() {
    let mut merge = Merge::default();
    let mut take = |source, servers| -> Vec<String> {
        merge.take(Update { source, servers }).keys().map(ToString::to_string).collect()
    };
    let (a, b) = ("10.0.0.1:9", "10.0.0.2:9");
    assert_eq!(take(0, vec![draining(a, "a"), server(b, "b")]), [b]);
    assert_eq!(take(0, vec![draining(a, "a"), draining(b, "b")]), [a, b], "there is nowhere to go");
    assert_eq!(take(1, vec![server("10.0.0.3:9", "c")]), ["10.0.0.3:9"], "another source has one that stays");
    assert_eq!(take(1, vec![server(a, "a")]), [a], "of two that name it one says that it stays");
}

#[test]
fn a_list_without_end_is_cut() {
    let servers = (0..2000_u32).map(|n| server(&format!("10.0.{}.{}:9", n / 250, n % 250), "x")).collect();
    assert_eq!(Merge::default().take(Update { source: 0, servers }).len(), MAX_SERVERS);
}

/// What a source sends, one list after the other.
struct Followed {
    updates: mpsc::Receiver<Update>,
    states: std::rc::Rc<SourceStates>,
}

impl Followed {
    fn assignment(receiver: watch::Receiver<Option<Arc<Endpoints>>>, resolver: Resolver) -> Self {
        let (sender, updates) = mpsc::channel(4);
        let states = std::rc::Rc::<SourceStates>::default();
        let shared = std::rc::Rc::clone(&states);
        tokio::task::spawn_local(async move {
            let feed = Feed { source: 0, states: &shared, updates: sender, sni: None, resolver };
            feed.follow_assignment("servers", receiver).await;
        });
        Self { updates, states }
    }

    /// Its list as soon as everything that can happen without time passing has happened.
    async fn at_once(&mut self) -> Vec<Server> {
        let before = Instant::now();
        let list = self.next().await;
        assert_eq!(before.elapsed(), Duration::ZERO, "a list that had to be waited for: {list:?}");
        list
    }

    async fn next(&mut self) -> Vec<Server> {
        let limit = Duration::from_secs(60);
        timeout(limit, self.updates.recv()).await.expect("no list came").expect("the source ended").servers
    }
}

#[tokio::test(start_paused = true)]
async fn an_assignment_is_followed() {
    LocalSet::new()
        .run_until(async {
            let (sender, receiver) = watch::channel(None);
            let mut followed = Followed::assignment(receiver, Resolver::System);
            let none = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(none.is_err(), "an assignment that has not arrived is no empty list: {none:?}");
            assert_eq!(followed.states.waiting(), ["assignment servers: has not arrived"]);
            let ip = |text: &str| Address::Ip(address(text));
            sender.send_replace(Some(assignment(vec![
                endpoint(ip("10.0.0.2:9"), "", Health::Healthy),
                endpoint(ip("10.0.0.1:9"), "tunnel.example", Health::Unhealthy),
                endpoint(ip("10.0.0.3:9"), "", Health::Draining),
            ])));
            let expected = [
                server("10.0.0.1:9", "tunnel.example"),
                server("10.0.0.2:9", "10.0.0.2"),
                draining("10.0.0.3:9", "10.0.0.3"),
            ];
            assert_eq!(followed.next().await, expected, "sorted, and the last one drains");
            assert_eq!(followed.states.waiting(), [""; 0]);
            sender.send_replace(Some(assignment(Vec::new())));
            assert_eq!(followed.next().await, [], "an empty assignment is an empty list");
            drop(sender);
            let ended = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(matches!(ended, Ok(None)), "the list stays when its source ends: {ended:?}");
        })
        .await;
}

#[tokio::test]
async fn names_are_looked_up() {
    LocalSet::new()
        .run_until(async {
            let (there, not): (Named, Named) = (("localhost".into(), 9), ("no such host".into(), 9));
            let mut names = Names::new(Resolver::System, ASSIGNMENT_REFRESH);
            names.follow(&BTreeSet::from([there.clone(), not.clone()]));
            while names.unanswered() {
                timeout(Duration::from_secs(10), names.change()).await.expect("no answer came");
            }
            let found = names.addresses(&there);
            assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
            assert_eq!(names.addresses(&not), []);
            let error = names.error().expect("an error");
            assert!(error.starts_with("no such host: "), "{error}");
        })
        .await;
}

thread_local! {
    /// What there is to be found; `hung` has no answer, anything else is not there.
    static HOSTS: RefCell<Map<&'static str, u8>> = const { RefCell::new(Map::new()) };
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn scripted(host: &str) -> Option<std::io::Result<Vec<std::net::IpAddr>>> {
    ASKED.set(ASKED.get() + 1);
    if host.starts_with("hung") {
        return None;
    }
    let found = HOSTS.with_borrow(|hosts| hosts.get(host).copied());
    Some(found.map(|last| vec![std::net::IpAddr::from([10, 0, 0, last])]).ok_or(std::io::ErrorKind::NotFound.into()))
}

fn has(host: &'static str, last: u8) {
    HOSTS.with_borrow_mut(|hosts| hosts.insert(host, last));
}

fn name(host: &str) -> Endpoint {
    endpoint(Address::Name { host: host.into(), port: 9 }, "", Health::Healthy)
}

fn ip(text: &str) -> Endpoint {
    endpoint(Address::Ip(address(text)), "", Health::Healthy)
}

#[tokio::test(start_paused = true)]
async fn a_name_without_an_answer_holds_up_no_other() {
    LocalSet::new()
        .run_until(async {
            has("a.test", 1);
            has("b.test", 2);
            let (sender, receiver) = watch::channel(None);
            let mut followed = Followed::assignment(receiver, Resolver::Scripted(scripted));
            let (a, b) = (server("10.0.0.1:9", "a.test"), server("10.0.0.2:9", "b.test"));
            let fixed = server("10.0.0.9:9", "10.0.0.9");
            sender.send_replace(Some(assignment(vec![name("hung"), name("a.test"), ip("10.0.0.9:9")])));
            assert_eq!(followed.at_once().await, std::slice::from_ref(&fixed), "what needs no look-up waits for none");
            assert_eq!(followed.at_once().await, [a.clone(), fixed.clone()]);
            assert_eq!(followed.states.waiting(), [""; 0], "the deadline has not passed");

            // A new list meanwhile: its servers are added at once, and what it lacks leaves with the verdict on all.
            let began = Instant::now();
            sender.send_replace(Some(assignment(vec![name("hung"), name("b.test"), name("gone.test")])));
            assert_eq!(followed.at_once().await, [a, b.clone(), fixed]);
            assert_eq!(followed.next().await, std::slice::from_ref(&b));
            assert_eq!(began.elapsed(), Duration::from_secs(5));
            let waiting = followed.states.waiting();
            assert!(waiting[0].starts_with("gone.test: "), "{waiting:?}");

            // What was found before outlives its look-ups, and a list of which nothing is found takes nothing away.
            HOSTS.take();
            let none = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(none.is_err(), "nothing is known to have changed: {none:?}");
            sender.send_replace(Some(assignment(vec![name("hung"), name("other.test")])));
            let none = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(none.is_err(), "not one server was found: {none:?}");
            has("other.test", 3);
            let other = server("10.0.0.3:9", "other.test");
            assert_eq!(followed.next().await, [other], "found in the end, with the next look-up");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn many_names_without_an_answer_delay_the_others_and_starve_none() {
    LocalSet::new()
        .run_until(async {
            has("z.test", 1);
            let hung = (0..100).map(|number| name(&format!("hung-{number}")));
            let (_sender, receiver) = watch::channel(Some(assignment(hung.chain([name("z.test")]).collect())));
            let mut followed = Followed::assignment(receiver, Resolver::Scripted(scripted));
            sleep(Duration::from_secs(4)).await;
            assert_eq!(ASKED.get(), 16, "so many are asked for at a time");
            let deadline = timeout(Duration::from_secs(3600), followed.updates.recv()).await;
            let found = deadline.expect("its turn never came").expect("the source ended").servers;
            assert_eq!(found, [server("10.0.0.1:9", "z.test")]);
        })
        .await;
}
