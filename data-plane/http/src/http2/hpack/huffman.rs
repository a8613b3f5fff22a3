//! Huffman's code of strings (RFC 7541, 5.2 and appendix B).

use super::HpackError;

/// Length in bytes of what [`encode`] makes of a string.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum();
    bits.div_ceil(8)
}

pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len());
    // The last `have` bits are still to be written: fewer than 32 of them, and a code's 30 fit beside those.
    let (mut bits, mut have) = (0_u64, 0);
    for &byte in text {
        let (code, length) = CODES[usize::from(byte)];
        bits = bits << length | u64::from(code);
        have += u32::from(length);
        if have >= 32 {
            have -= 32;
            out.extend_from_slice(&((bits >> have) as u32).to_be_bytes());
        }
    }
    // Padded by the first bits of EOS, which are ones.
    let padding = have.wrapping_neg() % 8;
    bits = bits << padding | ((1 << padding) - 1);
    let left = (have + padding) / 8;
    let bytes = (bits << (64 - 8 * left.max(1))).to_be_bytes();
    out.extend_from_slice(bytes.get(..left as usize).unwrap_or_default());
}

/// Appends what `coded` stands for: at most eight bytes for five.
///
/// # Errors
/// The padding is not the beginning of EOS, or longer than 7 bits; or EOS itself stands there.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    out.reserve(coded.len() * 8 / 5);
    let mut rest = coded;
    // The first `have` bits are still to be decoded; behind them are zeros.
    let (mut bits, mut have) = (0_u64, 0);
    loop {
        if have <= 32 {
            if let Some((next, behind)) = rest.split_first_chunk() {
                bits |= u64::from(u32::from_be_bytes(*next)) << (32 - have);
                have += 32;
                rest = behind;
            } else {
                while let Some((&next, behind)) = rest.split_first() {
                    bits |= u64::from(next) << (56 - have);
                    have += 8;
                    rest = behind;
                }
            }
        }
        let (symbol, length) = match SHORT[(bits >> 56) as usize] {
            (_, 0) => long(bits)?,
            short => short,
        };
        let length = u32::from(length);
        if length > have {
            let padded = have < 8 && bits == !(u64::MAX >> have);
            return if padded { Ok(()) } else { Err(HpackError::Padding) };
        }
        out.push(symbol);
        bits <<= length;
        have -= length;
    }
}

/// The first symbol, of more than eight bits, and its length.
#[cold]
fn long(bits: u64) -> Result<(u8, u8), HpackError> {
    let first = (bits >> 32) as u32;
    let class = LONG.iter().find(|class| first < class.end || class.end == 0);
    let symbol = class.and_then(|class| {
        let at = (first >> (32 - class.length)).checked_sub(class.first)?;
        SYMBOLS.get(usize::from(class.symbols) + at as usize).map(|&symbol| (symbol, class.length))
    });
    match symbol {
        Some((symbol, length)) => Ok((u8::try_from(symbol).map_err(|_| HpackError::EndOfString)?, length)),
        None => Err(HpackError::EndOfString),
    }
}

/// Bits of each symbol's code; the last is EOS. The code is a canonical one: it follows from these.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The symbols in order of their codes.
static SYMBOLS: [u16; 257] = {
    let mut symbols = [0; 257];
    let (mut at, mut length) = (0, 1);
    while length <= 30 {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol as usize] == length {
                symbols[at] = symbol;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

/// Code and length of each symbol.
static CODES: [(u32, u8); 257] = {
    let mut codes = [(0, 0); 257];
    let (mut at, mut code, mut length) = (0, 0, 5);
    while at < 257 {
        let symbol = SYMBOLS[at] as usize;
        code <<= LENGTHS[symbol] - length;
        length = LENGTHS[symbol];
        codes[symbol] = (code, length);
        code += 1;
        at += 1;
    }
    codes
};

/// What the first eight bits begin with, and its length; 0 if it is longer.
static SHORT: [(u8, u8); 256] = {
    let mut short = [(0, 0); 256];
    let mut symbol = 0;
    while symbol < 256 {
        let (code, length) = CODES[symbol];
        if length <= 8 {
            let mut at = (code << (8 - length)) as usize;
            let end = ((code + 1) << (8 - length)) as usize;
            while at < end {
                short[at] = (symbol as u8, length);
                at += 1;
            }
        }
        symbol += 1;
    }
    short
};

/// Codes of one length.
#[derive(Clone, Copy)]
struct Class {
    length: u8,
    first: u32,
    /// Where its symbols begin among all.
    symbols: u16,
    /// The first 32 bits of what comes behind all of them; 0 behind the last.
    end: u32,
}

/// The lengths beyond eight bits that occur.
static LONG: [Class; 17] = {
    let mut classes = [Class { length: 0, first: 0, symbols: 0, end: 0 }; 17];
    let (mut class, mut at) = (0, 0);
    while at < 257 {
        let (code, length) = CODES[SYMBOLS[at] as usize];
        if length > 8 {
            if classes[class].length != 0 && classes[class].length != length {
                class += 1;
            }
            if classes[class].length == 0 {
                classes[class] = Class { length, first: code, symbols: at as u16, end: 0 };
            }
            classes[class].end = if length == 30 { 0 } else { (code + 1) << (32 - length) };
        }
        at += 1;
    }
    classes
};
