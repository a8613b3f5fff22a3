use proptest::prelude::*;

use super::*;

#[test]
fn notices_come_out_as_they_went_in() {
    let seconds = Duration::from_secs;
    for notice in [
        ServerNotice::Drain { within: seconds(15) },
        ServerNotice::Drain { within: Duration::ZERO },
        ServerNotice::Reconnect { delay: Duration::from_millis(1500), target: None },
        ServerNotice::Reconnect { delay: seconds(3600), target: Some("[::1]:443".parse().unwrap()) },
        ServerNotice::CloseAck { sequence: 1, closed: 0 },
        ServerNotice::WeightAck { sequence: u64::MAX, changed: 7 },
    ] {
        assert_eq!(ServerNotice::decode(notice.encode().into()), Ok(Some(notice)));
    }
    for notice in [
        AgentNotice::Close { sequence: 1, connection_ids: vec!["ab".repeat(16); MAX_IDS] },
        AgentNotice::Weight { sequence: 2, weight: 128 },
    ] {
        assert_eq!(AgentNotice::decode(notice.encode().into()), Ok(Some(notice)));
    }
}

#[test]
fn what_is_out_of_range_is_brought_into_it_or_refused() {
    use api::{agent_notice, server_notice};
    let delay = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let reconnect = |seconds, target: &str| {
        let reconnect = server_notice::Reconnect { delay: Some(delay(seconds)), target: target.to_owned() };
        let notice = Some(server_notice::Notice::Reconnect(reconnect));
        ServerNotice::decode(api::ServerNotice { notice }.encode_to_vec().into())
    };
    assert_eq!(reconnect(86_400, ""), Ok(Some(ServerNotice::Reconnect { delay: MAX_DELAY, target: None })));
    assert_eq!(reconnect(-5, ""), Ok(Some(ServerNotice::Reconnect { delay: Duration::ZERO, target: None })));
    assert_eq!(reconnect(1, "cloud:80"), Err(NoticeError::Target("cloud:80".to_owned())), "names are not resolved");
    for (sent, taken) in [(-5, Duration::ZERO), (60, Duration::from_secs(60)), (i64::MAX, MAX_WITHIN)] {
        let drain = server_notice::Notice::Drain(server_notice::Drain { within: Some(delay(sent)) });
        let seen = ServerNotice::decode(api::ServerNotice { notice: Some(drain) }.encode_to_vec().into());
        assert_eq!(seen, Ok(Some(ServerNotice::Drain { within: taken })), "a drain of {sent} s");
    }
    let agent = |notice| AgentNotice::decode(api::AgentNotice { notice: Some(notice) }.encode_to_vec().into());
    for (sent, taken) in [(0, 1), (1, 1), (129, 128), (u32::MAX, 128)] {
        let seen = agent(agent_notice::Notice::Weight(agent_notice::Weight { sequence: 3, weight: sent }));
        assert_eq!(seen, Ok(Some(AgentNotice::Weight { sequence: 3, weight: taken })), "weight {sent}");
    }
    let close = agent_notice::Close { sequence: 1, connection_ids: vec![String::new(); MAX_IDS + 1] };
    assert_eq!(agent(agent_notice::Notice::Close(close)), Err(NoticeError::TooManyIds(MAX_IDS + 1)));
}

#[test]
fn later_versions_are_not_understood_and_not_refused() {
    // Field 15, a string.
    for bytes in [&b""[..], b"\x7a\x01x"] {
        assert_eq!(ServerNotice::decode(Bytes::copy_from_slice(bytes)), Ok(None), "{bytes:?}");
        assert_eq!(AgentNotice::decode(Bytes::copy_from_slice(bytes)), Ok(None), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(ServerNotice::decode(bytes.clone().into()));
        drop(AgentNotice::decode(bytes.into()));
    }
}
