//! Numbers with a prefix (RFC 7541, 5.1).

use super::HpackError;

/// Reads the number whose first byte is `first`, of which `mask` is the prefix; what follows is taken off `rest`.
///
/// # Errors
/// It ends too early, or takes more bytes than any number that means something here.
#[inline]
pub(super) fn read(first: u8, mask: u8, rest: &mut &[u8]) -> Result<usize, HpackError> {
    if first & mask < mask { Ok(usize::from(first & mask)) } else { read_rest(mask, rest) }
}

fn read_rest(mask: u8, rest: &mut &[u8]) -> Result<usize, HpackError> {
    let mut value = usize::from(mask);
    // 2^28 and more: no table, and no block that anybody keeps, is as large.
    for shift in [0, 7, 14, 21] {
        let Some((&byte, behind)) = rest.split_first() else { return Err(HpackError::Truncated) };
        *rest = behind;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Number)
}

/// Writes a number behind the bits of `kind`.
#[inline]
pub(super) fn write(value: usize, mask: u8, kind: u8, out: &mut Vec<u8>) {
    match u8::try_from(value) {
        Ok(value) if value < mask => out.push(kind | value),
        _ => write_rest(value, mask, kind, out),
    }
}

fn write_rest(value: usize, mask: u8, kind: u8, out: &mut Vec<u8>) {
    out.push(kind | mask);
    let mut value = value - usize::from(mask);
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}
