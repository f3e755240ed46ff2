//! Zstandard frames: one compressed and decompressed as a whole, with its checksum; and the fields that tell where one ends.
//!
//! Format: RFC 8878, section 3.1.1.

use super::CodecError;
use super::frame::DecodedFrame;
use super::magic::{MAGIC_BYTES, ZSTD_MAGIC, cut};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

/// Length of a block's header.
pub(super) const BLOCK_HEADER_BYTES: usize = 3;
/// Length of the checksum behind the last block.
pub(super) const CHECKSUM_BYTES: usize = 4;
/// The longest frame header: magic, descriptor, window, dictionary id, content size.
pub(super) const HEADER_BYTES_MAX: usize = MAGIC_BYTES + 1 + 1 + 4 + 8;
/// The largest block (`Block_Maximum_Size`).
const BLOCK_BYTES_MAX: usize = 128 << 10;

const DESCRIPTOR_SINGLE_SEGMENT: u8 = 0b0010_0000;
const DESCRIPTOR_RESERVED: u8 = 0b0000_1000;
const DESCRIPTOR_CHECKSUM: u8 = 0b0000_0100;
const DESCRIPTOR_DICTIONARY: u8 = 0b0000_0011;

/// What a frame of ours with `plain_bytes` has at most: blocks that do not shrink are stored as they are.
pub(super) const fn stored_bytes_max(plain_bytes: usize) -> usize {
    HEADER_BYTES_MAX + plain_bytes + (plain_bytes / BLOCK_BYTES_MAX + 1) * BLOCK_HEADER_BYTES + CHECKSUM_BYTES
}

/// Compresses frames.
pub(super) struct Encoder {
    level: i32,
    /// Gone if there was no memory for it.
    context: Option<CCtx<'static>>,
}

impl Encoder {
    pub(super) fn new(level: i32) -> Encoder {
        Encoder { level, context: CCtx::try_create() }
    }

    /// Writes a frame with `plain` in it into `frame`, which is empty. Where the library cannot (it has no memory), the plain bytes
    /// are the frame's, as they are.
    pub(super) fn encode_frame(&mut self, plain: &[u8], checksum: bool, frame: &mut Vec<u8>) {
        frame.reserve_exact(zstd_safe::compress_bound(plain.len()));
        let level = self.level;
        let compressed = self.context.as_mut().is_some_and(|context| {
            context.set_parameter(CParameter::CompressionLevel(level)).is_ok()
                && context.set_parameter(CParameter::ChecksumFlag(checksum)).is_ok()
                && context.compress2(frame, plain).is_ok()
        });
        if !compressed {
            frame.clear();
            write_uncompressed(plain, frame);
        }
    }
}

/// A frame whose blocks are stored as they are, without a checksum.
fn write_uncompressed(plain: &[u8], frame: &mut Vec<u8>) {
    const CONTENT_SIZE_OF_8_BYTES: u8 = 0b1100_0000;
    frame.extend_from_slice(&ZSTD_MAGIC.to_le_bytes());
    frame.push(CONTENT_SIZE_OF_8_BYTES | DESCRIPTOR_SINGLE_SEGMENT);
    frame.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    let mut blocks = plain.chunks(BLOCK_BYTES_MAX).peekable();
    loop {
        let block = blocks.next().unwrap_or_default();
        let is_last = blocks.peek().is_none();
        let header = (block.len() as u32) << 3 | u32::from(is_last);
        frame.extend_from_slice(&header.to_le_bytes()[..BLOCK_HEADER_BYTES]);
        frame.extend_from_slice(block);
        if is_last {
            return;
        }
    }
}

/// Decompresses frames.
pub(super) struct Decoder {
    /// Gone if there was no memory for it.
    context: Option<DCtx<'static>>,
}

impl Decoder {
    pub(super) fn new() -> Decoder {
        Decoder { context: DCtx::try_create() }
    }

    /// Writes the plain bytes of the frame that `raw` begins with to `out`, over what it has from `start` on.
    pub(super) fn decode_frame(
        &mut self,
        raw: &[u8],
        out: &mut Vec<u8>,
        start: usize,
        limit_bytes: usize,
    ) -> Result<DecodedFrame, CodecError> {
        let header = FrameHeader::read(raw)?;
        let (bytes, blocks) = measure(raw, &header)?;
        let frame = raw.get(..bytes).ok_or(cut(bytes))?;
        let context = self.context.as_mut().ok_or(CodecError::Zstd("there is no memory for it"))?;
        let Some(content_bytes) = header.content_bytes else {
            // Not straight behind `out`: room for it would have to be cleared, for each of many small frames.
            let mut plain = Vec::with_capacity(limit_bytes.min(blocks * BLOCK_BYTES_MAX));
            context.decompress(&mut plain, frame).map_err(|code| match zstd_safe::get_error_name(code) {
                DESTINATION_TOO_SMALL => CodecError::TooLarge { limit_bytes },
                name => CodecError::Zstd(name),
            })?;
            out.truncate(start);
            out.extend_from_slice(&plain);
            return Ok(DecodedFrame { frame_bytes: bytes, plain_end: out.len() });
        };
        if content_bytes > limit_bytes as u64 {
            return Err(CodecError::TooLarge { limit_bytes });
        }
        if content_bytes > (blocks * BLOCK_BYTES_MAX) as u64 {
            return Err(CodecError::Zstd("it is shorter than its header says"));
        }
        let end = start + content_bytes as usize;
        if out.len() < end {
            out.reserve_exact(end - out.len());
            out.resize(end, 0);
        }
        let space = out.get_mut(start..end).unwrap_or_default();
        let written =
            context.decompress(space, frame).map_err(|code| CodecError::Zstd(zstd_safe::get_error_name(code)))?;
        Ok(DecodedFrame { frame_bytes: bytes, plain_end: start + written })
    }
}

