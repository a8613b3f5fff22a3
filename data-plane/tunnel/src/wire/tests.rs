mod extras;
mod properties;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let mut decoder = Decoder::new(MAX_PAYLOAD);
    decoder.push(bytes);
    decoder.next_frame()
}

/// A frame of any header bytes with a payload of the right length.
fn frame(version: u8, flag: u8, kind: [u8; 2], payload: &str) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x20, 0x88, version, flag, kind[0], kind[1], length[0], length[1]], payload.as_bytes()].concat()
}

fn init_frame(payload: &str) -> Vec<u8> {
    frame(1, 1, [1, 0], payload)
}

fn init_edge() -> Init {
    Init { cluster_name: "edge".into(), weight: 10, ..Init::default() }
}

/// The vectors that MOSN's own encoder produced.
#[test]
fn published_vectors_byte_for_byte() {
    let status = |status| Frame::Response(Response { status, ..Response::default() });
    let vectors = [
        (
            "init",
            "20880101 0100 0066 7b22636c75737465725f6e616d65223a2265646765222c22776569676874223a31302c
             22686f73745f6e616d65223a22222c2263726564656e7469616c5f706f6c696379223a22222c
             2263726564656e7469616c223a22222c226578747261223a6e756c6c7d",
            Frame::Init(init_edge()),
        ),
        ("status 0", "208801020200000c7b22737461747573223a307d", status(Status::Unknown)),
        ("status 1", "208801020200000c7b22737461747573223a317d", status(Status::Success)),
        ("status 2", "208801020200000c7b22737461747573223a327d", status(Status::AuthFailed)),
        ("status 3", "208801020200000c7b22737461747573223a337d", status(Status::PolicyNotFound)),
        ("status 4", "208801020200000c7b22737461747573223a347d", status(Status::ClusterNotFound)),
        (
            "graceful close of two connections",
            "20880103 0100 0049 7b22616464726573736573223a5b223132372e302e302e313a3532363032222c
             223132372e302e302e313a3532363038225d2c22636c75737465725f6e616d65223a2265646765227d",
            Frame::GracefulClose(GracefulClose {
                addresses: Some(vec!["127.0.0.1:52602".into(), "127.0.0.1:52608".into()]),
                cluster_name: "edge".into(),
                connection_ids: Vec::new(),
            }),
        ),
    ];
    for (name, bytes, message) in vectors {
        let bytes = hex(bytes);
        assert_eq!(message.encode().unwrap(), bytes, "{name}: encoded");
        assert_eq!(decode(&bytes), Ok(Some(message)), "{name}: decoded");
    }
    for (header, payload, message) in [
        ("2088010301000024", r#"{"addresses":null,"cluster_name":""}"#, GracefulClose::default()),
        (
            "2088010301000032",
            r#"{"addresses":["[::1]:5000"],"cluster_name":"edge"}"#,
            GracefulClose {
                addresses: Some(vec!["[::1]:5000".into()]),
                cluster_name: "edge".into(),
                connection_ids: Vec::new(),
            },
        ),
    ] {
        let bytes = [hex(header), payload.as_bytes().to_vec()].concat();
        let message = Frame::GracefulClose(message);
        assert_eq!(message.encode().unwrap(), bytes, "{payload}: encoded");
        assert_eq!(decode(&bytes), Ok(Some(message)), "{payload}: decoded");
    }
}

/// The published vector with odd strings: Go escapes more than it must, and both forms are read.
#[test]
fn the_vector_with_odd_strings() {
    let payload = concat!(
        r#"{"cluster_name":"a\u003cb\u003e\u0026\u2028中\ufffd","weight":-1,"host_name":"h\"\\\n\t\u0001","#,
        r#""credential_policy":"","credential":"","extra":{"a":[1],"f":1e+21,"m":null,"z":1}}"#
    );
    let bytes = [hex("20880101010000b2"), payload.as_bytes().to_vec()].concat();
    assert_eq!(bytes.len(), 186, "length of the published vector");
    let expected = Init {
        cluster_name: "a<b>&\u{2028}中\u{fffd}".into(),
        weight: -1,
        host_name: "h\"\\\n\t\u{1}".into(),
        ..Init::default()
    };
    assert_eq!(decode(&bytes), Ok(Some(Frame::Init(expected.clone()))), "Go's escapes");
    let ours = Frame::Init(expected).encode().unwrap();
    assert!(decode(&ours).is_ok_and(|frame| frame.is_some()), "our own form of the same strings");
}

#[test]
fn version_and_type_bytes_are_ignored() {
    for version in [0, 1, 2, 9, 255] {
        for kind in [[1, 0], [2, 0], [0, 0], [255, 255]] {
            let decoded = decode(&frame(version, 1, kind, r#"{"cluster_name":"edge","weight":10}"#));
            assert_eq!(decoded, Ok(Some(Frame::Init(init_edge()))), "version {version}, type {kind:?}");
        }
    }
}

/// What Go's decoder accepts, and what it makes of it.
#[test]
fn accepted_payloads() {
    let named = |name: &str| Init { cluster_name: name.into(), ..Init::default() };
    let weighing = |weight| Init { weight, ..Init::default() };
    let capable = |caps: &[&str]| Init { caps: caps.iter().map(|cap| (*cap).to_owned()).collect(), ..Init::default() };
    let cases = [
        ("{}", Init::default()),
        ("null", Init::default()),
        (" { } \n", Init::default()),
        (r#"{"CLUSTER_NAME":"edge"}"#, named("edge")),
        (r#"{"Cluster_Name":"edge"}"#, named("edge")),
        ("{\"clu\u{17f}ter_name\":\"edge\"}", named("edge")),
        (r#"{"cluster_name":"a","cluster_name":"b"}"#, named("b")),
        (r#"{"cluster_name":"a","Cluster_name":"b"}"#, named("b")),
        (r#"{"cluster_name":null}"#, Init::default()),
        (r#"{"cluster_name":"a","cluster_name":null}"#, named("a")),
        (r#"{"unknown":[{"a":null}],"cluster_name":"edge","x":1e400}"#, named("edge")),
        (r#"{"weight":null}"#, Init::default()),
        (r#"{"weight":-9223372036854775808}"#, weighing(i64::MIN)),
        (r#"{"weight":9223372036854775807}"#, weighing(i64::MAX)),
        (r#"{"weight":4294967306}"#, weighing(4_294_967_306)),
        (r#"{"extra":null}"#, Init::default()),
        (r#"{"extra":{}}"#, Init::default()),
        (r#"{"extra":{"caps":["culvert/1","x"]}}"#, capable(&["culvert/1", "x"])),
        (r#"{"extra":{"CAPS":["culvert/1",7,null]}}"#, capable(&["culvert/1"])),
        (
            r#"{"extra":{"caps":[],"instance":"0000019acb12f0000000000000000007"}}"#,
            Init { instance: Some(Instance { epoch: 0x019a_cb12_f000, nonce: 7 }), ..Init::default() },
        ),
        (r#"{"extra":{"instance":"+000019acb12f0000000000000000007"}}"#, Init::default()),
        (r#"{"extra":{"instance":"0000019acb12f000000000000000000700"}}"#, Init::default()),
        (r#"{"extra":{"instance":7}}"#, Init::default()),
        (r#"{"extra":{"proof":7}}"#, Init::default()),
        (r#"{"extra":{"proof":"0123"}}"#, Init::default()),
        (r#"{"extra":{"caps":{"culvert/1":true}}}"#, Init::default()),
        (r#"{"extra":{"caps":"culvert/1"}}"#, Init::default()),
        (r#"{"extra":{"caps":["a"]},"extra":null}"#, Init::default()),
        (r#"{"credential":"s\u0000"}"#, Init { credential: Secret("s\0".into()), ..Init::default() }),
    ];
    for (payload, expected) in cases {
        assert_eq!(decode(&init_frame(payload)), Ok(Some(Frame::Init(expected))), "{payload}");
    }
}

#[test]
fn weights_are_clamped_as_the_balancer_does() {
    for (weight, expected) in [
        (i64::MIN, 1),
        (-1, 1),
        (0, 1),
        (1, 1),
        (10, 10),
        (128, 128),
        (129, 128),
        (4_294_967_306, 128),
        (i64::MAX, 128),
    ] {
        assert_eq!(Init { weight, ..Init::default() }.clamped_weight(), expected, "weight {weight}");
    }
}

#[test]
fn responses_of_any_status_and_with_further_keys() {
    for (payload, status, id) in [
        ("{}", Status::Unknown, None),
        ("null", Status::Unknown, None),
        (r#"{"status":1}"#, Status::Success, None),
        (r#"{"Status":1,"later":{"a":[]}}"#, Status::Success, None),
        (r#"{"status":99}"#, Status::Other(99), None),
        (r#"{"status":-7}"#, Status::Other(-7), None),
        (r#"{"status":1,"connection_id":"ab"}"#, Status::Success, Some("ab")),
        (r#"{"status":1,"connection_id":5,"caps":7}"#, Status::Success, None),
    ] {
        let decoded = decode(&frame(1, 2, [2, 0], payload)).unwrap().unwrap();
        let Frame::Response(response) = decoded else { panic!("{payload}: decoded as {decoded:?}") };
        assert_eq!(response.status, status, "{payload}");
        assert_eq!(response.connection_id.as_deref(), id, "{payload}");
    }
}

/// What is expected of bytes that are no handshake.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bad {
    Magic,
    Kind,
    Empty,
    TooLong,
    TooDeep,
    Json,
    /// Not wrong yet: the deadline ends it.
    Waits,
}

fn outcome(bytes: &[u8], max: usize) -> Result<Frame, Bad> {
    let mut decoder = Decoder::new(max);
    decoder.push(bytes);
    match decoder.next_frame() {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(Bad::Waits),
        Err(DecodeError::Magic(_)) => Err(Bad::Magic),
        Err(DecodeError::Kind(_)) => Err(Bad::Kind),
        Err(DecodeError::Empty) => Err(Bad::Empty),
        Err(DecodeError::TooLong { .. }) => Err(Bad::TooLong),
        Err(DecodeError::TooDeep) => Err(Bad::TooDeep),
        Err(DecodeError::Json { .. }) => Err(Bad::Json),
    }
}

/// Payloads of an init frame that Go's decoder, or our stricter one, refuses.
const BAD_PAYLOADS: &[&str] = &[
    "x",
    " ",
    "[]",
    "\"\"",
    "\"edge\"",
    "1",
    "true",
    "nul",
    "{",
    "}",
    "{]",
    "{\"",
    "{\"cluster_name",
    "{\"cluster_name\"",
    "{\"cluster_name\"}",
    "{\"cluster_name\":",
    "{\"cluster_name\":}",
    "{\"cluster_name\":\"edge\"",
    "{\"cluster_name\":\"edge\",",
    "{\"cluster_name\":\"edge\",}",
    "{,}",
    "{cluster_name:\"edge\"}",
    "{'cluster_name':'edge'}",
    "{\"cluster_name\":\"edge\"}{}",
    "{\"cluster_name\":\"edge\"}x",
    "{\"cluster_name\":\"edge\"} null",
    "\u{feff}{}",
    "{}\0",
    "\0",
    "{} // comment",
    "/* */{}",
    "{\"cluster_name\":1}",
    "{\"cluster_name\":true}",
    "{\"cluster_name\":[]}",
    "{\"cluster_name\":{}}",
    "{\"cluster_name\":\"\u{1}\"}",
    "{\"cluster_name\":\"\n\"}",
    "{\"cluster_name\":\"\\x\"}",
    "{\"cluster_name\":\"\\u12\"}",
    "{\"cluster_name\":\"\\ud800\"}",
    "{\"cluster_name\":\"\\udc00\\ud800\"}",
    "{\"weight\":\"10\"}",
    "{\"weight\":10.5}",
    "{\"weight\":10.0}",
    "{\"weight\":1e1}",
    "{\"weight\":1e400}",
    "{\"weight\":NaN}",
    "{\"weight\":Infinity}",
    "{\"weight\":-}",
    "{\"weight\":+1}",
    "{\"weight\":01}",
    "{\"weight\":0x10}",
    "{\"weight\":1_000}",
    "{\"weight\":9223372036854775808}",
    "{\"weight\":-9223372036854775809}",
    "{\"weight\":99999999999999999999999999}",
    "{\"weight\":true}",
    "{\"weight\":[]}",
    "{\"weight\":{}}",
    "{\"weight\":\"\"}",
    "{\"host_name\":7}",
    "{\"host_name\":[\"h\"]}",
    "{\"credential_policy\":0}",
    "{\"credential_policy\":{}}",
    "{\"credential\":5}",
    "{\"credential\":[\"s\"]}",
    "{\"credential\":false}",
    "{\"extra\":[]}",
    "{\"extra\":1}",
    "{\"extra\":\"caps\"}",
    "{\"extra\":true}",
    "{\"extra\":{\"caps\":}}",
    "{\"extra\":{\"caps\":[}}",
    "{\"unknown\":}",
    "{\"unknown\":[1,]}",
    "{\"unknown\":{\"a\"}}",
    "{1:2}",
    "{null:1}",
    "{\"a\":1 \"b\":2}",
    "{\"a\" 1}",
];

#[test]
fn bad_inputs_and_what_becomes_of_each() {
    let mut cases: Vec<(Vec<u8>, usize, Bad)> = Vec::new();
    cases.extend(BAD_PAYLOADS.iter().map(|payload| (init_frame(payload), MAX_PAYLOAD, Bad::Json)));
    // Bytes that are not UTF-8, as Go's encoder never sends them.
    for raw in
        [&b"{\"cluster_name\":\"\xff\"}"[..], b"{\"\xc3\x28\":1}", b"\xfe\xff", b"{\"host_name\":\"\xed\xa0\x80\"}"]
    {
        let header = frame(1, 1, [1, 0], &" ".repeat(raw.len()));
        cases.push(([&header[..HEADER_LEN], raw].concat(), MAX_PAYLOAD, Bad::Json));
    }
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00",
        b"\x88\x20",
        b"\x20\x89",
        b"\x20\x20\x01\x01\x01\x00\x00\x66",
        b"\xda\xbb\x01\x01\x01\x00\x00\x66",
        b"\x21",
        b"{\"cluster_name\":\"edge\"}",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\n",
        b"SSH-2.0-x\r\n",
    ] {
        cases.push((bytes.to_vec(), MAX_PAYLOAD, Bad::Magic));
    }
    for flag in [0, 5, 6, 16, 127, 128, 254, 255] {
        cases.push((frame(1, flag, [1, 0], "{}"), MAX_PAYLOAD, Bad::Kind));
        // Refused with the eighth byte, payload or not.
        cases.push((frame(1, flag, [1, 0], "{}")[..HEADER_LEN].to_vec(), MAX_PAYLOAD, Bad::Kind));
    }
    cases.push((hex("2088010101000000"), MAX_PAYLOAD, Bad::Empty));
    cases.push((hex("208801010100000000"), MAX_PAYLOAD, Bad::Empty));
    cases.push((hex("2088010301000000"), MAX_PAYLOAD, Bad::Empty));
    cases.push((hex("208801010100ffff"), 16_384, Bad::TooLong));
    cases.push((hex("2088010101004001"), 16_384, Bad::TooLong));
    cases.push((hex("2088010101004000"), 16_384, Bad::Waits));
    cases.push((hex("2088010301000041"), 64, Bad::TooLong));
    cases.push((init_frame(&"[".repeat(16_384)), 16_384, Bad::TooDeep));
    cases.push((init_frame(&format!("{{\"a\":{}", "{\"a\":".repeat(40))), MAX_PAYLOAD, Bad::TooDeep));
    cases.push((init_frame(&format!("{{\"a\":{}{}}}", "[".repeat(32), "]".repeat(32))), MAX_PAYLOAD, Bad::TooDeep));
    for cut in 0..HEADER_LEN {
        cases.push((init_frame("{}")[..cut].to_vec(), MAX_PAYLOAD, Bad::Waits));
    }
    cases.push((init_frame("{}")[..9].to_vec(), MAX_PAYLOAD, Bad::Waits));
    for (flag, payload) in [(2, "{\"status\":\"1\"}"), (2, "{\"status\":1.5}"), (2, "[]"), (3, "{\"addresses\":\"a\"}")]
    {
        cases.push((frame(1, flag, [1, 0], payload), MAX_PAYLOAD, Bad::Json));
    }
    for payload in ["{\"addresses\":[1]}", "{\"addresses\":{}}", "{\"cluster_name\":1}", "[]"] {
        cases.push((frame(1, 3, [1, 0], payload), MAX_PAYLOAD, Bad::Json));
    }
    assert!(cases.len() >= 130, "{} bad inputs, at least 130 were meant", cases.len());
    for (bytes, max, expected) in cases {
        let seen = outcome(&bytes, max);
        assert_eq!(seen, Err(expected), "{:?} ({bytes:02x?})", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn nesting_within_strings_and_up_to_the_limit_is_accepted() {
    let brackets = format!("{{\"a\":\"{}\",\"cluster_name\":\"edge\"}}", "[{\\\"".repeat(100));
    assert!(decode(&init_frame(&brackets)).is_ok_and(|frame| frame.is_some()), "brackets in a string");
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(31), "]".repeat(31));
    assert!(decode(&init_frame(&deep)).is_ok_and(|frame| frame.is_some()), "32 levels");
}

#[test]
fn a_payload_of_65535_bytes_fits_and_one_more_is_not_encoded() {
    let with = |length: usize| Frame::Init(Init { cluster_name: "e".repeat(length), ..Init::default() });
    let overhead = with(0).encode().unwrap().len() - HEADER_LEN;
    let greatest = with(MAX_PAYLOAD - overhead);
    let bytes = greatest.encode().unwrap();
    assert_eq!(&bytes[6..8], &[0xff, 0xff], "length field");
    assert_eq!(decode(&bytes), Ok(Some(greatest)), "read back");
    assert_eq!(with(MAX_PAYLOAD - overhead + 1).encode(), Err(EncodeError::TooLong(MAX_PAYLOAD + 1)));
}

#[test]
fn every_split_into_two_and_byte_by_byte() {
    let bytes = [Frame::Init(init_edge()).encode().unwrap(), b"surplus".to_vec()].concat();
    let whole = bytes.len() - "surplus".len();
    for split in 0..=bytes.len() {
        let mut decoder = Decoder::new(MAX_PAYLOAD);
        decoder.push(&bytes[..split]);
        let first = decoder.next_frame().unwrap();
        assert_eq!(first.is_some(), split >= whole, "frame after {split} bytes");
        decoder.push(&bytes[split..]);
        let frame = first.or_else(|| decoder.next_frame().unwrap());
        assert_eq!(frame, Some(Frame::Init(init_edge())), "split at {split}");
        assert_eq!(&decoder.into_surplus()[..], b"surplus", "surplus, split at {split}");
    }
    let mut decoder = Decoder::new(MAX_PAYLOAD);
    for (at, byte) in bytes[..whole].iter().enumerate() {
        assert_eq!(decoder.next_frame(), Ok(None), "before byte {at}");
        decoder.push(&[*byte]);
    }
    assert_eq!(decoder.next_frame(), Ok(Some(Frame::Init(init_edge()))), "after the last byte");
    assert_eq!(decoder.buffered(), b"", "nothing is left");
}

#[test]
fn debug_shows_no_credential() {
    let init = Init { credential: Secret("hunter2".into()), ..init_edge() };
    let shown = format!("{:?}", Frame::Init(init));
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// 16 KiB of `[[[[` within what may be skipped: refused at the 33rd, before a parser recurses.
#[test]
fn a_json_bomb_is_refused_before_a_parser_recurses() {
    let bombs = [
        "[".repeat(16_384),
        "{\"a\":".repeat(2730),
        format!("{{\"x\":{}", "[".repeat(16_000)),
        format!("{{\"extra\":{}", "{\"extra\":".repeat(1600)),
        format!("{{\"x\":{}{}}}", "[".repeat(8000), "]".repeat(8000)),
    ];
    for bomb in bombs {
        let seen = decode(&init_frame(&bomb));
        assert_eq!(seen, Err(DecodeError::TooDeep), "{} bytes of {:?}", bomb.len(), &bomb[..12]);
    }
}
