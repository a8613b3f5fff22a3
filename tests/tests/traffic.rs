//! HTTP and TCP through one proxy, every protocol on either side.

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{Answer, get, post, send, send_h2};
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::wait::{PATIENCE, eventually};
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";

async fn started(gateway: Result<Gateway>) -> Result<Gateway> {
    gateway.context("the gateway does not start")
}

fn expect(answer: &Answer, status: u16, body: &str) -> Result {
    ensure!(
        answer.status == status && answer.text() == body,
        "expected {status} {body:?}, saw {} {:?}",
        answer.status,
        answer.text()
    );
    Ok(())
}

#[tokio::test]
async fn any_protocol_reaches_any_protocol() -> Result {
    let backend = Backend::start("a").await?;
    for upstream in ["", HTTP2] {
        let listener = http_listener("in", TO_A, "", "");
        let gateway = started(Gateway::start(&listener, &cluster("a", &[backend.address], upstream)).await).await?;
        let address = gateway.listener("in")?;
        expect(&get(address, "/").await?, 200, "a\n")?;
        let body = Bytes::from(vec![7; 3 << 20]);
        let echoed = post(address, "/echo", body.clone()).await?;
        ensure!(echoed.body == body, "expected 3 MiB back, saw {} bytes", echoed.body.len());
        let h2 = |path: &str, body: Bytes| {
            Request::post(format!("http://culvert.test{path}")).body(Full::new(body)).map_err(anyhow::Error::from)
        };
        expect(&send_h2(address, h2("/", Bytes::new())?).await?, 200, "a\n")?;
        let echoed = send_h2(address, h2("/echo", body.clone())?).await?;
        ensure!(echoed.body == body, "expected 3 MiB back over HTTP/2, saw {} bytes", echoed.body.len());
        gateway.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn requests_carry_envoys_headers() -> Result {
    let backend = Backend::start("a").await?;
    let listener = http_listener("in", TO_A, "use_remote_address: true", "");
    let gateway = started(Gateway::start(&listener, &cluster("a", &[backend.address], "")).await).await?;
    let request = Request::get("/headers")
        .header("host", "culvert.test")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("te", "gzip")
        .body(Full::default())?;
    let answer = send(gateway.listener("in")?, request).await?;
    let text = answer.text();
    for wanted in
        ["x-request-id: ", "x-forwarded-for: 127.0.0.1\n", "x-forwarded-proto: http\n", "host: culvert.test\n"]
    {
        ensure!(text.contains(wanted), "expected {wanted:?} in:\n{text}");
    }
    for unwanted in ["x-hop", "te: gzip", "connection: keep-alive, x-hop"] {
        ensure!(!text.contains(unwanted), "expected no {unwanted:?} in:\n{text}");
    }
    ensure!(answer.header("server") == "envoy", "expected server: envoy, saw {:?}", answer.header("server"));
    ensure!(!answer.header("x-envoy-upstream-service-time").is_empty(), "saw {:?}", answer.headers);
    gateway.stop().await
}

#[tokio::test]
async fn local_answers_are_envoys() -> Result {
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let routes = "[{match: {path: /direct}, direct_response: {status: 418, body: {inline_string: short and stout}}}, \
                   {match: {prefix: /empty}, route: {cluster: empty}}, \
                   {match: {prefix: /refused}, route: {cluster: refused}}, \
                   {match: {prefix: /old}, redirect: {path_redirect: /new, response_code: FOUND}}]";
    let listener = http_listener("in", routes, "", "");
    let clusters = cluster("empty", &[], "") + &cluster("refused", &[closed], "");
    let gateway = started(Gateway::start(&listener, &clusters).await).await?;
    let address = gateway.listener("in")?;
    expect(&get(address, "/direct").await?, 418, "short and stout")?;
    expect(&get(address, "/nowhere").await?, 404, "")?;
    expect(&get(address, "/empty").await?, 503, "no healthy upstream")?;
    let refused = get(address, "/refused").await?;
    ensure!(
        refused.status == 503
            && refused.text().starts_with("upstream connect error or disconnect/reset before headers."),
        "saw {} {:?}",
        refused.status,
        refused.text()
    );
    let moved = get(address, "/old").await?;
    ensure!(
        moved.status == 302 && moved.header("location") == format!("http://{address}/new"),
        "saw {} {:?}",
        moved.status,
        moved.headers
    );
    gateway.stop().await
}

#[tokio::test]
async fn tcp_is_proxied_with_half_close() -> Result {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let upstream = server.local_addr()?;
    let served = tokio::spawn(async move {
        let (mut socket, _) = server.accept().await?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await?;
        socket.write_all(text.to_uppercase().as_bytes()).await?;
        Ok::<_, std::io::Error>(())
    });
    let listener = "  - name: in\n    address: {socket_address: {address: 127.0.0.1, port_value: 0}}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.tcp_proxy\n        typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}\n";
    let gateway = started(Gateway::start(listener, &cluster("a", &[upstream], "")).await).await?;
    let mut socket = TcpStream::connect(gateway.listener("in")?).await?;
    socket.write_all(b"half closed").await?;
    socket.shutdown().await?;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut text)).await??;
    ensure!(text == "HALF CLOSED", "expected HALF CLOSED, saw {text:?}");
    served.await??;
    gateway.stop().await
}

