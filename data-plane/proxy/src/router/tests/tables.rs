//! What failures, retry policies, rewrites and redirects come to, case by case.

use std::sync::Arc;
use std::time::Duration;

use culvert_http::{Blame, RequestHead, ResponseHead, StreamError, StreamErrorKind};
use culvert_model::matcher::SafeRegex;
use culvert_model::route::{Action, PathMatch, Redirect, RedirectPath, RetryOn, RetryPolicy, RouteConfiguration};
use culvert_upstream::UpstreamFailure;

use crate::router::failure::Failure;
use crate::router::retry::Retries;
use crate::router::rewrite;
use crate::router::timeouts::grpc_timeout;
use crate::routes::{CompiledAction, RouteTable, Subject};
use crate::routes::{Found, Matched};
use crate::testing::{on_worker, route, routes, virtual_host};

fn broken(kind: StreamErrorKind, untouched: bool) -> Failure {
    Failure::Broken(StreamError { blame: Blame::Upstream, kind, untouched })
}

fn refused() -> Failure {
    Failure::Unavailable(UpstreamFailure::ConnectFailure {
        address: "127.0.0.1:1".parse().unwrap(),
        reason: std::io::ErrorKind::ConnectionRefused,
    })
}

#[test]
fn failures_are_told_in_envoys_words() {
    let started = "upstream connect error or disconnect/reset before headers. reset reason: ";
    for (failure, status, flag, body, details) in [
        (Failure::AttemptTimeout, 504, "UT", "upstream request timeout", "upstream_per_try_timeout"),
        (Failure::Idle, 408, "SI", "stream timeout", "stream_idle_timeout"),
        (Failure::Unavailable(UpstreamFailure::NoCluster), 500, "NC", "", "cluster_not_found"),
        (Failure::Unavailable(UpstreamFailure::NoHealthyHost), 503, "UH", "no healthy upstream", "no_healthy_upstream"),
        (
            Failure::Unavailable(UpstreamFailure::QueueFull),
            503,
            "UO",
            &*format!("{started}overflow"),
            "upstream_reset_before_response_started{overflow}",
        ),
        (
            refused(),
            503,
            "UF",
            &*format!("{started}remote connection failure"),
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
        ),
        (
            broken(StreamErrorKind::Closed, false),
            503,
            "UC",
            &*format!("{started}connection termination"),
            "upstream_reset_before_response_started{connection_termination}",
        ),
        (
            broken(StreamErrorKind::Reset(8), false),
            503,
            "UR",
            &*format!("{started}remote reset"),
            "upstream_reset_before_response_started{remote_reset}",
        ),
        (
            broken(StreamErrorKind::Protocol { status: 502, detail: "x" }, false),
            502,
            "UPE",
            &*format!("{started}protocol error"),
            "upstream_reset_before_response_started{protocol_error}",
        ),
    ] {
        let reply = failure.reply(0, false, 500).unwrap();
        assert_eq!(reply.status, status, "status of {failure:?}");
        assert_eq!(reply.flag.map(crate::ResponseFlag::short), Some(flag), "flag of {failure:?}");
        assert_eq!(String::from_utf8_lossy(&reply.body), body, "body of {failure:?}");
        assert_eq!(reply.details, details, "details of {failure:?}");
    }
    let overall = |complete| Failure::Overall.reply(0, complete, 503).unwrap();
    assert_eq!((overall(true).status, &*overall(true).details), (504, "response_timeout"), "upstream took too long");
    assert_eq!((overall(false).status, &*overall(false).details), (408, "request_overall_timeout"), "the client did");
    assert_eq!(Failure::Idle.reply(0, true, 503).unwrap().status, 504, "a whole request waits for upstream");
    let retried = refused().reply(1, true, 503).unwrap();
    assert!(
        String::from_utf8_lossy(&retried.body).contains("retried and the latest reset reason: remote connection"),
        "{:?} says that it was retried",
        retried.body
    );
}

