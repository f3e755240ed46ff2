//! What a repository is found to contain. Read once from listings, then asked: planning is pure.

use super::Repository;
use super::documents::{BackupBegin, BackupDocument, Cluster, FORMAT_VERSION, GapNote};
use super::layout::{BackupId, Key, Layout, NamesAt};
use crate::codec::Ending;
use crate::error::{Error, Kind, Result};
use crate::store::{ObjectInfo, Store, StoreErrorKind, list_all};
use crate::wal::{History, Lsn, TimelineId, WalRange};
use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// A stored stretch of WAL: a block or a tail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Which bytes.
    pub range: WalRange,
    /// The object's full name.
    pub name: String,
    /// How it is stored, as the end of its name says.
    pub ending: Ending,
    /// True for a block: permanent, and preferred by readers.
    pub is_block: bool,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
}

/// Bytes `[start, end)` without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CoverageRun {
    /// The first byte.
    pub start: Lsn,
    /// The first byte behind.
    pub end: Lsn,
}

/// The stored WAL of one timeline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// By start, blocks before tails, longer before shorter.
    objects: Vec<Stored>,
}

impl Coverage {
    /// Orders what was found.
    pub fn new(mut objects: Vec<Stored>) -> Coverage {
        objects.sort_by_key(|object| (object.range.start, !object.is_block, std::cmp::Reverse(object.range.end)));
        Coverage { objects }
    }

    /// Every object, by start.
    pub fn objects(&self) -> &[Stored] {
        &self.objects
    }

    /// The gap-free runs, in order.
    pub fn runs(&self) -> Vec<CoverageRun> {
        let mut runs: Vec<CoverageRun> = Vec::new();
        for object in &self.objects {
            let (start, end) = (object.range.start, object.range.end);
            match runs.last_mut() {
                Some(run) if start <= run.end => run.end = run.end.max(end),
                _ => runs.push(CoverageRun { start, end }),
            }
        }
        runs
    }

    /// The run that holds `lsn`, or that ends there.
    pub fn run_holding(&self, lsn: Lsn) -> Option<CoverageRun> {
        self.runs().into_iter().find(|run| run.start <= lsn && lsn <= run.end)
    }

    /// The objects to read, in order, for the bytes from `start` to `end`: at each position the block if there is one,
    /// otherwise the tail that reaches farthest.
    ///
    /// # Errors
    /// The first position that nothing covers.
    pub fn chain(&self, start: Lsn, end: Lsn) -> Result<Vec<&Stored>, Lsn> {
        let mut chosen = Vec::new();
        let mut position = start;
        while position < end {
            let holds = |object: &&Stored| object.range.start <= position && position < object.range.end;
            // Objects stay within one block, so none that starts more than a block before can hold the position.
            let from =
                self.objects.partition_point(|object| object.range.start.0 + crate::wal::BLOCK_BYTES_MAX < position.0);
            let best = self.objects[from..]
                .iter()
                .take_while(|object| object.range.start <= position)
                .filter(holds)
                .max_by_key(|object| (object.is_block, object.range.end));
            let best = best.ok_or(position)?;
            position = best.range.end;
            chosen.push(best);
        }
        Ok(chosen)
    }

    /// The position behind the last stored byte.
    pub fn end(&self) -> Option<Lsn> {
        self.objects.iter().map(|object| object.range.end).max()
    }
}

/// A hole that was recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Which bytes are lost.
    pub range: WalRange,
}

/// A base backup as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupEntry {
    /// Its name.
    pub id: BackupId,
    /// What it says of itself, without its files; `None` while it has only begun.
    pub document: Option<BackupDocument>,
    /// What it said at its beginning; `None` if that is missing.
    pub begin: Option<BackupBegin>,
}

/// What one cluster's folder contains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalog {
    /// Whose it is.
    pub cluster: Cluster,
    /// History files, read.
    pub histories: BTreeMap<TimelineId, History>,
    /// WAL by timeline.
    pub coverage: BTreeMap<TimelineId, Coverage>,
    /// Recorded holes.
    pub gaps: Vec<Gap>,
    /// WAL that retention deleted behind a base backup that it kept.
    pub pruned: Vec<WalRange>,
    /// WAL behind the point where its timeline was left; by timeline and start.
    pub dead_branches: Vec<WalRange>,
    /// Proofs of life: time, timeline, flush position; by time.
    pub heartbeats: Vec<(Timestamp, TimelineId, Lsn)>,
    /// What indexes of records there are, and how each is stored; by timeline, start and end.
    pub records: BTreeMap<WalRange, Ending>,
    /// What names of databases and relations there are, and how each list is stored.
    pub names: BTreeMap<NamesAt, Ending>,
    /// Base backups, finished or not, by name.
    pub backups: Vec<BackupEntry>,
    /// Names that are none of ours.
    pub unknown: Vec<String>,
}

