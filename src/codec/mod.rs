//! Compressed objects: independent frames that standard tools read. Pure computation: no tokio, no I/O, nothing of
//! PostgreSQL or stores.
//!
//! ```text
//! object   = identity frame, data frame, data frame ...     `lz4 -dc object` or `zstd -dc object` prints the plain bytes
//! identity = skippable frame: magic 0x184D2A57, u32 length, the identity's bytes
//! data     = LZ4 or Zstandard frame of up to FRAME_BYTES plain bytes, with content size, and content checksum unless there is a
//!            hash of the content in the identity, or of the object elsewhere
//! ```
//! Frames do not refer to one another, so that every core can take one, and an object may be cut between two.
//! An encrypted object is an age file with all of that in it (`encryption.rs`).
//!
//! What a whole object must hold (its length, its hash) is said by its identity: a file cut exactly between two frames
//! reads as a shorter one, and only the identity's reader can tell.
//!
//! Formats: `doc/lz4_Frame_format.md` and `doc/lz4_Block_format.md` of the LZ4 project; RFC 8878.

mod buffers;
pub mod encryption;
mod form;
mod frame;
mod lz4;
mod lz4_header;
mod magic;
mod split;
#[cfg(test)]
mod tests;
mod zstd;

pub use buffers::{Buffer, Buffers};
pub use encryption::{Identities, Recipients};
pub use form::{Codec, Compression, Ending, Form, ZSTD_LEVELS};
pub use frame::{FrameDecoder, FrameEncoder};
pub use split::{FrameSplitter, RawFrame};

use crate::error::{Error, Kind};
use bytes::{BufMut, Bytes, BytesMut};
use magic::{Magic, SKIPPABLE_HEADER_BYTES};

/// Plain bytes in a data frame, at most. Part of the repository's format: base backup parts have full ones but for the
/// last, they are cut at frame borders, and a resumed backup must find the same borders.
pub const FRAME_BYTES: usize = 4 << 20;

/// The largest identity. Identities are small documents; a longer one is taken for damage.
pub const IDENTITY_BYTES_MAX: usize = 64 << 10;

/// Bytes that a data frame of [`FRAME_BYTES`] has at most, since blocks that do not shrink are stored as they are:
/// the limit to give to a [`FrameSplitter`] for objects of our own.
pub const FRAME_STORED_BYTES_MAX: usize = {
    let (lz4, zstd) = (lz4_header::stored_bytes_max(FRAME_BYTES), zstd::stored_bytes_max(FRAME_BYTES));
    if lz4 > zstd { lz4 } else { zstd }
};

