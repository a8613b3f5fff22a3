//! Raw HTTP/1 requests, the answer that each gets, and what of it reaches the upstream.

use culvert_http::ServerOptions;

use crate::peers::on_worker;
use crate::verdicts::Expect::{Aborted, Answered, Forwarded, ForwardedLast, Refused, Waits};
use crate::verdicts::{check, judge, play};

const PLAIN: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
const POST_5: &str = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello";
const CHUNKED_5: &str = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

#[test]
fn request_lines() {
    check(
        &[
            ("plain", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", Forwarded(PLAIN)),
            ("one empty line before", "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Forwarded(PLAIN)),
            ("eight empty lines", &format!("{}GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\r\n".repeat(8)), Forwarded(PLAIN)),
            ("nine empty lines", &format!("{}GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\r\n".repeat(9)), Refused(400)),
            ("bare LF before", "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("bare CR before", "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("space after version", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", Refused(400)),
            ("tab for space", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("no target", "GET HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("no path", "GET x HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("space in target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("fragment", "GET /#frag HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("NUL in target", "GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("DEL in target", "GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("UTF-8 in target", "GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("asterisk of GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("asterisk", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", Forwarded("OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n")),
            (
                "absolute",
                "GET http://h/x?y HTTP/1.1\r\nHost: h\r\n\r\n",
                Forwarded("GET /x?y HTTP/1.1\r\nhost: h\r\n\r\n"),
            ),
            ("absolute wins", "GET http://h HTTP/1.1\r\nHost: evil\r\n\r\n", Forwarded(PLAIN)),
            (
                "absolute, query",
                "GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n",
                Forwarded("GET /?q HTTP/1.1\r\nhost: h\r\n\r\n"),
            ),
            ("absolute without host", "GET http://h/ HTTP/1.1\r\n\r\n", Refused(400)),
            ("absolute with user", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("ftp", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("lower-case method", "get / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("unknown method", "FOO / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("method with delimiter", "G@T / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            (
                "registered method",
                "PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n",
                Forwarded("PROPFIND / HTTP/1.1\r\nhost: h\r\n\r\n"),
            ),
            ("CONNECT with a path", "CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("CONNECT without port", "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("HTTP/0.9", "GET /\r\n\r\n", Refused(400)),
            ("PROXY protocol 1", &format!("PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n{PLAIN}"), Refused(400)),
            ("PROXY protocol 1, long", &format!("PROXY UNKNOWN {}\r\n{PLAIN}", "x".repeat(600)), Refused(400)),
            (
                "PROXY protocol 2",
                &format!("\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x51{PLAIN}"),
                Refused(400),
            ),
            ("PROXY protocol 2, LOCAL", &format!("\r\n\r\n\0\r\nQUIT\n\x20\0\0\0{PLAIN}"), Refused(400)),
            ("HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", Refused(426)),
            ("garbage of another version", "\x0bET / HTTP/2.0\r\nHost: h\r\n\r\n", Refused(400)),
            ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", Refused(505)),
            ("HTTP/2.0", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", Refused(505)),
            ("HTTP/11.1", "GET / HTTP/11.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("http/1.1", "GET / http/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("HTTX", "GET / HTTX/1.1\r\nHost: h\r\n\r\n", Refused(400)),
            ("TLS ClientHello", "\x16\x03\x01\x02\0\x01\0\x01", Refused(400)),
            ("long target", &format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(9000)), Refused(414)),
            ("endless target", &format!("GET /{}", "a".repeat(9000)), Refused(414)),
            ("unfinished", "GET / HTTP/1.1\r\nHost: h\r\n", Waits),
        ],
        &ServerOptions::default(),
    );
}

#[test]
fn header_sections() {
    let many = |count: usize| {
        let fields: String = (0..count).map(|at| format!("x-{at}: y\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
    };
    check(
        &[
            (
                "names lower-cased",
                "GET / HTTP/1.1\r\nHOST: h\r\nX-A:  b \t\r\n\r\n",
                Forwarded("GET / HTTP/1.1\r\nhost: h\r\nx-a: b\r\n\r\n"),
            ),
            (
                "empty value",
                "GET / HTTP/1.1\r\nHost: h\r\nX-A:\r\n\r\n",
                Forwarded("GET / HTTP/1.1\r\nhost: h\r\nx-a: \r\n\r\n"),
            ),
            (
                "order and repetition kept",
                "GET / HTTP/1.1\r\nA: 1\r\nHost: h\r\nB: 2\r\nA: 3\r\n\r\n",
                Forwarded("GET / HTTP/1.1\r\nhost: h\r\na: 1\r\nb: 2\r\na: 3\r\n\r\n"),
            ),
            ("bare LF line", "GET / HTTP/1.1\nHost: h\r\n\r\n", Refused(400)),
            ("bare LF field", "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", Refused(400)),
            ("bare LF end", "GET / HTTP/1.1\r\nHost: h\r\n\n", Refused(400)),
            ("bare CR in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", Refused(400)),
            ("NUL in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n", Refused(400)),
            ("control in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\x01c\r\n\r\n", Refused(400)),
            ("obs-fold", "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", Refused(400)),
            ("obs-fold by tab", "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tc\r\n\r\n", Refused(400)),
            ("space before the first field", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", Refused(400)),
            ("space in name", "GET / HTTP/1.1\r\nHost: h\r\nA b: c\r\n\r\n", Refused(400)),
            ("space before colon", "GET / HTTP/1.1\r\nHost: h\r\nA : c\r\n\r\n", Refused(400)),
            ("empty name", "GET / HTTP/1.1\r\nHost: h\r\n: c\r\n\r\n", Refused(400)),
            ("no colon", "GET / HTTP/1.1\r\nHost: h\r\nabc\r\n\r\n", Refused(400)),
            ("UTF-8 in name", "GET / HTTP/1.1\r\nHost: h\r\n\u{e9}: c\r\n\r\n", Refused(400)),
            ("100 fields", &many(99), Answered(1)),
            ("101 fields", &many(100), Refused(431)),
            ("64 KiB", &format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "b".repeat(65536)), Refused(431)),
            ("50 KiB", &format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "b".repeat(51200)), Answered(1)),
            ("endless name", &format!("GET / HTTP/1.1\r\nHost: h\r\n{}", "b".repeat(65536)), Refused(431)),
            ("no host", "GET / HTTP/1.1\r\n\r\n", Refused(400)),
            ("two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", Refused(400)),
            ("host with space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refused(400)),
            ("host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Refused(400)),
            ("host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused(400)),
            ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused(400)),
            ("port 0", "GET / HTTP/1.1\r\nHost: h:0\r\n\r\n", Refused(400)),
            ("port 65536", "GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", Refused(400)),
            (
                "IPv6 host",
                "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
                Forwarded("GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n"),
            ),
            ("Expect foo", "GET / HTTP/1.1\r\nHost: h\r\nExpect: foo\r\n\r\n", Refused(417)),
            (
                "two Expects",
                "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
                Refused(400),
            ),
        ],
        &ServerOptions::default(),
    );
}

#[test]
fn connection_fields() {
    check(
        &[
            ("close", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", ForwardedLast(PLAIN)),
            ("Close, in a list", "GET / HTTP/1.1\r\nHost: h\r\nConnection: x, CLOSE\r\n\r\n", ForwardedLast(PLAIN)),
            (
                "named field is dropped",
                "GET / HTTP/1.1\r\nHost: h\r\nX-Secret: 1\r\nConnection: X-Secret\r\nx-secret: 2\r\n\r\n",
                Forwarded(PLAIN),
            ),
            (
                "hop fields are dropped",
                "GET / HTTP/1.1\r\nHost: h\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\nUpgrade: x\r\n\r\n",
                Forwarded(PLAIN),
            ),
            (
                "TE trailers",
                "GET / HTTP/1.1\r\nHost: h\r\nTE: gzip, trailers\r\nConnection: TE\r\n\r\n",
                Forwarded("GET / HTTP/1.1\r\nhost: h\r\nte: trailers\r\n\r\n"),
            ),
            ("names Host", "GET / HTTP/1.1\r\nHost: h\r\nConnection: Host\r\n\r\n", Refused(400)),
            (
                "names Content-Length",
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: Host, Content-Length\r\n\r\n",
                Refused(400),
            ),
            ("names a pseudo-header", "GET / HTTP/1.1\r\nHost: h\r\nConnection: :path\r\n\r\n", Refused(400)),
            (
                "names Transfer-Encoding",
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: transfer-encoding\r\n\r\n",
                Refused(400),
            ),
            ("names X-Forwarded-For", "GET / HTTP/1.1\r\nHost: h\r\nConnection: x-forwarded-for\r\n\r\n", Refused(400)),
            (
                "h2c",
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
                Forwarded(PLAIN),
            ),
            ("upgrade not named", "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", Forwarded(PLAIN)),
            (
                "upgrade answered 200, pipelined",
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
                Answered(2),
            ),
            ("pipelined", &PLAIN.repeat(20), Answered(20)),
            (
                "pipelined after close is ignored",
                &format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n{PLAIN}"),
                ForwardedLast(PLAIN),
            ),
            ("pipelined after refusal is ignored", &format!("GET / HTTP/1.1\r\n\r\n{PLAIN}"), Refused(400)),
        ],
        &ServerOptions::default(),
    );
}

#[test]
fn content_length() {
    let with = |value: &str| format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:{value}\r\n\r\nhello");
    let refused = [
        " +5",
        " -1",
        " 0x5",
        "",
        " 5 5",
        " 5, 5",
        " 0, 0",
        " 5,",
        " 18446744073709551616",
        " 18446744073709551615",
        " 9223372036854775808",
        " 5\r\nContent-Length: 5",
        " 5\r\nContent-Length: 6",
        " five",
        " 5.0",
        " 5;",
        " \u{b2}",
    ];
    for value in refused {
        check(&[(value, &with(value), Refused(400))], &ServerOptions::default());
    }
    check(
        &[
            ("5", &with(" 5"), Forwarded("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")),
            ("leading zeros", &with("005"), Forwarded(POST_5)),
            (
                "00",
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 00\r\n\r\n",
                Forwarded("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"),
            ),
            (
                "GET with a body",
                "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
                Forwarded("GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"),
            ),
            (
                "POST without",
                "POST / HTTP/1.1\r\nHost: h\r\n\r\n",
                Forwarded("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"),
            ),
            (
                "too little",
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhello",
                ForwardedLast("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhello"),
            ),
            ("more is the next request", &format!("{POST_5}{PLAIN}"), Answered(2)),
        ],
        &ServerOptions::default(),
    );
}

#[test]
fn transfer_encoding() {
    let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let cases = [
        ("Transfer-Encoding: chunked", None),
        ("transfer-encoding:\tCHUNKED\t", None),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", Some(400)),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", Some(400)),
        ("Transfer-Encoding : chunked", Some(400)),
        ("Transfer-Encoding: xchunked", Some(501)),
        ("Transfer-Encoding: chunkedx", Some(501)),
        ("Transfer-Encoding: gzip", Some(501)),
        ("Transfer-Encoding: identity", Some(501)),
        ("Transfer-Encoding: gzip, chunked", Some(501)),
        ("Transfer-Encoding: chunked, gzip", Some(400)),
        ("Transfer-Encoding: chunked, chunked", Some(400)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Some(400)),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", Some(400)),
        ("Transfer-Encoding: , chunked", Some(400)),
        ("Transfer-Encoding: chunked,", Some(400)),
        ("Transfer-Encoding:", Some(400)),
        ("Transfer-Encoding: \x0bchunked", Some(400)),
        ("Transfer-Encoding: \"chunked\"", Some(400)),
        ("Transfer-Encoding: chunked;q=1", Some(400)),
        ("Transfer-Encoding: chun ked", Some(400)),
        ("Transfer-Encoding:\r\n chunked", Some(400)),
    ];
    for (fields, refused) in cases {
        let expect = refused.map_or(Forwarded(CHUNKED_5), Refused);
        check(&[(fields, &with(fields), expect)], &ServerOptions::default());
    }
    let old = ServerOptions { accept_http_10: true, ..ServerOptions::default() };
    check(
        &[("HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400))],
        &old,
    );
}

#[test]
fn chunked_bodies() {
    let with = |body: &str| format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let aborted = [
        ("0x5", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("-1", "-1\r\nhello\r\n0\r\n\r\n"),
        ("+5", "+5\r\nhello\r\n0\r\n\r\n"),
        ("empty size", "\r\nhello\r\n0\r\n\r\n"),
        ("not hexadecimal", "g\r\nhello\r\n0\r\n\r\n"),
        ("2^63", "8000000000000000\r\nhello"),
        ("2^64 + 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("many zeros", "000000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("space before", " 5\r\nhello\r\n0\r\n\r\n"),
        ("space after", "5 \r\nhello\r\n0\r\n\r\n"),
        ("bare LF", "5\nhello\r\n0\r\n\r\n"),
        ("bare CR", "5\rhello\r\n0\r\n\r\n"),
        ("data too long", "5\r\nhellox\r\n0\r\n\r\n"),
        ("bare LF after data", "5\r\nhello\n0\r\n\r\n"),
        ("extension ends in bare LF", "5;a\nhello\r\n0\r\n\r\n"),
        ("extension with NUL", "5;a\0\r\nhello\r\n0\r\n\r\n"),
        ("bare LF in trailers", "5\r\nhello\r\n0\r\na: b\n\r\n"),
        ("bare LF ends trailers", "5\r\nhello\r\n0\r\n\n"),
        ("malformed trailer", "5\r\nhello\r\n0\r\na b\r\n\r\n"),
        ("folded trailer", "5\r\nhello\r\n0\r\na: b\r\n c\r\n\r\n"),
    ];
    for (name, body) in aborted {
        check(&[(name, &with(body), Aborted(400))], &ServerOptions::default());
    }
    let extensions = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(17000));
    let trailers: String = (0..101).map(|at| format!("x-{at}: y\r\n")).collect();
    check(
        &[
            ("long extensions", &with(&extensions), Aborted(400)),
            ("101 trailers", &with(&format!("0\r\n{trailers}\r\n")), Aborted(400)),
            ("plain", &with("5\r\nhello\r\n0\r\n\r\n"), Forwarded(CHUNKED_5)),
            ("leading zeros", &with("0005\r\nhello\r\n000\r\n\r\n"), Forwarded(CHUNKED_5)),
            ("extensions are dropped", &with("5;a=b; c=\"d\"\r\nhello\r\n0;x\r\n\r\n"), Forwarded(CHUNKED_5)),
            (
                "trailers",
                &with(
                    "0\r\nX-Sum: 1\r\nContent-Length: 5\r\nHost: x\r\nAuthorization: y\r\nTransfer-Encoding: z\r\n\r\n",
                ),
                Forwarded("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n"),
            ),
            ("pipelined behind", &with(&format!("5\r\nhello\r\n0\r\n\r\n{PLAIN}")), Answered(2)),
        ],
        &ServerOptions::default(),
    );
}

#[test]
fn http_10_when_accepted() {
    let options = ServerOptions { accept_http_10: true, ..ServerOptions::default() };
    check(
        &[
            ("closes", "GET / HTTP/1.0\r\nHost: h\r\n\r\n", ForwardedLast(PLAIN)),
            ("needs no host", "GET / HTTP/1.0\r\n\r\n", ForwardedLast("GET / HTTP/1.1\r\nhost: \r\n\r\n")),
            ("keep-alive", "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", Forwarded(PLAIN)),
        ],
        &options,
    );
}

#[test]
fn custom_methods_when_accepted() {
    let options = ServerOptions { custom_methods: true, ..ServerOptions::default() };
    check(&[("get", "get / HTTP/1.1\r\nHost: h\r\n\r\n", Forwarded("get / HTTP/1.1\r\nhost: h\r\n\r\n"))], &options);
}

#[test]
fn http_1_listener_refuses_http_2() {
    let options = ServerOptions { protocol: culvert_http::Protocol::Http1, ..ServerOptions::default() };
    check(&[("preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(400)), ("nothing", "", Waits)], &options);
    let options = ServerOptions { protocol: culvert_http::Protocol::Http2, ..ServerOptions::default() };
    let outcome = on_worker(play(&[b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"], options));
    assert!(outcome.closed && outcome.upstream.is_empty(), "HTTP/1 on an HTTP/2 listener is closed");
}

/// Wherever the network cuts, the verdict is the same.
#[test]
fn every_split_offset() {
    for (raw, forwarded) in [
        (
            "\r\nPOST /a HTTP/1.1\r\nHost: h\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello",
            "POST /a HTTP/1.1\r\nhost: h\r\nx-a: b\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n",
        ),
    ] {
        for at in 0..=raw.len() {
            let (first, second) = raw.as_bytes().split_at(at);
            let outcome = on_worker(play(&[first, second], ServerOptions::default()));
            assert_eq!(outcome.statuses, [200], "cut at {at}");
            let upstream = outcome.upstream.concat();
            // A body may be cut into other chunks, but into none that hold another byte.
            assert_eq!(unchunk(&upstream), unchunk(forwarded), "cut at {at}");
        }
    }
    for raw in ["GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nA: b\n\r\n"] {
        for at in 0..=raw.len() {
            let (first, second) = raw.as_bytes().split_at(at);
            let outcome = on_worker(play(&[first, second], ServerOptions::default()));
            judge(&format!("{raw:?} cut at {at}"), &outcome, &Refused(400));
        }
    }
}

/// A message with its chunks joined.
fn unchunk(message: &str) -> String {
    let (head, body) = message.split_once("\r\n\r\n").unwrap_or((message, ""));
    let mut joined = format!("{head}\r\n\r\n");
    if !head.contains("chunked") {
        return joined + body;
    }
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return joined + "|" + after;
        }
        joined += &after[..size];
        rest = &after[size + 2..];
    }
    joined
}
