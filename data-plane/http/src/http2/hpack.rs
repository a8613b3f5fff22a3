//! Header compression (RFC 7541): header blocks to fields and back. **Reads and writes memory only**; what a field means,
//! how large a head may be and what becomes of a connection whose block is broken is the caller's part.

mod decoder;
mod encoder;
mod huffman;
mod integer;
mod recall;
mod static_table;
mod table;

pub(super) use decoder::Decoder;
pub(super) use encoder::Encoder;

/// What an entry costs of a table's size beside its bytes (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;
/// What either side may assume before it hears of another size (RFC 9113, 6.5.2).
const DEFAULT_TABLE: usize = 4096;

/// Why a header block cannot be decoded. The tables of both sides differ from there on, so the connection has to end
/// with COMPRESSION_ERROR (RFC 9113, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HpackError {
    #[error("a header block ends within a field")]
    Truncated,
    #[error("a number in a header block exceeds all limits")]
    Number,
    #[error("a header block refers to an entry that no table has")]
    Index,
    #[error("a header block asks for a larger table than it may")]
    TableSize,
    #[error("a header block changes the table's size behind a field")]
    LateTableSize,
    #[error("a string in a header block is not padded by the first bits of EOS")]
    Padding,
    #[error("a string in a header block holds EOS")]
    EndOfString,
    #[error("a header block refers to far more bytes than it has")]
    Bomb,
}

#[cfg(test)]
mod tests;
