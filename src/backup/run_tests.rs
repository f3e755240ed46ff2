//! Base backups from a script instead of a server, into memory.

use super::super::pages::testing::page;
use super::*;
use crate::backup::parts::PART_BYTES;
use crate::codec::{self, Compression};
use crate::postgres::{BackupEvent, PgError, ServerMessage, Tablespace};
use crate::repository::incremental::testing::incremental;
use crate::repository::manifest::{FileCheck, testing::manifest};
use crate::repository::tar::testing::{file, header};
use crate::repository::{Archive, BackupVerdict, Intent, Layout, WalNeed};
use crate::store::{
    Body, Created, Level, ListPage, MemoryStore, Metadata, ObjectHead, ObjectStream, Store, StoreError, StoreErrorKind,
    Upload, list_all,
};
use crate::wal::{Lsn, SegmentSize, TimelineId};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub(super) const SYSTEM: u64 = 7_300_000_000_000_000_001;

/// Events, and at last an error if there is one.
pub(super) struct Script {
    pub(super) events: VecDeque<BackupEvent>,
    pub(super) error: Option<PgError>,
}

impl EventSource for Script {
    async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => Err(self.error.take().unwrap_or(PgError::Closed).into()),
        }
    }
}

/// What a server sends each time a backup is begun again; then it is gone for good.
#[derive(Default)]
pub(super) struct Scripts(pub(super) VecDeque<Script>);

impl Begin for Scripts {
    type Source = Script;

    async fn begin(&mut self) -> Result<(Server, Script)> {
        let next = self.0.pop_front().ok_or_else(|| Error::new(Kind::Refused, "the server is gone for good"))?;
        Ok((server(), next))
    }
}

/// What a server would send for these files: one tablespace, then the data directory, then the manifest.
pub(super) struct Sample {
    pub(super) tablespace: Vec<u8>,
    pub(super) base: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

impl Sample {
    fn new() -> Sample {
        // Larger than a frame and than a part, and different in every page.
        let mut large = vec![0; PART_BYTES as usize + 1_200_100];
        for (number, page) in (1u32..).zip(large.chunks_mut(4096)) {
            page[..4].copy_from_slice(&number.to_le_bytes());
        }
        Sample::with(&large)
    }

    fn with(large: &[u8]) -> Sample {
        Sample::of(large, b"START WAL LOCATION: 0/2000028", b"")
    }

    /// With these contents of three files.
    pub(super) fn of(large: &[u8], label: &[u8], small: &[u8]) -> Sample {
        let check = |content: &[u8]| FileCheck { size_bytes: content.len() as u64, crc32c: crc32c::crc32c(content) };
        let mut tablespace = header(b"PG_15_202209061/", b'5', 0, b"").to_vec();
        tablespace.extend(file("PG_15_202209061/5/16385", b"in a tablespace"));
        let files: Vec<(&str, &[u8])> = vec![
            ("backup_label", label),
            ("base/5/small", small),
            ("base/5/16384", large),
            ("global/pg_control", &[7; 8192]),
        ];
        let mut base = Vec::new();
        let mut listed = Vec::new();
        for (path, content) in files {
            base.extend(file(path, content));
            listed.push((path.to_owned(), check(content)));
        }
        base.extend(header(b"./pg_wal/archive_status/", b'5', 0, b""));
        listed.push(("pg_tblspc/16384/PG_15_202209061/5/16385".to_owned(), check(b"in a tablespace")));
        let manifest = manifest(Some(SYSTEM), &listed, &[need()]).into_bytes();
        Sample { tablespace, base, manifest }
    }