impl Catalog {
    /// Reads everything but the contents of WAL and parts.
    ///
    /// # Errors
    /// If the store fails, the cluster is not there, or a document cannot be read.
    pub async fn read(repository: &Repository, cluster: Cluster) -> Result<Catalog> {
        let (store, layout) = (repository.store.as_ref(), &repository.layout);
        let mut found = Found::default();
        // Tails before the blocks that replace them: what vanishes between two listings is in the second.
        for prefix in [layout.open_root(), layout.wal_prefix(), layout.index_root()] {
            for object in list_all(store, &prefix).await? {
                found.sort_in(layout, object);
            }
        }
        let mut histories = BTreeMap::new();
        for timeline in found.histories {
            histories.insert(timeline, read_history(repository, timeline).await?);
        }
        let mut backups = Vec::new();
        for prefix in store.list_level(&layout.base_prefix()).await?.prefixes {
            match layout.parse_backup_prefix(&prefix) {
                Some(id) => backups.push(read_backup(repository, id).await?),
                None => found.unknown.push(prefix),
            }
        }
        backups.sort_by(|one, other| one.id.cmp(&other.id));
        found.heartbeats.sort();
        found.gaps.sort_by_key(|gap| (gap.range.timeline, gap.range.start));
        Ok(Catalog {
            cluster,
            histories,
            coverage: found.wal.into_iter().map(|(timeline, objects)| (timeline, Coverage::new(objects))).collect(),
            gaps: found.gaps,
            pruned: found.pruned,
            dead_branches: longest(found.dead_branches),
            heartbeats: found.heartbeats,
            records: found.records,
            names: found.names,
            backups,
            unknown: found.unknown,
        })
    }

    /// The finished backups, oldest first.
    pub fn finished_backups(&self) -> impl Iterator<Item = &BackupDocument> {
        self.backups.iter().filter_map(|entry| entry.document.as_ref())
    }

    /// The path to `timeline`; a timeline without a history file has no ancestors.
    pub fn history(&self, timeline: TimelineId) -> History {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| History::root(timeline))
    }

    /// The line that the archiver follows: that of the timeline whose WAL was stored last, to its youngest descendant. A
    /// history file comes before the first byte of its timeline, and from then on what its parent has behind the switch
    /// point is a dead branch, however late that was stored.
    pub fn followed_timeline(&self) -> Option<TimelineId> {
        let newest = |coverage: &Coverage| coverage.objects.iter().map(|object| object.modified).max();
        let by_age = self.coverage.iter().filter_map(|(timeline, coverage)| Some((newest(coverage)?, *timeline)));
        let (_, last) = by_age.max()?;
        let descendant = self.histories.values().rev().find(|history| history.passes(last));
        Some(descendant.map_or(last, |history| history.timeline))
    }

    /// Where coverage along `history` that begins at `start` first ends, and on which timeline.
    pub fn covered_until(&self, history: &History, start: Lsn) -> (TimelineId, Lsn) {
        let mut position = start;
        for (timeline, _, end) in history.path() {
            if end.is_some_and(|end| end <= position) {
                continue;
            }
            let run = self.coverage.get(&timeline).and_then(|coverage| coverage.run_holding(position));
            let reached = run.map_or(position, |run| run.end);
            match end {
                Some(end) if reached >= end => position = end,
                _ => return (timeline, reached.max(position)),
            }
        }
        (history.timeline, position)
    }
}

#[derive(Default)]
struct Found {
    wal: BTreeMap<TimelineId, Vec<Stored>>,
    histories: Vec<TimelineId>,
    gaps: Vec<Gap>,
    pruned: Vec<WalRange>,
    dead_branches: Vec<WalRange>,
    heartbeats: Vec<(Timestamp, TimelineId, Lsn)>,
    records: BTreeMap<WalRange, Ending>,
    names: BTreeMap<NamesAt, Ending>,
    unknown: Vec<String>,
}

impl Found {
    fn sort_in(&mut self, layout: &Layout, object: ObjectInfo) {
        match layout.parse(&object.key) {
            Ok(Key::History(timeline)) => self.histories.push(timeline),
            Ok(Key::Gap(range)) => self.gaps.push(Gap { range }),
            Ok(Key::Pruned(range)) => self.pruned.push(range),
            Ok(Key::DeadBranch(range)) => self.dead_branches.push(range),
            Ok(Key::Heartbeat { timeline, time, flush }) => self.heartbeats.push((time, timeline, flush)),
            Ok(Key::Probe(_) | Key::Lease(_)) => {}
            Ok(Key::Records(range)) => {
                self.records.extend(Ending::split(&object.key).map(|(_, ending)| (range, ending)));
            }
            Ok(Key::Names(at)) => self.names.extend(Ending::split(&object.key).map(|(_, ending)| (at, ending))),
            _ => match stored(layout, &object) {
                Some(stored) => self.wal.entry(stored.range.timeline).or_default().push(stored),
                None => self.unknown.push(object.key),
            },
        }
    }
}

