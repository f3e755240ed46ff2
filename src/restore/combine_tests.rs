//! Chains of invented files, against a straightforward reading of the rules.

use super::*;
use crate::repository::BackupFile;
use proptest::prelude::*;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A relation in one backup of a chain.
#[derive(Clone, Debug)]
enum Version {
    /// Each block's filling.
    Whole(Vec<u8>),
    /// Where older ones are cut, and the blocks that have changed.
    Changed(u32, Vec<(u32, u8)>),
}

impl Version {
    fn content(&self) -> Content {
        match self {
            Version::Whole(blocks) => Content::Whole(blocks.len() as u32),
            Version::Changed(truncation_block, blocks) => Content::Listed(Arc::new(IncrementalHeader {
                truncation_block: *truncation_block,
                blocks: blocks.iter().map(|(number, _)| *number).collect(),
            })),
        }
    }

    /// The bytes as they are in the backup.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Version::Whole(blocks) => blocks.iter().flat_map(|filling| [*filling; BLOCK]).collect(),
            Version::Changed(truncation_block, blocks) => {
                let blocks: Vec<_> = blocks.iter().map(|(number, filling)| (*number, vec![*filling; BLOCK])).collect();
                crate::repository::incremental::testing::incremental(*truncation_block, &blocks)
            }
        }
    }
}

fn path() -> FilePath {
    FilePath::parse(b"base/5/16384").unwrap()
}

/// Puts a relation together as a restore does; the newest version comes first.
fn combine(chain: &[Version], step: usize) -> Vec<u8> {
    let Content::Listed(newest) = chain[0].content() else { panic!("the newest is incremental") };
    let mut whole = vec![0; newest.whole_blocks() as usize * BLOCK];
    let mut combination = None;
    for version in chain {
        let content = version.content();
        let listed = match &content {
            // What is kept of a header between two parts is all of it.
            Content::Listed(header) => {
                let listed = Listed::of(header);
                assert_eq!(listed.header(), **header);
                vec![(path(), listed)]
            }
            Content::Whole(_) => Vec::new(),
        };
        let assembly = match &combination {
            None => None,
            Some(combination) => match Combination::file(combination, &path()) {
                Some(assembly) => Some(assembly),
                None => break,
            },
        };
        let bytes = version.bytes();
        for (number, piece) in bytes.chunks(step).enumerate() {
            for (range, place) in content.places(assembly, (number * step) as u64, piece.len()) {
                whole[place as usize..][..range.len()].copy_from_slice(&piece[range]);
            }
        }
        match &mut combination {
            None => combination = Some(Combination::of_newest(listed)),
            Some(combination) => combination.take_in(listed),
        }
    }
    assert!(combination.unwrap().is_complete() || matches!(chain.last(), Some(Version::Changed(..))));
    whole
}

/// The first byte of each block.
fn fillings(whole: &[u8]) -> Vec<u8> {
    assert!(whole.chunks(BLOCK).all(|block| block.iter().all(|byte| *byte == block[0])), "blocks were mixed up");
    whole.chunks(BLOCK).map(|block| block[0]).collect()
}

#[test]
fn each_block_is_the_newest_that_there_is() {
    let chain = [
        Version::Changed(4, vec![(1, 31)]),
        Version::Changed(4, vec![(1, 21), (2, 22)]),
        Version::Whole(vec![10, 11, 12, 13, 14]),
    ];
    assert_eq!(fillings(&combine(&chain, 10_000)), [10, 31, 22, 13]);
}

#[test]
fn a_block_from_before_a_cut_never_comes_back_in_whichever_backup_the_cut_is() {
    let full = Version::Whole(vec![10, 11, 12, 13]);
    // Cut to one block and grown again by pages that were never written: they are zeros
    let cut = Version::Changed(1, vec![(3, 33)]);
    assert_eq!(fillings(&combine(&[cut.clone(), full.clone()], BLOCK)), [10, 0, 0, 33]);
    // Also where a later backup sees nothing but its length.
    let later = Version::Changed(4, vec![(0, 40)]);
    assert_eq!(fillings(&combine(&[later, cut, full], BLOCK)), [40, 0, 0, 33]);
}

#[test]
fn what_lies_behind_a_whole_file_is_not_asked() {
    let chain = [Version::Changed(3, vec![]), Version::Whole(vec![20, 21]), Version::Whole(vec![10, 11, 12])];
    assert_eq!(fillings(&combine(&chain, 777)), [20, 21, 0], "a page that was never written is zeros");
}

#[test]
fn every_file_that_is_not_complete_must_be_in_the_next_backup() {
    let file = |path: &&[u8]| BackupFile { path: FilePath::parse(path).unwrap(), part: 0, offset: 0, bytes: 0 };
    let header = IncrementalHeader { truncation_block: 1, blocks: Vec::new() };
    let combination = Combination::of_newest(vec![(path(), Listed::of(&header))]);
    let members = |names: &[&[u8]], is_incremental: bool| {
        let files: BackupFiles = names.iter().map(file).collect();
        let path = |place| files.get(place).unwrap().path.to_string();
        combination.members(&files, is_incremental).map(|found| found.iter().map(path).collect::<Vec<_>>())
    };
    assert_eq!(members(&[b"base/5/1".as_slice(), b"base/5/16384"], true), Ok(vec!["base/5/16384".to_owned()]));
    assert_eq!(members(&[b"base/5/INCREMENTAL.16384"], true), Ok(vec!["base/5/INCREMENTAL.16384".to_owned()]));
    assert_eq!(members(&[b"base/5/INCREMENTAL.16384"], false), Err(path()), "in a full backup it is a stranger");
    assert_eq!(members(&[b"base/5/16384.1"], true), Err(path()));
}

/// The rules, block by block.
fn expected(chain: &[Version]) -> Vec<u8> {
    let Version::Changed(cut, changed) = &chain[0] else { panic!("the newest is incremental") };
    let length = changed.last().map_or(0, |(last, _)| last + 1).max(*cut);
    let block = |number: u32| {
        let mut limit = u32::MAX;
        for version in chain {
            match version {
                _ if number >= limit => return 0,
                Version::Whole(blocks) => return blocks.get(number as usize).copied().unwrap_or(0),
                Version::Changed(cut, changed) => {
                    if let Some((_, filling)) = changed.iter().find(|(changed, _)| *changed == number) {
                        return *filling;
                    }
                    limit = limit.min(*cut);
                }
            }
        }
        0
    };
    (0..length).map(block).collect()
}

fn changed() -> impl Strategy<Value = Version> {
    let blocks = prop::collection::btree_map(0u32..150, 1u8.., 0..20);
    (0u32..150, blocks).prop_map(|(cut, blocks)| Version::Changed(cut, blocks.into_iter().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn chains_are_combined_by_the_rules(
        newest in changed(),
        between in prop::collection::vec(changed(), 0..3),
        full in prop::collection::vec(1u8.., 0..150),
        step in 1000usize..100_000,
    ) {
        let mut chain = vec![newest];
        chain.extend(between);
        chain.push(Version::Whole(full));
        prop_assert_eq!(fillings(&combine(&chain, step)), expected(&chain));
    }
}
