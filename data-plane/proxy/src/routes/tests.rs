use culvert_http::{Method, RequestHead};
use culvert_model::matcher::{
    HeaderMatcher, HeaderValueMatcher, QueryMatcher, QueryValueMatcher, SafeRegex, StringMatcher,
};
use culvert_model::route::{PathMatch, RouteMatch};
use culvert_model::runtime::Share;
use proptest::prelude::*;

use super::conditions::{self, Subject};
use super::paths::Paths;
use crate::shares::Shares;

fn head(path: &str) -> RequestHead {
    RequestHead { authority: "a.example".to_owned(), path: path.to_owned(), ..RequestHead::default() }
}

fn subject(head: &RequestHead) -> Subject<'_> {
    Subject { head, random: 7, client_certificate: false }
}

fn on(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        ignore_case: false,
        headers: Vec::new(),
        query: Vec::new(),
        grpc: false,
        runtime_fraction: None,
        tls_context: None,
    }
}

fn regex(source: &str) -> PathMatch {
    let whole = regex::bytes::Regex::new(&format!("^(?:{source})$")).unwrap();
    PathMatch::Regex(SafeRegex { source: source.into(), whole })
}

fn hold(route: &RouteMatch, subject: &Subject<'_>) -> bool {
    let share = route.runtime_fraction.as_ref().map(|share| Shares::default().bind(share));
    conditions::hold(route, share.as_ref(), subject)
}

fn compiled(routes: &[RouteMatch], subject: &Subject<'_>) -> Option<u32> {
    let paths = Paths::compile(routes.iter());
    paths.find(subject, |index| hold(&routes[index as usize], subject))
}