fn stored(layout: &Layout, object: &ObjectInfo) -> Option<Stored> {
    let (range, is_block) = match layout.parse(&object.key).ok()? {
        Key::Block(range) => (range, true),
        Key::Tail(range) => (range, false),
        _ => return None,
    };
    let name = object.key.clone();
    let (_, ending) = Ending::split(&name)?;
    Some(Stored { range, name, ending, is_block, stored_bytes: object.bytes, modified: object.modified })
}

impl Repository {
    /// Reads `cluster.json`; `None` if there is none yet.
    ///
    /// # Errors
    /// If the store fails, or the document is of a later format or unreadable.
    pub async fn read_cluster(store: &dyn Store, name: &str) -> Result<Option<Cluster>> {
        let key = Layout::cluster_key(name);
        let cluster: Option<Cluster> = read_json(store, &key).await?;
        if let Some(cluster) = &cluster
            && cluster.format > FORMAT_VERSION
        {
            return Err(Error::new(Kind::Refused, format!("{key} has format {}", cluster.format))
                .hint("The repository was written by a later Seawall: use that one or a newer one."));
        }
        Ok(cluster)
    }

    /// The WAL of one timeline from the segment of `from` on: one listing of the tails, one of the folders, one of each
    /// that matters. The tails come first: of one that a block replaces meanwhile, the block is still seen.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_coverage(&self, timeline: TimelineId, from: Lsn) -> Result<Coverage> {
        let (store, layout) = (self.store.as_ref(), &self.layout);
        let from = layout.segment_size().segment_start(from);
        let mut objects = list_all(store, &layout.open_prefix(timeline)).await?;
        for prefix in store.list_level(&layout.timeline_prefix(timeline)).await?.prefixes {
            let matters = layout.parse_wal_directory(&prefix).is_some_and(|(_, first)| first.0 >> 32 >= from.0 >> 32);
            if matters {
                objects.extend(list_all(store, &prefix).await?);
            }
        }
        let known = objects.iter().filter_map(|object| stored(layout, object));
        Ok(Coverage::new(known.filter(|stored| stored.range.end > from).collect()))
    }

    /// The timelines that have WAL, a history file or a recorded hole here. One whose first block is not full has tails
    /// alone.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_timelines(&self) -> Result<Vec<TimelineId>> {
        // Tails before the blocks that replace them.
        let open = self.store.list_level(&self.layout.open_root()).await?;
        let level = self.store.list_level(&self.layout.wal_prefix()).await?;
        let index = self.store.list_level(&self.layout.index_root()).await?;
        let prefixes = level.prefixes.iter().chain(&open.prefixes).chain(&index.prefixes);
        let folders = prefixes.filter_map(|prefix| self.layout.parse_timeline_prefix(prefix));
        let histories = level.objects.iter().filter_map(|object| match self.layout.parse(&object.key) {
            Ok(Key::History(timeline)) => Some(timeline),
            _ => None,
        });
        let timelines: std::collections::BTreeSet<TimelineId> = folders.chain(histories).collect();
        Ok(timelines.into_iter().collect())
    }

    /// A document; `None` if it is not there.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn read_document<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>> {
        read_json(self.store.as_ref(), &self.layout.name(key)).await
    }

    /// Recorded holes of a timeline.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_gaps(&self, timeline: TimelineId) -> Result<Vec<GapNote>> {
        let mut notes = Vec::new();
        for object in list_all(self.store.as_ref(), &self.layout.index_prefix(timeline)).await? {
            if let Ok(key @ Key::Gap(_)) = self.layout.parse(&object.key) {
                notes.extend(self.read_document::<GapNote>(&key).await?);
            }
        }
        Ok(notes)
    }

    /// What is known of a timeline behind the point where it was left, by start.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_dead_branches(&self, timeline: TimelineId) -> Result<Vec<WalRange>> {
        let mut ranges = Vec::new();
        for object in list_all(self.store.as_ref(), &self.layout.index_prefix(timeline)).await? {
            if let Ok(Key::DeadBranch(range)) = self.layout.parse(&object.key) {
                ranges.push(range);
            }
        }
        Ok(longest(ranges))
    }

    /// Which indexes of a timeline's records there are, and how each is stored.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_indexes(&self, timeline: TimelineId) -> Result<BTreeMap<WalRange, Ending>> {
        let mut found = Found::default();
        for object in list_all(self.store.as_ref(), &self.layout.records_prefix(timeline)).await? {
            found.sort_in(&self.layout, object);
        }
        Ok(found.records)
    }

    /// A history file as PostgreSQL wrote it; `None` if it is not there.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_history_file(&self, timeline: TimelineId) -> Result<Option<Bytes>> {
        get_whole(self.store.as_ref(), &self.layout.name(&Key::History(timeline))).await
    }
}

