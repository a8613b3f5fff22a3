//! Any frames, in any pieces, and any bytes.

use proptest::prelude::*;

use super::*;

fn any_frame() -> impl Strategy<Value = Frame> {
    let strings = || proptest::collection::vec(".{0,12}", 0..3);
    prop_oneof![
        (".{0,20}", any::<i64>(), ".{0,20}", ".{0,9}", ".{0,40}", strings()).prop_map(
            |(cluster_name, weight, host_name, credential_policy, credential, caps)| Frame::Init(Init {
                cluster_name,
                weight,
                host_name,
                credential_policy,
                credential: Secret(credential),
                caps,
                protocol: None,
                instance: None,
                proof: None,
            })
        ),
        (any::<i64>(), strings(), proptest::option::of(".{0,32}")).prop_map(|(code, caps, connection_id)| {
            let status = match code {
                0..=4 => Status::Success,
                code => Status::Other(code),
            };
            Frame::Response(Response { status, caps, connection_id, protocol: None, retry_after: None })
        }),
        (proptest::option::of(strings()), ".{0,20}", strings()).prop_map(
            |(addresses, cluster_name, connection_ids)| Frame::GracefulClose(GracefulClose {
                addresses,
                cluster_name,
                connection_ids
            })
        ),
        any::<i64>().prop_map(|closed| Frame::GracefulCloseAck(GracefulCloseAck { closed })),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_segmentation(frames in proptest::collection::vec(any_frame(), 1..4), cuts in proptest::collection::vec(1..40_usize, 1..20)) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().unwrap()).collect();
        let mut decoder = Decoder::new(MAX_PAYLOAD);
        let (mut rest, mut seen, mut turn) = (&bytes[..], Vec::new(), 0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts[turn % cuts.len()].min(rest.len()));
            decoder.push(now);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(frame);
            }
            (rest, turn) = (later, turn + 1);
        }
        prop_assert_eq!(seen, frames);
        prop_assert!(decoder.into_surplus().is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new(100);
        decoder.push(&bytes);
        if decoder.next_frame().is_err() {
            decoder.push(b"more");
        }
        while let Ok(Some(_)) = decoder.next_frame() {}
    }

    #[test]
    fn mutated_frames_never_panic(at in 0..110_usize, byte in any::<u8>()) {
        let mut bytes = Frame::Init(init_edge()).encode().unwrap();
        bytes[at] = byte;
        drop(decode(&bytes));
    }
}
