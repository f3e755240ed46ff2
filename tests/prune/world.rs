//! Invented repositories of months, stored object by object while a clock goes on: base backups and chains of them, WAL on several
//! timelines, dead branches, gaps, backups that were never finished, marks, garbage. WAL and parts hold nothing: retention reads none.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use seawall::codec::{Compression, Ending};
use seawall::repository::{
    Action, ActionResult, Archive, AuditKey, BackupBegin, BackupDocument, BackupFiles, BackupId, BackupPart, Cluster,
    ContentDigest, DeadBranchNote, FORMAT_VERSION, Findings, GapNote, Heartbeat, KeepMark, Key, Layout, NamesAt,
    PartName, Repository, WalNeed, Writer,
};
use seawall::runtime::Clock;
use seawall::store::{MemoryStore, Store};
use seawall::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SYSTEM: u64 = 7_300_000_000_000_000_001;

/// Something that happens, after so many hours.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// So many halves of a segment are written.
    Wal(u8),
    /// A full backup.
    Full,
    /// One on the newest, if there is any.
    Incremental,
    /// One on the last, whatever was found in that.
    IncrementalOnLast,
    /// A full backup with damaged pages, or with suspect ones.
    Bad { damaged: bool },
    /// A backup that is never finished.
    Unfinished,
    /// A standby is promoted; the old primary may write on for a while.
    Failover { dead: bool },
    /// The server removed WAL before it was stored.
    Gap,
    /// Nothing happens.
    Idle,
    /// Somebody marks the oldest backup.
    Keep,
    /// Somebody reads names, drills, and stores an index.
    Reports,
}

#[derive(Clone, Debug)]
pub(crate) struct Stay {
    pub(crate) id: BackupId,
    pub(crate) document: BackupDocument,
    /// When it was complete, by the store's clock.
    pub(crate) taken_at: Timestamp,
}

pub(crate) struct World {
    pub(crate) repository: Repository,
    pub(crate) store: MemoryStore,
    pub(crate) clock: Clock,
    pub(crate) backups: Vec<Stay>,
    /// So much the clock of whoever takes backups is behind.
    pub(crate) lag: SignedDuration,
    writer: Writer,
    timeline: u32,
    position: u64,
    history: String,
    marked: usize,
}

/// Runs it on a paused clock.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

impl World {
    pub(crate) async fn new() -> World {
        let clock = Clock::simulated("2026-01-01T00:30:00Z".parse().unwrap());
        let store = MemoryStore::with_clock(clock.clone());
        let size = SegmentSize::new(MIB).unwrap();
        let layout = Layout::new("main", size, Compression::Lz4);
        let repository = Repository { store: Arc::new(store.clone()), layout: layout.clone() };
        let writer = Writer::new(repository.store.clone(), layout, SYSTEM);
        let cluster = Cluster {
            format: FORMAT_VERSION,
            system_identifier: SYSTEM,
            postgres_version: 170_006,
            segment_bytes: MIB,
            created_at: clock.now(),
        };
        writer.store_document(&Key::Cluster, &cluster).await.unwrap();
        let (backups, history) = (Vec::new(), String::new());
        let lag = SignedDuration::ZERO;
        let mut world =
            World { repository, store, clock, backups, lag, writer, timeline: 1, position: MIB, history, marked: 0 };
        world.wal(MIB / 2).await;
        world
    }

