//! Blocks that no encoder may send, and the edges beside them.

use super::*;

/// A name of one byte and a value of so many, inserted.
fn large(value: usize) -> Vec<u8> {
    let mut block = vec![0x40, 1, b'n'];
    integer::write(value, 0x7f, 0, &mut block);
    block.resize(block.len() + value, b'v');
    block
}

#[test]
fn blocks_that_no_encoder_may_send_are_refused() {
    use HpackError::{Bomb, EndOfString, Index, LateTableSize, Number, Padding, TableSize, Truncated};
    let bomb = [large(4000), vec![0xbe; 2000]].concat();
    for (name, block, expected) in [
        ("nothing", &[][..], Ok(0)),
        ("number 0 of the tables", &[0x80], Err(Index)),
        ("the last of the static table", &[0xbd], Ok(1)),
        ("the first of an empty table", &[0xbe], Err(Index)),
        ("a name that no table has", &[0x7e, 0], Err(Index)),
        ("a name that no table has, not inserted", &[0x0f, 0x2f, 0], Err(Index)),
        ("an entry that was just inserted", &[0x40, 1, b'a', 1, b'b', 0xbe], Ok(2)),
        ("an entry behind the last", &[0x40, 1, b'a', 1, b'b', 0xbf], Err(Index)),
        ("a number that ends early", &[0xff], Err(Truncated)),
        ("a number that ends early, later", &[0xff, 0x80], Err(Truncated)),
        ("a number with leading zeros", &[0xff, 0x80, 0x80, 0x00], Err(Index)),
        ("a name by a number with leading zeros", &[0x0f, 0x80, 0x00, 0x00], Ok(1)),
        ("a number of five bytes", &[0xff, 0x80, 0x80, 0x80, 0x80, 0x00], Err(Number)),
        ("a number without end", &[0xff; 100], Err(Number)),
        ("a length without end", &[0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f], Err(Number)),
        ("no name", &[0x00], Err(Truncated)),
        ("no value", &[0x00, 1, b'a'], Err(Truncated)),
        ("a name that ends early", &[0x00, 2, b'a'], Err(Truncated)),
        ("a value that ends early", &[0x00, 1, b'a', 2, b'b'], Err(Truncated)),
        ("a value of 256 MiB", &[0x00, 1, b'a', 0x7f, 0x80, 0xff, 0xff, 0x7f], Err(Truncated)),
        ("an empty name", &[0x00, 0, 0], Ok(1)),
        ("an empty name in Huffman's code", &[0x00, 0x80, 0x80], Ok(1)),
        ("padding of 7 bits", &[0x00, 1, b'a', 0x82, 0x1f, 0xff], Err(Padding)),
        ("a code of 5 bits and 3 of padding", &[0x00, 1, b'a', 0x81, 0x1f], Ok(1)),
        ("padding of zeros", &[0x00, 1, b'a', 0x81, 0x18], Err(Padding)),
        ("a byte of padding alone", &[0x00, 1, b'a', 0x81, 0xff], Err(Padding)),
        ("padding of 3 bytes", &[0x00, 1, b'a', 0x83, 0xff, 0xff, 0xff], Err(Padding)),
        ("EOS", &[0x00, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff], Err(EndOfString)),
        ("EOS within", &[0x00, 1, b'a', 0x85, 0x1f, 0xff, 0xff, 0xff, 0xff], Err(EndOfString)),
        ("a code of 30 bits", &[0x00, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xf3], Ok(1)),
        ("a table of 4096", &[0x3f, 0xe1, 0x1f, 0x82], Ok(1)),
        ("a table of 4097", &[0x3f, 0xe2, 0x1f, 0x82], Err(TableSize)),
        ("a table of nothing, and of 4096 again", &[0x20, 0x3f, 0xe1, 0x1f, 0x82], Ok(1)),
        ("nothing but a table's size", &[0x20], Ok(0)),
        ("a table's size that ends early", &[0x3f, 0xe1], Err(Truncated)),
        ("a table's size behind a field", &[0x82, 0x20], Err(LateTableSize)),
        ("a field that a table of nothing keeps", &[0x20, 0x40, 1, b'a', 1, b'b', 0xbe], Err(Index)),
        ("an entry of all that there is", &[large(4096 - 33), vec![0xbe]].concat(), Ok(2)),
        ("an entry beyond what there is", &[large(4096 - 32), vec![0xbe]].concat(), Err(Index)),
        ("an entry that is too large empties the table", &[large(1), large(4096), vec![0xbe]].concat(), Err(Index)),
        ("a few references to a large entry", &bomb[..bomb.len() - 1800], Ok(201)),
        ("thousands of them", &bomb, Err(Bomb)),
    ] {
        let mut decoder = Decoder::new(DEFAULT_TABLE);
        let seen = decode(&mut decoder, block).map(|fields| fields.len());
        assert_eq!(seen, expected, "{name}: {:?}", block.get(..20.min(block.len())));
        assert!(decoder.table_size() <= DEFAULT_TABLE, "{name}: a table of {}", decoder.table_size());
    }
}

/// RFC 7541, 4.4: the name of a new entry may be that of one which has to go to make room.
#[test]
fn a_name_outlives_its_entry() {
    let mut decoder = Decoder::new(100);
    let mut block = vec![0x40, 4, b'n', b'a', b'm', b'e', 1, b'a'];
    for value in 0..200_u8 {
        // The name of the newest entry, and a value that leaves no room for two.
        block.extend([0x7e, 60]);
        block.extend([b'a' + value % 26; 60]);
    }
    block.push(0xbe);
    let fields = decode(&mut decoder, &block).unwrap();
    assert!(fields.iter().all(|(name, _)| name == b"name"), "{fields:?}");
    assert_eq!(fields.last().unwrap().1, [b'a' + 199 % 26; 60], "the newest entry's value");
    assert_eq!(decoder.table_size(), 4 + 60 + 32);
}

/// What a decoder keeps is bounded by its table, whatever passes through.
#[test]
fn a_decoder_holds_little_more_than_its_table() {
    let mut decoder = Decoder::new(DEFAULT_TABLE);
    for round in 0..2000_u16 {
        let mut block = vec![0x40, 2];
        block.extend(round.to_be_bytes());
        let length = usize::from(round) * 37 % 4100;
        integer::write(length, 0x7f, 0, &mut block);
        block.resize(block.len() + length, b'v');
        decode(&mut decoder, &block).unwrap();
        assert!(decoder.held() <= 6 * DEFAULT_TABLE, "{} bytes behind {round} blocks", decoder.held());
    }
}
