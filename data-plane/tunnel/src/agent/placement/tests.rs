use super::super::servers::Place;
use super::*;

fn address(n: usize) -> SocketAddr {
    format!("10.0.{}.{}:443", n / 250, n % 250 + 1).parse().unwrap()
}

fn servers(count: usize) -> BTreeMap<SocketAddr, Server> {
    (0..count)
        .map(|n| (address(n), Server { address: address(n), name: "x".into(), place: Place::default() }))
        .collect()
}

fn agent(n: usize) -> Placement {
    Placement { key: format!("edge-{n}/agent"), most: 2, region: "".into(), zone: "".into() }
}

fn chosen(servers: &BTreeMap<SocketAddr, Server>, agent: &Placement) -> Vec<SocketAddr> {
    choose(servers, agent, &Steering::default()).into_keys().collect()
}

#[test]
fn all_when_there_are_few_and_else_as_many_as_wanted() {
    for (count, expected) in [(0, 0), (1, 1), (2, 2), (3, 2), (100, 2)] {
        assert_eq!(chosen(&servers(count), &agent(1)).len(), expected, "of {count}");
    }
    assert_eq!(chosen(&servers(9), &Placement { most: 7, ..agent(1) }).len(), 7);
}

#[test]
fn agents_spread_evenly_and_each_stays_with_its_choice() {
    let servers = servers(10);
    let mut load = BTreeMap::<SocketAddr, usize>::new();
    for n in 0..5000 {
        let choice = chosen(&servers, &agent(n));
        assert_eq!(choice, chosen(&servers, &agent(n)), "agent {n}, asked again");
        choice.into_iter().for_each(|server| *load.entry(server).or_default() += 1);
    }
    // 1000 each were expected; three standard deviations are 90.
    assert!(load.len() == 10 && load.values().all(|count| (890..=1110).contains(count)), "{load:?}");
}

#[test]
fn a_server_that_comes_or_goes_moves_its_share_and_nobody_else() {
    let (before, after) = (servers(10), servers(11));
    let mut moved = 0;
    for n in 0..2000 {
        let (old, new) = (chosen(&before, &agent(n)), chosen(&after, &agent(n)));
        let kept = old.iter().filter(|server| new.contains(server)).count();
        if new.contains(&address(10)) {
            moved += 1;
            assert_eq!(kept, 1, "agent {n}: one of the two gives way to the new one");
        } else {
            assert_eq!(old, new, "agent {n} has nothing to do with the new one");
        }
    }
    // 2 of 11: 364.
    assert!((300..=430).contains(&moved), "{moved} of 2000 agents moved");
}

#[test]
fn weight_priority_and_locality_of_the_endpoints_count() {
    let mut all = servers(10);
    all.get_mut(&address(0)).unwrap().place.weight = 3;
    let one = |n| Placement { most: 1, ..agent(n) };
    let first = (0..6000).filter(|n| chosen(&all, &one(*n)) == [address(0)]).count();
    // 3 of 12: 1500.
    assert!((1390..=1610).contains(&first), "{first} of 6000 agents chose the server of weight 3");

    for n in 2..10 {
        all.get_mut(&address(n)).unwrap().place.priority = 1;
    }
    for n in 0..50 {
        assert_eq!(chosen(&all, &agent(n)), [address(0), address(1)], "the two of the first priority, agent {n}");
    }
    let three = Placement { most: 3, ..agent(1) };
    assert_eq!(chosen(&all, &three)[..2], [address(0), address(1)], "and a third where those do not suffice");

    let mut all = servers(10);
    for (n, region, zone) in [(3, "eu", "a"), (4, "eu", "b"), (5, "us", "a")] {
        let place = &mut all.get_mut(&address(n)).unwrap().place;
        (place.region, place.zone) = (region.into(), zone.into());
    }
    for n in 0..50 {
        let home = Placement { region: "eu".into(), zone: "a".into(), ..agent(n) };
        assert_eq!(chosen(&all, &home), [address(3), address(4)], "its zone, then its region, agent {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_end_are_left_first_and_come_back_later() {
    let all = servers(3);
    let mut steering = Steering::default();
    let before = chosen(&all, &agent(1));
    steering.avoid(before[0], Instant::now());
    let after: Vec<_> = choose(&all, &agent(1), &steering).into_keys().collect();
    assert!(!after.contains(&before[0]) && after.contains(&before[1]), "{before:?}, then {after:?}");
    let two = servers(2);
    assert_eq!(choose(&two, &agent(1), &steering).len(), 2, "there is no other: its successor is looked for");
    tokio::time::advance(REMEMBERED).await;
    assert_eq!(steering.forget(Instant::now()), None);
    assert_eq!(choose(&all, &agent(1), &steering).into_keys().collect::<Vec<_>>(), before, "forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_names_any_number_of_others_is_not_remembered_for_all() {
    let mut steering = Steering::default();
    for n in 0..2 * MOST_REMEMBERED {
        steering.prefer(address(n), Instant::now());
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(steering.preferred.len(), MOST_REMEMBERED);
    assert!(steering.preferred.contains_key(&address(2 * MOST_REMEMBERED - 1)), "the latest counts");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_named_is_chosen() {
    let all = servers(10);
    for n in 0..10 {
        let mut steering = Steering::default();
        steering.prefer(address(n), Instant::now());
        assert!(choose(&all, &agent(1), &steering).contains_key(&address(n)), "server {n}");
    }
}