#[test]
fn an_agent_that_is_not_there_is_unknown_or_offline() {
    let told = |failure| {
        let reply = Failure::Unavailable(failure).reply(0, true, 503).unwrap();
        let flag = reply.flag.map(crate::ResponseFlag::short).unwrap();
        (reply.status, flag, String::from_utf8_lossy(&reply.body).into_owned(), reply.details, reply.retry_after)
    };
    let unknown = told(UpstreamFailure::AgentUnknown);
    assert_eq!(unknown, (404, "TAU", "unknown tunnel agent".into(), "tunnel_agent_unknown".into(), None));
    for (seconds, after) in [(0, 1), (7, 7), (86_400, 30)] {
        let (body, details) =
            (format!("tunnel agent offline for {seconds} s"), format!("tunnel_agent_offline{{{seconds}_s}}"));
        let offline = told(UpstreamFailure::AgentOffline { seconds });
        assert_eq!(offline, (503, "TAO", body, details.into(), Some(after)), "after {seconds} s");
    }
}

pub(super) fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        on,
        statuses: vec![418],
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        fresh_host_picks: None,
    }
}

#[test]
fn policies_cover_what_they_name() {
    let none = RetryOn::default;
    let overflow = || Failure::Unavailable(UpstreamFailure::QueueFull);
    let downstream = || {
        let kind = StreamErrorKind::Closed;
        Failure::Downstream(StreamError { blame: Blame::Downstream, kind, untouched: false })
    };
    for (on, failure, expected) in [
        (none(), refused(), false),
        (RetryOn { connect_failure: true, ..none() }, refused(), true),
        (RetryOn { connect_failure: true, ..none() }, broken(StreamErrorKind::Closed, false), false),
        (RetryOn { reset: true, ..none() }, broken(StreamErrorKind::Closed, false), true),
        (RetryOn { reset: true, ..none() }, downstream(), false),
        (RetryOn { reset_before_request: true, ..none() }, broken(StreamErrorKind::Closed, false), false),
        (RetryOn { reset_before_request: true, ..none() }, broken(StreamErrorKind::Closed, true), true),
        (RetryOn { refused_stream: true, ..none() }, broken(StreamErrorKind::Refused, true), true),
        (RetryOn { refused_stream: true, ..none() }, broken(StreamErrorKind::Reset(2), false), false),
        (RetryOn { any_5xx: true, ..none() }, broken(StreamErrorKind::Closed, false), true),
        (RetryOn { any_5xx: true, ..none() }, Failure::AttemptTimeout, true),
        (RetryOn { any_5xx: true, ..none() }, Failure::Overall, false),
        (RetryOn { any_5xx: true, ..none() }, overflow(), false),
        (RetryOn { gateway_error: true, ..none() }, refused(), true),
    ] {
        let policy = policy(on);
        assert_eq!(
            Retries::new(Some(&policy), &RequestHead::default()).covers_failure(&failure),
            expected,
            "{failure:?} by {on:?}"
        );
    }
    for (on, status, grpc, expected) in [
        (RetryOn { any_5xx: true, ..none() }, 500, "", true),
        (RetryOn { any_5xx: true, ..none() }, 404, "", false),
        (RetryOn { gateway_error: true, ..none() }, 500, "", false),
        (RetryOn { gateway_error: true, ..none() }, 503, "", true),
        (RetryOn { retriable_4xx: true, ..none() }, 409, "", true),
        (RetryOn { retriable_4xx: true, ..none() }, 400, "", false),
        (RetryOn { retriable_status_codes: true, ..none() }, 418, "", true),
        (none(), 418, "", false),
        (RetryOn { grpc_unavailable: true, ..none() }, 200, "14", true),
        (RetryOn { grpc_unavailable: true, ..none() }, 200, "4", false),
        (RetryOn { grpc_deadline_exceeded: true, ..none() }, 200, "4", true),
    ] {
        let policy = policy(on);
        let mut head = ResponseHead::new(status);
        if !grpc.is_empty() {
            head.fields.push(b"grpc-status", grpc.as_bytes());
        }
        assert_eq!(
            Retries::new(Some(&policy), &RequestHead::default()).covers_response(&head),
            expected,
            "{status} {grpc} by {on:?}"
        );
    }
}

