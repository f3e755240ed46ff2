//! Pages of relations as they pass: which files have them, and whether a page is what PostgreSQL wrote. Pure.
//!
//! The server checks them as well if it has data checksums: what both reject is wrong on its disk. What only we reject it may
//! not have looked at.

use crate::repository::FilePath;
use crate::wal::Lsn;
use std::collections::BTreeMap;

/// PostgreSQL's page, as it is built by everybody (`BLCKSZ`).
pub(crate) const PAGE_BYTES: usize = 8192;

/// Pages in each file of a relation but the last: 1 GB of them (`RELSEG_SIZE` in `pg_config.h`).
const SEGMENT_PAGES: u32 = 131_072;

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

    /// The numbers of the pages in `bytes` that are not what PostgreSQL writes. The first of `bytes` are of page `first`,
    /// whose beginning is `head`; a page that is not complete at the end is left out.
    pub(crate) fn rejected(&self, first: u32, head: &[u8], bytes: &[u8]) -> Vec<u32> {
        let mut rejected = Vec::new();
        let mut look = |page: &[u8], block: u32| {
            if let Ok(page) = page.try_into()
                && !self.accepts(page, block)
            {
                rejected.push(block);
            }
        };
        let mut first_whole = first;
        let mut whole = bytes;
        if !head.is_empty() {
            let (completing, behind) = bytes.split_at(bytes.len().min(PAGE_BYTES.saturating_sub(head.len())));
            look(&[head, completing].concat(), first);
            (first_whole, whole) = (first.wrapping_add(1), behind);
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

/// The number of the first page in a file of a relation; `None` for a file of anything else, which has no pages.
pub(crate) fn first_page(path: &FilePath) -> Option<u32> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = std::str::from_utf8(path.as_bytes()).ok()?.split('/').collect();
    let name = match parts[..] {
        ["global", name] => name,
        ["base", database, name] if is_number(database) => name,
        ["pg_tblspc", oid, version, database, name]
            if is_number(oid) && version.starts_with("PG_") && is_number(database) =>
        {
            name
        }
        _ => return None,
    };
    let (relation, segment) = match name.split_once('.') {
        Some((relation, segment)) if is_number(segment) => (relation, segment.parse::<u32>().ok()),
        Some(_) => return None,
        None => (name, Some(0)),
    };
    let (number, fork) = relation.split_once('_').map_or((relation, None), |(number, fork)| (number, Some(fork)));
    let is_relation = is_number(number) && fork.is_none_or(|fork| ["fsm", "vm", "init"].contains(&fork));
    segment.filter(|_| is_relation)?.checked_mul(SEGMENT_PAGES)
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

    const CHECKS: PageChecks = PageChecks { start_lsn: Lsn(0x2000), has_checksums: true };

    fn first_page_of(path: &str) -> Option<u32> {
        first_page(&FilePath::parse(path.as_bytes()).unwrap())
    }

    #[test]
    fn files_of_relations_are_known_by_their_names() {
        for path in ["base/5/16384", "global/1262", "base/5/16384_vm", "base/1/2_fsm", "base/1/2_init"] {
            assert_eq!(first_page_of(path), Some(0), "{path}");
        }
        assert_eq!(first_page_of("base/5/16384.3"), Some(3 * SEGMENT_PAGES));
        assert_eq!(first_page_of("pg_tblspc/16400/PG_15_202209061/5/16401_fsm.2"), Some(2 * SEGMENT_PAGES));
        for path in [
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/1.2",
            "base/5/16384_other",
            "base/5/16384.x",
            "base/5/16384.",
            "base/5/_vm",
            "base/5/99.4294967295",
            "pg_wal/000000010000000000000001",
            "pg_xact/0000",
            "pg_tblspc/16400/5/16401",
            "16384",
        ] {
            assert_eq!(first_page_of(path), None, "{path}");
        }
    }

    #[test]
    fn a_page_is_rejected_for_any_changed_bit_and_in_any_other_place() {
        let good = page(7, 0x1000, 3);
        assert!(CHECKS.rejected(7, &[], &good).is_empty());
        assert_eq!(CHECKS.rejected(8, &[], &good), [8], "in another place");
        for at in [9, 12, 20, 4095, PAGE_BYTES - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(CHECKS.rejected(7, &[], &bad), [7], "byte {at}");
        }
    }

    #[test]
    fn what_recovery_writes_anew_and_what_was_never_used_is_not_looked_at() {
        let mut later = page(7, 0x2000, 3);
        later[100] ^= 1;
        assert!(CHECKS.rejected(7, &[], &later).is_empty());
        assert!(CHECKS.rejected(7, &[], &[0; PAGE_BYTES]).is_empty());
    }

    #[test]
    fn a_page_is_put_together_wherever_a_frame_cuts_it() {
        // Given three pages, the second of which is damaged, and some bytes of a fourth
        let mut bytes = [page(10, 1, 1), page(11, 1, 2), page(12, 1, 3), vec![9; 100]].concat();
        bytes[PAGE_BYTES + 5000] ^= 1;
        // When the frame before has the beginning of the first, then the second is the one that is found
        for cut in [0, 1, 512, PAGE_BYTES - 1] {
            assert_eq!(CHECKS.rejected(10, &bytes[..cut], &bytes[cut..]), [11], "cut at {cut}");
        }
        // And the same for the damaged one
        for cut in [PAGE_BYTES + 1, PAGE_BYTES + 5001, 2 * PAGE_BYTES - 1] {
            assert_eq!(CHECKS.rejected(11, &bytes[PAGE_BYTES..cut], &bytes[cut..]), [11], "cut at {cut}");
        }
        // A file that ends inside of a page has no page there
        assert!(CHECKS.rejected(10, &bytes[..100], &bytes[100..200]).is_empty());
    }

    #[test]
    fn without_checksums_a_header_must_make_sense() {
        let checks = PageChecks { has_checksums: false, ..CHECKS };
        let mut changed = page(7, 0x1000, 3);
        changed[5000] ^= 1;
        assert!(checks.rejected(7, &[], &changed).is_empty(), "nothing says what that byte was");
        changed[13] = 0x7F;
        assert_eq!(checks.rejected(7, &[], &changed), [7], "free space that ends before it begins");
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
