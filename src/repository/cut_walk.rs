//! Reads along stored WAL what it cuts, from the indexes in front of encrypted objects: nothing is decrypted.

use super::catalog::Stored;
use super::cut_index::{Cut, CutIndex};
use super::identity::{Identity, PREFIX_BYTES, Subject, read_prefix};
use super::reader::WalReader;
use crate::codec::{CodecError, encryption};
use crate::error::{Error, Kind, Result};
use crate::store::StoreErrorKind;
use crate::wal::{Lsn, SegmentSize, WalRange};
use futures_util::{StreamExt, stream};

/// Heads fetched at once: each is a few kilobytes.
const FETCHES: usize = 16;

/// The longest header of an encrypted object.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// How often a listing is made again that has become stale under our hands.
const RELISTINGS: usize = 5;

/// Why the cuts in a range cannot be told from indexes. They may still be told from the WAL itself.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoIndex {
    /// An object has none: it is not encrypted, an older Seawall stored it, or it has too many cuts.
    #[error("{0} does not say in clear which relations its WAL cuts")]
    Missing(String),
    /// Two objects of which neither knows all of the record between them: an archiver was started there.
    #[error("of the record at the beginning of {0} it is not known whether it cuts a relation")]
    Between(String),
    /// Nothing is stored there.
    #[error("WAL from {0} on is not stored")]
    Hole(Lsn),
}

/// A way along indexes that can be gone on with.
#[derive(Clone, Debug)]
pub struct CutWalk {
    size: SegmentSize,
    /// All before is done: the first byte of a block.
    position: Lsn,
    /// What is stored before ends within a record that may be a cut.
    ends_within: bool,
}

impl CutWalk {
    /// To find what is cut by records that begin at `from` or behind.
    pub fn new(size: SegmentSize, from: Lsn) -> CutWalk {
        // A record in which the block begins is none of these.
        CutWalk { size, position: size.block_start(from), ends_within: false }
    }

    /// Where the next range to read begins.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Gives every cut in `files`, which begin where it is and follow on one another, to `out`, with the place where its
    /// record begins; it may give more. The same may come again with the next call.
    ///
    /// # Errors
    /// If the store fails, or an object is not what it should be.
    pub async fn read(
        &mut self,
        reader: &WalReader,
        files: &[WalRange],
        out: &mut (dyn FnMut(Lsn, Cut) + Send),
    ) -> Result<Result<(), NoIndex>> {
        let mut ends_within = self.ends_within;
        for range in files {
            let mut listings = 0;
            ends_within = loop {
                match self.read_range(reader, *range, ends_within, out).await? {
                    Ok(Some(ends_within)) => break ends_within,
                    Ok(None) if listings < RELISTINGS => listings += 1,
                    Ok(None) => return Ok(Err(NoIndex::Hole(range.start))),
                    Err(why) => return Ok(Err(why)),
                }
            };
        }
        Ok(Ok(()))
    }

    /// What is stored before `range` ends within a record that may be a cut, or not; the answer is the same for the range. `None` if
    /// an object that was listed is gone: list again.
    async fn read_range(
        &mut self,
        reader: &WalReader,
        range: WalRange,
        mut ends_within: bool,
        out: &mut (dyn FnMut(Lsn, Cut) + Send),
    ) -> Result<Result<Option<bool>, NoIndex>> {
        let coverage = reader.repository().read_coverage(range.timeline, range.start).await?;
        let chain: Vec<Stored> = match coverage.chain(range.start, range.end) {
            Ok(chain) => chain.into_iter().cloned().collect(),
            Err(hole) => return Ok(Err(NoIndex::Hole(hole))),
        };
        let mut heads = stream::iter(chain)
            .map(|stored| async move { read_index(reader, &stored).await.map(|head| (stored, head)) })
            .buffered(FETCHES);
        while let Some(head) = heads.next().await {
            let (Stored { range: stored, name, .. }, index) = match head? {
                (_, Head::Gone) => return Ok(Ok(None)),
                (stored, Head::WithoutIndex) => return Ok(Err(NoIndex::Missing(stored.name))),
                (stored, Head::Index(index)) => (stored, index),
            };
            if index.begins_within && ends_within {
                return Ok(Err(NoIndex::Between(name)));
            }
            index.cuts().for_each(|(at, cut)| out(at, cut));
            ends_within = index.ends_within;
            if stored.end == self.size.block_start(stored.end) && stored.end <= range.end {
                (self.position, self.ends_within) = (stored.end, ends_within);
            }
        }
        Ok(Ok(Some(ends_within)))
    }
}

/// What an object is found to say.
enum Head {
    Gone,
    WithoutIndex,
    Index(CutIndex),
}

async fn read_index(reader: &WalReader, stored: &Stored) -> Result<Head> {
    let name = &stored.name;
    if !stored.ending.is_encrypted {
        return Ok(Head::WithoutIndex);
    }
    for bytes_max in [PREFIX_BYTES, HEAD_BYTES_MAX] {
        let prefix = match read_prefix(reader.repository().store.as_ref(), name, bytes_max).await {
            Ok(prefix) => prefix,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Head::Gone),
            Err(error) => return Err(error.into()),
        };
        let (note, cuts) = match (encryption::read_note(&prefix), encryption::read_cuts(&prefix)) {
            (Err(CodecError::Cut { .. }), _) | (_, Err(CodecError::Cut { .. })) => continue,
            (note, cuts) => (note, cuts),
        };
        let unreadable = |error| Error::from(error).context(name);
        let identity = Identity::parse(name, note.map_err(unreadable)?.as_deref())?;
        identity.check(name, reader.system_identifier(), &Subject::wal(stored.range))?;
        let Some(cuts) = cuts.map_err(unreadable)? else { return Ok(Head::WithoutIndex) };
        return match CutIndex::decode(&cuts) {
            Ok(index) => Ok(index.map_or(Head::WithoutIndex, Head::Index)),
            Err(why) => Err(Error::new(Kind::Damaged, format!("{name} has a damaged index of cuts: {why}"))),
        };
    }
    Ok(Head::WithoutIndex)
}
