//! Pages of relations as they pass: which files have them, and whether a page is what PostgreSQL wrote. Pure.
//!
//! The server checks them as well if it has data checksums: what both reject is wrong on its disk. What only we reject it may
//! not have looked at.

use crate::repository::incremental::IncrementalHeader;
use crate::repository::{FilePath, RelationFile};
use crate::wal::Lsn;
use std::collections::BTreeMap;
use std::sync::Arc;

/// PostgreSQL's page, as it is built by everybody (`BLCKSZ`).
pub(crate) const PAGE_BYTES: usize = 8192;

/// Page size and layout version 4, since 8.3 (`PG_PAGE_LAYOUT_VERSION` in `bufpage.h`).
const SIZE_AND_VERSION: u16 = 0x2004;

/// Two primes and the start of each lane (`checksum_impl.h`).
const FNV_PRIME: u32 = 16_777_619;
const LANES: usize = 32;
const LANE_STARTS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What is expected of pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageChecks {
    /// Where the backup begins: a later page may have been caught half written, and recovery writes it anew.
    start_lsn: Lsn,
    has_checksums: bool,
}

impl PageChecks {
    /// For a server with these settings; `None` if its pages are built otherwise than everybody's.
    pub(crate) fn new(settings: &BTreeMap<String, String>, start_lsn: Lsn) -> Option<PageChecks> {
        let is = |name: &str, value: &str| settings.get(name).is_some_and(|it| it == value);
        let is_known = is("block_size", "8192") && is("segment_size", "1GB");
        is_known.then(|| PageChecks { start_lsn, has_checksums: is("data_checksums", "on") })
    }

    /// The server writes data checksums.
    pub(crate) fn has_checksums(&self) -> bool {
        self.has_checksums
    }

    /// The numbers of the pages in `bytes`, which begin at `pages`, that are not what PostgreSQL writes. A page that is not
    /// complete at the end is left out.
    pub(crate) fn rejected(&self, pages: &Pages, bytes: &[u8]) -> Vec<u32> {
        let mut rejected = Vec::new();
        let mut look = |page: &[u8], at: u32| {
            if let (Ok(page), Some(block)) = (page.try_into(), pages.numbering.page_at(at))
                && !self.accepts(page, block)
            {
                rejected.push(block);
            }
        };
        let mut first_whole = pages.first;
        let mut whole = bytes;
        if !pages.head.is_empty() {
            let (completing, behind) = bytes.split_at(bytes.len().min(PAGE_BYTES.saturating_sub(pages.head.len())));
            look(&[&pages.head, completing].concat(), pages.first);
            (first_whole, whole) = (first_whole.wrapping_add(1), behind);
        }
        whole.chunks_exact(PAGE_BYTES).zip(0u32..).for_each(|(page, at)| look(page, first_whole.wrapping_add(at)));
        rejected
    }

    fn accepts(&self, page: &[u8; PAGE_BYTES], block: u32) -> bool {
        // `PageHeaderData` in `bufpage.h`.
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
        let (lsn, checksum) = (Lsn(u32_at(0) << 32 | u32_at(4)), u16_at(8));
        let (lower, upper, special, size_and_version) = (u16_at(12), u16_at(14), u16_at(16), u16_at(18));
        // A page that was added and never used, or one that recovery writes anew.
        if upper == 0 || lsn >= self.start_lsn {
            return true;
        }
        match self.has_checksums {
            true => checksum == checksum_of(page, block),
            false => {
                let in_order = lower <= upper && upper <= special && usize::from(special) <= PAGE_BYTES;
                in_order && size_and_version == SIZE_AND_VERSION
            }
        }
    }
}

