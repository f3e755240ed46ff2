//! One data frame: compressed and decompressed as a whole, with its checksums.

use super::header::{self, BLOCK_BYTES, BlockHeader, FIELD_BYTES, FrameHeader};
use super::{Buffer, Buffers, Codec, CodecError};
use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, decompress_into_with_dict};

/// How far back a match may reach, over block borders too if blocks are linked (`LZ4_Block_format.md`, offset).
const WINDOW_BYTES: usize = 64 << 10;

/// A frame of up to so many bytes is copied into memory of its own: a whole buffer for it would be mostly empty.
const SMALL_FRAME_BYTES: usize = 64 << 10;

/// No buffer stays more than so many times as large as the frame in it.
const SLACK: usize = 4;

/// Compresses frames. Keep it and use it again: its hash table and buffer are most of a frame's cost.
pub struct FrameEncoder {
    table: CompressTable,
    /// Room for one compressed block of the worst case.
    block: Vec<u8>,
    /// The frame being built.
    frame: Buffer,
    buffers: Buffers,
}

impl FrameEncoder {
    /// An encoder for frames of `codec`.
    pub fn new(codec: Codec) -> FrameEncoder {
        FrameEncoder::with_buffers(codec, Buffers::new(0))
    }

    /// An encoder for frames of `codec`, which lie in `buffers`.
    pub fn with_buffers(codec: Codec, buffers: Buffers) -> FrameEncoder {
        let Codec::Lz4 = codec;
        FrameEncoder {
            table: CompressTable::large(),
            block: vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)],
            frame: buffers.take(),
            buffers,
        }
    }

    /// One whole frame with `plain` in it, independent of every other. Give it at most [`super::FRAME_BYTES`]: more
    /// makes a valid frame, but one that only one core can decompress and that our readers refuse.
    pub fn encode(&mut self, plain: &[u8]) -> Bytes {
        self.begin(plain.len(), true);
        plain.chunks(BLOCK_BYTES).for_each(|block| self.push(block));
        self.frame.extend_from_slice(&BlockHeader::End.field());
        self.frame.extend_from_slice(&header::checksum(plain).to_le_bytes());
        self.finish()
    }

    /// As [`FrameEncoder::encode`], for bytes that are hashed by the caller, and without a checksum of its own beside that
    /// hash. `hash` gets all of `plain` in pieces, each while it is in the processor's cache anyway: a pass of its own
    /// would fetch everything from memory once more.
    pub fn encode_hashed(&mut self, plain: &[u8], mut hash: impl FnMut(&[u8])) -> Bytes {
        self.begin(plain.len(), false);
        for block in plain.chunks(BLOCK_BYTES) {
            hash(block);
            self.push(block);
        }
        self.frame.extend_from_slice(&BlockHeader::End.field());
        self.finish()
    }

    fn begin(&mut self, plain_bytes: usize, content_checksum: bool) {
        self.frame.clear();
        FrameHeader::write(plain_bytes, content_checksum, &mut self.frame);
    }

    fn finish(&mut self) -> Bytes {
        if self.frame.len() < SMALL_FRAME_BYTES {
            return Bytes::copy_from_slice(&self.frame);
        }
        if self.frame.capacity() > SLACK * self.frame.len() {
            self.frame.shrink_to_fit();
        }
        std::mem::replace(&mut self.frame, self.buffers.take()).freeze()
    }

    fn push(&mut self, block: &[u8]) {
        // A block that does not shrink, or would not fit the buffer, is stored as it is.
        let compressed = compress_into_with_table(block, &mut self.block, &mut self.table).ok();
        let compressed = compressed.and_then(|bytes| self.block.get(..bytes)).filter(|it| it.len() < block.len());
        let stored = compressed.unwrap_or(block);
        let field = BlockHeader::Block { bytes: stored.len(), compressed: compressed.is_some() };
        self.frame.extend_from_slice(&field.field());
        self.frame.extend_from_slice(stored);
    }
}

/// Decompresses frames.
#[derive(Debug, Default)]
pub struct FrameDecoder(());

impl FrameDecoder {
    /// A decoder for data frames as [`super::FrameSplitter`] finds them.
    pub fn new() -> FrameDecoder {
        FrameDecoder(())
    }

    /// Appends the plain bytes of `raw`, one whole data frame, to `out`. Every checksum that the frame has is verified.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] if it has more than `limit_bytes` plain bytes, whatever its header says.
    /// After an error `out` is as it was before.
    pub fn decode(&mut self, raw: &[u8], out: &mut Vec<u8>, limit_bytes: usize) -> Result<(), CodecError> {
        let start = out.len();
        let result = match decode_frame(raw, out, limit_bytes) {
            Ok(bytes) if bytes < raw.len() => Err(CodecError::Malformed("is followed by other bytes")),
            other => other.map(|_| ()),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }
}

/// Appends the plain bytes of the data frame that `raw` begins with, and returns the frame's length.
pub(super) fn decode_frame(raw: &[u8], out: &mut Vec<u8>, limit_bytes: usize) -> Result<usize, CodecError> {
    let frame = FrameHeader::read(raw)?;
    let start = out.len();
    if let Some(bytes) = frame.content_bytes {
        if bytes > limit_bytes as u64 {
            return Err(CodecError::TooLarge { limit_bytes });
        }
        out.reserve_exact(bytes as usize);
    }
    let mut position = frame.bytes;
    loop {
        let header = BlockHeader::read(raw, position, &frame)?;
        position += FIELD_BYTES;
        let BlockHeader::Block { bytes, compressed } = header else {
            break;
        };
        let block = slice(raw, position, bytes)?;
        position += bytes;
        if frame.block_checksum {
            if header::u32_at(raw, position)? != header::checksum(block) {
                return Err(CodecError::Checksum("block"));
            }
            position += FIELD_BYTES;
        }
        let left = limit_bytes - (out.len() - start);
        match compressed {
            true => decode_block(&frame, block, out, start, left)?,
            false if bytes <= left => out.extend_from_slice(block),
            false => return Err(CodecError::TooLarge { limit_bytes }),
        }
    }
    let plain = out.get(start..).unwrap_or_default();
    if frame.content_bytes.is_some_and(|bytes| bytes != plain.len() as u64) {
        return Err(CodecError::Malformed("does not have the length that its header says"));
    }
    if frame.content_checksum {
        if header::u32_at(raw, position)? != header::checksum(plain) {
            return Err(CodecError::Checksum("content"));
        }
        position += FIELD_BYTES;
    }
    Ok(position)
}

/// Appends a compressed block of a frame whose plain bytes begin at `start`; `left` bytes are allowed in all.
fn decode_block(
    frame: &FrameHeader,
    block: &[u8],
    out: &mut Vec<u8>,
    start: usize,
    left: usize,
) -> Result<(), CodecError> {
    let before = out.len();
    // What is still to come, if the header says it: no need to clear more than that.
    let expected =
        frame.content_bytes.map_or(usize::MAX, |bytes| bytes as usize - (before - start).min(bytes as usize));
    let room = frame.block_bytes_max.min(left).min(expected);
    out.resize(before + room, 0);
    let (done, space) = out.split_at_mut(before);
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
    out.truncate(before + bytes);
    Ok(())
}

fn slice(raw: &[u8], position: usize, bytes: usize) -> Result<&[u8], CodecError> {
    raw.get(position..position + bytes).ok_or(CodecError::Cut { needed_bytes: position + bytes })
}
