//! The beginning of an incremental file, which says what the rest is (PostgreSQL 17 and later). Pure.
//!
//! ```text
//! u32 magic, u32 n, u32 t, n block numbers (u32, ascending, in this file of 1 GB)     little-endian
//! if n > 0: zeros up to a multiple of 8 KiB, then n blocks
//! ```
//! Of an older version of the file, blocks from `t` on are no longer the file's (`truncation_block_length`).
//! Written by `sendFile` in `basebackup.c`, read by `reconstruct.c` of `pg_combinebackup`.

use super::relation_file::SEGMENT_BLOCKS;
use std::sync::Arc;

/// PostgreSQL's block, as it is built by everybody (`BLCKSZ`).
pub const BLOCK_BYTES: u64 = 8192;

/// `INCREMENTAL_MAGIC` in `basebackup_incremental.h`.
const MAGIC: u32 = 0xD3AE_1F0D;

/// Magic number, `n` and `t`.
const FIXED_BYTES: usize = 12;

/// What an incremental file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IncrementalHeader {
    /// Blocks of older versions count below this one alone.
    pub truncation_block: u32,
    /// The blocks that follow, by their numbers in the file; ascending.
    pub blocks: Vec<u32>,
}

/// The bytes are not an incremental file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is no incremental file: it {0}")]
pub struct IncrementalError(&'static str);

impl IncrementalHeader {
    /// Where the first of the blocks begins in the file.
    pub fn bytes(&self) -> u64 {
        let bytes = (FIXED_BYTES + 4 * self.blocks.len()) as u64;
        if self.blocks.is_empty() { bytes } else { bytes.next_multiple_of(BLOCK_BYTES) }
    }

    /// How long the incremental file is.
    pub fn file_bytes(&self) -> u64 {
        self.bytes() + self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// How many blocks the whole file has.
    pub fn whole_blocks(&self) -> u32 {
        self.blocks.last().map_or(0, |last| last + 1).max(self.truncation_block)
    }

    /// Reads the parts that are complete; `Err` with the bytes that are needed.
    fn parse(bytes: &[u8]) -> Result<Result<IncrementalHeader, usize>, IncrementalError> {
        let Some((fixed, numbers)) = bytes.split_at_checked(FIXED_BYTES) else { return Ok(Err(FIXED_BYTES)) };
        let mut fields = words(fixed);
        let mut field = || fields.next().unwrap_or(0);
        let (magic, count, truncation_block) = (field(), field(), field());
        if magic != MAGIC {
            return Err(IncrementalError("does not begin with the magic number"));
        }
        if count > SEGMENT_BLOCKS || truncation_block > SEGMENT_BLOCKS {
            return Err(IncrementalError("has more blocks than a file of a relation can have"));
        }
        let wanted = count as usize * 4;
        let Some(numbers) = numbers.get(..wanted) else { return Ok(Err(FIXED_BYTES + wanted)) };
        let blocks: Vec<u32> = words(numbers).collect();
        if !blocks.is_sorted_by(|one, next| one < next) || blocks.last().is_some_and(|last| *last >= SEGMENT_BLOCKS) {
            return Err(IncrementalError("lists blocks out of order"));
        }
        Ok(Ok(IncrementalHeader { truncation_block, blocks }))
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// Finds the header in a file's contents, however they arrive. Memory: the header, half a megabyte at most.
#[derive(Debug)]
pub struct HeaderReader {
    bytes: Vec<u8>,
    needed_bytes: usize,
    header: Option<Arc<IncrementalHeader>>,
    file_bytes: u64,
}

impl HeaderReader {
    /// For a file that is `file_bytes` long.
    pub fn new(file_bytes: u64) -> HeaderReader {
        HeaderReader { bytes: Vec::new(), needed_bytes: FIXED_BYTES, header: None, file_bytes }
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// If they are not the beginning of an incremental file of this length.
    pub fn push(&mut self, mut content: &[u8]) -> Result<(), IncrementalError> {
        while self.header.is_none() && !content.is_empty() {
            let (now, rest) = content.split_at(content.len().min(self.needed_bytes - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            content = rest;
            if self.bytes.len() < self.needed_bytes {
                return Ok(());
            }
            match IncrementalHeader::parse(&self.bytes)? {
                Err(needed_bytes) => self.needed_bytes = needed_bytes,
                Ok(header) if header.file_bytes() == self.file_bytes => {
                    self.bytes = Vec::new();
                    self.header = Some(Arc::new(header));
                }
                Ok(_) => return Err(IncrementalError("has another length than its header says")),
            }
        }
        Ok(())
    }

    /// The header, once it is complete.
    pub fn header(&self) -> Option<&Arc<IncrementalHeader>> {
        self.header.as_ref()
    }

    /// Says that the file ends here.
    ///
    /// # Errors
    /// If its header was not complete.
    pub fn finish(self) -> Result<Arc<IncrementalHeader>, IncrementalError> {
        self.header.ok_or(IncrementalError("ends within its header"))
    }
}

/// Writes incremental files as PostgreSQL does, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::{BLOCK_BYTES, MAGIC};

    /// A file with these blocks.
    pub(crate) fn incremental(truncation_block: u32, blocks: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let numbers = blocks.iter().map(|(number, _)| *number);
        let words = [MAGIC, blocks.len() as u32, truncation_block].into_iter().chain(numbers);
        let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        }
        bytes.extend(blocks.iter().flat_map(|(_, block)| block.clone()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::incremental;
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], file_bytes: u64, step: usize) -> Result<Arc<IncrementalHeader>, IncrementalError> {
        let mut reader = HeaderReader::new(file_bytes);
        for piece in bytes.chunks(step) {
            reader.push(piece)?;
        }
        reader.finish()
    }

    #[test]
    fn a_header_is_read_however_it_arrives() {
        let block = vec![7; BLOCK_BYTES as usize];
        let file = incremental(9, &[(3, block.clone()), (20, block)]);
        for step in [1, 5, 12, 4096, 1 << 20] {
            let header = read(&file, file.len() as u64, step).unwrap();
            assert_eq!((header.truncation_block, header.blocks.as_slice()), (9, &[3, 20][..]));
            assert_eq!((header.bytes(), header.whole_blocks()), (BLOCK_BYTES, 21));
        }
        // A file that has not changed is the header and nothing else.
        let unchanged = incremental(9, &[]);
        let header = read(&unchanged, 12, 7).unwrap();
        assert_eq!((header.bytes(), header.file_bytes(), header.whole_blocks()), (12, 12, 9));
    }

    #[test]
    fn what_postgresql_never_writes_is_refused() {
        let block = vec![7; BLOCK_BYTES as usize];
        let refused = |bytes: &[u8]| read(bytes, bytes.len() as u64, 4096).unwrap_err().to_string();
        let good = incremental(9, &[(3, block.clone()), (20, block.clone())]);
        assert!(refused(&good[..good.len() - 1]).contains("another length"));
        assert!(refused(&good[..14]).contains("ends within"));
        assert!(refused(&[good.clone(), vec![0]].concat()).contains("another length"));
        assert!(refused(&vec![1; 8192]).contains("magic"));
        assert!(refused(&incremental(SEGMENT_BLOCKS + 1, &[])).contains("more blocks"));
        for numbers in [[3, 3], [4, 3], [0, SEGMENT_BLOCKS]] {
            let file = incremental(9, &numbers.map(|number| (number, block.clone())));
            assert!(refused(&file).contains("out of order"), "{numbers:?}");
        }
        assert!(read(&[], 0, 1).is_err(), "an empty file");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, step in 1usize..20, begins_well: bool) {
            if begins_well {
                bytes.splice(0..0, MAGIC.to_le_bytes());
            }
            let _ = read(&bytes, bytes.len() as u64, step);
        }
    }
}
