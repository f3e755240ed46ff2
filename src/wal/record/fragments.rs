//! The headers in front of a record's data: which relation it is about, whose subtransaction wrote it, how long its main
//! data is (`xlogrecord.h`, `DecodeXLogRecord` in `xlogreader.c`).

use super::RelationId;
use super::main_data::u32_at;

/// Block references have numbers up to this (`XLR_MAX_BLOCK_ID`).
const BLOCK_ID_MAX: u8 = 32;
const TOP_LEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const MAIN_LONG: u8 = 254;
const MAIN_SHORT: u8 = 255;

/// Flags of a block reference.
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
/// Flags of a block's image. Which bits say that it is compressed changed with version 15.
const HAS_HOLE: u8 = 0x01;
const COMPRESSED_BEFORE_15: u8 = 0x02;
const COMPRESSED_SINCE_15: u8 = 0x04 | 0x08 | 0x10;

/// A block reference up to its image, with the image's header, with the length of a hole in a compressed one.
const BLOCK_BYTES: usize = 4;
const IMAGE_BYTES: usize = 5;
const HOLE_BYTES: usize = 2;
const RELATION_BYTES: usize = 12;
const BLOCK_NUMBER_BYTES: usize = 4;
const LONGEST: usize = BLOCK_BYTES + IMAGE_BYTES + HOLE_BYTES + RELATION_BYTES + BLOCK_NUMBER_BYTES;

/// A header, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fragment {
    /// A block of this relation; `None`: of the same as the block before.
    Block(Option<RelationId>),
    /// The transaction whose subtransaction wrote the record.
    TopLevelXid(u32),
    /// Where a replicated change came from.
    Origin,
    /// So many bytes of main data follow behind those of the blocks.
    Main(u64),
    /// Nothing that can be read.
    Unknown,
}

/// Puts headers together as their bytes come.
#[derive(Debug)]
pub(super) struct FragmentReader {
    version: Option<u8>,
    bytes: [u8; LONGEST],
    have_bytes: usize,
}

impl FragmentReader {
    pub(super) fn new(version: Option<u8>) -> FragmentReader {
        FragmentReader { version, bytes: [0; LONGEST], have_bytes: 0 }
    }

    /// Takes the next byte; gives out the header that it completes.
    pub(super) fn push(&mut self, byte: u8) -> Option<Fragment> {
        if let Some(place) = self.bytes.get_mut(self.have_bytes) {
            *place = byte;
        }
        self.have_bytes += 1;
        let Some(needed) = self.needed() else { return Some(Fragment::Unknown) };
        (self.have_bytes >= needed).then(|| self.take(needed))
    }

    /// How long the header is, as far as can be told by now; `None` if that cannot be known.
    fn needed(&self) -> Option<usize> {
        match self.bytes[0] {
            MAIN_SHORT => Some(2),
            ORIGIN => Some(3),
            TOP_LEVEL_XID | MAIN_LONG => Some(5),
            0..=BLOCK_ID_MAX => {
                let flags = self.bytes[1];
                let mut needed = BLOCK_BYTES;
                if self.have_bytes >= needed && flags & HAS_IMAGE != 0 {
                    needed += IMAGE_BYTES;
                    if self.have_bytes >= needed && self.has_hole_length(self.bytes[needed - 1])? {
                        needed += HOLE_BYTES;
                    }
                }
                if self.have_bytes >= needed {
                    needed += BLOCK_NUMBER_BYTES + if flags & SAME_RELATION == 0 { RELATION_BYTES } else { 0 };
                }
                Some(needed)
            }
            _ => None,
        }
    }

    fn has_hole_length(&self, image_flags: u8) -> Option<bool> {
        let compressed = match self.version {
            _ if image_flags & HAS_HOLE == 0 => 0,
            Some(..15) => COMPRESSED_BEFORE_15,
            Some(_) => COMPRESSED_SINCE_15,
            None => return None,
        };
        Some(image_flags & compressed != 0)
    }

    fn take(&mut self, bytes: usize) -> Fragment {
        self.have_bytes = 0;
        let header = &self.bytes[..bytes];
        match self.bytes[0] {
            MAIN_SHORT => Fragment::Main(u64::from(self.bytes[1])),
            MAIN_LONG => Fragment::Main(u64::from(u32_at(header, 1).unwrap_or(0))),
            TOP_LEVEL_XID => Fragment::TopLevelXid(u32_at(header, 1).unwrap_or(0)),
            ORIGIN => Fragment::Origin,
            // The relation and the block's number come last.
            _ if self.bytes[1] & SAME_RELATION != 0 => Fragment::Block(None),
            _ => Fragment::Block(RelationId::read(header, bytes - BLOCK_NUMBER_BYTES - RELATION_BYTES)),
        }
    }
}
