//! Configurations of very many routes, virtual hosts and listeners: what they take to load, and that a request does not pay for
//! them. `CULVERT_ROUTES` is how many routes; a tenth as many virtual hosts, and a hundredth as many listeners.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_api::Any;
use culvert_api::envoy::config::route::v3 as api;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use culvert_api::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION};
use culvert_tests::Result;
use culvert_tests::client::send;
use culvert_tests::plane::{Plane, Way, by_rds, listener};
use culvert_tests::scale::size;
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

/// The median time of 20 requests for a route.
async fn time(address: SocketAddr, host: usize, route: usize) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let body = ask(address, &format!("{host}.test"), &format!("/{host}-{route}-/")).await?;
        ensure!(body == format!("/{host}-{route}-"), "{host}, {route}: saw {body:?}");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

async fn say(talk: &mut Talk, type_url: &str, nonce: &str, resources: Vec<Resource>) -> Result {
    let (type_url, nonce) = (type_url.to_owned(), nonce.to_owned());
    talk.send(&DeltaDiscoveryResponse { type_url, nonce, resources, ..DeltaDiscoveryResponse::default() }).await
}

/// A proxy with a listener that goes by the routes `r`, which have been asked for.
async fn started() -> Result<(Scripted, Plane, Talk, SocketAddr)> {
    let mut control = Scripted::start("127.0.0.1").await?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut plane = Plane::under(control.address)?;
    plane.start_proxy(Way::default()).await?;
    let mut talk = control.stream().await?;
    talk.asked(CLUSTER).await?;
    talk.say(CLUSTER, "c", &[], &[]).await?;
    talk.say(LISTENER, "l", &[("in", by_rds("in", address, "r"))], &[]).await?;
    talk.asked(ROUTE_CONFIGURATION).await?;
    Ok((control, plane, talk, address))
}

/// Sends routes in `hosts` virtual hosts, waits until the last one answers, and compares it with the first.
async fn loads(hosts: usize, each: usize) -> Result {
    let (_control, plane, mut talk, address) = started().await?;
    let before = plane.peak()?;
    let any = Any::pack(&routes(hosts, each));
    let megabytes = any.value.len() >> 20;
    let resource =
        Resource { name: "r".to_owned(), version: "1".to_owned(), resource: Some(any), ..Resource::default() };
    let began = Instant::now();
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
    let (took, grown) = (began.elapsed(), (plane.peak()? - before) >> 10);
    eprintln!("{hosts} x {each} routes, {megabytes} MB: in force after {took:?}, {grown} MiB more at the most");
    ensure!(grown <= 1024, "{grown} MiB");
    let (first, last) = (time(address, 0, 0).await?, time(address, last_host, last).await?);
    eprintln!("a request for the first route took {first:?}, for the last one {last:?}");
    ensure!(last < 3 * first + Duration::from_millis(5), "the last route took {last:?}, the first one {first:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_routes_load_in_time_and_a_request_does_not_pay_for_them() -> Result {
    loads(1, size("CULVERT_ROUTES", 50_000)?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_virtual_hosts_load_in_time_and_a_request_does_not_pay_for_them() -> Result {
    loads(size("CULVERT_ROUTES", 50_000)? / 10, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_listeners_are_bound_and_serve() -> Result {
    let count = size("CULVERT_ROUTES", 50_000)? / 100;
    let (_control, plane, mut talk, first) = started().await?;
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
    for index in [count - 1, 0, count / 2] {
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
    ensure!(refusal.is_empty(), "{}", refusal.chars().take(300).collect::<String>());
    eprintln!("{count} listeners serve after {:?}", began.elapsed());
    Ok(())
}

/// Of a build without optimization, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);