    /// What happens one after the other, and a minute at the end.
    pub(crate) async fn of(events: &[(u8, Event)]) -> World {
        let mut world = World::new().await;
        for (hours, event) in events {
            world.wait(u64::from(*hours)).await;
            world.happen(event).await;
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        world
    }

    /// Hours pass, on a server that does nothing but live.
    pub(crate) async fn wait(&mut self, hours: u64) {
        for _ in 0..hours.div_ceil(6) {
            tokio::time::advance(Duration::from_secs(6 * 3600)).await;
            self.heartbeat().await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }

    pub(crate) async fn happen(&mut self, event: &Event) {
        match event {
            Event::Wal(halves) => self.wal(u64::from(*halves) * MIB / 2).await,
            Event::Full => self.backup(None, Findings::default()).await,
            Event::Incremental => {
                let good = self
                    .backups
                    .iter()
                    .rfind(|it| it.document.findings.is_empty() && it.document.timeline.0 == self.timeline);
                let reference = good.map(|backup| backup.id.clone());
                self.backup(reference, Findings::default()).await;
            }
            Event::IncrementalOnLast => {
                let reference = self.backups.last().map(|backup| backup.id.clone());
                self.backup(reference, Findings::default()).await;
            }
            Event::Bad { damaged: true } => {
                self.backup(None, Findings { damaged: true, ..Findings::default() }).await;
            }
            Event::Bad { damaged: false } => {
                self.backup(None, Findings { rejected_page_count: 1, ..Findings::default() }).await;
            }
            Event::Unfinished => {
                let reference = self.backups.last().map(|backup| backup.id.clone());
                let id = self.begin(reference).await;
                self.part(&id, 1).await;
            }
            Event::Failover { dead } => self.failover(*dead).await,
            Event::Gap => self.gap().await,
            Event::Idle => {}
            Event::Keep => self.keep().await,
            Event::Reports => self.reports().await,
        }
    }

    fn range(&self, start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(self.timeline), start: Lsn(start), end: Lsn(end) }
    }

    async fn put(&self, key: &Key) -> String {
        let name = self.repository.layout.name(key);
        self.store.create(&name, Bytes::from_static(b"wal").into(), Default::default()).await.unwrap();
        name
    }

    /// Tails up to the new position, and blocks where they are full, beside which the tails stay as garbage.
    pub(crate) async fn wal(&mut self, bytes: u64) {
        let end = self.position + bytes + 100;
        while self.position < end {
            let block = self.position / MIB * MIB;
            let upto = (block + MIB).min(end);
            self.put(&Key::Tail(self.range(self.position, upto))).await;
            if upto == block + MIB {
                self.put(&Key::Block(self.range(block, upto))).await;
            }
            self.position = upto;
        }
    }

    pub(crate) async fn begin(&self, reference: Option<BackupId>) -> BackupId {
        let started_at = self.clock.now();
        let id = BackupId::at(started_at, 0);
        let begin = BackupBegin {
            format: FORMAT_VERSION,
            id: id.clone(),
            system_identifier: SYSTEM,
            started_at,
            start_lsn: Lsn(self.position),
            timeline: TimelineId(self.timeline),
            reference,
        };
        self.writer.store_document(&Key::BackupBegin(id.clone()), &begin).await.unwrap();
        id
    }

    async fn part(&self, id: &BackupId, number: u8) -> BackupPart {
        let digest = ContentDigest::of_sha256([number; 32]);
        let name = PartName { archive: Archive::Base, number: number.into(), digest };
        self.put(&Key::BackupPart(id.clone(), name)).await;
        let sha256 = "00".repeat(32);
        BackupPart { name, plain_bytes: 10, stored_bytes: 3, sha256, added_bytes: 0, continues: None }
    }

    /// One more object in a backup's folder, which `backup.json` does not name.
    pub(crate) async fn crowd(&self, id: &BackupId, number: u16) {
        let mut content = [1; 32];
        content[..2].copy_from_slice(&number.to_be_bytes());
        let digest = ContentDigest::of_sha256(content);
        self.put(&Key::BackupPart(id.clone(), PartName { archive: Archive::Tablespace(5), number: 1, digest })).await;
    }

    async fn backup(&mut self, reference: Option<BackupId>, findings: Findings) {
        let (started_at, start, timeline) =
            (self.clock.now().checked_sub(self.lag).unwrap(), self.position, TimelineId(self.timeline));
        let id = self.begin(reference.clone()).await;
        let parts = vec![self.part(&id, 1).await, self.part(&id, 2).await];
        // Of an attempt that failed.
        self.part(&id, 9).await;
        let manifest = Key::BackupManifest(id.clone(), ContentDigest::of_sha256([0xAB; 32]));
        self.put(&manifest).await;
        tokio::time::advance(Duration::from_secs(3000)).await;
        self.wal(3 * MIB / 2).await;
        let (start_lsn, end_lsn) = (Lsn(start), Lsn(self.position - 50));
        let document = BackupDocument {
            format: FORMAT_VERSION,
            id: id.clone(),
            reference,
            label: "test".to_owned(),
            system_identifier: SYSTEM,
            postgres_version: 170_006,
            started_at,
            ended_at: self.clock.now().checked_sub(self.lag).unwrap(),
            start_lsn,
            timeline,
            end_lsn,
            end_timeline: timeline,
            wal_ranges: vec![WalNeed { timeline, start: start_lsn, end: end_lsn }],
            settings: BTreeMap::new(),
            tablespaces: Vec::new(),
            plain_bytes: 20,
            restored_bytes: None,
            stored_bytes: 6,
            manifest_sha256: "ab".repeat(32),
            ending: Ending::default(),
            findings,
            parts,
            files: BackupFiles::default(),
        };
        self.writer.store_document(&Key::BackupEnd(id.clone()), &document).await.unwrap();
        self.backups.push(Stay { id, document, taken_at: self.clock.now() });
    }

    async fn failover(&mut self, dead: bool) {
        let switch = self.position;
        let block = switch / MIB * MIB;
        if switch > block {
            self.put(&Key::Block(self.range(block, switch))).await;
        }
        if dead {
            self.wal(MIB).await;
            let range = self.range(switch, self.position);
            let WalRange { timeline, start, end } = range;
            let note = DeadBranchNote { format: FORMAT_VERSION, timeline, start, end };
            self.writer.store_document(&Key::DeadBranch(range), &note).await.unwrap();
        }
        self.history += &format!("{}\t{}\tno recovery target specified\n", self.timeline, Lsn(switch));
        self.timeline += 1;
        let key = Key::History(TimelineId(self.timeline));
        self.writer.store_plain(&key, Bytes::from(self.history.clone())).await.unwrap();
        self.position = block;
        self.wal(switch - block + 1000).await;
    }

    async fn gap(&mut self) {
        let start = self.position;
        self.position = (start / MIB + 2) * MIB;
        let range = self.range(start, self.position);
        let WalRange { timeline, start, end } = range;
        let (found_at, reason) = (self.clock.now(), "a test's".to_owned());
        let note = GapNote { format: FORMAT_VERSION, timeline, start, end, found_at, reason };
        self.writer.store_document(&Key::Gap(range), &note).await.unwrap();
        self.wal(MIB).await;
    }

    async fn keep(&mut self) {
        if self.marked < self.backups.len() {
            self.mark(self.marked, None).await;
            self.marked += 2;
        }
    }

    /// Marks one of the backups.
    pub(crate) async fn mark(&self, backup: usize, until: Option<Timestamp>) {
        self.store_mark(backup, true, until).await;
    }

    /// Takes its mark away.
    pub(crate) async fn unmark(&self, backup: usize) {
        self.store_mark(backup, false, None).await;
    }

    async fn store_mark(&self, backup: usize, keep: bool, until: Option<Timestamp>) {
        let mark = KeepMark {
            format: FORMAT_VERSION,
            backup: self.backups[backup].id.clone(),
            keep,
            reason: "a test's".to_owned(),
            until,
            set_at: self.clock.now(),
        };
        self.writer.store_keep_mark(&self.repository, &mark).await.unwrap();
    }

    async fn heartbeat(&self) {
        let (time, timeline, flush) = (self.clock.now(), TimelineId(self.timeline), Lsn(self.position));
        let heartbeat = Heartbeat { format: FORMAT_VERSION, time, timeline, flush_lsn: flush };
        self.writer.store_document(&Key::Heartbeat { timeline, time, flush }, &heartbeat).await.unwrap();
    }

    /// What whoever prunes, drills and marks leaves, while the server does nothing.
    pub(crate) async fn report(&mut self) {
        let seconds = Timestamp::from_second(self.clock.now().as_second()).unwrap();
        self.put(&Key::Prune(seconds)).await;
        self.put(&Key::Drill(seconds)).await;
        self.put(&Key::Audit(AuditKey { started_at: seconds, action: Action::Prune, result: ActionResult::Good }))
            .await;
    }

    async fn reports(&self) {
        let (time, timeline) = (self.clock.now(), TimelineId(self.timeline));
        let seconds = Timestamp::from_second(time.as_second()).unwrap();
        self.put(&Key::Names(NamesAt { lsn: Lsn(self.position), time: seconds, timeline })).await;
        self.put(&Key::Drill(seconds)).await;
        self.put(&Key::Records(self.range(self.position / MIB * MIB, self.position / MIB * MIB + MIB))).await;
        self.put(&Key::Probe(format!("a{}", time.as_second()))).await;
    }

    /// Everything is copied to another store, which dates all of it by this moment, and goes on there.
    pub(crate) async fn copy(&mut self) {
        let store = MemoryStore::with_clock(self.clock.clone());
        for name in self.names().await {
            let bytes = self.store.get(&name, None).await.unwrap().collect().await.unwrap();
            store.create(&name, bytes.into(), Default::default()).await.unwrap();
        }
        let layout = self.repository.layout.clone();
        self.repository = Repository { store: Arc::new(store.clone()), layout: layout.clone() };
        self.writer = Writer::new(self.repository.store.clone(), layout, SYSTEM);
        self.store = store;
    }

    /// Names that are stored.
    pub(crate) async fn names(&self) -> Vec<String> {
        let objects = seawall::store::list_all(&self.store, "main/").await.unwrap();
        objects.into_iter().map(|object| object.key).collect()
    }

    pub(crate) fn ago(&self, hours: i64) -> Timestamp {
        self.clock.now().checked_sub(SignedDuration::from_hours(hours)).unwrap()
    }
}
