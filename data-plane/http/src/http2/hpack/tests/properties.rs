//! What holds of all fields, all sizes of tables and all bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// What happens on a connection, one after the other.
#[derive(Debug, Clone)]
enum Step {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE changes.
    Allow(u32),
    Block(Vec<Field>),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0..static_table::ENTRIES.len()).prop_map(|at| static_table::ENTRIES[at].0.to_vec()),
        4 => select(vec!["x-a", "x-b", "x-request-id", "grpc-timeout", "x"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
        1 => (4000..4200_usize).prop_map(|length| b"l".repeat(length)),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0..static_table::ENTRIES.len()).prop_map(|at| static_table::ENTRIES[at].1.to_vec()),
        8 => "[ab]{0,2}".prop_map(String::into_bytes),
        2 => "[ -~]{0,200}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..100),
        1 => (4000..4200_usize).prop_map(|length| b"l".repeat(length)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => prop_oneof![Just(0), 0..300_u32, 3000..5000_u32, Just(u32::MAX)].prop_map(Step::Allow),
        3 => vec((names(), values()), 0..12).prop_map(Step::Block),
    ];
    vec(step, 0..40)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(steps in steps()) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(DEFAULT_TABLE));
        for step in steps {
            match step {
                Step::Allow(size) => encoder.peer_allows(size),
                Step::Block(fields) => {
                    let block = encode(&mut encoder, &fields);
                    prop_assert_eq!(decode(&mut decoder, &block), Ok(fields));
                    prop_assert_eq!(encoder.table_size(), decoder.table_size());
                }
            }
        }
    }

    #[test]
    fn a_table_never_exceeds_what_the_peer_allows(sizes in vec(0..5000_u32, 1..5), fields in vec((names(), values()), 0..20)) {
        let mut encoder = Encoder::new();
        encode(&mut encoder, &fields);
        for &size in &sizes {
            encoder.peer_allows(size);
        }
        encode(&mut encoder, &fields);
        let last = sizes.last().copied().unwrap_or_default() as usize;
        prop_assert!(encoder.table_size() <= last, "{} beyond {last}", encoder.table_size());
    }

    #[test]
    fn text_in_huffman_s_code_is_the_same_text(text in vec(any::<u8>(), 0..600)) {
        let (mut coded, mut decoded) = (Vec::new(), b"before".to_vec());
        huffman::encode(&text, &mut coded);
        prop_assert_eq!(coded.len(), huffman::encoded_len(&text));
        prop_assert_eq!(huffman::decode(&coded, &mut decoded), Ok(()));
        prop_assert_eq!(&decoded[6..], &text[..]);
    }

    /// The code is complete but for what EOS takes: what is decoded is the only text that has this code.
    #[test]
    fn a_code_has_one_text(coded in vec(any::<u8>(), 0..40)) {
        let (mut decoded, mut again) = (Vec::new(), Vec::new());
        if huffman::decode(&coded, &mut decoded).is_ok() {
            huffman::encode(&decoded, &mut again);
            prop_assert_eq!(again, coded);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(blocks in vec(vec(any::<u8>(), 0..200), 0..10), max in 0..5000_usize) {
        let mut decoder = Decoder::new(max);
        for block in blocks {
            let mut count = 0;
            let result = decoder.decode(&block, |_, _| count += 1);
            prop_assert!(count <= block.len());
            prop_assert!(decoder.table_size() <= max);
            if result.is_err() {
                break;
            }
        }
    }
}

#[test]
fn numbers_are_what_was_written() {
    for mask in [0x0f, 0x1f, 0x3f, 0x7f] {
        for value in (0..1000).chain([16_383, 16_384, 1 << 20, (1 << 28) - 1]) {
            let mut written = Vec::new();
            integer::write(value, mask, !mask, &mut written);
            let (&first, mut rest) = written.split_first().unwrap();
            assert_eq!(integer::read(first, mask, &mut rest), Ok(value), "with a prefix of {mask:#x}");
            assert_eq!((first & !mask, rest), (!mask, &[][..]), "{value} with a prefix of {mask:#x}");
        }
    }
}