/// What the library says if the content does not fit (`ZSTD_error_dstSize_tooSmall`).
const DESTINATION_TOO_SMALL: &str = "Destination buffer is too small";

/// The header of a frame, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) checksum: bool,
    content_bytes: Option<u64>,
    /// Length of this header, magic included.
    pub(super) bytes: usize,
}

impl FrameHeader {
    /// Reads a header behind its magic, which the caller has seen. [`CodecError::Cut`] says how many bytes it needs.
    pub(super) fn read(bytes: &[u8]) -> Result<FrameHeader, CodecError> {
        let descriptor = *bytes.get(MAGIC_BYTES).ok_or(cut(MAGIC_BYTES + 1))?;
        if descriptor & DESCRIPTOR_RESERVED != 0 {
            return Err(CodecError::Zstd("it uses a reserved bit"));
        }
        if descriptor & DESCRIPTOR_DICTIONARY != 0 {
            return Err(CodecError::Zstd("it needs a dictionary"));
        }
        let single_segment = descriptor & DESCRIPTOR_SINGLE_SEGMENT != 0;
        let size_at = MAGIC_BYTES + 1 + usize::from(!single_segment);
        let size_bytes = match descriptor >> 6 {
            0 => usize::from(single_segment),
            exponent => 1 << exponent,
        };
        let field = bytes.get(size_at..size_at + size_bytes).ok_or(cut(size_at + size_bytes))?;
        let mut value = [0; 8];
        value[..size_bytes].copy_from_slice(field);
        // Two bytes begin to count where one ends.
        let offset = if size_bytes == 2 { 256 } else { 0 };
        let content_bytes = (size_bytes > 0).then(|| u64::from_le_bytes(value).saturating_add(offset));
        let checksum = descriptor & DESCRIPTOR_CHECKSUM != 0;
        Ok(FrameHeader { checksum, content_bytes, bytes: size_at + size_bytes })
    }
}

/// What follows a block's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub(super) is_last: bool,
    /// Bytes behind the header.
    pub(super) bytes: usize,
}

impl Block {
    pub(super) fn read(header: &[u8]) -> Result<Block, CodecError> {
        let [low, middle, high] = *header.first_chunk().ok_or(cut(BLOCK_HEADER_BYTES))?;
        let field = u32::from_le_bytes([low, middle, high, 0]);
        let size = (field >> 3) as usize;
        let bytes = match field >> 1 & 0b11 {
            // One byte, so many times.
            1 => 1,
            3 => return Err(CodecError::Zstd("it has a block of a reserved type")),
            _ if size > BLOCK_BYTES_MAX => return Err(CodecError::Zstd("it has a block that is too large")),
            _ => size,
        };
        Ok(Block { is_last: field & 1 != 0, bytes })
    }
}

/// The whole length of the frame that `bytes` begin with, and its blocks.
fn measure(bytes: &[u8], header: &FrameHeader) -> Result<(usize, usize), CodecError> {
    let (mut position, mut blocks) = (header.bytes, 0);
    loop {
        let rest = bytes.get(position..).ok_or(cut(position + BLOCK_HEADER_BYTES))?;
        let block = Block::read(rest).map_err(|error| match error {
            CodecError::Cut { needed_bytes } => cut(position + needed_bytes),
            other => other,
        })?;
        position += BLOCK_HEADER_BYTES + block.bytes;
        blocks += 1;
        if block.is_last {
            return Ok((position + if header.checksum { CHECKSUM_BYTES } else { 0 }, blocks));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_could_not_be_compressed_is_one_nevertheless() {
        for bytes in [0, 1, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1, 3 * BLOCK_BYTES_MAX] {
            // Given an encoder without memory
            let plain = vec![7; bytes];
            let mut encoder = Encoder { level: 3, context: None };
            // When it encodes, then the decoder reads that
            let (mut frame, mut decoded) = (Vec::new(), Vec::new());
            encoder.encode_frame(&plain, true, &mut frame);
            assert!(frame.len() <= stored_bytes_max(bytes));
            let read = Decoder::new().decode_frame(&frame, &mut decoded, 0, bytes).unwrap();
            assert_eq!((read.frame_bytes, read.plain_end, decoded), (frame.len(), bytes, plain));
        }
    }

    #[test]
    fn the_librarys_own_words_for_too_little_room_are_known() {
        let mut frame = Vec::new();
        Encoder::new(1).encode_frame(&[1; 100], false, &mut frame);
        let mut space = [0; 10];
        let code = DCtx::create().decompress(&mut space[..], &frame).unwrap_err();
        assert_eq!(zstd_safe::get_error_name(code), DESTINATION_TOO_SMALL);
    }
}
