//! Listeners whose filters come by name.

use culvert_model::extension::{Discovery, Extension, Filter};

use super::*;

const TYPE: &str = "culvert.tunnel.v1.TunnelServer";

/// The filter of [`listener`], as it comes.
fn came(name: &str, stat_prefix: &str) -> Arc<Extension> {
    let filter = listener("x", ANY, stat_prefix).filter_chains[0].filter.clone();
    Arc::new(Extension { name: name.into(), type_name: TYPE.into(), filter: Filter::Network(filter) })
}

fn asking(name: &str, default: Option<&str>, timeout: Duration) -> Listener {
    let of = |prefix: &str| listener("x", ANY, prefix).filter_chains[0].filter.clone();
    let discovery = Discovery {
        name: "filter".into(),
        source: ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: timeout },
        types: vec![TYPE.into()],
        default: default.map(of),
        at_once: false,
    };
    let chain = FilterChain {
        filter: NetworkFilter::Discovered(Arc::new(discovery)),
        ..FilterChain::clone(&listener(name, ANY, "").filter_chains[0])
    };
    Listener { filter_chains: vec![Arc::new(chain)], ..listener(name, ANY, "") }
}

fn prefix(site: &Site, name: &str) -> Option<String> {
    let chains = site.applier.process.listeners.get(name)?.current()?;
    match &chains.listener().filter_chains[0].filter {
        NetworkFilter::Tunnel(server) => Some(server.stat_prefix.to_string()),
        other => panic!("expected a tunnel filter, got {other:?}"),
    }
}

fn set_extension(extension: &Arc<Extension>) -> Change {
    Change::Set(Resource::Extension(Arc::clone(extension)))
}

#[tokio::test]
async fn a_static_listener_that_lacks_a_filter_does_not_serve_and_says_what_it_waits_for() {
    let mut site = Site::new();
    let endless = Arc::new(asking("a", None, Duration::from_millis(1)));
    let patient = Arc::new(asking("b", Some("default"), Duration::ZERO));
    site.applier.set_static(&[endless, patient]).await.unwrap();
    let awaiting = |name: &str| site.overview.listeners.lock()[name].awaiting.clone();
    assert_eq!(awaiting("a"), ["filter configuration filter"]);
    assert_eq!(awaiting("b"), ["filter configuration filter"], "0s is time without end");
    assert_eq!((prefix(&site, "a"), prefix(&site, "b")), (None, None), "neither serves");
    let due = tokio::time::timeout(Duration::from_millis(50), site.applier.extensions.due()).await;
    assert!(due.is_err(), "no time ends this");

    assert_eq!(site.apply(vec![set_extension(&came("filter", "one"))]).await, [Ok(Applied::Active)]);
    for name in ["a", "b"] {
        assert_eq!(prefix(&site, name).as_deref(), Some("one"), "{name} serves with what came");
        assert!(site.overview.listeners.lock()[name].awaiting.is_empty(), "{name} waits for nothing any more");
    }
}

#[tokio::test]
async fn a_default_stands_in_when_its_time_has_come_and_gives_way_to_what_comes() {
    let mut site = Site::new();
    let spare = Arc::new(asking("a", Some("default"), Duration::from_millis(100)));
    site.applier.set_static(&[spare]).await.unwrap();
    assert_eq!(prefix(&site, "a"), None, "it may still come");
    tokio::time::timeout(Duration::from_secs(10), site.applier.extensions.due()).await.unwrap();
    site.applier.complete_listeners().await;
    assert_eq!(prefix(&site, "a").as_deref(), Some("default"));
    let address = site.bound("a").unwrap();

    site.apply(vec![set_extension(&came("filter", "one"))]).await;
    assert_eq!(prefix(&site, "a").as_deref(), Some("one"));
    assert_eq!(site.bound("a"), Some(address), "over the same sockets");
}

#[tokio::test]
async fn whoever_asks_is_told_of_changes_until_it_leaves() {
    let mut site = Site::new();
    let refused = site.apply(vec![set(asking("a", None, Duration::ZERO))]).await;
    assert!(refused[0].as_ref().is_err_and(|error| error.contains("filter")), "nothing came, got {refused:?}");
    let answers = site.apply(vec![set_extension(&came("filter", "one")), set(asking("a", None, Duration::ZERO))]).await;
    assert_eq!(answers, [Ok(Applied::Active), Ok(Applied::Active)]);
    let before = site.slot("a").current().unwrap();

    site.apply(vec![set_extension(&came("filter", "one")), set_extension(&came("other", "two"))]).await;
    assert!(Arc::ptr_eq(&before, &site.slot("a").current().unwrap()), "what changes nothing builds nothing");

    let foreign = Extension { type_name: "a.B".into(), ..Extension::clone(&came("filter", "two")) };
    let foreign = set_extension(&Arc::new(foreign));
    let rehearsed = site.rehearse(std::slice::from_ref(&foreign));
    assert!(rehearsed[0].as_ref().is_err_and(|error| error.contains("listener a")), "got {rehearsed:?}");
    assert!(site.apply(vec![foreign]).await[0].is_err(), "nor in earnest");
    assert_eq!(prefix(&site, "a").as_deref(), Some("one"), "it stays as it was");

    site.apply(vec![set_extension(&came("filter", "two"))]).await;
    assert_eq!(prefix(&site, "a").as_deref(), Some("two"));
    site.apply(vec![remove("a"), set_extension(&came("filter", "three"))]).await;
    assert!(site.applier.process.listeners.get("a").is_none(), "what comes brings nobody back");
}
