use super::*;
use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::envoy::config::cluster::v3::Cluster;

fn problems(text: &[u8], syntax: Syntax) -> Vec<String> {
    match parse(text, syntax, &Limits::default()) {
        Ok(documents) => panic!("expected problems in {:?}, got {documents:?}", String::from_utf8_lossy(text)),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// Each text has exactly these problems; a problem is given by its beginning.
fn check(syntax: Syntax, cases: &[(&[u8], &[&str])]) {
    for (text, expected) in cases {
        let found = problems(text, syntax);
        let text = String::from_utf8_lossy(text);
        assert_eq!(found.len(), expected.len(), "number of problems in {text:?}: {found:#?}");
        for (found, expected) in found.iter().zip(*expected) {
            assert!(found.starts_with(expected), "{text:?}: expected {expected:?}, found {found:?}");
        }
    }
}

#[test]
fn yaml_mistakes_have_positions() {
    check(
        Syntax::Yaml,
        &[
            (b"\xef\xbb\xbfa: 1", &["1:1: the file begins with a byte order mark"]),
            (b"a: 1\nb: \xff\xfe", &["2:4: not UTF-8"]),
            (b"a: 1\nb: \xc3\xa4\xc3\xa4\xff", &["2:6: not UTF-8"]),
            (b"a: \"x\0y\"", &["1:6: a NUL character"]),
            (b"a:\n\tb: 1\n", &["2:"]),
            (
                b"a: 1\nb: 2\na: 3\nb: 4\n",
                &["3:1: key \"a\" stands twice, first at 1:1", "4:1: key \"b\" stands twice"],
            ),
            (b"a: [1, 2\nb: 3", &["2:"]),
            (b"a: *nothing", &["1:4: not YAML"]),
            (b"a: &x [*x]", &["1:8: the alias stands inside of what it refers to"]),
            (b"? [a]\n: b", &["1:3: a key must be a string"]),
            (b"a: !!int x", &["1:4: \"x\" is no !!int"]),
            (b"a: !mine x", &["1:4: tag"]),
            (b"a: &x {b: 1}\nc:\n  <<: *x", &["3:3: merge keys"]),
        ],
    );
}

#[test]
fn json_mistakes_have_positions() {
    check(
        Syntax::Json,
        &[
            (b"{\"a\": 1,\n \"a\": 2}", &["2:2: key \"a\" stands twice, first at 1:2"]),
            (b"{\"a\": 1,}", &["1:9: not JSON: expected a key"]),
            (b"{\"a\": tru}", &["1:7: not JSON: \"tru\" is no JSON value"]),
            (b"{\"a\": \"\\q\"}", &["1:7: not JSON: bad string"]),
            (b"{\"a\": \"x", &["1:7: not JSON: the text ends inside of a string"]),
            (b"[1 2]", &["1:4: not JSON: expected \",\" or \"]\""]),
            (b"[1]\n]", &["2:1: not JSON: something stands behind"]),
            (b"", &["1:1: not JSON: the text ends"]),
            (b"[01]", &["1:2: not JSON: \"01\" is no JSON value"]),
            (b"{\n\t// no\n}", &["2:2: not JSON: expected a key"]),
        ],
    );
    let tree =
        parse("{\"a\":\t[true, null, -1.5e3, \"\\ud83d\\ude00\\/\"]}".as_bytes(), Syntax::Json, &Limits::default());
    let tree = tree.unwrap().remove(0);
    let Value::Sequence(items) = &tree.get("a").unwrap().value else { panic!("no list: {tree:?}") };
    let values: Vec<&Value> = items.iter().map(|item| &item.value).collect();
    assert_eq!(
        values,
        [&Value::Bool(true), &Value::Null, &Value::Number("-1.5e3".into()), &Value::String("\u{1f600}/".into())]
    );
}

#[test]
fn depth_is_bounded_in_both_syntaxes_and_through_aliases() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    for syntax in [Syntax::Yaml, Syntax::Json] {
        assert!(parse(&nested(100), syntax, &Limits::default()).is_ok(), "100 levels of {syntax:?} are allowed");
        let found = problems(&nested(101), syntax);
        assert!(found[0].contains("nested deeper than 100 levels"), "{syntax:?}: {found:?}");
        let found = problems(&nested(100_000), syntax);
        let scanner = "recursion limit exceeded";
        assert!(
            found[0].contains("nested deeper than 100 levels") || found[0].contains(scanner),
            "{syntax:?}: {found:?}"
        );
    }
    // Thirty levels each, four times into each other.
    let inner = |at: &str| format!("{}{at}{}", "[".repeat(30), "]".repeat(30));
    let text = format!("a: &a {}\nb: &b {}\nc: &c {}\nd: {}", inner("1"), inner("*a"), inner("*b"), inner("*c"));
    let found = problems(text.as_bytes(), Syntax::Yaml);
    assert!(found[0].contains("by aliases"), "{found:?}");
}

#[test]
fn alias_bombs_are_refused_early() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let found = problems(text.as_bytes(), Syntax::Yaml);
    assert!(found[0].contains("aliases expand to more than 100000 values"), "{found:?}");
}

