use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use culvert_http::{Fields, RequestHead, ResponseHead, Version};
use culvert_model::access_log::{Comparison, Filter, Format, JsonValue, LogFormat, Operator, Part};
use culvert_model::runtime::Share;
use tokio::time::Instant;

use super::{http_date, write_time};
use crate::access_log::{passes, write_line};
use crate::flags::ResponseFlag;
use crate::record::{Record, Scene, UpstreamSide};
use crate::testing::downstream;

fn operator(operator: Operator) -> Part {
    Part::Operator { operator, max_length: None }
}

fn format(parts: Vec<Part>) -> Format {
    Format { parts, omit_empty: false }
}

fn request_header(name: &str, alternative: Option<&str>) -> Operator {
    Operator::RequestHeader { name: name.into(), alternative: alternative.map(Into::into) }
}

/// Runs `check` with the scene of a request that failed after one retry.
fn with_scene(check: impl FnOnce(&Scene<'_>)) {
    let connection = downstream();
    let start = Instant::now();
    let mut record = Record::new(&connection, start);
    record.status = 503;
    record.details = "via_upstream".into();
    record.flag(ResponseFlag::UpstreamConnectionFailure);
    record.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    record.bytes_received = 12;
    record.bytes_sent = 345;
    record.attempts = 2;
    record.request_done = Some(start + Duration::from_millis(3));
    record.response_begun = Some(start + Duration::from_millis(20));
    record.end = Some(start + Duration::from_millis(25));
    record.route = "route";
    record.cluster = Some("edge".into());
    record.upstream = Some(UpstreamSide {
        host: Some("203.0.113.5:8080".parse().unwrap()),
        host_name: Some("edge-7".into()),
        local: None,
        remote: None,
        protocol: Some(Version::Http2),
    });
    let mut request = RequestHead { authority: "a.example".into(), path: "/p?q".into(), ..RequestHead::default() };
    request.fields.push(b"user-agent", b"curl \"8\"\xff");
    let mut response = ResponseHead::new(503);
    response.fields.push(b"x-up", b"1");
    let mut trailers = Fields::default();
    trailers.push(b"grpc-status", b"14");
    check(&Scene {
        record: &record,
        request: Some(&request),
        response: Some(&response),
        trailers: Some(&trailers),
        hostname: "gw-1",
    });
}

fn text(format: &LogFormat, scene: &Scene<'_>) -> String {
    let mut line = Vec::new();
    write_line(format, scene, &mut line);
    String::from_utf8_lossy(&line).into_owned()
}

#[test]
fn every_operator_says_what_envoys_says() {
    let header = |name: &str| Operator::ResponseHeader { name: name.into(), alternative: None };
    with_scene(|scene| {
        for (op, expected) in [
            (Operator::Protocol, "HTTP/1.1"),
            (Operator::UpstreamProtocol, "HTTP/2"),
            (Operator::ResponseCode, "503"),
            (Operator::ResponseCodeDetails, "via_upstream"),
            (Operator::ConnectionTerminationDetails, "-"),
            (Operator::ResponseFlags, "UF,URX"),
            (Operator::ResponseFlagsLong, "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
            (Operator::BytesReceived, "12"),
            (Operator::BytesSent, "345"),
            (Operator::Duration, "25"),
            (Operator::RequestDuration, "3"),
            (Operator::ResponseDuration, "20"),
            (Operator::ResponseTxDuration, "5"),
            (request_header(":method", None), "GET"),
            (request_header("x-envoy-original-path", Some(":path")), "/p?q"),
            (request_header(":authority", None), "a.example"),
            (request_header("x-none", None), "-"),
            (header("x-up"), "1"),
            (Operator::ResponseTrailer { name: "grpc-status".into(), alternative: None }, "14"),
            (Operator::GrpcStatus, "Unavailable"),
            (Operator::UpstreamHost, "203.0.113.5:8080"),
            (Operator::UpstreamHostName, "edge-7"),
            (Operator::UpstreamCluster, "edge"),
            (Operator::UpstreamLocalAddress, "-"),
            (Operator::UpstreamTransportFailureReason, "-"),
            (Operator::UpstreamRequestAttemptCount, "2"),
            (Operator::DownstreamRemoteAddress, "192.0.2.1:4711"),
            (Operator::DownstreamRemoteAddressWithoutPort, "192.0.2.1"),
            (Operator::DownstreamRemotePort, "4711"),
            (Operator::DownstreamLocalAddress, "198.51.100.1:80"),
            (Operator::DownstreamLocalPort, "80"),
            (Operator::DownstreamTlsVersion, "-"),
            (Operator::RequestedServerName, "-"),
            (Operator::RouteName, "route"),
            (Operator::VirtualHostName, "-"),
            (Operator::FilterChainName, "chain"),
            (Operator::ConnectionId, "1"),
            (Operator::StreamId, "-"),
            (Operator::Hostname, "gw-1"),
        ] {
            let line = LogFormat::Text(format(vec![operator(op.clone())]));
            assert_eq!(text(&line, scene), expected, "{op:?}");
        }
    });
}

#[test]
fn text_lines_are_exact() {
    let parts = vec![
        Part::Literal("[".into()),
        operator(request_header(":method", None)),
        Part::Literal(" ".into()),
        Part::Operator { operator: request_header(":path", None), max_length: Some(2) },
        Part::Literal("] ".into()),
        operator(request_header("x-none", None)),
        Part::Literal("\n".into()),
    ];
    with_scene(|scene| {
        let line = LogFormat::Text(format(parts.clone()));
        assert_eq!(text(&line, scene), "[GET /p] -\n", "a dash for what is absent");
        let omitting = LogFormat::Text(Format { parts, omit_empty: true });
        assert_eq!(text(&omitting, scene), "[GET /p] \n", "nothing for what is absent");
    });
}

#[test]
fn json_lines_keep_types() {
    let object: Vec<(Arc<str>, JsonValue)> = vec![
        ("code".into(), JsonValue::Format(format(vec![operator(Operator::ResponseCode)]))),
        ("agent".into(), JsonValue::Format(format(vec![operator(request_header("user-agent", None))]))),
        ("none".into(), JsonValue::Format(format(vec![operator(request_header("x-none", None))]))),
        ("both".into(), JsonValue::Format(format(vec![operator(Operator::ResponseCode), Part::Literal("\t/".into())]))),
        ("nested".into(), JsonValue::Object(vec![("yes".into(), JsonValue::Bool(true))])),
        ("list".into(), JsonValue::List(vec![JsonValue::Number(1.0), JsonValue::Number(2.5)])),
    ];
    with_scene(|scene| {
        let expected = "{\"code\":503,\"agent\":\"curl \\\"8\\\"\u{fffd}\",\"none\":null,\"both\":\"503\\t/\",\
                        \"nested\":{\"yes\":true},\"list\":[1,2.5]}\n";
        assert_eq!(text(&LogFormat::Json(object), scene), expected, "one object and a line feed");
    });
}

#[test]
fn filters_choose() {
    use Comparison::{Equal, GreaterOrEqual, LessOrEqual, NotEqual};
    let status = |op, value| Filter::StatusCode { op, value };
    with_scene(|scene| {
        for (filter, expected) in [
            (status(GreaterOrEqual, 500), true),
            (status(LessOrEqual, 500), false),
            (status(Equal, 503), true),
            (status(NotEqual, 503), false),
            (Filter::Duration { op: GreaterOrEqual, milliseconds: 25 }, true),
            (Filter::Duration { op: GreaterOrEqual, milliseconds: 26 }, false),
            (Filter::ResponseFlags(Vec::new()), true),
            (Filter::ResponseFlags(vec!["UF".into()]), true),
            (Filter::ResponseFlags(vec!["NR".into(), "UT".into()]), false),
            (Filter::Runtime(Share::fixed(0)), false),
            (Filter::Runtime(Share::fixed(1_000_000)), true),
            (Filter::NotHealthCheck, true),
            (Filter::And(vec![status(Equal, 503), Filter::Runtime(Share::fixed(0))]), false),
            (Filter::Or(vec![status(Equal, 503), Filter::Runtime(Share::fixed(0))]), true),
        ] {
            let shares = crate::access_log::bind(&filter, &crate::shares::Shares::default());
            assert_eq!(passes(&filter, &shares, scene), expected, "{filter:?}");
        }
    });
}

#[test]
fn times_are_formatted() {
    let at = UNIX_EPOCH + Duration::new(1_795_262_400 + 3_661, 123_456_789);
    for (format, expected) in [
        ("", "2026-11-21T13:01:01.123Z"),
        ("%Y/%m/%d %H:%M:%S %z", "2026/11/21 13:01:01 +0000"),
        ("%s.%6f", "1795266061.123456"),
        ("%j %a %b %e %I%p", "325 Sat Nov 21 01PM"),
        ("100%%", "100%"),
    ] {
        let mut out = Vec::new();
        write_time(format, at, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{format:?}");
    }
    for (seconds, expected) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
    ] {
        let mut out = Vec::new();
        http_date(UNIX_EPOCH + Duration::from_secs(seconds), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{seconds} seconds");
    }
}
