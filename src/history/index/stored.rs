//! Indexes in a repository: reading and storing them, and making them of WAL that is stored.

use super::indexer::BlockWalk;
use super::outline::Outline;
use super::records::{Level, Records};
use crate::codec::{self, Ending, FRAME_BYTES};
use crate::error::{Error, Kind, Result};
use crate::repository::{Identity, Key, Repository, Subject, WalReader, Writer};
use crate::runtime;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use serde::Serialize;
use std::collections::BTreeMap;

/// A document has no more plain bytes: twice what the largest usually has. Of more than that none of the next level is made.
const DOCUMENT_BYTES_MAX: usize = 64 << 20;

/// Nor has it more events, which are most of it where there are many.
const EVENTS_MAX: usize = 200_000;

/// The indexes that a repository has, by their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Indexes {
    stored: BTreeMap<WalRange, Ending>,
}

impl Indexes {
    /// What a listing showed: which ranges, and how each is stored.
    pub fn new(stored: BTreeMap<WalRange, Ending>) -> Indexes {
        Indexes { stored }
    }

    /// Lists those of one timeline.
    ///
    /// # Errors
    /// What the store says.
    pub async fn read(repository: &Repository, timeline: TimelineId) -> Result<Indexes> {
        Ok(Indexes { stored: repository.read_indexes(timeline).await? })
    }

    fn of_timeline(&self, timeline: TimelineId) -> impl Iterator<Item = WalRange> {
        self.stored.keys().copied().filter(move |range| range.timeline == timeline)
    }

    /// Those that speak of `lsn`.
    fn all_at(&self, timeline: TimelineId, lsn: Lsn) -> impl Iterator<Item = WalRange> {
        self.of_timeline(timeline).filter(move |range| range.start <= lsn && lsn < range.end)
    }

    /// Of those that speak of `lsn`, the one that reaches farthest.
    pub fn at(&self, timeline: TimelineId, lsn: Lsn) -> Option<WalRange> {
        self.all_at(timeline, lsn).max_by_key(|range| range.end)
    }

    /// The outlines in that one, or in the next best one that can be read. What they say the WAL says as well: if none can be
    /// read, that is told in the log, and there are none.
    pub async fn best_at(
        &self,
        reader: &WalReader,
        timeline: TimelineId,
        lsn: Lsn,
    ) -> Option<(WalRange, Vec<Outline>)> {
        let mut known: Vec<WalRange> = self.all_at(timeline, lsn).collect();
        known.sort_by_key(|range| std::cmp::Reverse(range.end));
        for range in known {
            match self.load(reader, range).await {
                Ok(outlines) => return Some((range, outlines)),
                Err(error) => tracing::warn!(%error, "an index of records cannot be read; reading the WAL instead"),
            }
        }
        None
    }

    /// Of those that begin behind `lsn`, the first.
    pub fn next(&self, timeline: TimelineId, lsn: Lsn) -> Option<Lsn> {
        self.of_timeline(timeline).map(|range| range.start).filter(|start| *start > lsn).min()
    }

    /// Where the last one of a timeline ends.
    pub fn end(&self, timeline: TimelineId) -> Option<Lsn> {
        self.of_timeline(timeline).map(|range| range.end).max()
    }

    /// The outlines of one of them.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it is not what its name says, or gone; otherwise what the store says.
    pub async fn load(&self, reader: &WalReader, range: WalRange) -> Result<Vec<Outline>> {
        let repository = reader.repository();
        let ending = self.stored.get(&range).copied().unwrap_or_default();
        let name = repository.layout.name_in(&Key::Records(range), ending);
        let stored = repository.store.get(&name, None).await?.collect().await?;
        let system_identifier = reader.system_identifier();
        runtime::blocking(move || {
            let (identity, records) = decode(&name, range, &stored)?;
            identity.check(&name, system_identifier, &Subject::records(range))?;
            Ok(records.into_outlines())
        })
        .await?
    }

    /// Fails unless `stored`, an object called `name`, is an index of `range`. CPU work.
    ///
    /// # Errors
    /// [`crate::error::Kind::Damaged`] says what it is instead.
    pub fn check(name: &str, range: WalRange, stored: &[u8]) -> Result<()> {
        decode(name, range, stored).map(|_| ())
    }
}

