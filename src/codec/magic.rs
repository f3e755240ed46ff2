//! What the first bytes of a frame say, whoever wrote it.

use super::CodecError;

/// First four bytes of an LZ4 frame (`LZ4F_MAGICNUMBER`).
pub(super) const LZ4_MAGIC: u32 = 0x184D_2204;
/// First four bytes of a Zstandard frame (`ZSTD_MAGICNUMBER`).
pub(super) const ZSTD_MAGIC: u32 = 0xFD2F_B528;
/// First four bytes of the legacy format (`LZ4IO_LEGACY_MAGICNUMBER`).
const LEGACY_MAGIC: u32 = 0x184C_2102;
/// First four bytes of a skippable frame (`LZ4F_MAGIC_SKIPPABLE_START`, `ZSTD_MAGIC_SKIPPABLE_START`); the last digit is free
/// for the writer.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// The skippable frame that carries an identity. Other digits belong to other writers and are passed over.
pub(super) const IDENTITY_MAGIC: u32 = SKIPPABLE_MAGIC | 7;

/// Bytes of a magic.
pub(super) const MAGIC_BYTES: usize = 4;
/// Magic and length of a skippable frame.
pub(super) const SKIPPABLE_HEADER_BYTES: usize = 8;

/// Which frame begins here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Magic {
    Lz4,
    Zstd,
    Identity,
    /// A skippable frame of somebody else.
    Skippable,
}

impl Magic {
    pub(super) fn of(bytes: &[u8]) -> Result<Magic, CodecError> {
        match u32_at(bytes, 0)? {
            LZ4_MAGIC => Ok(Magic::Lz4),
            ZSTD_MAGIC => Ok(Magic::Zstd),
            IDENTITY_MAGIC => Ok(Magic::Identity),
            magic if magic & !0xF == SKIPPABLE_MAGIC => Ok(Magic::Skippable),
            LEGACY_MAGIC => Err(CodecError::Legacy),
            magic => Err(CodecError::NotAFrame(magic)),
        }
    }
}

/// The whole length of the skippable frame that begins here.
pub(super) fn skippable_frame_bytes(bytes: &[u8]) -> Result<usize, CodecError> {
    Ok(SKIPPABLE_HEADER_BYTES + u32_at(bytes, MAGIC_BYTES)? as usize)
}

/// A little-endian u32 at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, CodecError> {
    let field = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    field.map(|field| u32::from_le_bytes(*field)).ok_or(cut(offset + size_of::<u32>()))
}

pub(super) fn cut(needed_bytes: usize) -> CodecError {
    CodecError::Cut { needed_bytes }
}
