use proptest::prelude::*;

use super::*;

fn plain(operator: Operator) -> Part {
    Part::Operator { operator, max_length: None }
}

fn literal(text: &str) -> Part {
    Part::Literal(text.into())
}

#[test]
fn formats_are_cut_into_parts() {
    let header = |name: &str, alternative: Option<&str>, max_length| Part::Operator {
        operator: Operator::RequestHeader { name: name.into(), alternative: alternative.map(Arc::from) },
        max_length,
    };
    let cases: &[(&str, Vec<Part>)] = &[
        ("", vec![]),
        ("text", vec![literal("text")]),
        ("100%%", vec![literal("100%")]),
        ("%%REQ(x)%%", vec![literal("%REQ(x)%")]),
        ("%DURATION%", vec![plain(Operator::Duration)]),
        ("a%DURATION%b", vec![literal("a"), plain(Operator::Duration), literal("b")]),
        ("%PROTOCOL%%DURATION%", vec![plain(Operator::Protocol), plain(Operator::Duration)]),
        ("%REQ(:METHOD)%", vec![header(":method", None, None)]),
        ("%REQUEST_HEADER(X-A)%", vec![header("x-a", None, None)]),
        ("%REQ(X?:PATH):10%", vec![header("x", Some(":path"), Some(10))]),
        ("%START_TIME%", vec![plain(Operator::StartTime("".into()))]),
        (
            "%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%!",
            vec![plain(Operator::StartTime("%Y/%m/%dT%H:%M:%S%z %s".into())), literal("!")],
        ),
        ("%GRPC_STATUS(NUMBER)%", vec![plain(Operator::GrpcStatusNumber)]),
        ("%RESPONSE_CODE()%", vec![plain(Operator::ResponseCode)]),
        ("%%%%", vec![literal("%%")]),
    ];
    for (text, parts) in cases {
        let format = Format::parse(text, false).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(&format.parts, parts, "{text}");
    }
}

#[test]
fn formats_that_mean_nothing_are_refused_with_a_remedy() {
    let cases = [
        ("%", "write `%%`"),
        ("50% off", "write `%%`"),
        ("%duration%", "upper case"),
        ("%DURATION", "not closed"),
        ("%REQ(x", "not closed"),
        ("%REQ(x)", "not closed"),
        ("%REQ()%", "header name"),
        ("%REQ(a?b?c)%", "header name"),
        ("%REQ(a b)%", "header name"),
        ("%REQ(x):y%", "not closed by"),
        ("%REQ(x):99999999999999999999999%", "not a length"),
        ("%DURATON%", "the nearest is `%DURATION%`"),
        ("%UPSTREAM_CLUSTR%", "the nearest is `%UPSTREAM_CLUSTER%`"),
        ("%RSP(x)%", "the nearest is `%RESP%`"),
        ("%DURATION(ms)%", "takes no argument"),
        ("%GRPC_STATUS(HEX)%", "CAMEL_STRING"),
    ];
    for (text, expected) in cases {
        let error = Format::parse(text, false).expect_err(text);
        assert!(error.contains(expected), "{text}: expected {expected:?} in {error:?}");
    }
}

#[test]
fn the_default_line_is_envoys() {
    let parts = Format::default_line().parts;
    let operators = parts.iter().filter(|part| matches!(part, Part::Operator { .. })).count();
    assert_eq!(operators, 15, "operators of the default line");
    assert_eq!(parts.last(), Some(&literal("\"\n")), "the default line ends with a line feed");
}

#[test]
fn every_plain_operator_parses_under_its_own_name() {
    for (name, operator) in PLAIN {
        let format = Format::parse(&format!("%{name}%"), false).expect(name);
        assert_eq!(format.parts, [plain(operator.clone())], "{name}");
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in ".{0,200}") {
        if let Ok(format) = Format::parse(&text, false) {
            let nothing_empty = format.parts.iter().all(|part| !matches!(part, Part::Literal(text) if text.is_empty()));
            prop_assert!(nothing_empty, "{text:?} left an empty literal");
        }
    }

    #[test]
    fn hostile_operators_parse_or_are_refused(text in "[%():?A-Z_0-9 a]{0,80}") {
        let _ = Format::parse(&text, true).is_ok();
    }

    #[test]
    fn literals_survive_escaping(text in "[^%]{0,40}(%[^%]{0,10}){0,4}") {
        let format = Format::parse(&text.replace('%', "%%"), false).expect("escaped text is a literal");
        prop_assert_eq!(format.literal(), Some(text.as_str()), "the escaped text");
    }
}