/// The checksum of a page with its own field as zero (`pg_checksum_page` in `checksum_impl.h`).
fn checksum_of(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    // Sixteen lanes fit into the registers of every processor, thirty-two do not: this is twice as fast.
    const HALF: usize = LANES / 2;
    let step = |lane: u32, value: u32| {
        let mixed = lane ^ value;
        mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
    };
    let mut lanes = LANE_STARTS;
    // A value is first combined with its lane's start by XOR: what is in both cancels out.
    lanes[2] ^= u32::from(u16::from_le_bytes([page[8], page[9]]));
    let (words, _) = page.as_chunks::<4>();
    let (halves, _) = words.as_chunks::<HALF>();
    let mut folded = block;
    for (half, lanes) in lanes.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
        for values in halves.iter().skip(half).step_by(2) {
            for lane in 0..HALF {
                lanes[lane] = step(lanes[lane], u32::from_le_bytes(values[lane]));
            }
        }
        folded = lanes.iter().fold(folded, |folded, lane| folded ^ step(step(*lane, 0), 0));
    }
    (folded % 65_535 + 1) as u16
}

/// The numbers of the pages in a file of a relation, in the relation's fork.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Numbering {
    /// All of them, from this one on.
    From(u32),
    /// Those that an incremental file lists, behind its header, of which the file's first has this number. Without a
    /// header: it is not complete yet, and no page has come.
    Listed(u32, Option<Arc<IncrementalHeader>>),
}

impl Numbering {
    /// For the file at `path`; `None` for a file of anything else, which has no pages.
    pub(crate) fn of(path: &FilePath) -> Option<Numbering> {
        let file = RelationFile::parse(path)?;
        Some(match file.is_incremental {
            true => Numbering::Listed(file.first_block(), None),
            false => Numbering::From(file.first_block()),
        })
    }

    /// The number of the page that begins at `at` pages from the file's beginning; `None` for what is no page.
    fn page_at(&self, at: u32) -> Option<u32> {
        match self {
            Numbering::From(first) => Some(first.wrapping_add(at)),
            Numbering::Listed(first, header) => {
                let header = header.as_ref()?;
                let listed = u64::from(at).checked_sub(header.bytes() / PAGE_BYTES as u64)?;
                header.blocks.get(listed as usize).map(|block| first.wrapping_add(*block))
            }
        }
    }
}

