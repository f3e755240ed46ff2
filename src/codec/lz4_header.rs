//! The fixed fields of LZ4 frames: read, checked and written. Sizes are in bytes.

use super::CodecError;
use super::magic::{LZ4_MAGIC, Magic, cut, u32_at};
use twox_hash::XxHash32;

/// The longest header of a data frame: magic, FLG, BD, content size, dictionary id, header checksum.
pub(super) const HEADER_BYTES_MAX: usize = 4 + 2 + 8 + 4 + 1;
/// A block's length field, and a checksum.
pub(super) const FIELD_BYTES: usize = 4;
/// Plain bytes per block in frames of our own: measured, 64 KiB to 4 MiB are equally fast within a tenth; this one
/// loses no compression and needs little memory.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// The highest bit of a block's length field: stored as it is, not compressed.
const BLOCK_IS_PLAIN: u32 = 1 << 31;

const FLAG_VERSION_MASK: u8 = 0b1100_0000;
const FLAG_VERSION: u8 = 0b0100_0000;
const FLAG_INDEPENDENT: u8 = 0b0010_0000;
const FLAG_BLOCK_CHECKSUM: u8 = 0b0001_0000;
const FLAG_CONTENT_SIZE: u8 = 0b0000_1000;
const FLAG_CONTENT_CHECKSUM: u8 = 0b0000_0100;
const FLAG_RESERVED: u8 = 0b0000_0010;
const FLAG_DICTIONARY: u8 = 0b0000_0001;

/// What a frame of ours with `plain_bytes` has at most.
pub(super) const fn stored_bytes_max(plain_bytes: usize) -> usize {
    HEADER_BYTES_MAX + plain_bytes + (plain_bytes / BLOCK_BYTES + 1) * FIELD_BYTES + 2 * FIELD_BYTES
}

/// The header of a data frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) independent: bool,
    pub(super) block_checksum: bool,
    pub(super) content_checksum: bool,
    pub(super) content_bytes: Option<u64>,
    pub(super) block_bytes_max: usize,
    /// Length of this header, magic included.
    pub(super) bytes: usize,
}

impl FrameHeader {
    /// Reads and checks a header, magic included. [`CodecError::Cut`] says how many bytes it needs.
    pub(super) fn read(bytes: &[u8]) -> Result<FrameHeader, CodecError> {
        if Magic::of(bytes)? != Magic::Lz4 {
            return Err(CodecError::Malformed("is not a data frame"));
        }
        let [flags, sizes] = *bytes.get(4..).and_then(|rest| rest.first_chunk()).ok_or(cut(6))?;
        if flags & FLAG_VERSION_MASK != FLAG_VERSION {
            return Err(CodecError::Unsupported("is of an unknown version"));
        }
        if flags & FLAG_RESERVED != 0 || sizes & 0b1000_1111 != 0 {
            return Err(CodecError::Unsupported("uses reserved bits"));
        }
        if flags & FLAG_DICTIONARY != 0 {
            return Err(CodecError::Unsupported("needs a dictionary"));
        }
        let block_bytes_max = match sizes >> 4 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(CodecError::Unsupported("has an unknown block size")),
        };
        let sized = flags & FLAG_CONTENT_SIZE != 0;
        let end = 6 + if sized { 8 } else { 0 };
        let check = *bytes.get(end).ok_or(cut(end + 1))?;
        let described = bytes.get(4..end).ok_or(cut(end + 1))?;
        if check != header_checksum(described) {
            return Err(CodecError::Checksum("header"));
        }
        let content_bytes =
            described.get(2..).and_then(|rest| rest.first_chunk()).map(|size| u64::from_le_bytes(*size));
        Ok(FrameHeader {
            independent: flags & FLAG_INDEPENDENT != 0,
            block_checksum: flags & FLAG_BLOCK_CHECKSUM != 0,
            content_checksum: flags & FLAG_CONTENT_CHECKSUM != 0,
            content_bytes,
            block_bytes_max,
            bytes: end + 1,
        })
    }

    /// Writes the header of a frame of our own: independent blocks, content size, and if so a content checksum.
    pub(super) fn write(content_bytes: usize, content_checksum: bool, into: &mut Vec<u8>) {
        let block_size = if content_bytes <= 64 << 10 { 4 } else { 5 };
        into.extend_from_slice(&LZ4_MAGIC.to_le_bytes());
        let described = into.len();
        let checksum = if content_checksum { FLAG_CONTENT_CHECKSUM } else { 0 };
        into.push(FLAG_VERSION | FLAG_INDEPENDENT | FLAG_CONTENT_SIZE | checksum);
        into.push(block_size << 4);
        into.extend_from_slice(&(content_bytes as u64).to_le_bytes());
        into.push(header_checksum(&into[described..]));
    }
}

/// The length field in front of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BlockHeader {
    /// No more blocks.
    End,
    /// A block of `bytes`, compressed or as it is.
    Block { bytes: usize, compressed: bool },
}

impl BlockHeader {
    /// Reads the field at `offset`, and checks it against the frame's largest block.
    pub(super) fn read(bytes: &[u8], offset: usize, frame: &FrameHeader) -> Result<BlockHeader, CodecError> {
        let field = u32_at(bytes, offset)?;
        if field == 0 {
            return Ok(BlockHeader::End);
        }
        let bytes = (field & !BLOCK_IS_PLAIN) as usize;
        if bytes > frame.block_bytes_max {
            return Err(CodecError::Malformed("has a block larger than its header allows"));
        }
        Ok(BlockHeader::Block { bytes, compressed: field & BLOCK_IS_PLAIN == 0 })
    }

    /// The field's value.
    pub(super) fn field(self) -> [u8; FIELD_BYTES] {
        match self {
            BlockHeader::End => 0,
            BlockHeader::Block { bytes, compressed: true } => bytes as u32,
            BlockHeader::Block { bytes, compressed: false } => bytes as u32 | BLOCK_IS_PLAIN,
        }
        .to_le_bytes()
    }
}

/// xxHash-32 with seed 0: every checksum of the frame format.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    XxHash32::oneshot(0, bytes)
}

/// The second byte of the checksum over the header without the magic.
fn header_checksum(described: &[u8]) -> u8 {
    (checksum(described) >> 8) as u8
}