#[tokio::test]
async fn retries_reach_another_host_and_stay_within_their_number() -> Result {
    let good = Backend::start("good").await?;
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let routes = "[{match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: \"connect-failure,5xx\", num_retries: 3}}}]";
    let listener = http_listener("in", routes, "", "");
    let gateway = started(Gateway::start(&listener, &cluster("a", &[closed, good.address], "")).await).await?;
    let address = gateway.listener("in")?;
    for _ in 0..20 {
        expect(&get(address, "/").await?, 200, "good\n")?;
    }
    let before = good.requests();
    ensure!(get(address, "/status/503").await?.status == StatusCode::SERVICE_UNAVAILABLE, "the last 503 is passed on");
    let tries = good.requests() - before;
    ensure!((1..=4).contains(&tries), "expected at most 1 + 3 tries, saw {tries}");
    gateway.stop().await
}

/// A host that speaks something else is one error of its connection, whatever the cluster's protocol is.
#[tokio::test]
async fn hosts_that_break_the_protocol_are_counted() -> Result {
    for (upstream, words) in [("", "220 mail.culvert.test ESMTP\r\n"), (HTTP2, "HTTP/1.1 400 Bad Request\r\n\r\n")] {
        let stranger = TcpListener::bind("127.0.0.1:0").await?;
        let listener = http_listener("in", TO_A, "", "");
        let gateway =
            started(Gateway::start(&listener, &cluster("a", &[stranger.local_addr()?], upstream)).await).await?;
        let speaking = tokio::spawn(async move {
            let (mut socket, _) = stranger.accept().await?;
            socket.write_all(words.as_bytes()).await?;
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.map(|_| rest)
        });
        let answer = get(gateway.listener("in")?, "/").await?;
        ensure!(answer.status.is_server_error(), "{words:?}: expected 502 or 503, saw {}", answer.status);
        gateway.stat_reaches("cluster.a.upstream_cx_protocol_error", 1).await.with_context(|| words)?;
        let errors = gateway.stat("cluster.a.upstream_cx_protocol_error").await?;
        ensure!(errors == 1, "{words:?}: expected one error, saw {errors}");
        gateway.stop().await?;
        speaking.abort();
    }
    Ok(())
}

#[tokio::test]
async fn breakers_hold_across_workers() -> Result {
    let backend = Backend::start("a").await?;
    let listener = http_listener("in", "[{match: {prefix: /}, route: {cluster: a, timeout: 60s}}]", "", "");
    let folder = tempfile::TempDir::with_prefix("culvert-")?;
    // Envoy's defaults: 1024 connections, 1024 pending requests, 1024 requests.
    let gateway = Gateway::start_in(folder, &listener, &cluster("a", &[backend.address], ""), "", 4).await?;
    let address = gateway.listener("in")?;
    let requests: Vec<_> = (0..1300)
        .map(|_| {
            tokio::spawn(async move {
                let answer = get(address, "/delay/4000").await?;
                Ok::<_, anyhow::Error>((answer.status, answer.header("x-envoy-overloaded")))
            })
        })
        .collect();
    let (mut good, mut overloaded) = (0, 0);
    for request in requests {
        match request.await?? {
            (StatusCode::OK, _) => good += 1,
            (StatusCode::SERVICE_UNAVAILABLE, header) if header == "true" => overloaded += 1,
            other => anyhow::bail!("expected 200, or 503 with x-envoy-overloaded, saw {other:?}"),
        }
    }
    // Over HTTP/1 a request that finds 1024 connections in use is pending, as in Envoy; the 1025th pending is refused.
    let peak = backend.peak();
    ensure!((512..=1024).contains(&peak), "expected up to 1024 requests at once at the backend, saw {peak}");
    let served = backend.requests();
    ensure!(good == served, "expected as many good answers as requests served, saw {good} and {served}");
    ensure!(good >= 1024 && good + overloaded == 1300, "expected 1024 good or more, saw {good}, {overloaded} refused");
    gateway.stop().await
}