/// What the index must agree with: Envoy's walk over the list.
fn naive(routes: &[RouteMatch], subject: &Subject<'_>) -> Option<u32> {
    let path = subject.path();
    let at = routes.iter().position(|route| {
        let (path, fold): (String, fn(&str) -> String) = if route.ignore_case {
            (path.to_ascii_lowercase(), |text| text.to_ascii_lowercase())
        } else {
            (path.to_owned(), str::to_owned)
        };
        let on_path = match &route.path {
            PathMatch::Connect => subject.head.method == Method::Connect,
            _ if subject.is_connect() => false,
            PathMatch::Exact(exact) => path == fold(exact),
            PathMatch::Prefix(prefix) => path.starts_with(&fold(prefix)),
            PathMatch::PathSeparatedPrefix(prefix) => {
                path.strip_prefix(&fold(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatch::Regex(regex) => regex.whole.is_match(subject.path().as_bytes()),
        };
        on_path && hold(route, subject)
    });
    at.map(|at| u32::try_from(at).unwrap())
}

#[test]
fn the_first_match_wins() {
    let routes = [
        on(PathMatch::Exact("/exact".into())),
        on(PathMatch::PathSeparatedPrefix("/api".into())),
        on(regex("/users/[0-9]+")),
        on(PathMatch::Prefix("/users".into())),
        RouteMatch { ignore_case: true, ..on(PathMatch::Prefix("/Static/".into())) },
        on(PathMatch::Connect),
        on(PathMatch::Prefix("/ap".into())),
    ];
    for (path, expected) in [
        ("/exact", Some(0)),
        ("/exact?query=1", Some(0)),
        ("/exact/", None),
        ("/api", Some(1)),
        ("/api?x", Some(1)),
        ("/api/v1", Some(1)),
        ("/apis", Some(6)),
        ("/users/42", Some(2)),
        ("/users/42/posts", Some(3)),
        ("/users", Some(3)),
        ("/STATIC/logo.png", Some(4)),
        ("/static", None),
        ("/", None),
    ] {
        let head = head(path);
        assert_eq!(compiled(&routes, &subject(&head)), expected, "{path} matches {expected:?}");
    }
    let connect = RequestHead { method: Method::Connect, ..head("") };
    assert_eq!(compiled(&routes, &subject(&connect)), Some(5), "CONNECT matches only connect_matcher");
    for (kind, path, expected) in [("connect-udp", "/static", Some(5)), ("websocket", "/static", None)] {
        let head = RequestHead { method: Method::Connect, upgrade: Some(kind.into()), ..head(path) };
        assert_eq!(compiled(&routes, &subject(&head)), expected, "an extended CONNECT for {kind}");
    }
}

#[test]
fn conditions_hold_as_envoys_do() {
    let mut head = head("/?debug=1&empty=&bare");
    for (name, value) in
        [("x-version", "2"), ("x-list", "a"), ("x-list", "b"), ("content-type", "application/grpc+proto")]
    {
        head.fields.push(name.as_bytes(), value.as_bytes());
    }
    let header = |name: &str, value, invert, treat_missing_as_empty| RouteMatch {
        headers: vec![HeaderMatcher { name: name.into(), value, invert, treat_missing_as_empty }],
        ..on(PathMatch::Prefix("/".into()))
    };
    let query = |name: &str, value| RouteMatch {
        query: vec![QueryMatcher { name: name.into(), value }],
        ..on(PathMatch::Prefix("/".into()))
    };
    let text =
        |value: &str| HeaderValueMatcher::String(StringMatcher::Exact { value: value.into(), ignore_case: false });
    let plain = on(PathMatch::Prefix("/".into()));
    for (route, expected, what) in [
        (header("x-version", text("2"), false, false), true, "an exact header"),
        (header("x-version", text("2"), true, false), false, "an inverted exact header"),
        (header("x-version", HeaderValueMatcher::Range { start: 1, end: 3 }, false, false), true, "a range"),
        (
            header("x-version", HeaderValueMatcher::Range { start: 1, end: 2 }, false, false),
            false,
            "an open range's end",
        ),
        (header("x-list", text("a,b"), false, false), true, "several values are one, joined by commas"),
        (header("x-none", text("2"), true, false), false, "a missing header does not match inverted"),
        (header("x-none", text(""), false, true), true, "a missing header treated as empty"),
        (header("x-none", HeaderValueMatcher::Present(false), false, false), true, "absence"),
        (header("x-none", HeaderValueMatcher::Present(true), true, false), true, "inverted presence"),
        (header(":method", text("GET"), false, false), true, "a pseudo-header"),
        (header(":authority", text("a.example"), false, false), true, "the authority"),
        (query("debug", QueryValueMatcher::Present(true)), true, "a parameter"),
        (query("bare", QueryValueMatcher::Present(true)), true, "a parameter without value"),
        (query("gone", QueryValueMatcher::Present(true)), false, "no parameter"),
        (
            query("debug", QueryValueMatcher::String(StringMatcher::Prefix { value: "1".into(), ignore_case: false })),
            true,
            "a parameter's value",
        ),
        (RouteMatch { grpc: true, ..plain.clone() }, true, "grpc"),
        (RouteMatch { runtime_fraction: Some(Share::fixed(0)), ..plain.clone() }, false, "no share of the traffic"),
        (
            RouteMatch { runtime_fraction: Some(Share::fixed(8)), ..plain.clone() },
            true,
            "the share that the random number is in",
        ),
        (RouteMatch { tls_context: Some(true), ..plain.clone() }, false, "a client certificate"),
        (RouteMatch { tls_context: Some(false), ..plain }, true, "no client certificate"),
    ] {
        assert_eq!(hold(&route, &subject(&head)), expected, "{what}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    "(/[abAB]{0,2}){1,3}"
}

fn any_route() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        any_text().prop_map(|text| PathMatch::Exact(text.into())),
        any_text().prop_map(|text| PathMatch::Prefix(text.into())),
        any_text().prop_map(|text| PathMatch::PathSeparatedPrefix(text.trim_end_matches('/').into())),
        any_text().prop_map(|text| regex(&format!("{text}[ab/]*"))),
        Just(PathMatch::Connect),
    ];
    (path, any::<bool>(), proptest::option::of("[ab]")).prop_map(|(path, ignore_case, wanted)| {
        let ignore_case = ignore_case && !matches!(path, PathMatch::Regex(_));
        let matcher = |value: String| HeaderMatcher {
            name: "x-h".into(),
            value: HeaderValueMatcher::String(StringMatcher::Exact { value: value.into(), ignore_case: false }),
            invert: false,
            treat_missing_as_empty: false,
        };
        RouteMatch { ignore_case, headers: wanted.map(matcher).into_iter().collect(), ..on(path) }
    })
}

proptest! {
    /// The index answers what a walk over the list answers.
    #[test]
    fn compiled_tables_are_first_match(
        routes in proptest::collection::vec(any_route(), 0..24),
        paths in proptest::collection::vec((any_text(), proptest::option::of("[abc]"), any::<bool>()), 1..16),
    ) {
        for (path, header, connect) in paths {
            let mut head = head(&path);
            if let Some(value) = header {
                head.fields.push(b"x-h", value.as_bytes());
            }
            if connect {
                head.method = Method::Connect;
            }
            let subject = subject(&head);
            prop_assert_eq!(compiled(&routes, &subject), naive(&routes, &subject), "for {} on {:?}", path, routes);
        }
    }
}

#[test]
fn ten_thousand_prefixes_cost_what_one_costs() {
    let routes: Vec<_> = (0..10_000).map(|n| on(PathMatch::Prefix(format!("/service/{n:05}/").into()))).collect();
    let paths = Paths::compile(routes.iter());
    let head = head("/service/09999/item");
    let looked_at = std::cell::Cell::new(0);
    let found = paths.find(&subject(&head), |_| {
        looked_at.set(looked_at.get() + 1);
        true
    });
    assert_eq!(found, Some(9_999), "the last route matches");
    assert_eq!(looked_at.get(), 1, "no other route was looked at");
}
