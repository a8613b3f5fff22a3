//! What a proxy asks its control plane for besides clusters, endpoints, listeners and routes: configurations of filters,
//! runtime keys.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, post, read_head};
use culvert_tests::plane::{Plane, Way, assignment, by_rds, eds_cluster, envoy, listener, routes_to};
use culvert_tests::wait::{eventually, in_time};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn answers(plane: &Plane, address: SocketAddr, body: &str) -> Result {
    eventually(&format!("{address} answers {body}"), async || {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == body, "saw {} {:?}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

const MANAGER: &str = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "extensions.filters.http.router.v3.Router";

/// A connection manager that answers every request with `body`.
fn answering(body: &str) -> Value {
    listener("x", SocketAddr::from(([127, 0, 0, 1], 0)), body, json!({}))["filter_chains"][0]["filters"][0]
        ["typed_config"]
        .clone()
}

fn extension(name: &str, config: &Value) -> Value {
    json!({ "@type": envoy("config.core.v3.TypedExtensionConfig"), "name": name, "typed_config": config })
}

/// Where a filter's configuration comes from.
fn discovery(kind: &str, more: Value) -> Value {
    let mut source = json!({
        "config_source": { "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "1s" },
        "type_urls": [envoy(kind)],
    });
    if let (Some(source), Value::Object(more)) = (source.as_object_mut(), more) {
        source.extend(more);
    }
    source
}

/// A listener whose one filter comes by its name.
fn asking(name: &str, address: SocketAddr, filter: &str, more: Value) -> Value {
    let filters = json!({ "filters": [{ "name": filter, "config_discovery": discovery(MANAGER, more) }] });
    listener(name, address, "", filters)
}

#[tokio::test]
async fn a_listener_warms_until_its_filter_comes_and_goes_by_each_one_that_does() -> Result {
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let (lacking, spared, plain) = (free_address()?, free_address()?, free_address()?);
        let more = json!({ "default_config": answering("default") });
        plane.put(
            "listeners.json",
            &[
                asking("lacking", lacking, "needed", json!({})),
                asking("spared", spared, "spare", more),
                listener("plain", plain, "plain", json!({})),
            ],
        )?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, plain, "plain").await.context("a listener that lacks nothing does not wait for the others")?;
        answers(&plane, spared, "default").await.context("a default stands in once its time has come")?;
        eventually("what waits is said, and by what for", async || {
            // A worker serves a listener a moment before it is known here that all do.
            let waits = plane.page("/init_dump").await?.to_string();
            let named = waits.contains("Listener lacking") && waits.contains("TypedExtensionConfig needed");
            ensure!(named && !waits.contains("spared"), "/init_dump: {waits}");
            Ok(())
        })
        .await?;
        ensure!(TcpStream::connect(lacking).await.is_err(), "nobody can connect to a listener that lacks a filter");

        let both = |body: &str| [extension("needed", &answering(body)), extension("spare", &answering("came"))];
        plane.put("extensions.json", &both("one"))?;
        answers(&plane, lacking, "one").await?;
        answers(&plane, spared, "came").await.context("what comes counts, and not the default")?;
        let mut open = Kept::open(lacking).await?;
        open.ask().await?;
        plane.put("extensions.json", &both("two"))?;
        answers(&plane, lacking, "two").await.context("another one takes its place")?;
        for _ in 0..2 {
            let head = open.ask().await.context("connections go on")?;
            ensure!(!head.contains("connection: close"), "and on: {head}");
        }
        let dump = plane.page("/config_dump?resource=ecds_filters").await?;
        let text = dump.to_string();
        ensure!(text.contains("\"two\"") && text.contains("EcdsFilterConfig"), "/config_dump: {text}");
        let seen = plane.stat("extension_config_discovery.needed.update_success").await?;
        ensure!(seen == 2, "two came, and {seen} were counted");

        // Of a type that the filter does not allow.
        let router = json!({ "@type": envoy(ROUTER) });
        plane.put("extensions.json", &[extension("needed", &router), extension("spare", &answering("new"))])?;
        answers(&plane, spared, "new").await.context("the good one of a refused response applies")?;
        eventually("the control plane knows what was refused", async || {
            let (seen, words) = plane.status("TypedExtensionConfig", "needed").await?;
            ensure!(seen == "ERROR" && words.contains("type_urls"), "saw {seen} {words:?}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
        answers(&plane, lacking, "two").await.context("the last good one keeps serving")?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_router_comes_by_its_name_and_the_connection_manager_by_which_it_did() -> Result {
    let backend = Backend::start("backend").await?;
    let mut plane = Plane::start(&[]).await?;
    let (inline, nested) = (free_address()?, free_address()?);
    let mut manager = by_rds("x", inline, "r")["filter_chains"][0]["filters"][0]["typed_config"].clone();
    manager["http_filters"] = json!([{ "name": "router", "config_discovery": discovery(ROUTER, json!({})) }]);
    let filters = json!({ "filters": [{ "name": "http", "typed_config": manager.clone() }] });
    plane.put(
        "all.json",
        &[
            eds_cluster("c"),
            assignment("c", &[backend.address]),
            routes_to("r", "c"),
            listener("inline", inline, "", filters),
            asking("nested", nested, "manager", json!({})),
            extension("manager", &manager),
        ],
    )?;
    plane.put("router.json", &[extension("router", &json!({ "@type": envoy(ROUTER) }))])?;
    let timed = async |plane: &Plane, expected: bool| -> Result {
        for address in [inline, nested] {
            eventually("the router's options are those that came", async || {
                let answer = get(address, "/").await?;
                ensure!(answer.text() == "backend\n", "saw {} {:?}", answer.status, answer.text());
                let seen = answer.headers.contains_key("x-envoy-upstream-service-time");
                ensure!(seen == expected, "{address}: {:?}", answer.headers);
                Ok(())
            })
            .await
            .with_context(|| plane.proxy_log())?;
        }
        Ok(())
    };
    plane.start_proxy(Way::default()).await?;
    timed(&plane, true).await?;
    let mut open = Kept::open(inline).await?;
    ensure!(open.ask().await?.contains("x-envoy-upstream-service-time"), "before it changes");
    let router = json!({ "@type": envoy(ROUTER), "suppress_envoy_headers": true });
    plane.put("router.json", &[extension("router", &router)])?;
    timed(&plane, false).await?;
    let head = open.ask().await.context("connections go on")?;
    ensure!(!head.contains("x-envoy-upstream-service-time"), "by what came: {head}");
    ensure!(!head.contains("connection: close"), "and on: {head}");
    plane.stop_proxy().await
}

/// A connection that is kept open.
struct Kept(TcpStream);

impl Kept {
    async fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    /// The head of an answer whose body is `backend` or as long.
    async fn ask(&mut self) -> Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let head = read_head(&mut self.0).await?.to_ascii_lowercase();
        let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split_once('\r'));
        let length = length.context("no content-length")?.0.parse::<usize>()?;
        in_time("a body", self.0.read_exact(&mut vec![0; length])).await??;
        Ok(head)
    }
}

/// Routes of which the first takes a share of the traffic that `key` changes.
fn shared(name: &str, address: SocketAddr, key: &str) -> Value {
    let answer = |body: &str| json!({ "status": 200, "body": { "inline_string": body } });
    let fraction = json!({ "default_value": { "numerator": 0 }, "runtime_key": key });
    let mut shared = listener(name, address, "", json!({}));
    shared["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"] = json!([
        { "match": { "prefix": "/", "runtime_fraction": fraction }, "direct_response": answer("canary") },
        { "match": { "prefix": "/" }, "direct_response": answer("stable") },
    ]);
    shared
}

fn runtime(layer: &Value) -> Value {
    json!({ "@type": envoy("service.runtime.v3.Runtime"), "name": "dynamic", "layer": layer })
}

const LAYERS: &str = "layered_runtime: {layers: [\
    {name: base, static_layer: {canary: {share: 0}, other: 1}}, \
    {name: control, rtds_layer: {name: dynamic, rtds_config: {ads: {}, resource_api_version: V3}}}, \
    {name: hand, admin_layer: {}}]}\n";

#[tokio::test]
async fn runtime_keys_change_by_rtds_and_by_hand_without_a_new_configuration() -> Result {
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let address = free_address()?;
        plane.put("listeners.json", &[shared("in", address, "canary.share")])?;
        plane.put("runtime.json", &[runtime(&json!({ "unrelated": "x" }))])?;
        plane.start_proxy(Way { sotw, more: LAYERS, ..Way::default() }).await?;
        answers(&plane, address, "stable").await?;
        plane.put("runtime.json", &[runtime(&json!({ "canary": { "share": 100 } }))])?;
        answers(&plane, address, "canary").await?;
        let expected = json!({ "layer_values": ["0", "100", ""], "final_value": "100" });
        let page = plane.page("/runtime").await?;
        ensure!(page["layers"] == json!(["base", "control", "hand"]), "layers in {page}");
        ensure!(page["entries"]["canary.share"] == expected, "entries in {page}");

        plane.put("runtime.json", &[runtime(&json!({ "canary": { "share": [1] } }))])?;
        let path = "layer[\"canary\"][\"share\"]: is a list or null";
        stands(&plane, "ERROR", path).await?;
        answers(&plane, address, "canary").await.context("the last good values hold")?;

        let modify = async |query: &str| -> Result {
            let answer = post(plane.admin, &format!("/runtime_modify{query}"), "").await?;
            ensure!(answer.text() == "OK\n", "{query}: {} {:?}", answer.status, answer.text());
            Ok(())
        };
        modify("?canary.share=0").await?;
        answers(&plane, address, "stable").await.context("what is set by hand stands above")?;
        modify("?canary.share=").await?;
        answers(&plane, address, "canary").await.context("and can be taken back")?;
        let none = json!({ "canary": { "share": { "numerator": 0, "denominator": "MILLION" } } });
        plane.put("runtime.json", &[runtime(&none)])?;
        answers(&plane, address, "stable").await.context("a fraction is one of its denominator")?;
        stands(&plane, "SYNCED", "").await?;
        let refused = post(plane.admin, "/runtime_modify", "").await?;
        ensure!(refused.status == 400, "nothing to set: {}", refused.status);
        if !sotw {
            // (State of the world cannot say of a layer that it is gone.)
            plane.put("runtime.json", &[runtime(&json!({ "canary": { "share": 100 } }))])?;
            answers(&plane, address, "canary").await?;
            plane.put("runtime.json", &[])?;
            answers(&plane, address, "stable").await.context("a layer that is taken away has no values")?;
            plane.put("runtime.json", &[runtime(&json!({ "canary": { "share": 100 } }))])?;
            answers(&plane, address, "canary").await.context("until it comes again")?;
        }
        plane.stop_proxy().await?;
    }
    Ok(())
}

async fn stands(plane: &Plane, state: &str, error: &str) -> Result {
    eventually(&format!("the control plane knows the runtime as {state}"), async || {
        let (seen, words) = plane.status("Runtime", "dynamic").await?;
        ensure!(seen == state && words.contains(error), "saw {seen} {words:?}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

#[tokio::test]
async fn a_runtime_that_does_not_come_leaves_the_other_layers() -> Result {
    let mut plane = Plane::start(&[]).await?;
    let address = free_address()?;
    plane.put("listeners.json", &[shared("in", address, "canary.share")])?;
    let layers = LAYERS.replace("share: 0", "share: 100");
    plane.start_proxy(Way { more: &layers, ..Way::default() }).await?;
    answers(&plane, address, "canary").await?;
    plane.ready().await?;
    plane.stop_proxy().await
}