#[tokio::test]
async fn bad_bytes_are_answered_or_closed_and_nothing_leaks_into_the_next_request() -> Result {
    let backend = Backend::start("a").await?;
    let listener = http_listener("in", TO_A, "", "");
    let gateway = started(Gateway::start(&listener, &cluster("a", &[backend.address], "")).await).await?;
    let address = gateway.listener("in")?;
    let cases: [(&[u8], &str); 8] = [
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", "HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "HTTP/1.1 501"),
        (b"GET / HTTP/9.9\r\nhost: a\r\n\r\n", "HTTP/1.1 505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""),
        (b"\x00\x01\x02\x03\r\n\r\n", "HTTP/1.1 400"),
    ];
    for (bytes, expected) in cases {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(bytes).await?;
        let mut seen = Vec::new();
        tokio::time::timeout(PATIENCE, socket.read_to_end(&mut seen))
            .await
            .with_context(|| format!("{} was expected to be closed", String::from_utf8_lossy(bytes)))??;
        let seen = String::from_utf8_lossy(&seen).into_owned();
        ensure!(seen.starts_with(expected), "{}: expected {expected}, saw {seen:?}", String::from_utf8_lossy(bytes));
    }
    ensure!(backend.requests() == 0, "expected no request at the backend, saw {}", backend.requests());
    gateway.stat_reaches("http.in.downstream_cx_protocol_error", cases.len() as u64).await?;
    expect(&get(address, "/").await?, 200, "a\n")?;
    gateway.stop().await
}

#[tokio::test]
async fn access_logs_and_statistics_tell_what_happened() -> Result {
    let backend = Backend::start("a").await?;
    let log = "access_log:\n- name: file\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: access.log\n    log_format: {text_format_source: {inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER%\\n\"}}";
    let routes = "[{match: {prefix: /a}, route: {cluster: a}}, {match: {prefix: /none}, route: {cluster: none}}]";
    let clusters = cluster("a", &[backend.address], "") + &cluster("none", &[], "");
    let gateway = started(Gateway::start(&http_listener("in", routes, log, ""), &clusters).await).await?;
    let address = gateway.listener("in")?;
    for path in ["/a", "/none", "/else"] {
        get(address, path).await?;
    }
    eventually("three lines in the access log", async || {
        let text = std::fs::read_to_string(gateway.folder().join("access.log"))?;
        // The lines of different workers may overtake each other.
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        let expected = ["GET /a 200 - a", "GET /else 404 NR -", "GET /none 503 UH none"];
        ensure!(lines == expected, "expected {expected:?}, saw {text:?}");
        Ok(())
    })
    .await?;
    for (name, value) in [
        ("http.in.downstream_rq_total", 3),
        ("http.in.downstream_rq_2xx", 1),
        ("http.in.downstream_rq_4xx", 1),
        ("http.in.downstream_rq_5xx", 1),
        ("cluster.a.upstream_rq_total", 1),
        ("cluster.a.upstream_cx_total", 1),
        ("cluster.none.upstream_cx_none_healthy", 1),
    ] {
        let seen = gateway.stat(name).await?;
        ensure!(seen == value, "expected {name} to be {value}, saw {seen}");
    }
    let text = get(gateway.admin, "/stats/prometheus").await?.text();
    let line = "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"} 1";
    ensure!(text.contains(line), "expected {line} in:\n{text}");
    gateway.stop().await
}