    pub(super) fn script(&self) -> Script {
        let data = |bytes: &[u8]| -> Vec<BackupEvent> {
            bytes.chunks(32 << 10).map(|piece| BackupEvent::Data(Bytes::copy_from_slice(piece))).collect()
        };
        let mut events = VecDeque::new();
        events.push_back(BackupEvent::Archive { tablespace: Some(16384), location: Some("/srv/fast".into()) });
        events.extend(data(&self.tablespace));
        events.push_back(BackupEvent::Archive { tablespace: None, location: None });
        events.extend(data(&self.base));
        events.push_back(BackupEvent::Manifest);
        events.extend(data(&self.manifest));
        events.push_back(BackupEvent::End { end_lsn: need().end, timeline: TimelineId(1), damage: None });
        Script { events, error: None }
    }
}

pub(super) fn need() -> WalNeed {
    WalNeed { timeline: TimelineId(1), start: Lsn(0x200_0028), end: Lsn(0x200_0100) }
}

pub(super) fn server() -> Server {
    let tablespace = Tablespace { oid: 16384, location: "/srv/fast".into(), size_kib: Some(1) };
    Server {
        reference: None,
        postgres_version: 150_018,
        settings: BTreeMap::from(
            [("max_connections", "100"), ("block_size", "8192"), ("segment_size", "1GB"), ("data_checksums", "on")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        ),
        started_at: "2026-11-20T14:03:00.25Z".parse().unwrap(),
        start: BackupStart {
            start_lsn: need().start,
            timeline: TimelineId(1),
            tablespaces: vec![tablespace],
            total_kib: Some(40_000),
        },
    }
}

fn writer(store: Arc<dyn Store>) -> Writer {
    Writer::new(store, Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4), SYSTEM)
}

/// A waiter with its answer ready.
#[derive(Debug)]
pub(super) struct Answer(pub(super) Result<(), &'static str>);

#[async_trait]
impl WalWaiter for Answer {
    async fn wait_covered(&self, ranges: &[WalNeed]) -> Result<()> {
        assert_eq!(ranges, [need()], "the manifest's ranges are what is waited for");
        self.0.map_err(|message| Error::new(Kind::Damaged, message))
    }
}

async fn store_from(script: Script, store: Arc<dyn Store>, waiter: impl WalWaiter) -> Result<BackupDocument> {
    let (options, clock) = (BackupOptions::default(), Clock::simulated("2026-11-20T14:05:00Z".parse().unwrap()));
    let (progress, _) = watch::channel(BackupProgress::default());
    let run = Run { writer: &writer(store), options: &options, clock: &clock, wal: &waiter, progress };
    run.store((server(), script), Scripts::default()).await
}

pub(super) async fn names(store: &dyn Store) -> Vec<String> {
    let mut names: Vec<String> = list_all(store, "").await.unwrap().into_iter().map(|object| object.key).collect();
    names.sort();
    names
}

async fn plain(store: &dyn Store, name: &str) -> Vec<u8> {
    let stored = store.get(name, None).await.unwrap().collect().await.unwrap();
    codec::decode_object(&stored, 1 << 30).unwrap().plain
}

pub(super) const FOLDER: &str = "main/base/20261120T140300Z/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_sends_is_what_is_stored() {
    let sample = Sample::new();
    let store = Arc::new(MemoryStore::new());
    let document = store_from(sample.script(), store.clone(), Answer(Ok(()))).await.unwrap();

    let manifest = format!("backup_manifest.{}.lz4", &document.manifest_sha256[..32]);
    let parts = document.parts.iter().map(|part| format!("{}.tar.lz4", part.name));
    let others = ["backup.json".to_owned(), manifest.clone(), "begin.json".to_owned()];
    let mut expected: Vec<String> = parts.chain(others).map(|name| format!("{FOLDER}{name}")).collect();
    expected.sort();
    assert_eq!(names(store.as_ref()).await, expected);
    let numbers: Vec<_> = document.parts.iter().map(|part| (part.name.archive, part.name.number)).collect();
    let in_base = (1..=6).map(|number| (Archive::Base, number));
    assert_eq!(numbers, [(Archive::Tablespace(16384), 1)].into_iter().chain(in_base).collect::<Vec<_>>());

    // Joined, the parts are the server's stream and its end; the manifest is the server's.
    let mut base = Vec::new();
    for part in &document.parts {
        let name = format!("{FOLDER}{}.tar.lz4", part.name);
        let bytes = plain(store.as_ref(), &name).await;
        assert_eq!(bytes.len() as u64, part.plain_bytes);
        assert_eq!(store.head(&name).await.unwrap().info.bytes, part.stored_bytes);
        if part.name.archive == Archive::Base {
            assert!(part.sha256.starts_with(&part.name.digest.to_string()), "a part is called by its SHA-256");
            base.extend(bytes);
        } else {
            assert!(bytes == [&sample.tablespace[..], &[0; 1024]].concat());
        }
    }
    assert!(base == [&sample.base[..], &[0; 1024]].concat(), "the parts together are not what the server sent");
    assert!(plain(store.as_ref(), &format!("{FOLDER}{manifest}")).await == sample.manifest);

    // The document says what is where, and is what was stored.
    let added: Vec<u32> = document.parts.iter().map(|part| part.added_bytes).collect();
    assert_eq!(added, [1024, 0, 0, 0, 0, 0, 1024], "a server before 15 does not end its archives");
    assert_eq!(document.files.len(), 5);
    assert_eq!(document.settings["max_connections"], "100");
    assert_eq!((document.end_lsn, document.end_timeline), (need().end, TimelineId(1)));
    let json = store.get(&format!("{FOLDER}backup.json"), None).await.unwrap().collect().await.unwrap();
    assert_eq!(serde_json::from_slice::<BackupDocument>(&json).unwrap(), document);
}

type Alter<'a> = &'a dyn Fn(&mut Sample);

#[tokio::test]
async fn a_byte_that_changes_on_the_way_is_found_out() {
    // Given a stream in which one byte of a file's contents, or of the manifest, is not the server's
    let content = |sample: &mut Sample| sample.base[PART_BYTES as usize + 1_000_000] ^= 1;
    let late = |sample: &mut Sample| {
        let at = sample.base.len() - 1024;
        sample.base[at] ^= 1;
    };
    let tablespace = |sample: &mut Sample| sample.tablespace[1024] ^= 1;
    let listed = |sample: &mut Sample| {
        let at = sample.manifest.windows(6).position(|six| six == b"pg_con").unwrap();
        sample.manifest[at] ^= 1;
    };
    let sum = |sample: &mut Sample| {
        let at = sample.manifest.len() - 10;
        sample.manifest[at] ^= 1;
    };
    let cases: [(Alter<'_>, &str); 5] = [
        (&content, "base/5/16384 did not arrive"),
        (&late, "global/pg_control did not arrive"),
        (&tablespace, "pg_tblspc/16384/PG_15_202209061/5/16385 did not arrive"),
        (&listed, "which did not arrive"),
        (&sum, "does not have the SHA-256"),
    ];
    for (alter, expected) in cases {
        let mut sample = Sample::new();
        alter(&mut sample);
        let store = Arc::new(MemoryStore::new());
        // When it is taken, then the backup fails, by the file's name, and does not exist
        let error = store_from(sample.script(), store.clone(), Answer(Ok(()))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(error.to_string().contains(expected), "{error}, and not: {expected}");
        assert!(error.to_string().contains("20261120T140300Z"), "{error} does not name the backup");
        let names = names(store.as_ref()).await;
        assert!(!names.iter().any(|name| name.ends_with("backup.json")), "{names:?}");
    }
}

#[tokio::test]
async fn a_server_that_fails_after_its_manifest_has_made_no_backup() {
    let mut script = Sample::new().script();
    script.events.pop_back();
    let warning = "checksum verification failed in file \"./base/5/16384\", block 3";
    script.events.insert(5, BackupEvent::Notice(message("WARNING", "XX001", warning)));
    script.error = Some(PgError::Server(Box::new(message("ERROR", "58030", "could not read a file"))));
    let store = Arc::new(MemoryStore::new());
    let error = store_from(script, store.clone(), Answer(Ok(()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Postgres);
    assert!(error.hint_text().is_some_and(|hint| hint.contains(warning)), "{error:?} does not say which file");
    let names = names(store.as_ref()).await;
    assert!(names.contains(&format!("{FOLDER}begin.json")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("backup")), "{names:?}");
    assert!(error.to_string().contains("seawall backup --resume 20261120T140300Z"), "{error}");
}

pub(super) fn message(severity: &str, sqlstate: &str, message: &str) -> ServerMessage {
    ServerMessage {
        severity: severity.into(),
        sqlstate: sqlstate.into(),
        message: message.into(),
        ..ServerMessage::default()
    }
}

#[tokio::test]
async fn a_backup_with_damaged_pages_is_kept_and_says_so() {
    // Given a server that warns of a page, sends everything, and calls its own pages damaged
    let mut script = Sample::new().script();
    let warning = "checksum verification failed in file \"./base/5/16384\", block 3";
    script.events.insert(5, BackupEvent::Notice(message("WARNING", "XX001", warning)));
    script.events.pop_back();
    let damage = Some(Box::new(message("ERROR", "XX001", "checksum verification failure during base backup")));
    script.events.push_back(BackupEvent::End { end_lsn: need().end, timeline: TimelineId(1), damage });
    // When it is taken, then it exists, with what the server said
    let store = Arc::new(MemoryStore::new());
    let document = store_from(script, store.clone(), Answer(Ok(()))).await.unwrap();
    assert_eq!(document.findings.verdict(), BackupVerdict::Damaged);
    assert_eq!(document.findings.warnings, [warning, "checksum verification failure during base backup"]);
    assert!(names(store.as_ref()).await.contains(&format!("{FOLDER}backup.json")));
}

#[tokio::test]
async fn pages_that_only_we_reject_make_a_backup_suspect_wherever_they_lie() {
    // Given a relation of more than a part, whose pages do not begin where frames do
    let pages = (0..4200u32).flat_map(|block| page(block, 0x100_0000, block as u8));
    let mut large: Vec<u8> = pages.collect();
    let whole = store_from(Sample::with(&large).script(), Arc::new(MemoryStore::new()), Answer(Ok(()))).await.unwrap();
    assert_eq!(whole.findings, Findings::default(), "pages that are as they should be");
    // When some are damaged: the first, one that two frames share, one at each side of the border of two parts, the last
    let damaged = [0, 511, 4095, 4096, 4199];
    damaged.iter().for_each(|block| large[block * 8192 + 8000] ^= 1);
    let document =
        store_from(Sample::with(&large).script(), Arc::new(MemoryStore::new()), Answer(Ok(()))).await.unwrap();
    // Then those are named
    assert_eq!(document.findings.verdict(), BackupVerdict::Suspect);
    let found: Vec<_> = document.findings.rejected_pages.iter().map(|page| page.block as usize).collect();
    assert_eq!(found, damaged);
    assert_eq!(document.findings.rejected_page_count, 5);
    assert!(document.findings.in_words().unwrap().contains("base/5/16384 page 511, base/5/16384 page 4095 and 2 more"));
}

/// What a server sends of an incremental backup whose one file of changes is `changes`.
fn incremental_script(changes: &[u8]) -> Script {
    let path = "base/5/INCREMENTAL.16384.1";
    let check = FileCheck { size_bytes: changes.len() as u64, crc32c: crc32c::crc32c(changes) };
    let (label, control) = (&b"START WAL LOCATION: 0/2000028"[..], &[7u8; 8192][..]);
    let whole = [("backup_label", label), ("global/pg_control", control)]
        .map(|(path, content)| (path, FileCheck { size_bytes: content.len() as u64, crc32c: crc32c::crc32c(content) }));
    let listed: Vec<_> =
        whole.into_iter().chain([(path, check)]).map(|(path, check)| (path.to_owned(), check)).collect();
    let base = [file("backup_label", label), file(path, changes), file("global/pg_control", control)].concat();
    let manifest = manifest(Some(SYSTEM), &listed, &[need()]).into_bytes();
    Sample { tablespace: Vec::new(), base, manifest }.script()
}

async fn store_incremental(script: Script) -> Result<BackupDocument> {
    let writer = writer(Arc::new(MemoryStore::new()));
    let reference = Key::BackupEnd(BackupId::parse("20261119T140300Z").unwrap());
    writer.store_plain(&reference, Bytes::from_static(b"{}")).await.unwrap();
    store_incremental_with(&writer, script).await
}

async fn store_incremental_with(writer: &Writer, script: Script) -> Result<BackupDocument> {
    let reference = Reference { id: BackupId::parse("20261119T140300Z").unwrap(), cut: None };
    let (options, clock) = (BackupOptions::default(), Clock::simulated("2026-11-20T14:05:00Z".parse().unwrap()));
    let (progress, _) = watch::channel(BackupProgress::default());
    let waiter = Answer(Ok(()));
    let run = Run { writer, options: &options, clock: &clock, wal: &waiter, progress };
    run.store((Server { reference: Some(reference), ..server() }, script), Scripts::default()).await
}

#[tokio::test]
async fn the_pages_of_an_incremental_file_are_checked_by_their_own_numbers_across_parts() {
    // Given changed pages of a relation's second file, more than a part of them, every third one
    let first = 131_072u32;
    let blocks: Vec<(u32, Vec<u8>)> =
        (0..4200u32).map(|at| (3 * at, page(first + 3 * at, 0x100_0000, at as u8))).collect();
    let mut changes = incremental(20_000, &blocks);
    let document = store_incremental(incremental_script(&changes)).await.unwrap();
    assert_eq!(document.findings, Findings::default(), "pages that are as they should be");
    assert_eq!(document.reference.as_ref().map(BackupId::as_str), Some("20261119T140300Z"));
    let small: u64 = document.files.iter().filter(|file| file.bytes < 10_000).map(|file| file.bytes).sum();
    assert_eq!(document.restored_bytes, Some(small + 20_000 * 8192), "the whole file counts");
    assert!(document.parts.iter().any(|part| part.continues.is_some()), "the file is cut");
    // When some are damaged, in the first frame, at the border of two parts, and last
    let header = changes.len() - 4200 * 8192;
    let at_border = (PART_BYTES as usize - header) / 8192;
    for at in [0, at_border - 1, at_border, 4199] {
        changes[header + at * 8192 + 8000] ^= 1;
    }
    let document = store_incremental(incremental_script(&changes)).await.unwrap();
    let found: Vec<_> = document.findings.rejected_pages.iter().map(|page| (page.block - first) as usize / 3).collect();
    assert_eq!(found, [0, at_border - 1, at_border, 4199]);
}

#[tokio::test]
async fn a_backup_whose_reference_was_deleted_meanwhile_does_not_come_to_be() {
    let store = Arc::new(MemoryStore::new());
    let script = incremental_script(&incremental(7, &[(3, page(131_075, 1, 1))]));
    let error = store_incremental_with(&writer(store.clone()), script).await.unwrap_err();
    assert!(error.to_string().contains("this backup builds on it"), "{error}");
    let names = list_all(store.as_ref(), "").await.unwrap();
    assert!(!names.iter().any(|object| object.key.ends_with("/backup.json")), "{names:?}");
}

#[tokio::test]
async fn an_incremental_backup_on_one_that_is_about_to_go_does_not_come_to_be() {
    // Given a prune that has said that it deletes what the backup builds on, and has not done it yet
    let store = Arc::new(MemoryStore::new());
    let writer = writer(store.clone());
    let reference = BackupId::parse("20261119T140300Z").unwrap();
    writer.store_plain(&Key::BackupEnd(reference.clone()), Bytes::from_static(b"{}")).await.unwrap();
    let said = writer.store_intent(Intent::Going, &reference, Clock::system().now()).await.unwrap();
    let script = || incremental_script(&incremental(7, &[(3, page(131_075, 1, 1))]));
    let error = store_incremental_with(&writer, script()).await.unwrap_err();
    assert!(error.kind() == Kind::Busy && error.to_string().contains("about to delete"), "{error}");
    let names = list_all(store.as_ref(), "").await.unwrap();
    assert!(!names.iter().any(|object| object.key.contains("20261120") && object.key.ends_with("/backup.json")));
    // When it takes that back, then another one comes to be
    store.delete(&writer.layout().name(&said)).await.unwrap();
    store_incremental_with(&writer, script()).await.unwrap();
}

#[tokio::test]
async fn a_file_of_changes_that_no_restore_could_read_is_found_out() {
    let good = incremental(7, &[(3, page(131_075, 1, 1))]);
    store_incremental(incremental_script(&good)).await.unwrap();
    for (bad, says) in [
        (vec![1; 8192], "does not begin with the magic number"),
        (good[..good.len() - 1].to_vec(), "has another length"),
        (good[..9].to_vec(), "ends within its header"),
        (Vec::new(), "ends within its header"),
    ] {
        let error = store_incremental(incremental_script(&bad)).await.unwrap_err();
        assert!(error.to_string().contains("INCREMENTAL.16384.1") && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn of_a_thousand_and_more_bad_pages_the_rest_is_counted() {
    let mut large: Vec<u8> = (0..2100u32).flat_map(|block| page(block, 0x100_0000, block as u8)).collect();
    large.chunks_mut(8192).for_each(|page| page[8000] ^= 1);
    let document =
        store_from(Sample::with(&large).script(), Arc::new(MemoryStore::new()), Answer(Ok(()))).await.unwrap();
    assert_eq!(document.findings.rejected_page_count, 2100);
    assert_eq!(document.findings.rejected_pages.len(), 1000);
}

#[tokio::test]
async fn a_stream_that_ends_early_has_made_no_backup() {
    let whole = Sample::new().script().events.len();
    for kept in [1, 2, 100, whole - 2, whole - 1] {
        let mut script = Sample::new().script();
        script.events.truncate(kept);
        let store = Arc::new(MemoryStore::new());
        assert!(store_from(script, store.clone(), Answer(Ok(()))).await.is_err(), "{kept} events were enough");
        assert!(!names(store.as_ref()).await.contains(&format!("{FOLDER}backup.json")));
    }
    // Nor does one that says that it is a success, without a manifest, or with half an archive.
    let end = Sample::new().script().events.pop_back().unwrap();
    for kept in [2, 3, whole - 3] {
        let mut script = Sample::new().script();
        script.events.truncate(kept);
        script.events.push_back(end.clone());
        assert!(store_from(script, Arc::new(MemoryStore::new()), Answer(Ok(()))).await.is_err(), "{kept} and an end");
    }
}

#[tokio::test]
async fn without_its_wal_it_is_no_backup() {
    let store = Arc::new(MemoryStore::new());
    let lost = Answer(Err("the WAL is lost"));
    let error = store_from(Sample::new().script(), store.clone(), lost).await.unwrap_err();
    assert!(error.to_string().contains("the WAL is lost"), "{error}");
    assert!(!names(store.as_ref()).await.contains(&format!("{FOLDER}backup.json")));
}

/// A wait of more than a day, in which a prune takes the backup for left over.
#[derive(Debug)]
struct Pruned(Arc<dyn Store>);

#[async_trait]
impl WalWaiter for Pruned {
    async fn wait_covered(&self, _: &[WalNeed]) -> Result<()> {
        for name in names(self.0.as_ref()).await {
            self.0.delete(&name).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_backup_that_was_pruned_while_it_waited_does_not_come_to_be() {
    let store = Arc::new(MemoryStore::new());
    let error = store_from(Sample::new().script(), store.clone(), Pruned(store.clone())).await.unwrap_err();
    assert!(error.to_string().contains("begin.json was deleted"), "{error}");
    assert_eq!(names(store.as_ref()).await, Vec::<String>::new());
}

/// A store in which a prune begins to take the backup for left over in the moment in which `backup.json` is stored.
#[derive(Debug)]
struct PrunedInTheEnd(MemoryStore);

#[async_trait]
impl Store for PrunedInTheEnd {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        if key.ends_with("/backup.json") {
            self.0.delete(&format!("{FOLDER}begin.json")).await?;
        }
        self.0.create(key, body, metadata).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.0.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.0.head(key).await
    }
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.0.list_page(prefix, token).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.0.list_level(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.0.begin_upload(key, metadata).await
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

#[tokio::test]
async fn a_backup_that_a_prune_takes_in_its_last_moment_is_not_reported_as_done() {
    let store = Arc::new(PrunedInTheEnd(MemoryStore::new()));
    let error = store_from(Sample::new().script(), store.clone(), Answer(Ok(()))).await.unwrap_err();
    assert!(error.to_string().contains("begin.json was deleted"), "{error}");
    assert!(names(store.as_ref()).await.contains(&format!("{FOLDER}backup.json")), "it was stored just before");
}

#[tokio::test]
async fn two_backups_of_one_second_have_two_names() {
    // Given a backup that began in this second, by somebody else
    let store = Arc::new(MemoryStore::new());
    store.create(&format!("{FOLDER}begin.json"), Body::from(Bytes::from("{}")), Metadata::new()).await.unwrap();
    let document = store_from(Sample::new().script(), store.clone(), Answer(Ok(()))).await.unwrap();
    assert_eq!(document.id.as_str(), "20261120T140300Z-1");
}

/// A store where parts do not come back, or fail.
#[derive(Debug)]
struct Stuck {
    inner: MemoryStore,
    fails: bool,
}

#[async_trait]
impl Store for Stuck {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        if key.contains(".tar.") {
            if self.fails {
                return Err(StoreError::new(StoreErrorKind::Full, "store", key));
            }
            std::future::pending::<()>().await;
        }
        self.inner.create(key, body, metadata).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        self.inner.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.inner.head(key).await
    }
    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        self.inner.list_page(prefix, token).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        self.inner.list_level(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(key, metadata).await
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[tokio::test]
async fn a_store_that_is_full_ends_the_backup() {
    let store = Arc::new(Stuck { inner: MemoryStore::new(), fails: true });
    let error = store_from(Sample::new().script(), store, Answer(Ok(()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Store);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("full")), "{error:?}");
}

/// A server that is there only once.
struct Once;

impl Begin for Once {
    type Source = Endless;

    async fn begin(&mut self) -> Result<(Server, Endless)> {
        Err(Error::new(Kind::Refused, "the server is gone for good"))
    }
}

/// A file that never ends.
struct Endless(Option<BackupEvent>);

impl EventSource for Endless {
    async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
        let head = || BackupEvent::Data(Bytes::copy_from_slice(&header(b"base/5/1", b'0', 1 << 50, b"")));
        let archive = BackupEvent::Archive { tablespace: None, location: None };
        let next = match &self.0 {
            None => archive,
            Some(BackupEvent::Archive { .. }) => head(),
            Some(_) => BackupEvent::Data(Bytes::from_static(&[7; 32 << 10])),
        };
        self.0 = Some(next.clone());
        Ok(next)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_read_than_fits_the_memory() {
    // Given a store that takes nothing
    let store = Arc::new(Stuck { inner: MemoryStore::new(), fails: false });
    let (options, clock) = (BackupOptions::default(), Clock::system());
    let (progress, mut seen) = watch::channel(BackupProgress::default());
    let (writer, waiter) = (writer(store), Answer(Ok(())));
    let run = Run { writer: &writer, options: &options, clock: &clock, wal: &waiter, progress };
    // When the server goes on sending, then reading stops: parts in flight, one waiting, one handed on, frames at work
    let reading = run.store((server(), Endless(None)), Once);
    let stalled = async {
        let pause = Duration::from_secs(1);
        while tokio::time::timeout(pause, seen.changed()).await.is_ok() {}
        seen.borrow().received_bytes
    };
    let received = tokio::select! {
        _ = reading => panic!("a backup of an endless file ended"),
        received = stalled => received,
    };
    let parts = (options.uploads_in_flight as u64 + 1) * PART_BYTES;
    let frames = (FRAMES_AT_WORK as u64 + 4) * codec::FRAME_BYTES as u64;
    assert!(received >= parts, "only {received} bytes were read ahead");
    assert!(received <= parts + frames, "{received} bytes were read ahead");
}

#[test]
fn another_cluster_is_refused() {
    let writer = writer(Arc::new(MemoryStore::new()));
    assert!(check_cluster(SYSTEM, &writer).is_ok());
    let error = check_cluster(SYSTEM + 1, &writer).unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    assert!(error.to_string().contains(&(SYSTEM + 1).to_string()), "{error}");
}

#[test]
fn a_label_is_one_line() {
    assert!(check_label("nightly, größe").is_ok());
    for label in ["two\nlines".to_owned(), "\u{0}".to_owned(), "x".repeat(1001)] {
        assert_eq!(check_label(&label).unwrap_err().kind(), Kind::Usage, "{label:?}");
    }
}
