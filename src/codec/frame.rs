//! One data frame, in whichever codec.

use super::form::Compression;
use super::lz4::{self, BlockEncoder};
use super::magic::Magic;
use super::{Buffer, Buffers, CodecError, zstd};
use bytes::Bytes;

/// The caller of [`FrameEncoder::encode_hashed`] gets pieces of so many bytes where the codec has no blocks of its own.
const SEEN_BYTES: usize = 256 << 10;

/// A frame of up to so many bytes is copied into memory of its own: a whole buffer for it would be mostly empty.
const SMALL_FRAME_BYTES: usize = 64 << 10;

/// No buffer stays more than so many times as large as the frame in it.
const SLACK: usize = 2;

/// Compresses frames. Keep it and use it again: its tables and buffer are most of a frame's cost.
pub struct FrameEncoder {
    method: Method,
    /// The frame being built.
    frame: Buffer,
    buffers: Buffers,
    last_held_bytes: usize,
}

enum Method {
    Lz4(BlockEncoder),
    Zstd(zstd::Encoder),
    /// LZ4 frames whose blocks are stored as they are.
    Plain,
}

impl FrameEncoder {
    /// An encoder for frames that are compressed so.
    pub fn new(compression: Compression) -> FrameEncoder {
        FrameEncoder::with_buffers(compression, Buffers::new(0))
    }

    /// An encoder for frames that are compressed so, and lie in `buffers`.
    pub fn with_buffers(compression: Compression, buffers: Buffers) -> FrameEncoder {
        let method = match compression {
            Compression::Lz4 => Method::Lz4(BlockEncoder::new()),
            Compression::Zstd(level) => Method::Zstd(zstd::Encoder::new(level)),
            Compression::None => Method::Plain,
        };
        FrameEncoder { method, frame: buffers.take(), buffers, last_held_bytes: 0 }
    }

    /// One whole frame with `plain` in it, independent of every other. Give it at most [`super::FRAME_BYTES`]: more
    /// makes a valid frame, but one that only one core can decompress and that our readers refuse.
    pub fn encode(&mut self, plain: &[u8]) -> Bytes {
        self.write(plain, true, |_| ())
    }

    /// As [`FrameEncoder::encode`], for bytes that are hashed by the caller, and without a checksum of its own beside that
    /// hash. `hash` gets all of `plain` in pieces, each while it is in the processor's cache anyway: a pass of its own
    /// would fetch everything from memory once more.
    pub fn encode_hashed(&mut self, plain: &[u8], hash: impl FnMut(&[u8])) -> Bytes {
        self.write(plain, false, hash)
    }

    /// The memory that the last frame takes for as long as anybody has it: more than its bytes.
    pub fn last_held_bytes(&self) -> usize {
        self.last_held_bytes
    }

    fn write(&mut self, plain: &[u8], checksum: bool, mut seen: impl FnMut(&[u8])) -> Bytes {
        self.frame.clear();
        match &mut self.method {
            Method::Lz4(encoder) => lz4::encode_frame(Some(encoder), plain, checksum, seen, &mut self.frame),
            Method::Plain => lz4::encode_frame(None, plain, checksum, seen, &mut self.frame),
            Method::Zstd(encoder) => {
                plain.chunks(SEEN_BYTES).for_each(&mut seen);
                encoder.encode_frame(plain, checksum, &mut self.frame);
            }
        }
        self.last_held_bytes = self.frame.len();
        if self.frame.len() < SMALL_FRAME_BYTES {
            return Bytes::copy_from_slice(&self.frame);
        }
        if self.frame.capacity() > SLACK * self.frame.len() {
            self.frame.shrink_to_fit();
        }
        self.last_held_bytes = self.frame.capacity();
        std::mem::replace(&mut self.frame, self.buffers.take()).freeze()
    }
}

/// Where a frame ends, and its plain bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodedFrame {
    /// Length of the frame.
    pub(super) frame_bytes: usize,
    /// End of the plain bytes in what they were written to.
    pub(super) plain_end: usize,
}

/// Decompresses frames of every codec.
#[derive(Default)]
pub struct FrameDecoder {
    zstd: Option<zstd::Decoder>,
}

impl FrameDecoder {
    /// A decoder for data frames as [`super::FrameSplitter`] finds them.
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// Appends the plain bytes of `raw`, one whole data frame, to `out`. Every checksum that the frame has is verified.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] if it has more than `limit_bytes` plain bytes, whatever its header says.
    /// After an error `out` is as it was before.
    pub fn decode(&mut self, raw: &[u8], out: &mut Vec<u8>, limit_bytes: usize) -> Result<(), CodecError> {
        match self.decode_first(raw, out, limit_bytes)? {
            bytes if bytes == raw.len() => Ok(()),
            _ => Err(CodecError::Malformed("is followed by other bytes")),
        }
    }

    /// As [`FrameDecoder::decode`], but over what `out` has from `start` on, or at its end if that is before; returns where the
    /// plain bytes end. Behind them is what was there, or anything: memory that is as long already need not be cleared for them.
    ///
    /// # Errors
    /// As [`FrameDecoder::decode`], but that there is anything in `out` from `start` on.
    pub fn decode_over(
        &mut self,
        raw: &[u8],
        out: &mut Vec<u8>,
        start: usize,
        limit_bytes: usize,
    ) -> Result<usize, CodecError> {
        match self.decode_at(raw, out, start.min(out.len()), limit_bytes)? {
            DecodedFrame { frame_bytes, plain_end } if frame_bytes == raw.len() => Ok(plain_end),
            _ => Err(CodecError::Malformed("is followed by other bytes")),
        }
    }

    /// As [`FrameDecoder::decode`], for the data frame that `raw` begins with; returns that frame's length.
    pub(super) fn decode_first(
        &mut self,
        raw: &[u8],
        out: &mut Vec<u8>,
        limit_bytes: usize,
    ) -> Result<usize, CodecError> {
        let start = out.len();
        let result = self.decode_at(raw, out, start, limit_bytes);
        out.truncate(result.as_ref().map_or(start, |decoded| decoded.plain_end));
        result.map(|decoded| decoded.frame_bytes)
    }

    fn decode_at(
        &mut self,
        raw: &[u8],
        out: &mut Vec<u8>,
        start: usize,
        limit_bytes: usize,
    ) -> Result<DecodedFrame, CodecError> {
        match Magic::of(raw) {
            Ok(Magic::Zstd) => {
                self.zstd.get_or_insert_with(zstd::Decoder::new).decode_frame(raw, out, start, limit_bytes)
            }
            _ => lz4::decode_frame(raw, out, start, limit_bytes),
        }
    }
}
