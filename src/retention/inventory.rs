//! Everything that a cluster's folder holds, in one look: names, lengths, times, and the documents that say what depends on what.
//!
//! The order of the look protects: WAL first, then base backups, then marks. Of a backup that begins while it lasts nothing is seen
//! that could be deleted, and what it needs is newer than whatever may go; one that is seen protects what it builds on.

use crate::codec::Ending;
use crate::error::{Error, Kind, Result};
use crate::repository::{
    BackupDocument, BackupEntry, BackupId, Catalog, Cluster, Coverage, FORMAT_VERSION, Gap, KeepMark, Key, Repository,
    Stored,
};
use crate::store::{ObjectInfo, Store, list_all};
use crate::wal::{History, SegmentSize, TimelineId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An object that is none of WAL and of no base backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// What it is.
    pub key: Key,
    /// Its full name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
}

/// What a base backup's folder holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Folder {
    /// Objects that are ours.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// When the newest was stored, by the store's clock; `None` where there is none of ours.
    pub newest: Option<Timestamp>,
    /// Of a finished backup: how many of the objects that it names are not there, or have another length.
    pub missing: u64,
    /// Of a finished backup: what its `backup.json` does not name, from attempts that failed.
    pub leftovers: Vec<Object>,
}

/// See the head of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inventory {
    /// What can be restored from.
    pub catalog: Catalog,
    /// The cluster's segment size.
    pub size: SegmentSize,
    /// By backup, finished or not.
    pub folders: BTreeMap<BackupId, Folder>,
    /// The index, reports, marks and probes.
    pub others: Vec<Object>,
    /// Which backups are kept whatever the policy says.
    pub marks: BTreeMap<BackupId, KeepMark>,
    /// When WAL, proofs of life and base backups were stored, to the hour, by the store's clock.
    pub hours: BTreeSet<Timestamp>,
    /// Names that are none of ours.
    pub unknown: Vec<String>,
}

impl Inventory {
    /// Looks.
    ///
    /// # Errors
    /// If the store fails, or any document that could say that something is needed cannot be read or is of a later format: then
    /// nothing may be deleted.
    pub async fn read(repository: &Repository, cluster: Cluster) -> Result<Inventory> {
        let size = repository.layout.segment_size();
        let mut look = Look::new(repository);
        look.wal().await?;
        let histories = look.histories().await?;
        let (backups, folders) = look.backups(cluster.system_identifier).await?;
        let marks = repository.read_keep_marks().await?;
        look.elsewhere().await?;
        let Look { wal, gaps, pruned, mut dead_branches, heartbeats, records, names, others, hours, unknown, .. } =
            look;
        dead_branches.sort_by_key(|range| (range.timeline, range.start, std::cmp::Reverse(range.end)));
        dead_branches.dedup_by_key(|range| (range.timeline, range.start));
        let catalog = Catalog {
            cluster,
            histories,
            coverage: wal.into_iter().map(|(timeline, found)| (timeline, Coverage::new(found))).collect(),
            gaps,
            pruned,
            dead_branches,
            heartbeats,
            records,
            names,
            backups,
            unknown: Vec::new(),
        };
        Ok(Inventory { catalog, size, folders, others, marks, hours, unknown })
    }

    /// When a backup was complete: by the clock of whoever took it, or by the store's, whichever is later. One of them may be years behind.
    pub fn time_of(&self, backup: &BackupDocument) -> Timestamp {
        let stored = self.folders.get(&backup.id).and_then(|folder| folder.newest);
        stored.map_or(backup.ended_at, |stored| stored.max(backup.ended_at))
    }
}

struct Look<'a> {
    repository: &'a Repository,
    wal: BTreeMap<TimelineId, Vec<Stored>>,
    timelines: Vec<TimelineId>,
    gaps: Vec<Gap>,
    pruned: Vec<crate::wal::WalRange>,
    dead_branches: Vec<crate::wal::WalRange>,
    heartbeats: Vec<(Timestamp, TimelineId, crate::wal::Lsn)>,
    records: BTreeMap<crate::wal::WalRange, Ending>,
    names: BTreeMap<crate::repository::NamesAt, Ending>,
    others: Vec<Object>,
    hours: BTreeSet<Timestamp>,
    unknown: Vec<String>,
}

