//! Configurations of very many routes, virtual hosts and listeners: what they take to load, and that a request does not pay for
//! them. `CULVERT_ROUTES` is how many routes; a tenth as many virtual hosts, and a hundredth as many listeners. And what a start
//! from the cache takes. There are goals for times where the proxy is built with optimization (`CULVERT_OPTIMIZED`).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_api::Any;
use culvert_api::envoy::config::route::v3 as api;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use culvert_api::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION};
use culvert_tests::Result;
use culvert_tests::client::send;
use culvert_tests::plane::{Plane, Way, by_rds, envoy, listener};
use culvert_tests::scale::{goal, size};
use culvert_tests::scripted::{Scripted, Talk, resource};
use culvert_tests::wait::within;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::time::Instant;

/// A route that answers with its prefix.
fn route(prefix: String) -> api::Route {
    let body = culvert_api::envoy::config::core::v3::DataSource {
        specifier: Some(culvert_api::envoy::config::core::v3::data_source::Specifier::InlineString(prefix.clone())),
        ..Default::default()
    };
    api::Route {
        r#match: Some(api::RouteMatch {
            path_specifier: Some(api::route_match::PathSpecifier::Prefix(prefix)),
            ..Default::default()
        }),
        action: Some(api::route::Action::DirectResponse(api::DirectResponseAction {
            status: 200,
            body: Some(body),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// `hosts` virtual hosts with the domains `0.test`, `1.test`, ... that have `each` routes.
fn routes(hosts: usize, each: usize) -> api::RouteConfiguration {
    let host = |host: usize| api::VirtualHost {
        name: format!("h{host}"),
        domains: vec![format!("{host}.test")],
        routes: (0..each).map(|index| route(format!("/{host}-{index}-"))).collect(),
        ..Default::default()
    };
    api::RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: (0..hosts).map(host).collect(),
        ..Default::default()
    }
}

async fn ask(address: SocketAddr, host: &str, path: &str) -> Result<String> {
    let request = Request::get(path).header("host", host).body(Full::default())?;
    Ok(send(address, request).await?.text())
}

/// What the proxy spends on requests for a route.
async fn cost(plane: &Plane, address: SocketAddr, host: usize, route: usize) -> Result<Duration> {
    let before = plane.usage()?.cpu;
    for _ in 0..REQUESTS {
        let body = ask(address, &format!("{host}.test"), &format!("/{host}-{route}-/")).await?;
        ensure!(body == format!("/{host}-{route}-"), "{host}, {route}: saw {body:?}");
    }
    Ok(plane.usage()?.cpu - before)
}

async fn say(talk: &mut Talk, type_url: &str, nonce: &str, resources: Vec<Resource>) -> Result {
    let (type_url, nonce) = (type_url.to_owned(), nonce.to_owned());
    talk.send(&DeltaDiscoveryResponse { type_url, nonce, resources, ..DeltaDiscoveryResponse::default() }).await
}

/// A proxy with a listener that goes by the routes `r`, which have been asked for.
async fn started(way: Way<'_>) -> Result<(Scripted, Plane, Talk, SocketAddr)> {
    let mut control = Scripted::start("127.0.0.1").await?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut plane = Plane::under(control.address)?;
    plane.start_proxy(way).await?;
    let mut talk = control.stream().await?;
    talk.asked(CLUSTER).await?;
    talk.say(CLUSTER, "c", &[], &[]).await?;
    talk.say(LISTENER, "l", &[("in", by_rds("in", address, "r"))], &[]).await?;
    talk.asked(ROUTE_CONFIGURATION).await?;
    Ok((control, plane, talk, address))
}

/// Sends routes in `hosts` virtual hosts, waits until the last one answers, and says what requests for it cost.
async fn loads(hosts: usize, each: usize) -> Result<Duration> {
    let (_control, plane, mut talk, address) = started(Way::default()).await?;
    let before = plane.peak()?;
    let any = Any::pack(&routes(hosts, each));
    let megabytes = any.value.len() >> 20;
    let resource =
        Resource { name: "r".to_owned(), version: "1".to_owned(), resource: Some(any), ..Resource::default() };
    let (began, spent) = (Instant::now(), plane.usage()?.cpu);
    say(&mut talk, ROUTE_CONFIGURATION, "r1", vec![resource]).await?;
    let (last_host, last) = (hosts - 1, each - 1);
    let path = format!("/{last_host}-{last}-/x");
    within(PATIENCE, "the last route answers", async || {
        let body = ask(address, &format!("{last_host}.test"), &path).await?;
        ensure!(path.starts_with(&body) && !body.is_empty(), "saw {body:?}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())?;
    let (took, grown) = (began.elapsed(), plane.peak()?.saturating_sub(before) >> 10);
    let spent = plane.usage()?.cpu - spent;
    eprintln!(
        "{hosts} x {each} routes, {megabytes} MB: in force after {took:?} and {spent:?} of CPU, {grown} MiB more at the most"
    );
    // What the proxy works: the sender, which is not optimized, takes as long.
    goal("the work until the last route answers", spent, LOAD)?;
    ensure!(grown <= 1024, "expected 1 GiB or less, it took {grown} MiB");
    let cost = cost(&plane, address, last_host, last).await?;
    eprintln!("{REQUESTS} requests for the last one of {hosts} x {each} routes cost {cost:?} of CPU");
    Ok(cost)
}

/// Requests at a hundred times as many routes cost the same.
async fn compared(few: (usize, usize), many: (usize, usize)) -> Result {
    let (less, more) = (loads(few.0, few.1).await?, loads(many.0, many.1).await?);
    // Time is counted in steps of 10 ms, and neighbours spoil caches.
    ensure!(more < 2 * less + Duration::from_millis(50), "of few routes it cost {less:?}, of many {more:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_routes_load_in_time_and_a_request_does_not_pay_for_them() -> Result {
    let count = size("CULVERT_ROUTES", 50_000)?;
    compared((1, count.div_ceil(100)), (1, count)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_virtual_hosts_load_in_time_and_a_request_does_not_pay_for_them() -> Result {
    let count = size("CULVERT_ROUTES", 50_000)?;
    compared((count.div_ceil(1000), 1), (count / 10, 1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_listeners_are_bound_and_serve() -> Result {
    let count = size("CULVERT_ROUTES", 50_000)? / 100;
    let (_control, plane, mut talk, first) = started(Way::default()).await?;
    // Each has two handles of a socket for each of two workers; half of the descriptors are for connections. The one
    // that waits for its routes has none yet.
    let limit = plane.open_files()?;
    let fit = usize::try_from(limit / 2 / 4)?.min(count);
    // One port of as many addresses.
    let number = |index: usize| -> Result<Ipv4Addr> {
        Ok(Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + u32::try_from(index)?))
    };
    let mut listeners = Vec::new();
    for index in 0..count {
        let (name, address) = (format!("l{index}"), SocketAddr::from((number(index)?, first.port())));
        listeners.push(resource(&name, "1", &listener(&name, address, &name, json!({})))?);
    }
    let began = Instant::now();
    say(&mut talk, LISTENER, "many", listeners).await?;
    let shown = if fit == count { vec![count - 1, 0, count / 2] } else { vec![0] };
    for index in shown {
        let address = SocketAddr::from((number(index)?, first.port()));
        within(PATIENCE, "a listener answers", async || {
            let body = ask(address, "any", "/").await?;
            ensure!(body == format!("l{index}"), "saw {body:?}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
    }
    let refusal = talk.answer("many").await?;
    let start = || refusal.chars().take(300).collect::<String>();
    if fit == count {
        ensure!(refusal.is_empty(), "{}", start());
    } else {
        let expected = format!("Listener/l{fit}: address.socket_address: {} listeners take", fit + 1);
        ensure!(refusal.contains(&expected), "of {limit} descriptors: expected {expected:?}, saw {}", start());
        // Which of them serve is for the order in which they are applied to say; half of the descriptors are left.
        let used = u64::try_from(plane.usage()?.descriptors)?;
        ensure!(used < limit / 2 + 200, "{used} of {limit} descriptors are in use");
    }
    eprintln!("{fit} of {count} listeners serve after {:?}; {limit} descriptors", began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_serves_within_200_ms_of_a_start() -> Result {
    let way = Way { flags: &["--state-dir", "state"], ..Way::default() };
    let (control, mut plane, mut talk, address) = started(way).await?;
    let resource = resource(
        "r",
        "1",
        &json!({ "@type": envoy("config.route.v3.RouteConfiguration"), "name": "r",
        "virtual_hosts": [{ "name": "h", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "kept" } } }] }] }),
    )?;
    say(&mut talk, ROUTE_CONFIGURATION, "r1", vec![resource]).await?;
    let serves = async || {
        let body = ask(address, "any", "/").await?;
        ensure!(body == "kept", "saw {body:?}");
        Ok(())
    };
    within(PATIENCE, "the route answers", serves).await?;
    drop((control, talk));
    // Of a machine that does other things too, the fastest start says most.
    let mut fastest = PATIENCE;
    for _ in 0..5 {
        plane.stop_proxy().await?;
        let began = Instant::now();
        plane.start_proxy(way).await?;
        within(PATIENCE, "what was accepted serves", serves).await.with_context(|| plane.proxy_log())?;
        fastest = fastest.min(began.elapsed());
        let live = plane.stat("control_plane.config_source.live.resources").await?;
        ensure!(live == 0, "expected all to be of the cache, {live} are not");
    }
    eprintln!("the fastest of five starts from the cache served after {fastest:?}");
    goal("until what was accepted serves", fastest, Duration::from_millis(200))
}

/// How many requests are weighed.
const REQUESTS: u32 = 1000;
/// Of a million routes.
const LOAD: Duration = Duration::from_secs(5);
/// Of a build without optimization, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(200);
