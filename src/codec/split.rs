//! Finds where frames begin and end in a stream of bytes, without decompressing.

use super::lz4_header::{BlockHeader, FIELD_BYTES, FrameHeader, HEADER_BYTES_MAX};
use super::magic::{self, MAGIC_BYTES, Magic, SKIPPABLE_HEADER_BYTES};
use super::zstd::{self, BLOCK_HEADER_BYTES, CHECKSUM_BYTES};
use super::{CodecError, IDENTITY_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// One frame of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RawFrame {
    /// What an identity frame carries.
    Identity(Bytes),
    /// A whole data frame as it is stored, for [`super::FrameDecoder::decode`].
    Data(Bytes),
}

/// Cuts an object that arrives in pieces into its frames. A frame that lies in one piece is not copied.
///
/// It holds the pieces of at most one frame, and what was pushed behind them: push a piece, then take frames until there
/// is none, then push the next.
pub struct FrameSplitter {
    limit_bytes: usize,
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces`.
    held_bytes: usize,
    /// Where reading goes on: a piece and an offset in it, and the same place as an offset in the frame.
    piece: usize,
    piece_offset: usize,
    frame_offset: usize,
    /// Bytes to pass over before the next field.
    skip_bytes: usize,
    /// The field being read, gathered from the pieces: `field_bytes` of `field_bytes_wanted` are there.
    field: [u8; FIELD_BYTES_MAX],
    field_bytes: usize,
    field_bytes_wanted: usize,
    field_is: Field,
}

/// The longest field: a frame's header.
const FIELD_BYTES_MAX: usize =
    if HEADER_BYTES_MAX > zstd::HEADER_BYTES_MAX { HEADER_BYTES_MAX } else { zstd::HEADER_BYTES_MAX };

#[derive(Clone, Copy, Debug)]
enum Field {
    /// A frame's header.
    Header,
    /// The length of a block of an LZ4 frame.
    Block(FrameHeader),
    /// The header of a block of a Zstandard frame.
    ZstdBlock(zstd::FrameHeader),
    /// Nothing: the frame ends here.
    End(Magic),
}

impl FrameSplitter {
    /// A splitter for frames of up to `limit_bytes` (stored, not plain; see [`super::FRAME_STORED_BYTES_MAX`]).
    pub fn new(limit_bytes: usize) -> FrameSplitter {
        FrameSplitter {
            limit_bytes,
            pieces: VecDeque::new(),
            held_bytes: 0,
            piece: 0,
            piece_offset: 0,
            frame_offset: 0,
            skip_bytes: 0,
            field: [0; FIELD_BYTES_MAX],
            field_bytes: 0,
            field_bytes_wanted: MAGIC_BYTES,
            field_is: Field::Header,
        }
    }

    /// Adds the object's next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.held_bytes += bytes.len();
            self.pieces.push_back(bytes);
        }
    }

    /// The next whole frame; `None` until more bytes are pushed. Skippable frames of other writers are passed over.
    ///
    /// # Errors
    /// The stream is damaged, or a frame is above the limit: nothing behind that point can be found.
    // Not an `Iterator`: this one goes on after `None`.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<RawFrame>, CodecError> {
        while self.gather_field() {
            match self.field_is {
                Field::Header => self.read_header()?,
                Field::Block(frame) => self.read_block(frame)?,
                Field::ZstdBlock(frame) => self.read_zstd_block(frame)?,
                Field::End(magic) => {
                    let mut frame = self.take_frame();
                    match magic {
                        Magic::Lz4 | Magic::Zstd => return Ok(Some(RawFrame::Data(frame))),
                        Magic::Identity => {
                            return Ok(Some(RawFrame::Identity(frame.split_off(SKIPPABLE_HEADER_BYTES))));
                        }
                        Magic::Skippable => {}
                    }
                }
            }
        }
        Ok(None)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`CodecError::Cut`] if it ends within a frame.
    pub fn finish(self) -> Result<(), CodecError> {
        let needed_bytes = self.frame_offset + self.skip_bytes + (self.field_bytes_wanted - self.field_bytes);
        if self.held_bytes == 0 { Ok(()) } else { Err(CodecError::Cut { needed_bytes }) }
    }

    fn read_header(&mut self) -> Result<(), CodecError> {
        let field = self.field.get(..self.field_bytes).unwrap_or_default();
        let step = match Magic::of(field) {
            Ok(Magic::Lz4) => FrameHeader::read(field).map(|frame| (Field::Block(frame), 0)),
            Ok(Magic::Zstd) => zstd::FrameHeader::read(field).map(|frame| (Field::ZstdBlock(frame), 0)),
            Ok(magic) => magic::skippable_frame_bytes(field).map(|bytes| (Field::End(magic), bytes - field.len())),
            Err(error) => Err(error),
        };
        match step {
            Ok((Field::End(Magic::Identity), bytes)) if bytes > IDENTITY_BYTES_MAX => {
                Err(CodecError::TooLarge { limit_bytes: IDENTITY_BYTES_MAX })
            }
            Ok((next, skip_bytes)) => self.expect(next, skip_bytes),
            Err(CodecError::Cut { needed_bytes }) => {
                self.field_bytes_wanted = needed_bytes;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn read_block(&mut self, frame: FrameHeader) -> Result<(), CodecError> {
        let checksum_bytes = |present| if present { FIELD_BYTES } else { 0 };
        match BlockHeader::read(&self.field, 0, &frame)? {
            BlockHeader::End => self.expect(Field::End(Magic::Lz4), checksum_bytes(frame.content_checksum)),
            BlockHeader::Block { bytes, .. } => {
                self.expect(Field::Block(frame), bytes + checksum_bytes(frame.block_checksum))
            }
        }
    }

    fn read_zstd_block(&mut self, frame: zstd::FrameHeader) -> Result<(), CodecError> {
        let block = zstd::Block::read(&self.field)?;
        match (block.is_last, frame.checksum) {
            (false, _) => self.expect(Field::ZstdBlock(frame), block.bytes),
            (true, false) => self.expect(Field::End(Magic::Zstd), block.bytes),
            (true, true) => self.expect(Field::End(Magic::Zstd), block.bytes + CHECKSUM_BYTES),
        }
    }

    /// Goes on to the field `skip_bytes` further on.
    fn expect(&mut self, next: Field, skip_bytes: usize) -> Result<(), CodecError> {
        self.field_is = next;
        self.skip_bytes = skip_bytes;
        self.field_bytes = 0;
        self.field_bytes_wanted = match next {
            Field::End(_) => 0,
            Field::Header => MAGIC_BYTES,
            Field::Block(_) => FIELD_BYTES,
            Field::ZstdBlock(_) => BLOCK_HEADER_BYTES,
        };
        match self.frame_offset + self.skip_bytes + self.field_bytes_wanted > self.limit_bytes {
            true => Err(CodecError::TooLarge { limit_bytes: self.limit_bytes }),
            false => Ok(()),
        }
    }

    /// Passes over what is to be passed over and gathers the field; false if the pieces do not reach that far.
    fn gather_field(&mut self) -> bool {
        while self.skip_bytes > 0 || self.field_bytes < self.field_bytes_wanted {
            let Some(piece) = self.pieces.get(self.piece) else {
                return false;
            };
            let here = piece.get(self.piece_offset..).unwrap_or_default();
            let taken = if self.skip_bytes > 0 {
                let taken = self.skip_bytes.min(here.len());
                self.skip_bytes -= taken;
                taken
            } else {
                let room = self.field.get_mut(self.field_bytes..self.field_bytes_wanted).unwrap_or_default();
                let taken = room.len().min(here.len());
                room[..taken].copy_from_slice(&here[..taken]);
                self.field_bytes += taken;
                taken
            };
            self.frame_offset += taken;
            self.piece_offset += taken;
            if self.piece_offset == piece.len() {
                self.piece += 1;
                self.piece_offset = 0;
            }
        }
        true
    }

    /// Takes the frame that ends here from the pieces, and begins the next one.
    fn take_frame(&mut self) -> Bytes {
        let bytes = self.frame_offset;
        self.held_bytes -= bytes;
        let frame = match self.pieces.front_mut() {
            Some(first) if first.len() > bytes => first.split_to(bytes),
            Some(first) if first.len() == bytes => self.pieces.pop_front().unwrap_or_default(),
            _ => self.join(bytes),
        };
        self.piece = 0;
        self.piece_offset = 0;
        self.frame_offset = 0;
        self.field_is = Field::Header;
        self.field_bytes = 0;
        self.field_bytes_wanted = MAGIC_BYTES;
        frame
    }

    /// Copies a frame that lies in several pieces.
    fn join(&mut self, bytes: usize) -> Bytes {
        let mut frame = BytesMut::with_capacity(bytes);
        while frame.len() < bytes
            && let Some(mut piece) = self.pieces.pop_front()
        {
            let part = piece.split_to(piece.len().min(bytes - frame.len()));
            frame.extend_from_slice(&part);
            if !piece.is_empty() {
                self.pieces.push_front(piece);
            }
        }
        frame.freeze()
    }
}
