//! gRFC A88, "Summary of Behavior Changes", row by row: what becomes of a resource when something goes wrong with it. Of one
//! that is not held requests fail; one that is held is kept, or given up as well.

use super::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    /// No connection comes about.
    NoConnection,
    /// The stream ends before its first response.
    StreamFailed,
    Nack,
    Timeout,
    /// A full state without it, or its name among those removed.
    Deletion,
    /// `resource_errors` with this code.
    Said(i32),
}

struct Row {
    name: &'static str,
    /// An earlier content was accepted.
    held: bool,
    /// `fail_on_data_errors`; `None`: either.
    fail: Option<bool>,
    events: &'static [Event],
    /// Afterwards.
    holds: bool,
}

const NOT_FOUND: i32 = Failure::NOT_FOUND;
const DENIED: i32 = Failure::PERMISSION_DENIED;
const DATA_ERRORS: &[Event] = &[Event::Said(NOT_FOUND), Event::Said(DENIED)];
const OTHER_ERRORS: &[Event] = &[Event::Said(14), Event::Said(13), Event::Said(0)];

const fn row(name: &'static str, held: bool, fail: Option<bool>, events: &'static [Event], holds: bool) -> Row {
    Row { name, held, fail, events, holds }
}

/// In the order of the table. It lets a deletion be ignored by default; here, as in Envoy and as the protocol has it, absence
/// from a full state is removal (what would delete nearly everything the deletion guard keeps).
const TABLE: [Row; 15] = [
    row("1 no connection, not held", false, None, &[Event::NoConnection], false),
    row("2 no connection, held", true, None, &[Event::NoConnection], true),
    row("3 stream failed, not held", false, None, &[Event::StreamFailed], false),
    row("4 stream failed, held", true, None, &[Event::StreamFailed], true),
    row("5 refused, not held", false, None, &[Event::Nack], false),
    row("6 refused, held", true, Some(false), &[Event::Nack], true),
    row("7 refused, held, to fail on it", true, Some(true), &[Event::Nack], false),
    row("8 timer, not held", false, None, &[Event::Timeout], false),
    row("9 deletion, held (A88: kept)", true, Some(false), &[Event::Deletion], false),
    row("10 deletion, held, to fail on it", true, Some(true), &[Event::Deletion], false),
    row("11 data error, not held", false, None, DATA_ERRORS, false),
    row("12 data error, held", true, Some(false), DATA_ERRORS, true),
    row("13 data error, held, to fail on it", true, Some(true), DATA_ERRORS, false),
    row("14 other error, not held", false, None, OTHER_ERRORS, false),
    row("15 other error, held", true, None, OTHER_ERRORS, true),
];

/// A response about the cluster: its content at this version, or what is said in its place.
fn respond<'c>(client: &'c mut Client, version: &str, resources: &[&str], event: Option<Event>) -> Update<'c> {
    let resource_errors = match event {
        Some(Event::Said(code)) => vec![ResourceError {
            resource_name: Some(ResourceName { name: "x".into(), ..ResourceName::default() }),
            error_detail: Some(rpc::Status { code, ..rpc::Status::default() }),
        }],
        _ => Vec::new(),
    };
    match client.config.variant {
        Variant::Sotw => {
            let resources = resources.iter().map(|name| any(CLUSTER, name)).collect();
            client.on_response(DiscoveryResponse { resource_errors, ..sotw(CLUSTER, version, version, resources) })
        }
        Variant::Delta => {
            let removed: &[&str] = if matches!(event, Some(Event::Deletion)) { &["x"] } else { &[] };
            let resources: Vec<_> = resources.iter().map(|name| (*name, version)).collect();
            let response = delta(CLUSTER, version, &resources, removed);
            client.on_delta_response(DeltaDiscoveryResponse { resource_errors, ..response })
        }
    }
    .unwrap()
}

/// What is said of the resource when the event happens.
fn happen(client: &mut Client, event: Event) -> String {
    match event {
        Event::NoConnection => client.on_disconnected(),
        Event::StreamFailed => {
            client.on_disconnected();
            client.on_connected();
            assert!(client.poll_request(NOW).is_some(), "it is asked for on the new stream");
            client.on_disconnected();
        }
        Event::Nack => {
            let refused = Rejection { name: "x".into(), reason: "type: wrong".into() };
            let _nack = respond(client, "2", &["x"], None).nack(vec![refused]);
        }
        Event::Timeout => {
            let missing = client.poll_timeout(NOW + ResourceTimer::DoesNotExist.time()).map(|missing| missing.why);
            return format!("{missing:?}");
        }
        Event::Deletion | Event::Said(_) => {
            let update = respond(client, "2", &[], Some(event));
            let codes: Vec<i32> = update.failures().iter().map(|failure| failure.code).collect();
            let said = format!("removed {:?}, failed {codes:?}", listed(update.removed()));
            let _ack = update.ack();
            return said;
        }
    }
    String::new()
}

#[test]
fn what_becomes_of_a_resource_that_something_goes_wrong_with() {
    for Row { name, held, fail, events, holds } in TABLE {
        let cases = [Variant::Sotw, Variant::Delta].into_iter().flat_map(|variant| {
            let fails = fail.map_or(vec![false, true], |fail| vec![fail]);
            fails.into_iter().flat_map(move |fail| events.iter().map(move |event| (variant, fail, *event)))
        });
        for (variant, fail, event) in cases {
            let case = format!("{name}: {variant:?}, fail_on_data_errors {fail}, {event:?}");
            let mut client = client(variant);
            client.config.fail_on_data_errors = fail;
            client.watch(CLUSTER, names(&["x"]));
            assert!(client.poll_request(NOW).is_some(), "{case}: the first request");
            if held {
                let _ack = respond(&mut client, "1", &["x"], None).ack();
            }
            let said = happen(&mut client, event);
            let held_after = client.held(CLUSTER).any(|(name, version)| &**name == "x" && version == "1");
            assert_eq!(held_after, holds, "{case}: whether what was accepted is held");
            let gone = if held && !holds { vec!["x"] } else { vec![] };
            match event {
                Event::Timeout => assert_eq!(said, "Some(Unanswered)", "{case}"),
                Event::Deletion => assert_eq!(said, r#"removed ["x"], failed []"#, "{case}"),
                Event::Said(code) => assert_eq!(said, format!("removed {gone:?}, failed [{code}]"), "{case}"),
                Event::NoConnection | Event::StreamFailed | Event::Nack => {}
            }
            // Without an answer nobody knows whether it exists; with one there is nothing left to wait for.
            assert_eq!(client.next_timeout(), None, "{case}: no timer runs");
            let transient = matches!(event, Event::NoConnection | Event::StreamFailed);
            assert!(!transient || client.lacks_anything() != held, "{case}: only what is not held is lacking");
        }
    }
}