/// The bytes are not what an encoder writes: damaged, cut, or of another format.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// No frame begins here.
    #[error("no LZ4 or Zstandard frame begins with {0:08X}")]
    NotAFrame(u32),
    /// The format of the `lz4` program before 2014 (`lz4 -l`), which has no checksums.
    #[error("this is the legacy LZ4 format, which has no checksums")]
    Legacy,
    /// The frame asks for what this reader does not do.
    #[error("the LZ4 frame {0}")]
    Unsupported(&'static str),
    /// The bytes end too early.
    #[error("the data ends within a frame: at least {needed_bytes} bytes are needed")]
    Cut {
        /// Bytes needed from the beginning of what was given to get one step further.
        needed_bytes: usize,
    },
    /// The frame is, or would become, larger than the caller allows.
    #[error("the frame is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The caller's limit.
        limit_bytes: usize,
    },
    /// A checksum does not fit what it covers.
    #[error("the {0} checksum of the LZ4 frame does not match")]
    Checksum(&'static str),
    /// The compressed bytes contradict themselves.
    #[error("the LZ4 frame {0}")]
    Malformed(&'static str),
    /// A block cannot be decompressed.
    #[error("a block of the LZ4 frame cannot be decompressed")]
    Block(#[source] lz4_flex::block::DecompressError),
    /// A Zstandard frame is damaged, or asks for what this reader does not do.
    #[error("the Zstandard frame cannot be decompressed: {0}")]
    Zstd(&'static str),
    /// What an encrypted object says of itself in clear is no Base64.
    #[error("what it says of itself in front cannot be read")]
    Note,
    /// It is encrypted, and there is nothing to open it with.
    #[error("it is encrypted, and no identity was given")]
    NoIdentity,
    /// It is encrypted, and none of its recipients is ours.
    #[error("it is encrypted for others than the identity that was given")]
    OtherRecipients,
    /// An encrypted object is damaged.
    #[error("it cannot be decrypted")]
    Decryption(#[source] age::DecryptError),
    /// An object cannot be encrypted.
    #[error("it cannot be encrypted")]
    Encryption(#[source] std::io::Error),
}

impl CodecError {
    /// True if the bytes may be as they should, and it is us who cannot read them.
    pub fn is_ours(&self) -> bool {
        matches!(self, CodecError::NoIdentity | CodecError::OtherRecipients)
    }
}

impl From<CodecError> for Error {
    fn from(error: CodecError) -> Error {
        let hint = match error {
            CodecError::Legacy => Some("Was this file written by `lz4 -l`? Write it again without that option."),
            CodecError::NoIdentity => {
                Some("Name the file with the private key: --identity FILE, or identity_file under [encryption].")
            }
            CodecError::OtherRecipients => {
                Some("Was the key changed since? Put every key that is still needed into the file.")
            }
            _ => None,
        };
        let error = match error.is_ours() {
            true => Error::new(Kind::Config, "cannot decrypt").because(error),
            false => Error::new(Kind::Damaged, "cannot decompress").because(error),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The first frame of an object: a skippable frame that carries `identity` and that the `lz4` and `zstd` programs pass
/// over.
///
/// # Panics
/// If `identity` has more than [`IDENTITY_BYTES_MAX`] bytes: it could be written, but never read back.
pub fn identity_frame(identity: &[u8]) -> Bytes {
    assert!(identity.len() <= IDENTITY_BYTES_MAX, "an identity of {} bytes is not an identity", identity.len());
    let mut frame = BytesMut::with_capacity(SKIPPABLE_HEADER_BYTES + identity.len());
    frame.put_u32_le(magic::IDENTITY_MAGIC);
    frame.put_u32_le(identity.len() as u32);
    frame.put_slice(identity);
    frame.freeze()
}

/// Reads the identity from the first bytes of an object; `None` if the object begins with another frame.
///
/// # Errors
/// [`CodecError::Cut`] says how many bytes of the object are needed at least: read that many and ask again.
pub fn read_identity(prefix: &[u8]) -> Result<Option<Bytes>, CodecError> {
    match Magic::of(prefix)? {
        Magic::Lz4 | Magic::Zstd | Magic::Skippable => Ok(None),
        Magic::Identity => {
            let end = magic::skippable_frame_bytes(prefix)?;
            if end > SKIPPABLE_HEADER_BYTES + IDENTITY_BYTES_MAX {
                return Err(CodecError::TooLarge { limit_bytes: IDENTITY_BYTES_MAX });
            }
            let identity = prefix.get(SKIPPABLE_HEADER_BYTES..end);
            let identity = identity.ok_or(CodecError::Cut { needed_bytes: end })?;
            Ok(Some(Bytes::copy_from_slice(identity)))
        }
    }
}

/// A whole object, decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// What its identity frame carries, if it has one.
    pub identity: Option<Bytes>,
    /// The plain bytes of all its data frames.
    pub plain: Vec<u8>,
}

/// Decompresses a whole object that lies in memory, to its last frame.
///
/// # Errors
/// [`CodecError::TooLarge`] if the plain bytes are more than `limit_bytes`, whatever the headers say;
/// [`CodecError::Cut`] also for no bytes at all.
pub fn decode_object(bytes: &[u8], limit_bytes: usize) -> Result<Decoded, CodecError> {
    let mut decoded = Decoded { identity: None, plain: Vec::new() };
    let mut decoder = FrameDecoder::new();
    let mut rest = bytes;
    loop {
        let frame_bytes = match Magic::of(rest)? {
            Magic::Lz4 | Magic::Zstd => {
                let left_bytes = limit_bytes - decoded.plain.len();
                decoder.decode_first(rest, &mut decoded.plain, left_bytes).map_err(|error| match error {
                    CodecError::TooLarge { .. } => CodecError::TooLarge { limit_bytes },
                    other => other,
                })?
            }
            magic => {
                if magic == Magic::Identity {
                    decoded.identity = read_identity(rest)?;
                }
                magic::skippable_frame_bytes(rest)?
            }
        };
        rest = rest.get(frame_bytes..).ok_or(CodecError::Cut { needed_bytes: frame_bytes })?;
        if rest.is_empty() {
            return Ok(decoded);
        }
    }
}
