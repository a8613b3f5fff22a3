//! MOSN's frames.
/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = [0x20, 0x88];