#[test]
fn grpc_timeouts_are_read() {
    for (text, expected) in [
        ("100m", Some(Duration::from_millis(100))),
        ("2S", Some(Duration::from_secs(2))),
        ("1M", Some(Duration::from_secs(60))),
        ("1H", Some(Duration::from_secs(3600))),
        ("5u", Some(Duration::from_micros(5))),
        ("7n", Some(Duration::from_nanos(7))),
        ("S", None),
        ("123456789S", None),
        ("-1S", None),
        ("1", None),
    ] {
        assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
    }
}

fn location(redirect: Redirect, path: PathMatch, head: &RequestHead) -> String {
    let mut location = String::new();
    on_worker(async {
        let clusters =
            culvert_upstream::Clusters::new(tokio::runtime::Handle::current(), culvert_upstream::Resolver::system());
        let mut only = route("/", Action::Redirect(Arc::new(redirect)));
        only.matches.path = path;
        let config = RouteConfiguration { virtual_hosts: vec![virtual_host(vec![only])], ..routes() };
        let table = RouteTable::compile(Arc::new(config), &clusters, &crate::shares::Shares::default()).unwrap();
        let subject = Subject { head, random: 0, client_certificate: false };
        let Some(Found::Route(Matched { route, compiled, .. })) = table.find(&subject) else {
            panic!("{} matches", head.path)
        };
        let CompiledAction::Redirect(redirect) = &compiled.action else { panic!("a redirect") };
        location = rewrite::redirect_location(head, redirect, &route.matches.path);
    });
    location
}

#[test]
fn redirects_point_where_envoys_do() {
    let keep =
        Redirect { scheme: None, host: None, port: None, path: RedirectPath::Keep, status: 301, strip_query: false };
    let regex = SafeRegex { source: "^/old/(.*)$".into(), whole: regex::bytes::Regex::new("x").unwrap() };
    let prefix = |text: &str| PathMatch::Prefix(text.into());
    for (redirect, matched, authority, path, expected) in [
        (
            Redirect { scheme: Some("https".into()), ..keep.clone() },
            prefix("/"),
            "a.example:80",
            "/x?q",
            "https://a.example/x?q",
        ),
        (
            Redirect { scheme: Some("https".into()), ..keep.clone() },
            prefix("/"),
            "a.example:8080",
            "/x",
            "https://a.example:8080/x",
        ),
        (Redirect { port: Some(8443), ..keep.clone() }, prefix("/"), "a.example:80", "/x", "http://a.example:8443/x"),
        (Redirect { host: Some("b.example".into()), ..keep.clone() }, prefix("/"), "a", "/x", "http://b.example/x"),
        (
            Redirect { path: RedirectPath::Full("/new".into()), ..keep.clone() },
            prefix("/"),
            "a",
            "/x?q",
            "http://a/new?q",
        ),
        (
            Redirect { path: RedirectPath::Full("/new?own".into()), strip_query: true, ..keep.clone() },
            prefix("/"),
            "a",
            "/x?q",
            "http://a/new?own",
        ),
        (Redirect { strip_query: true, ..keep.clone() }, prefix("/"), "a", "/x?q", "http://a/x"),
        (
            Redirect { path: RedirectPath::Prefix("/v2/".into()), ..keep.clone() },
            prefix("/v1/"),
            "a",
            "/v1/x?q",
            "http://a/v2/x?q",
        ),
        (
            Redirect { path: RedirectPath::Regex { pattern: regex, substitution: r"/new/\1".into() }, ..keep.clone() },
            prefix("/"),
            "a",
            "/old/x?q",
            "http://a/new/x?q",
        ),
    ] {
        let head = RequestHead { authority: authority.into(), path: path.into(), ..RequestHead::default() };
        assert_eq!(location(redirect.clone(), matched, &head), expected, "{authority}{path} by {redirect:?}");
    }
}