impl<'a> Look<'a> {
    fn new(repository: &'a Repository) -> Look<'a> {
        Look {
            repository,
            wal: BTreeMap::new(),
            timelines: Vec::new(),
            gaps: Vec::new(),
            pruned: Vec::new(),
            dead_branches: Vec::new(),
            heartbeats: Vec::new(),
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            others: Vec::new(),
            hours: BTreeSet::new(),
            unknown: Vec::new(),
        }
    }

    fn store(&self) -> &'a dyn Store {
        self.repository.store.as_ref()
    }

    /// Tails before the blocks that replace them: what vanishes between two listings is in the second.
    async fn wal(&mut self) -> Result<()> {
        let layout = &self.repository.layout;
        for prefix in [layout.open_root(), layout.wal_prefix(), layout.index_root()] {
            for object in list_all(self.store(), &prefix).await? {
                self.take(object);
            }
        }
        self.heartbeats.sort();
        self.gaps.sort_by_key(|gap| (gap.range.timeline, gap.range.start));
        Ok(())
    }

    /// An object that is of no base backup.
    fn take(&mut self, object: ObjectInfo) {
        let Ok(key) = self.repository.layout.parse(&object.key) else {
            self.unknown.push(object.key);
            return;
        };
        // What others than the archiver store, prune's own reports before all, is no sign that anything was archived.
        if matches!(key, Key::Block(_) | Key::Tail(_) | Key::Heartbeat { .. }) {
            self.hours.insert(to_the_hour(object.modified));
        }
        let ending = Ending::split(&object.key).map(|(_, ending)| ending);
        match (&key, ending) {
            (Key::Block(range) | Key::Tail(range), Some(ending)) => {
                let is_block = matches!(key, Key::Block(_));
                let (name, stored_bytes, modified) = (object.key, object.bytes, object.modified);
                let stored = Stored { range: *range, name, ending, is_block, stored_bytes, modified };
                self.wal.entry(range.timeline).or_default().push(stored);
                return;
            }
            // They stay: they are small, and say how timelines hang together.
            (Key::History(timeline), _) => {
                self.timelines.push(*timeline);
                return;
            }
            (Key::Cluster, _) => return,
            (Key::Gap(range), _) => self.gaps.push(Gap { range: *range }),
            (Key::Pruned(range), _) => self.pruned.push(*range),
            (Key::DeadBranch(range), _) => self.dead_branches.push(*range),
            (Key::Heartbeat { timeline, time, flush }, _) => self.heartbeats.push((*time, *timeline, *flush)),
            (Key::Records(range), Some(ending)) => _ = self.records.insert(*range, ending),
            (Key::Names(at), Some(ending)) => _ = self.names.insert(*at, ending),
            _ => {}
        }
        let ObjectInfo { key: name, bytes, modified, .. } = object;
        self.others.push(Object { key, name, bytes, modified });
    }

    async fn histories(&self) -> Result<BTreeMap<TimelineId, History>> {
        let mut histories = BTreeMap::new();
        for &timeline in &self.timelines {
            let name = self.repository.layout.name(&Key::History(timeline));
            let text = self.repository.read_history_file(timeline).await?;
            let text = text.ok_or_else(|| Error::new(Kind::Damaged, format!("{name} was listed and is gone")))?;
            let history = History::parse(timeline, &text)
                .map_err(|error| Error::new(Kind::Damaged, format!("{name} is damaged")).because(error))?;
            histories.insert(timeline, history);
        }
        Ok(histories)
    }

    async fn backups(&mut self, whose: u64) -> Result<(Vec<BackupEntry>, BTreeMap<BackupId, Folder>)> {
        let (mut entries, mut folders) = (Vec::new(), BTreeMap::new());
        let level = self.store().list_level(&self.repository.layout.base_prefix()).await?;
        self.unknown.extend(level.objects.into_iter().map(|object| object.key));
        for prefix in level.prefixes {
            let Some(id) = self.repository.layout.parse_backup_prefix(&prefix) else {
                self.unknown.push(prefix);
                continue;
            };
            let entry = read_entry(self.repository, &id, whose).await?;
            folders.insert(id, self.folder(&prefix, &entry).await?);
            entries.push(entry);
        }
        entries.sort_by(|one, other| one.id.cmp(&other.id));
        Ok((entries, folders))
    }

