use proptest::collection::vec;
use proptest::prelude::*;

use super::parse;
use crate::http1::{encode, response};
use crate::{BodyKind, RequestHead, ResponseHead, ServerOptions};

/// Lines that are nearly requests.
fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST http://h/ HTTP/1.0\r\n",
        b"Host: h\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: a, close\r\n",
        b"a: b\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\0",
    ];
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let piece = prop::sample::select(pieces);
    let piece = prop_oneof![9 => piece, 1 => vec(any::<u8>(), 0..4)];
    (any::<bool>(), vec(piece, 0..12), any::<bool>()).prop_map(|(begin, pieces, end)| {
        let begin: &[u8] = if begin { b"GET /a HTTP/1.1\r\nhost: h\r\n" } else { b"" };
        [begin, &pieces.concat(), if end { b"\r\n" } else { b"" }].concat()
    })
}

proptest! {
    /// What was accepted is accepted again as we write it, and means the same: nobody behind us reads it differently.
    #[test]
    fn what_is_forwarded_is_read_the_same(raw in nearly_a_request()) {
        let options = ServerOptions { accept_http_10: true, custom_methods: true, ..ServerOptions::default() };
        let (mut head, mut again, mut wire) = (RequestHead::new(), RequestHead::new(), Vec::new());
        if let Ok(Some(parsed)) = parse(&raw, 0, &options, &mut head) {
            prop_assert!(parsed.len <= raw.len());
            prop_assume!(!head.authority.is_empty());
            encode::request(&mut wire, &head, parsed.body).unwrap();
            let second = parse(&wire, 0, &options, &mut again).unwrap().expect("a whole head");
            prop_assert_eq!(second.len, wire.len(), "{}", wire.escape_ascii());
            // A POST without a body says so.
            let same = second.body == parsed.body || (second.body.is_empty() && parsed.body.is_empty());
            prop_assert!(same, "{:?} became {:?}", parsed.body, second.body);
            prop_assert_eq!((&again.method, &again.authority, &again.path), (&head.method, &head.authority, &head.path));
        }
    }

    /// A head that is cut short is neither accepted nor, if the whole is good, refused.
    #[test]
    fn a_part_of_a_good_head_waits(raw in nearly_a_request(), cut in any::<prop::sample::Index>()) {
        let options = ServerOptions::default();
        let mut head = RequestHead::new();
        if let Ok(Some(parsed)) = parse(&raw, 0, &options, &mut head) {
            let cut = cut.index(parsed.len);
            prop_assert_eq!(parse(&raw[..cut], 0, &options, &mut head), Ok(None), "cut at {}", cut);
        }
    }

    /// What is accepted here a foreign parser accepts, and reads the same fields in it.
    #[test]
    fn a_foreign_parser_agrees(raw in nearly_a_request()) {
        let options = ServerOptions { accept_http_10: true, custom_methods: true, ..ServerOptions::default() };
        let mut head = RequestHead::new();
        let ours = parse(&raw, 0, &options, &mut head);
        let mut slots = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut slots);
        let theirs = request.parse(&raw);
        if let Ok(Some(parsed)) = ours {
            prop_assert_eq!(theirs, Ok(httparse::Status::Complete(parsed.len)), "{}", raw.escape_ascii());
            for (name, value) in head.fields.iter() {
                let same = |field: &httparse::Header<'_>| {
                    field.name.as_bytes().eq_ignore_ascii_case(name) && field.value == value
                };
                prop_assert!(request.headers.iter().any(same), "{}", name.escape_ascii());
            }
        }
        // Nothing that it can read in full waits here for more.
        if let Ok(httparse::Status::Complete(_)) = theirs {
            prop_assert_ne!(ours, Ok(None), "{}", raw.escape_ascii());
        }
    }

    /// The same of responses: what is kept of one is in it, and what is refused is refused there or for a reason of ours.
    #[test]
    fn a_foreign_parser_agrees_on_responses(reason in "[ -~]{0,8}", raw in nearly_a_request()) {
        let lines = raw.strip_prefix(b"GET /a HTTP/1.1\r\n").unwrap_or(&raw);
        let raw = [format!("HTTP/1.1 200 {reason}\r\n").as_bytes(), lines].concat();
        let mut head = ResponseHead::new(0);
        let mut slots = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut slots);
        let theirs = response.parse(&raw);
        match response::parse(&raw, 0, response::Asked::default(), &mut head) {
            Ok(Some(parsed)) => {
                prop_assert_eq!(theirs, Ok(httparse::Status::Complete(parsed.len)), "{}", raw.escape_ascii());
                prop_assert_eq!(response.code, Some(head.status));
            }
            Ok(None) => prop_assert!(!matches!(theirs, Ok(httparse::Status::Complete(_))), "{}", raw.escape_ascii()),
            Err("malformed response head") => prop_assert!(theirs.is_err(), "{}", raw.escape_ascii()),
            Err(_) => {}
        }
    }

    #[test]
    fn responses_do_not_panic(raw in vec(any::<u8>(), 0..200), status in 0u16..1100) {
        let mut head = ResponseHead::new(0);
        let raw = [format!("HTTP/1.1 {status} \r\n").into_bytes(), raw].concat();
        if let Ok(Some(parsed)) = response::parse(&raw, 0, response::Asked::default(), &mut head) {
            prop_assert!(parsed.len <= raw.len() && head.status >= 100);
            prop_assert!(parsed.body != BodyKind::Tunnel);
        }
    }
}