/// By timeline and start, and of those with one start the longest: what came later made the branch longer.
fn longest(mut ranges: Vec<WalRange>) -> Vec<WalRange> {
    ranges.sort_by_key(|range| (range.timeline, range.start, std::cmp::Reverse(range.end)));
    ranges.dedup_by_key(|range| (range.timeline, range.start));
    ranges
}

async fn read_history(repository: &Repository, timeline: TimelineId) -> Result<History> {
    let name = repository.layout.name(&Key::History(timeline));
    let text = repository.read_history_file(timeline).await?;
    let text = text.ok_or_else(|| Error::new(Kind::Damaged, format!("{name} was listed and is gone")))?;
    History::parse(timeline, &text)
        .map_err(|error| Error::new(Kind::Damaged, format!("{name} is damaged")).because(error))
}

async fn read_backup(repository: &Repository, id: BackupId) -> Result<BackupEntry> {
    let begin = repository.read_document(&Key::BackupBegin(id.clone())).await?;
    let document = repository.finished_backup(&id).await?;
    Ok(BackupEntry { id, document, begin })
}

async fn get_whole(store: &dyn Store, name: &str) -> Result<Option<Bytes>> {
    match store.get(name, None).await {
        Ok(stream) => Ok(Some(stream.collect().await?)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn read_json<T: DeserializeOwned>(store: &dyn Store, name: &str) -> Result<Option<T>> {
    let Some(bytes) = get_whole(store, name).await? else {
        return Ok(None);
    };
    let document = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Kind::Damaged, format!("{name} cannot be read")).because(error))?;
    Ok(Some(document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(start: u64, end: u64, is_block: bool) -> Stored {
        let range = WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) };
        Stored {
            range,
            name: format!("{range}"),
            ending: Ending::default(),
            is_block,
            stored_bytes: 1,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_reader_takes_the_block_first_and_then_the_tail_that_reaches_farthest() {
        let coverage = Coverage::new(vec![
            stored(0, 100, true),
            stored(0, 50, false),
            stored(100, 110, false),
            stored(100, 130, false),
            stored(110, 120, false),
            stored(120, 140, false),
        ]);
        let chosen: Vec<_> = coverage.chain(Lsn(10), Lsn(140)).unwrap().iter().map(|s| s.range.end.0).collect();
        assert_eq!(chosen, [100, 130, 140]);
        assert_eq!(coverage.chain(Lsn(0), Lsn(141)).unwrap_err(), Lsn(140));
    }

    #[tokio::test]
    async fn a_timeline_of_which_only_tails_are_stored_is_found() {
        let layout = Layout::new("main", crate::wal::SegmentSize::DEFAULT, crate::codec::Compression::Lz4);
        let repository = Repository { store: std::sync::Arc::new(crate::store::MemoryStore::new()), layout };
        let range = WalRange { timeline: TimelineId(1), start: Lsn(0x300_0000), end: Lsn(0x300_0100) };
        let name = repository.layout.name(&Key::Tail(range));
        repository.store.create(&name, Bytes::new().into(), Default::default()).await.unwrap();
        assert_eq!(repository.read_timelines().await.unwrap(), [TimelineId(1)]);
    }

    #[test]
    fn a_run_holds_its_own_end() {
        let coverage = Coverage::new(vec![stored(10, 20, false), stored(30, 40, false)]);
        assert_eq!(coverage.run_holding(Lsn(20)), Some(CoverageRun { start: Lsn(10), end: Lsn(20) }));
        assert_eq!(coverage.run_holding(Lsn(25)), None);
        assert_eq!(coverage.run_holding(Lsn(30)).map(|run| run.end), Some(Lsn(40)));
    }

    proptest! {
        #[test]
        fn runs_and_chains_agree_on_what_is_covered(pieces in prop::collection::vec((0u64..300, 1u64..40, any::<bool>()), 0..20)) {
            let coverage = Coverage::new(pieces.iter().map(|&(start, length, block)| stored(start, start + length, block)).collect());
            let covered = |at: u64| pieces.iter().any(|&(start, length, _)| start <= at && at < start + length);
            for run in coverage.runs() {
                prop_assert!((run.start.0..run.end.0).all(covered));
                prop_assert!(!covered(run.end.0));
                prop_assert!(coverage.chain(run.start, run.end).is_ok());
                prop_assert_eq!(coverage.chain(run.start, run.end + 1).unwrap_err(), run.end);
            }
        }
    }
}
