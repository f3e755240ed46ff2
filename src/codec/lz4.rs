//! LZ4 frames: one compressed and decompressed as a whole, with its checksums.

use super::CodecError;
use super::frame::DecodedFrame;
use super::lz4_header::{self, BLOCK_BYTES, BlockHeader, FIELD_BYTES, FrameHeader};
use super::magic::u32_at;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, decompress_into_with_dict};
use std::ops::Range;

/// How far back a match may reach, over block borders too if blocks are linked (`LZ4_Block_format.md`, offset).
const WINDOW_BYTES: usize = 64 << 10;

/// A byte of a block is at most so many plain bytes: a length grows by 255 with each (`LZ4_Block_format.md`).
const EXPANSION_MAX: usize = 256;

/// Compresses blocks. Its hash table is most of a small frame's cost.
pub(super) struct BlockEncoder {
    table: CompressTable,
    /// Room for one compressed block of the worst case.
    block: Vec<u8>,
}

impl BlockEncoder {
    pub(super) fn new() -> BlockEncoder {
        BlockEncoder {
            table: CompressTable::large(),
            block: vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)],
        }
    }

    /// `None` for a block that does not shrink, or would not fit the buffer.
    fn compress(&mut self, block: &[u8]) -> Option<&[u8]> {
        let bytes = compress_into_with_table(block, &mut self.block, &mut self.table).ok()?;
        self.block.get(..bytes).filter(|compressed| compressed.len() < block.len())
    }
}

/// Writes a frame with `plain` in it to the end of `frame`; without an encoder its blocks are stored as they are. `seen` gets
/// each block while it is in the processor's cache.
pub(super) fn encode_frame(
    mut encoder: Option<&mut BlockEncoder>,
    plain: &[u8],
    content_checksum: bool,
    mut seen: impl FnMut(&[u8]),
    frame: &mut Vec<u8>,
) {
    let bytes_max = frame.len() + lz4_header::stored_bytes_max(plain.len());
    FrameHeader::write(plain.len(), content_checksum, frame);
    for block in plain.chunks(BLOCK_BYTES) {
        seen(block);
        let compressed = encoder.as_mut().and_then(|encoder| encoder.compress(block));
        let stored = compressed.unwrap_or(block);
        let field = BlockHeader::Block { bytes: stored.len(), compressed: compressed.is_some() };
        make_room(frame, FIELD_BYTES + stored.len(), bytes_max);
        frame.extend_from_slice(&field.field());
        frame.extend_from_slice(stored);
    }
    frame.extend_from_slice(&BlockHeader::End.field());
    if content_checksum {
        frame.extend_from_slice(&lz4_header::checksum(plain).to_le_bytes());
    }
}

/// Room for `more` bytes: twice as much as there was, as a `Vec` by itself, but never more than the frame can need.
fn make_room(frame: &mut Vec<u8>, more: usize, bytes_max: usize) {
    let needed = frame.len() + more;
    if needed > frame.capacity() {
        let wanted = (2 * frame.capacity()).min(bytes_max).max(needed);
        frame.reserve_exact(wanted - frame.len());
    }
}

/// Writes the plain bytes of the data frame that `raw` begins with to `out`, over what it has from `start` on.
pub(super) fn decode_frame(
    raw: &[u8],
    out: &mut Vec<u8>,
    start: usize,
    limit_bytes: usize,
) -> Result<DecodedFrame, CodecError> {
    let frame = FrameHeader::read(raw)?;
    if let Some(bytes) = frame.content_bytes {
        if bytes > limit_bytes as u64 {
            return Err(CodecError::TooLarge { limit_bytes });
        }
        out.reserve_exact((start + bytes as usize).saturating_sub(out.len()));
    }
    let (mut position, mut end) = (frame.bytes, start);
    loop {
        let header = BlockHeader::read(raw, position, &frame)?;
        position += FIELD_BYTES;
        let BlockHeader::Block { bytes, compressed } = header else {
            break;
        };
        let block = slice(raw, position, bytes)?;
        position += bytes;
        if frame.block_checksum {
            if u32_at(raw, position)? != lz4_header::checksum(block) {
                return Err(CodecError::Checksum("block"));
            }
            position += FIELD_BYTES;
        }
        let left = limit_bytes - (end - start);
        end = match compressed {
            true => decode_block(&frame, block, out, start..end, left)?,
            false if bytes <= left => write_over(out, end, block),
            false => return Err(CodecError::TooLarge { limit_bytes }),
        };
    }
    let plain = out.get(start..end).unwrap_or_default();
    if frame.content_bytes.is_some_and(|bytes| bytes != plain.len() as u64) {
        return Err(CodecError::Malformed("does not have the length that its header says"));
    }
    if frame.content_checksum {
        if u32_at(raw, position)? != lz4_header::checksum(plain) {
            return Err(CodecError::Checksum("content"));
        }
        position += FIELD_BYTES;
    }
    Ok(DecodedFrame { frame_bytes: position, plain_end: end })
}

/// Writes bytes at `start`, over what is there, and returns their end.
fn write_over(out: &mut Vec<u8>, start: usize, bytes: &[u8]) -> usize {
    let (over, further) = bytes.split_at(bytes.len().min(out.len() - start));
    out[start..start + over.len()].copy_from_slice(over);
    out.extend_from_slice(further);
    start + bytes.len()
}

/// Writes a compressed block of a frame behind the frame's plain bytes so far, and returns its end; `left` bytes are allowed in
/// all.
fn decode_block(
    frame: &FrameHeader,
    block: &[u8],
    out: &mut Vec<u8>,
    Range { start, end: before }: Range<usize>,
    left: usize,
) -> Result<usize, CodecError> {
    // What is still to come, if the header says it: no need to clear more than that.
    let expected =
        frame.content_bytes.map_or(usize::MAX, |bytes| bytes as usize - (before - start).min(bytes as usize));
    // Nor more than a block can become: of many small ones each would clear megabytes.
    let grown = block.len().saturating_mul(EXPANSION_MAX);
    let room = frame.block_bytes_max.min(left).min(expected).min(grown);
    if out.len() < before + room {
        out.resize(before + room, 0);
    }
    let (done, space) = out[..before + room].split_at_mut(before);
    let history = done.get(start..).unwrap_or_default();
    let decompressed = match frame.independent || history.is_empty() {
        true => decompress_into(block, space),
        false => decompress_into_with_dict(block, space, &history[history.len().saturating_sub(WINDOW_BYTES)..]),
    };
    let bytes = decompressed.map_err(|error| match error {
        lz4_flex::block::DecompressError::OutputTooSmall { .. } if room == left => {
            CodecError::TooLarge { limit_bytes: before - start + left }
        }
        error => CodecError::Block(error),
    })?;
    Ok(before + bytes)
}

fn slice(raw: &[u8], position: usize, bytes: usize) -> Result<&[u8], CodecError> {
    raw.get(position..position + bytes).ok_or(CodecError::Cut { needed_bytes: position + bytes })
}