/// Where in a relation some bytes begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pages {
    /// The page of the first byte, counted from the file's beginning.
    pub(crate) first: u32,
    /// What came before of that page.
    pub(crate) head: Vec<u8>,
    /// What the pages are called.
    pub(crate) numbering: Numbering,
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A page as PostgreSQL writes it.
    pub(crate) fn page(block: u32, lsn: u64, fill: u8) -> Vec<u8> {
        let mut page = [fill; PAGE_BYTES];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let header = [0, 0, 32, 4096, 8192, SIZE_AND_VERSION];
        page[8..20].copy_from_slice(&header.map(u16::to_le_bytes).concat());
        let checksum = checksum_of(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page.into()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::page;
    use super::*;
    use crate::repository::incremental::HeaderReader;
    use crate::repository::incremental::testing::incremental;

    const CHECKS: PageChecks = PageChecks { start_lsn: Lsn(0x2000), has_checksums: true };

    fn rejected(first: u32, head: &[u8], bytes: &[u8]) -> Vec<u32> {
        CHECKS.rejected(&Pages { first, head: head.to_vec(), numbering: Numbering::From(0) }, bytes)
    }

    #[test]
    fn a_page_is_rejected_for_any_changed_bit_and_in_any_other_place() {
        let good = page(7, 0x1000, 3);
        assert!(rejected(7, &[], &good).is_empty());
        assert_eq!(rejected(8, &[], &good), [8], "in another place");
        for at in [9, 12, 20, 4095, PAGE_BYTES - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(rejected(7, &[], &bad), [7], "byte {at}");
        }
    }

    #[test]
    fn what_recovery_writes_anew_and_what_was_never_used_is_not_looked_at() {
        let mut later = page(7, 0x2000, 3);
        later[100] ^= 1;
        assert!(rejected(7, &[], &later).is_empty());
        assert!(rejected(7, &[], &[0; PAGE_BYTES]).is_empty());
    }

    #[test]
    fn a_page_is_put_together_wherever_a_frame_cuts_it() {
        // Given three pages, the second of which is damaged, and some bytes of a fourth
        let mut bytes = [page(10, 1, 1), page(11, 1, 2), page(12, 1, 3), vec![9; 100]].concat();
        bytes[PAGE_BYTES + 5000] ^= 1;
        // When the frame before has the beginning of the first, then the second is the one that is found
        for cut in [0, 1, 512, PAGE_BYTES - 1] {
            assert_eq!(rejected(10, &bytes[..cut], &bytes[cut..]), [11], "cut at {cut}");
        }
        // And the same for the damaged one
        for cut in [PAGE_BYTES + 1, PAGE_BYTES + 5001, 2 * PAGE_BYTES - 1] {
            assert_eq!(rejected(11, &bytes[PAGE_BYTES..cut], &bytes[cut..]), [11], "cut at {cut}");
        }
        // A file that ends inside of a page has no page there
        assert!(rejected(10, &bytes[..100], &bytes[100..200]).is_empty());
    }

    #[test]
    fn the_pages_of_an_incremental_file_have_the_numbers_that_it_lists() {
        // Given the second file of a relation, of which two pages have changed
        let path = FilePath::parse(b"base/5/INCREMENTAL.16384.1").unwrap();
        let first = 131_072;
        let file = incremental(50, &[(3, page(first + 3, 1, 1)), (20, page(first + 20, 1, 2))]);
        let mut reader = HeaderReader::new(file.len() as u64);
        reader.push(&file).unwrap();
        let pages = |first_page: u32, head: &[u8], header: Option<&Arc<IncrementalHeader>>| {
            let Some(Numbering::Listed(first, None)) = Numbering::of(&path) else { panic!("{path}") };
            Pages { first: first_page, head: head.to_vec(), numbering: Numbering::Listed(first, header.cloned()) }
        };
        // Then they are accepted in their places, and their header is no page
        assert!(CHECKS.rejected(&pages(0, &[], reader.header()), &file).is_empty());
        assert!(CHECKS.rejected(&pages(0, &[], None), &file[..PAGE_BYTES]).is_empty());
        // And a changed byte is found, also where a frame cuts the page
        let mut bad = file.clone();
        bad[2 * PAGE_BYTES + 5000] ^= 1;
        assert_eq!(CHECKS.rejected(&pages(0, &[], reader.header()), &bad), [first + 20]);
        let (head, rest) = bad[PAGE_BYTES..].split_at(PAGE_BYTES + 100);
        assert_eq!(CHECKS.rejected(&pages(2, &head[PAGE_BYTES..], reader.header()), rest), [first + 20]);
    }

    #[test]
    fn without_checksums_a_header_must_make_sense() {
        let checks = PageChecks { has_checksums: false, ..CHECKS };
        let mut changed = page(7, 0x1000, 3);
        changed[5000] ^= 1;
        let at_seven = Pages { first: 0, head: Vec::new(), numbering: Numbering::From(7) };
        assert!(checks.rejected(&at_seven, &changed).is_empty(), "nothing says what that byte was");
        changed[13] = 0x7F;
        assert_eq!(checks.rejected(&at_seven, &changed), [7], "free space that ends before it begins");
    }

    #[test]
    fn servers_that_are_built_otherwise_are_left_alone() {
        let settings = |block: &str, segment: &str| {
            let pairs = [("block_size", block), ("segment_size", segment), ("data_checksums", "on")];
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        assert!(PageChecks::new(&settings("8192", "1GB"), Lsn(1)).is_some_and(|checks| checks.has_checksums));
        assert!(PageChecks::new(&settings("16384", "1GB"), Lsn(1)).is_none());
        assert!(PageChecks::new(&settings("8192", "2GB"), Lsn(1)).is_none());
        assert!(PageChecks::new(&BTreeMap::new(), Lsn(1)).is_none());
    }
}