fn decode(name: &str, range: WalRange, stored: &[u8]) -> Result<(Identity, Records)> {
    let decoded = codec::decode_object(stored, DOCUMENT_BYTES_MAX);
    let decoded = decoded.map_err(|error| Error::from(error).context(name))?;
    let identity = Identity::parse(name, decoded.identity.as_deref())?;
    Ok((identity, Records::decode(name, range, &decoded.plain)?))
}

/// Makes and stores indexes.
#[derive(Clone, Debug)]
pub struct IndexWriter {
    reader: WalReader,
    writer: Writer,
    hides_names: bool,
}

impl IndexWriter {
    /// Into the repository of `writer`. Where new objects are encrypted, names that an operator chose are left out.
    pub fn new(writer: Writer) -> IndexWriter {
        let repository = Repository { store: writer.store().clone(), layout: writer.layout().clone() };
        let hides_names = !writer.layout().form().recipients.is_empty();
        IndexWriter { reader: WalReader::new(repository, writer.system_identifier()), writer, hides_names }
    }

    /// The cluster's segment size.
    pub fn size(&self) -> SegmentSize {
        self.writer.layout().segment_size()
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        self.reader.repository()
    }

    /// Stores `outlines`, which follow on one another. Says which range they are about; `None` if there are none, or they say too
    /// much.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store(&self, timeline: TimelineId, outlines: Vec<Outline>) -> Result<Option<WalRange>> {
        let Some(records) = Records::new(timeline, outlines) else { return Ok(None) };
        let (range, writer) = (records.range(), self.writer.clone());
        let encoded = runtime::blocking(move || {
            let json = records.encode()?;
            if json.len() > DOCUMENT_BYTES_MAX {
                return Ok(None);
            }
            let frames: Vec<_> = json.chunks(FRAME_BYTES).map(|plain| writer.encode_frame(plain)).collect();
            Ok::<_, Error>(Some((frames, json.len() as u64)))
        });
        let Some((frames, plain_bytes)) = encoded.await?? else { return Ok(None) };
        // Whoever was first: it says the same, or what an older Seawall had to say.
        self.writer.store_in_clear(&Key::Records(range), Subject::records(range), frames, plain_bytes).await?;
        Ok(Some(range))
    }

    /// Reads the whole blocks in `range` and says what is in them: the last ones that are stored without a hole and whose
    /// records can be told apart. `None`, and a word in the log, if what is stored cannot be read.
    ///
    /// # Errors
    /// What the store says: it may have a better day. What is wrong with the WAL stays wrong, and is not an error.
    pub async fn outline(&self, range: WalRange) -> Result<Option<Vec<Outline>>> {
        match self.read_outlines(range).await {
            Err(error) if error.kind() != Kind::Store => {
                tracing::warn!(%error, from = %range.start, to = %range.end, "WAL cannot be indexed, for it cannot be read back");
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    async fn read_outlines(&self, range: WalRange) -> Result<Vec<Outline>> {
        let size = self.size();
        // To see the record that the first block begins in.
        let from = Lsn(range.start.0.saturating_sub(size.block_bytes()));
        let coverage = self.repository().read_coverage(range.timeline, from).await?;
        let run = coverage.runs().into_iter().rfind(|run| run.start < range.end && run.end > from);
        let Some(run) = run.filter(|run| run.end >= range.end) else { return Ok(Vec::new()) };
        let mut start = size.block_start(run.start.max(from));
        if start < run.start {
            start = size.block_end(run.start);
        }
        let mut walk = BlockWalk::new(size, self.hides_names);
        let mut outlines: Vec<Outline> = Vec::new();
        while start < range.end {
            let block = WalRange { timeline: range.timeline, start, end: size.block_end(start) };
            let window = match self.reader.read_range(block).await {
                Ok(window) => window,
                // Whoever archives need not be able to read.
                Err(error) if WalReader::is_sealed_from_us(&error) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let (back, outline) = runtime::blocking(move || {
                let outline = match window.end == block.end {
                    true => walk.outline(block, window.pieces).ok().flatten(),
                    false => None,
                };
                (walk, outline)
            })
            .await?;
            walk = back;
            match outline {
                Some(outline) if start >= range.start => outlines.push(outline),
                _ => outlines.clear(),
            }
            start = block.end;
        }
        Ok(outlines)
    }

    /// Makes the index of what is stored in `run`, a stretch of a timeline without a hole, and has none. Of a timeline that
    /// `goes_on`, slots that are not full are left for later. `seen` hears how many bytes are done with.
    ///
    /// # Errors
    /// What the store says. What was stored until then stays.
    pub async fn fill(&self, run: WalRange, goes_on: bool, seen: impl Fn(u64)) -> Result<Filled> {
        let size = self.size();
        let timeline = run.timeline;
        let indexes = Indexes::read(self.repository(), timeline).await?;
        let mut filled = Filled::default();
        let mut position = match size.block_start(run.start) == run.start {
            true => run.start,
            false => size.block_end(run.start),
        };
        let end = size.block_start(run.end);
        while position < end {
            if let Some(known) = indexes.at(timeline, position) {
                seen(known.end.min(end) - position);
                position = known.end;
                continue;
            }
            let slot_end = Level::FIRST.slot_end(size, position);
            let until = indexes.next(timeline, position).unwrap_or(end).min(slot_end).min(end);
            if until < slot_end && until == end && goes_on {
                break;
            }
            let outlines = self.outline(WalRange { start: position, end: until, timeline }).await?;
            filled.wal_bytes += until - position;
            match self.store(timeline, outlines.unwrap_or_default()).await? {
                Some(stored) => {
                    filled.stored += 1;
                    filled.left_bytes += stored.start - position;
                }
                None => filled.left_bytes += until - position,
            }
            self.join(timeline, until).await?;
            seen(until - position);
            position = until;
        }
        filled.left_bytes += run.end - position.min(run.end);
        Ok(filled)
    }

    /// The bytes of `pushed` were just stored, by a process that did not see what came before: makes the index of the slots
    /// that they fill, and of the one before where that has none. Where they end within a block their timeline was left,
    /// and what there is of its last slot has an index too. Reads nothing but then.
    ///
    /// # Errors
    /// What the store says.
    pub async fn fill_behind(&self, pushed: WalRange) -> Result<Filled> {
        let size = self.size();
        let was_left = size.block_start(pushed.end) != pushed.end;
        let end = if was_left { pushed.end } else { Level::FIRST.slot_start(size, pushed.end) };
        if end <= pushed.start {
            return Ok(Filled::default());
        }
        let from = Level::FIRST.slot_start(size, pushed.start).0.saturating_sub(Level::FIRST.bytes(size));
        let coverage = self.repository().read_coverage(pushed.timeline, Lsn(from)).await?;
        // Files may come out of order: what is missing now has an index with the next slot's.
        match coverage.runs().into_iter().find(|run| run.start < end && end <= run.end) {
            Some(run) => {
                let run = WalRange { timeline: pushed.timeline, start: run.start.max(Lsn(from)), end };
                self.fill(run, !was_left, |_| ()).await
            }
            None => Ok(Filled::default()),
        }
    }

    /// Behind `end`, which was just stored up to: makes one of the next level of those that are complete now, level by level.
    ///
    /// # Errors
    /// What the store says.
    pub async fn join(&self, timeline: TimelineId, end: Lsn) -> Result<()> {
        let size = self.size();
        let mut level = Level::FIRST;
        while let Some(next) = level.next()
            && next.slot_start(size, end) == end
        {
            let slot = WalRange { timeline, start: Lsn(end.0 - next.bytes(size)), end };
            let indexes = Indexes::read(self.repository(), timeline).await?;
            let mut outlines = Vec::new();
            let mut position = indexes
                .at(timeline, slot.start)
                .map_or_else(|| indexes.next(timeline, slot.start).unwrap_or(end), |_| slot.start);
            while position < end
                && let Some(range) = indexes.at(timeline, position)
            {
                let Ok(more) = indexes.load(&self.reader, range).await else { break };
                outlines.extend(more.into_iter().filter(|outline| outline.start >= position && outline.end <= end));
                let reached = outlines.last().map_or(position, |last: &Outline| last.end);
                let events: usize = outlines.iter().map(|outline: &Outline| outline.events.len()).sum();
                if reached <= position || events > EVENTS_MAX {
                    break;
                }
                position = reached;
            }
            if position < end || self.store(timeline, outlines).await?.is_none() {
                return Ok(());
            }
            level = next;
        }
        Ok(())
    }
}

/// What was made of WAL that had no index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Filled {
    /// Bytes of WAL that were read for it.
    pub wal_bytes: u64,
    /// Documents that were stored.
    pub stored: u64,
    /// Bytes of WAL that have none still: the newest ones, of which there are too few yet, or whose records cannot be told apart.
    pub left_bytes: u64,
}