    /// A page at a time: a large backup has hundreds of thousands of parts.
    async fn folder(&mut self, prefix: &str, entry: &BackupEntry) -> Result<Folder> {
        let mut named = entry.document.as_ref().map(|document| named(self.repository, document)).transpose()?;
        let mut folder = Folder::default();
        let mut token = None;
        loop {
            let page = self.store().list_page(prefix, token).await?;
            for object in page.objects {
                let Ok(key) = self.repository.layout.parse(&object.key) else {
                    self.unknown.push(object.key);
                    continue;
                };
                self.hours.insert(to_the_hour(object.modified));
                folder.objects += 1;
                folder.bytes += object.bytes;
                folder.newest = folder.newest.max(Some(object.modified));
                let ObjectInfo { key: name, bytes, modified, .. } = object;
                let is_document = matches!(key, Key::BackupBegin(_) | Key::BackupEnd(_));
                let Some(named) = named.as_mut().filter(|_| !is_document) else { continue };
                match named.remove(&name) {
                    Some(expected) => folder.missing += u64::from(expected.is_some_and(|expected| expected != bytes)),
                    None => folder.leftovers.push(Object { key, name, bytes, modified }),
                }
            }
            token = page.next;
            if token.is_none() {
                folder.missing += named.map_or(0, |named| named.len() as u64);
                return Ok(folder);
            }
        }
    }

    /// Reports and marks, and what else lies in the cluster's folder.
    async fn elsewhere(&mut self) -> Result<()> {
        let layout = &self.repository.layout;
        let ours = [layout.drills_prefix(), layout.prunes_prefix(), layout.keep_prefix(), layout.audit_root()];
        let seen = [layout.base_prefix(), layout.open_root(), layout.wal_prefix(), layout.index_root()];
        let level = self.store().list_level(&layout.root()).await?;
        for object in level.objects {
            self.take(object);
        }
        for prefix in level.prefixes.into_iter().filter(|prefix| !seen.contains(prefix)) {
            match ours.contains(&prefix) {
                true => {
                    for object in list_all(self.store(), &prefix).await? {
                        self.take(object);
                    }
                }
                false => self.unknown.push(prefix),
            }
        }
        Ok(())
    }
}

/// What a base backup says of itself, without its list of files.
///
/// # Errors
/// If a document cannot be read, is of a later format, or not this cluster's or this backup's: then nobody knows what it needs.
pub(super) async fn read_entry(repository: &Repository, id: &BackupId, whose: u64) -> Result<BackupEntry> {
    let begin: Option<crate::repository::BackupBegin> = repository.read_document(&Key::BackupBegin(id.clone())).await?;
    let document = repository.finished_backup(id).await?;
    let said = [
        begin.as_ref().map(|it| (Key::BackupBegin(id.clone()), it.format, &it.id, it.system_identifier)),
        document.as_ref().map(|it| (Key::BackupEnd(id.clone()), it.format, &it.id, it.system_identifier)),
    ];
    for (key, format, said_id, system_identifier) in said.into_iter().flatten() {
        let name = repository.layout.name(&key);
        if format > FORMAT_VERSION {
            return Err(Error::new(Kind::Refused, format!("{name} has format {format}"))
                .hint("It was written by a later Seawall: use that one or a newer one."));
        }
        if said_id != id {
            return Err(Error::new(Kind::Damaged, format!("{name} is that of base backup {said_id}")));
        }
        if system_identifier != whose {
            return Err(Error::new(Kind::Diverged, format!("{name} is of the cluster {system_identifier}"))
                .hint("Two clusters in one folder: find out which one it is, before anything is deleted."));
        }
    }
    Ok(BackupEntry { id: id.clone(), document, begin })
}

/// The objects that a finished backup consists of, beside its documents, and how long they are, where it says so.
fn named(repository: &Repository, document: &BackupDocument) -> Result<HashMap<String, Option<u64>>> {
    let part = |part: &crate::repository::BackupPart| {
        let name = repository.layout.name_in(&Key::BackupPart(document.id.clone(), part.name), document.ending);
        (name, Some(part.stored_bytes))
    };
    let mut named: HashMap<String, Option<u64>> = document.parts.iter().map(part).collect();
    named.insert(repository.manifest_name(document)?, None);
    Ok(named)
}

/// The beginning of the hour.
fn to_the_hour(at: Timestamp) -> Timestamp {
    let second = at.as_second();
    Timestamp::from_second(second - second.rem_euclid(3600)).unwrap_or(at)
}