#[test]
fn streams_and_scalars_of_yaml() {
    let text = b"# nothing but a comment\n---\n---\na: {b: [0x10, 1_0, 010, .5, +3, ~, 'null', 1.5s, 10.0.0.1, 1e3, -x, on]}\n--- last\n";
    let documents = parse(text, Syntax::Yaml, &Limits::default()).unwrap();
    assert_eq!(documents.len(), 2, "empty documents are left out: {documents:?}");
    assert_eq!(documents[1].value, Value::String("last".into()));
    let Value::Sequence(items) = &documents[0].get("a").unwrap().get("b").unwrap().value else { panic!("no list") };
    let number = |text: &str| Value::Number(text.into());
    let string = |text: &str| Value::String(text.into());
    let values: Vec<Value> = items.iter().map(|item| item.value.clone()).collect();
    let expected = [
        number("16"),
        string("1_0"),
        number("010"),
        number(".5"),
        number("3"),
        Value::Null,
        string("null"),
        string("1.5s"),
        string("10.0.0.1"),
        number("1e3"),
        string("-x"),
        string("on"),
    ];
    assert_eq!(values, expected);
}

#[test]
fn paths_are_located() {
    let text = b"name: x\nlist:\n  - a: 1\n  - filterChains:\n    - name: deep\nlabels: {\"a.b\": 5}\n";
    let tree = parse(text, Syntax::Yaml, &Limits::default()).unwrap().remove(0);
    for (path, line, column) in [
        ("", 1, 1),
        ("name", 1, 7),
        ("list", 2, 1),
        ("list[1]", 4, 5),
        ("list[1].filter_chains", 4, 5),
        ("list[1].filter_chains[0].name", 5, 13),
        ("list[1].filter_chains[0].missing.more", 5, 7),
        ("list[7].x", 2, 1),
        ("labels[\"a.b\"]", 6, 17),
    ] {
        assert_eq!(tree.locate(path), Position { line, column }, "position of {path:?}");
    }
}

#[test]
fn load_names_every_mistake_in_one_run() {
    let text = b"\
node: {id: 7}
static_resource: {}
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 70000}
static_resources:
  clusters:
  - name: ''
    connect_timeout: 5
    lb_policy: ROUND_ROBBIN
    loadAssignment: {cluster_name: x}
    load_assignment: {cluster_name: x}
    typed_extension_protocol_options:
      a: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOption}
";
    let found: Vec<String> = match load::<Bootstrap>(text, Syntax::Yaml) {
        Ok(loaded) => panic!("expected problems, got {loaded:?}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    };
    let expected = [
        "1:12: node.id: expected a string, found the number 7; put it in quotes",
        "2:1: static_resource: unknown field \"static_resource\" in envoy.config.bootstrap.v3.Bootstrap; did you mean \"static_resources\"?",
        "5:54: admin.address.socket_address.port_value: must be at most 65535, is 70000",
        "8:11: static_resources.clusters[0].name: must not be empty",
        "9:22: static_resources.clusters[0].connect_timeout: expected a duration such as 1.5s, found the number 5",
        "10:16: static_resources.clusters[0].lb_policy: \"ROUND_ROBBIN\" is no value of envoy.config.cluster.v3.Cluster.LbPolicy; did you mean \"ROUND_ROBIN\"?",
        "12:5: static_resources.clusters[0].load_assignment: \"load_assignment\" and \"loadAssignment\" are two spellings of one field; keep one",
        "14:20: static_resources.clusters[0].typed_extension_protocol_options[\"a\"]: type \"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOption\" is not known; did you mean \"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"?",
    ];
    assert_eq!(found, expected, "found: {found:#?}");
}

/// At any depth; a wrong value of a field that is known is wrong all the same.
#[test]
fn of_a_peer_what_is_not_known_is_skipped() {
    let cluster = load_of_peer::<Cluster>(
        br#"{"name": "a", "new": {"x": [1]}, "load_assignment": {"cluster_name": "b", "newer": null}}"#,
    );
    let cluster = cluster.unwrap();
    assert_eq!((&*cluster.name, &*cluster.load_assignment.unwrap().cluster_name), ("a", "b"));
    let found = load_of_peer::<Cluster>(br#"{"new": 1, "name": 7}"#).unwrap_err();
    assert_eq!(found.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), ["name"], "{found:?}");
}

#[test]
fn load_takes_one_document() {
    let found = load::<Cluster>(b"name: a\n---\nname: b\n", Syntax::Yaml).unwrap_err();
    assert_eq!(found[0].at, Position { line: 3, column: 1 }, "{found:?}");
    let found = load::<Cluster>(b"# empty\n", Syntax::Yaml).unwrap_err();
    assert!(found[0].reason.contains("holds nothing"), "{found:?}");
    let loaded = load::<Cluster>(b"name: a\nconnectTimeout: 1.5s\n", Syntax::Yaml).unwrap();
    assert_eq!(loaded.message.connect_timeout, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
    assert_eq!(
        loaded.problem("connect_timeout", "no").in_file(Path::new("d/c.yaml")),
        "d/c.yaml:2:17: connect_timeout: no"
    );
}

proptest::proptest! {
    /// Whatever the bytes, there is a tree or a problem, and no panic.
    #[test]
    fn no_text_panics(text in "[-:{}\\[\\]\"'&*!|>%@,#?a1 \n\t~.]{0,80}") {
        let _result = parse(text.as_bytes(), Syntax::Yaml, &Limits::default()).map(|documents| documents.len());
        let _result = parse(text.as_bytes(), Syntax::Json, &Limits::default()).map(|documents| documents.len());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _result = parse(&bytes, Syntax::Yaml, &Limits::default()).map(|documents| documents.len());
        let _result = parse(&bytes, Syntax::Json, &Limits::default()).map(|documents| documents.len());
    }

    #[test]
    fn no_path_panics(path in "[a-z.\\[\\]\"0-9\\\\]{0,20}") {
        let tree = Node { at: Position { line: 1, column: 1 }, value: Value::Mapping(Vec::new()) };
        proptest::prop_assert_eq!(tree.locate(&path), tree.at);
    }
}
