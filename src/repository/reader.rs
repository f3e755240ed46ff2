//! Reading WAL back: the block if it is there, else the tails, checked byte for byte.

use super::Repository;
use super::catalog::{Coverage, Stored};
use super::identity::{Identity, Subject};
use super::layout::Key;
use super::writer::Stamp;
use crate::codec::{self, Ending, Identities, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::StoreErrorKind;
use crate::wal::{BLOCK_BYTES_MAX, Lsn, TimelineId, WalRange};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often a listing that has become stale under our hands is made again before that is an error.
const RELISTINGS: usize = 5;

/// Reads one cluster's WAL.
#[derive(Clone, Debug)]
pub struct WalReader {
    repository: Repository,
    system_identifier: u64,
    /// How the last block that was found was stored: that is tried first.
    last_ending: Arc<Mutex<Ending>>,
}

/// What a reader found for a range: the bytes from its start up to the first hole or its end.
#[derive(Clone, Debug)]
pub struct Window {
    /// Stretches in order, without a gap between them.
    pub pieces: Vec<Bytes>,
    /// The first position that nothing covers, or the end of the range.
    pub end: Lsn,
    /// True if something is stored behind `end`, within the range or later on the timeline: then the range ends in a
    /// hole, and not at the end of the archive.
    pub has_more_behind: bool,
}

impl WalReader {
    /// Reads from `repository`, whose cluster has this system identifier.
    pub fn new(repository: Repository, system_identifier: u64) -> WalReader {
        let ending = repository.layout.form().ending();
        WalReader { repository, system_identifier, last_ending: Arc::new(Mutex::new(ending)) }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whose WAL it reads.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// The bytes of one stored object, checked; `None` if it is gone, which for a tail only means: list again.
    ///
    /// # Errors
    /// If the store fails, or what is stored is not what its name and its hash say.
    pub async fn read(&self, stored: &Stored) -> Result<Option<Bytes>> {
        let name = stored.name.clone();
        let bytes = match self.repository.store.get(&name, None).await {
            Ok(stream) => stream.collect().await?,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (range, system_identifier) = (stored.range, self.system_identifier);
        let identities = self.repository.layout.form().identities.clone();
        runtime::blocking(move || decode(&name, range, system_identifier, &identities, bytes)).await?.map(Some)
    }

    /// True if a reader failed because what it read is encrypted, and not for us: then there is nothing wrong with it.
    pub fn is_sealed_from_us(error: &Error) -> bool {
        // Nothing else that is read is a question of the configuration.
        error.kind() == Kind::Config
    }

    /// The bytes of a whole block, straight by its name; `None` if it is not there.
    ///
    /// # Errors
    /// As [`WalReader::read`].
    pub async fn read_block(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>> {
        let size = self.repository.layout.segment_size();
        let range = WalRange { timeline, start: size.block_start(lsn), end: size.block_end(lsn) };
        let first = *self.last_ending();
        let mut sealed = None;
        for ending in std::iter::once(first).chain(Ending::ALL.into_iter().filter(|ending| *ending != first)) {
            let name = self.repository.layout.name_in(&Key::Block(range), ending);
            let modified = jiff::Timestamp::UNIX_EPOCH;
            let block = Stored { range, name, ending, is_block: true, stored_bytes: 0, modified };
            match self.read(&block).await {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    *self.last_ending() = ending;
                    return Ok(Some(bytes));
                }
                // Another that can be opened may lie beside it.
                Err(error) if WalReader::is_sealed_from_us(&error) => sealed = Some(error),
                Err(error) => return Err(error),
            }
        }
        sealed.map_or(Ok(None), Err)
    }

    fn last_ending(&self) -> MutexGuard<'_, Ending> {
        self.last_ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of `range`, as far as they are covered. Whole blocks are read without a listing.
    ///
    /// # Errors
    /// As [`WalReader::read`].
    pub async fn read_range(&self, range: WalRange) -> Result<Window> {
        let size = self.repository.layout.segment_size();
        let mut pieces = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let block = self.read_block(range.timeline, position).await?;
            let Some(bytes) = block else { break };
            let start = size.block_start(position);
            let end = (start + bytes.len() as u64).min(range.end);
            pieces.push(bytes.slice((position - start) as usize..(end - start) as usize));
            position = end;
        }
        if position == range.end {
            return Ok(Window { pieces, end: position, has_more_behind: true });
        }
        self.read_listed(WalRange { start: position, ..range }, pieces).await
    }

    async fn read_listed(&self, range: WalRange, before: Vec<Bytes>) -> Result<Window> {
        for _ in 0..RELISTINGS {
            let coverage = self.repository.read_coverage(range.timeline, range.start).await?;
            if let Some(window) = self.read_covered(&coverage, range, before.clone()).await? {
                return Ok(window);
            }
        }
        Err(Error::new(Kind::Store, format!("the objects with WAL {range} vanish faster than they can be read"))
            .hint("Does something other than Seawall delete below open/ or wal/?"))
    }

    /// As [`WalReader::read_range`] from a listing made before; `None` if one of its objects is gone.
    ///
    /// # Errors
    /// As [`WalReader::read`].
    pub async fn read_covered(
        &self,
        coverage: &Coverage,
        range: WalRange,
        mut pieces: Vec<Bytes>,
    ) -> Result<Option<Window>> {
        let end = match coverage.chain(range.start, range.end) {
            Ok(_) => range.end,
            Err(hole) => hole,
        };
        let chain = coverage.chain(range.start, end).unwrap_or_default();
        let mut position = range.start;
        for stored in chain {
            let Some(bytes) = self.read(stored).await? else {
                return Ok(None);
            };
            let upto = stored.range.end.min(end);
            let skip = position - stored.range.start;
            pieces.push(bytes.slice(skip as usize..(upto - stored.range.start) as usize));
            position = upto;
        }
        let has_more_behind = coverage.end().is_some_and(|last| last > end);
        Ok(Some(Window { pieces, end, has_more_behind }))
    }
}

fn decode(name: &str, range: WalRange, system_identifier: u64, identities: &Identities, bytes: Bytes) -> Result<Bytes> {
    let damaged = |why: String| {
        Error::new(Kind::Damaged, format!("{name} {why}"))
            .hint("Is there another copy of the bucket (versions, replication)? `seawall list` shows what can still be restored.")
    };
    let opened = encryption::open_whole(identities, bytes);
    let decoded = opened.and_then(|bytes| codec::decode_object(&bytes, BLOCK_BYTES_MAX as usize));
    let decoded = decoded.map_err(|error| match error.is_ours() {
        true => Error::from(error).context(name),
        false => damaged("is damaged".to_owned()).because(error),
    })?;
    let identity = Identity::parse(name, decoded.identity.as_deref())?;
    identity.check(name, system_identifier, &Subject::wal(range))?;
    if decoded.plain.len() as u64 != range.bytes() {
        return Err(damaged(format!("holds {} bytes instead of {}", decoded.plain.len(), range.bytes())));
    }
    let found = Stamp::of(range, [&decoded.plain[..]]);
    if identity.blake3.as_ref() != Some(&found.blake3) {
        return Err(damaged("does not have the BLAKE3 hash that it was stored with".to_owned()));
    }
    Ok(Bytes::from(decoded.plain))
}
