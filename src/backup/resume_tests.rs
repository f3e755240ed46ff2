//! Base backups whose connection is lost, from scripts instead of a server, and what is stored of them again.

use super::super::parts::PART_BYTES;
use super::tests::{Answer, FOLDER, SYSTEM, Sample, Script, Scripts, message};
use super::*;
use crate::codec::encryption::{Identities, Recipients, generate_identity};
use crate::codec::{self, Compression, Form, encryption};
use crate::postgres::PgError;
use crate::repository::manifest::Manifest;
use crate::repository::{Archive, Layout, PartName, Repository};
use crate::store::{MemoryStore, Metadata, Store, list_all};
use crate::wal::SegmentSize;
use age::secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Two attempts see different files: the label, which always differs, one small file, and one page in the second part of a large one.
struct Two {
    first: Sample,
    second: Sample,
}

impl Two {
    fn new() -> Two {
        let mut large = vec![0; 2 * PART_BYTES as usize + 1_200_100];
        for (number, page) in (1u32..).zip(large.chunks_mut(4096)) {
            page[..4].copy_from_slice(&number.to_le_bytes());
        }
        let first = Sample::of(&large, b"START WAL LOCATION: 0/2000028", b"small");
        large[PART_BYTES as usize + 100_000] ^= 1;
        let second = Sample::of(&large, b"START WAL LOCATION: 0/2000028, later", b"larger by far");
        Two { first, second }
    }

    /// The first attempt, with so many of its events, and then this error.
    fn cut(&self, events: usize, error: PgError) -> Script {
        let mut script = self.first.script();
        script.events.truncate(events);
        Script { error: Some(error), ..script }
    }
}

/// A process that takes backups into a store.
struct Process {
    repository: Repository,
    writer: Writer,
}

impl Process {
    fn new(store: &MemoryStore, form: impl Into<Form>) -> Process {
        let store: Arc<dyn Store> = Arc::new(store.clone());
        let layout = Layout::new("main", SegmentSize::DEFAULT, form);
        let writer = Writer::new(store.clone(), layout.clone(), SYSTEM);
        Process { repository: Repository { store, layout }, writer }
    }

    async fn take(&self, resume: Option<Unfinished>, scripts: impl Into<VecDeque<Script>>) -> Result<BackupDocument> {
        let options = BackupOptions { resume, ..BackupOptions::default() };
        let (clock, waiter) = (Clock::system(), Answer(Ok(())));
        let (progress, _) = watch::channel(BackupProgress::default());
        let run = Run { writer: &self.writer, options: &options, clock: &clock, wal: &waiter, progress };
        let mut scripts = Scripts(scripts.into());
        let begun = scripts.begin().await?;
        run.store(begun, scripts).await
    }

    async fn find(&self) -> Result<Unfinished> {
        let id = BackupId::parse("20261120T140300Z").unwrap();
        Unfinished::find(&self.repository, &id, SYSTEM, &Clock::system()).await
    }

    /// What is stored is what the document says, and what the server sent at last.
    async fn assert_is(&self, document: &BackupDocument, sent: &Sample) {
        let mut streams: BTreeMap<Archive, Vec<u8>> = BTreeMap::new();
        for part in &document.parts {
            let name = self.repository.layout.name(&Key::BackupPart(document.id.clone(), part.name));
            let stored = self.repository.store.get(&name, None).await.unwrap().collect().await.unwrap();
            assert_eq!(stored.len() as u64, part.stored_bytes, "{name}");
            let found: String = Sha256::digest(&stored).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, part.sha256, "{name}");
            let clear = encryption::open_whole(&self.repository.layout.form().identities, stored).unwrap();
            let plain = codec::decode_object(&clear, 1 << 30).unwrap().plain;
            assert_eq!(plain.len() as u64, part.plain_bytes, "{name}");
            streams.entry(part.name.archive).or_default().extend(plain);
        }
        let expected = |stream: &[u8]| [stream, &[0; 1024]].concat();
        assert!(streams[&Archive::Base] == expected(&sent.base), "another data directory is stored");
        assert!(streams[&Archive::Tablespace(16384)] == expected(&sent.tablespace), "another tablespace is stored");
        let manifest = self.repository.read_manifest(document).await.unwrap();
        assert!(manifest == Manifest::parse(&sent.manifest).unwrap(), "another manifest is stored");
    }
}

/// The parts in the folder, by what they hold.
async fn parts(store: &MemoryStore) -> Vec<PartName> {
    let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
    let listed = list_all(store, FOLDER).await.unwrap();
    let keys = listed.iter().filter_map(|object| layout.parse(&object.key).ok());
    keys.filter_map(|key| if let Key::BackupPart(_, name) = key { Some(name) } else { None }).collect()
}

fn contents(parts: &[PartName]) -> HashSet<(Archive, String)> {
    parts.iter().map(|name| (name.archive, name.digest.to_string())).collect()
}

/// Where to cut: the first events, within and around parts, and the last ones, behind all parts.
fn cuts(two: &Two) -> Vec<usize> {
    let all = two.first.script().events.len();
    let inside = (0..all).step_by(all / 8);
    (2..5).chain(inside).chain(all - 4..all).collect()
}

fn encrypted() -> Form {
    let (secret, public) = generate_identity();
    let identities = Identities::parse(secret.expose_secret().as_bytes()).unwrap();
    Form { recipients: Recipients::parse([public.as_str()]).unwrap(), identities, ..Form::default() }
}

#[tokio::test(start_paused = true)]
async fn wherever_the_connection_is_lost_the_backup_goes_on_and_no_part_is_stored_twice() {
    let two = Two::new();
    let whole = two.first.script().events.len();
    for events in cuts(&two) {
        // Given a server whose connection is lost after so many events
        let (store, waiting) = (MemoryStore::new(), Instant::now());
        let process = Process::new(&store, Compression::Lz4);
        let lost = if events % 2 == 0 {
            PgError::Closed
        } else {
            PgError::Server(Box::new(message("FATAL", "57P01", "terminating connection due to administrator command")))
        };
        // When the backup is taken
        let document = process.take(None, [two.cut(events, lost), two.second.script()]).await.unwrap();
        // Then it is the second attempt's, under the first one's name, and what both have is there once.
        assert_eq!(document.id.as_str(), "20261120T140300Z", "cut at {events}");
        process.assert_is(&document, &two.second).await;
        let stored = parts(&store).await;
        assert_eq!(contents(&stored).len(), stored.len(), "a part is there twice, cut at {events}: {stored:?}");
        assert!(waiting.elapsed() >= PAUSES.first_pause / 2, "it was begun again without a pause");
        if events + 3 > whole {
            // All parts were stored by then; the label's, the one with the small file, and the changed one came again.
            let leftover = stored.len() - document.parts.len();
            assert_eq!(leftover, 3, "{stored:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_process_goes_on_and_stores_what_differs() {
    let two = Two::new();
    for form in [Form::from(Compression::Lz4), Form::from(Compression::Zstd(1)), encrypted()] {
        for events in cuts(&two).into_iter().skip(3).step_by(4) {
            // Given a process that has lost its server for good
            let store = MemoryStore::new();
            let first = Process::new(&store, form.clone());
            let error = first.take(None, [two.cut(events, PgError::Closed)]).await.unwrap_err();
            assert!(error.to_string().contains("seawall backup --resume 20261120T140300Z"), "{error}");
            let before = parts(&store).await;
            // When another one goes on
            let second = Process::new(&store, form.clone());
            let unfinished = second.find().await.unwrap();
            let document = second.take(Some(unfinished), [two.second.script()]).await.unwrap();
            // Then the backup is whole, and what was there and equal is in it.
            second.assert_is(&document, &two.second).await;
            let stored = parts(&store).await;
            assert_eq!(contents(&stored).len(), stored.len(), "a part is there twice, cut at {events}: {stored:?}");
            let used = document.parts.iter().filter(|part| before.contains(&part.name)).count();
            assert_eq!(stored.len(), before.len() + document.parts.len() - used, "cut at {events}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn encrypted_parts_are_found_again_in_a_copy_that_has_lost_its_metadata() {
    // Given what an attempt has stored, copied by a tool that keeps no metadata
    let (two, form, store) = (Two::new(), encrypted(), MemoryStore::new());
    let whole = two.first.script().events.len();
    let first = Process::new(&store, form.clone());
    first.take(None, [two.cut(whole - 1, PgError::Closed)]).await.unwrap_err();
    let copy = MemoryStore::new();
    for object in list_all(&store, FOLDER).await.unwrap() {
        let bytes = store.get(&object.key, None).await.unwrap().collect().await.unwrap();
        copy.create(&object.key, bytes.into(), Metadata::new()).await.unwrap();
    }
    // When another process goes on, then it reads what it needs to know
    let second = Process::new(&copy, form);
    let before = parts(&copy).await;
    let unfinished = second.find().await.unwrap();
    let document = second.take(Some(unfinished), [two.second.script()]).await.unwrap();
    second.assert_is(&document, &two.second).await;
    let used = document.parts.iter().filter(|part| before.contains(&part.name)).count();
    assert_eq!(used, document.parts.len() - 3, "{before:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_in_another_way_or_for_other_readers_is_not_used() {
    let two = Two::new();
    let whole = two.first.script().events.len();
    let (one_key, other_key) = (encrypted(), encrypted());
    let lz4 = || Form::from(Compression::Lz4);
    for (before, after) in [(lz4(), Compression::Zstd(1).into()), (lz4(), one_key.clone()), (one_key, other_key)] {
        let store = MemoryStore::new();
        Process::new(&store, before).take(None, [two.cut(whole - 1, PgError::Closed)]).await.unwrap_err();
        let found = parts(&store).await;
        let second = Process::new(&store, after);
        let unfinished = second.find().await.unwrap();
        let document = second.take(Some(unfinished), [two.second.script()]).await.unwrap();
        second.assert_is(&document, &two.second).await;
        assert!(document.parts.iter().all(|part| !found.contains(&part.name)), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_go_on_at_once_one_finishes_and_what_it_says_is_stored() {
    let two = Two::new();
    let whole = two.first.script().events.len();
    for form in [Form::from(Compression::Lz4), encrypted()] {
        // Given two processes that go on with the same backup, and a server that changes from one to the other
        let store = MemoryStore::new();
        let process = || Process::new(&store, form.clone());
        process().take(None, [two.cut(whole / 2, PgError::Closed)]).await.unwrap_err();
        let (one, other) = (process(), process());
        let (first, second) = (one.find().await.unwrap(), other.find().await.unwrap());
        // When both come to their end
        let ended =
            tokio::join!(one.take(Some(first), [two.first.script()]), other.take(Some(second), [two.second.script()]));
        // Then one has made the backup, and the other says so.
        let (document, sent, error) = match ended {
            (Ok(document), Err(error)) => (document, &two.first, error),
            (Err(error), Ok(document)) => (document, &two.second, error),
            both => panic!("{both:?}"),
        };
        one.assert_is(&document, sent).await;
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        assert!(error.to_string().contains("another process has finished it"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_gone_cut_or_flipped_since_make_no_backup_that_hides_it() {
    let two = Two::new();
    let whole = two.first.script().events.len();
    type Harm = fn(Vec<u8>) -> Option<Vec<u8>>;
    let harms: [(Harm, Kind); 3] = [
        (|_| None, Kind::Damaged),
        (|bytes| Some(bytes[..bytes.len() / 2].to_vec()), Kind::Diverged),
        (
            |mut bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Some(bytes)
            },
            Kind::Internal,
        ),
    ];
    for (harm, kind) in harms {
        // Given an unfinished backup that was looked at, and a part of it that changes in the store
        let store = MemoryStore::new();
        let process = Process::new(&store, Compression::Lz4);
        process.take(None, [two.cut(whole - 1, PgError::Closed)]).await.unwrap_err();
        let looked_at = process.find().await.unwrap();
        let name = *parts(&store).await.iter().find(|name| name.number == 3 && name.archive == Archive::Base).unwrap();
        let object = format!("{FOLDER}{name}.tar.lz4");
        let bytes = store.get(&object, None).await.unwrap().collect().await.unwrap();
        store.delete(&object).await.unwrap();
        if let Some(harmed) = harm(bytes.to_vec()) {
            store.create(&object, bytes::Bytes::from(harmed).into(), Metadata::new()).await.unwrap();
        }
        let looked_at = if kind == Kind::Damaged { looked_at } else { process.find().await.unwrap() };
        // When it is gone on with
        let taken = process.take(Some(looked_at), [two.second.script()]).await;
        // Then that is found out, or the backup says which bytes there should be, as of every damaged object.
        match taken {
            Err(error) => {
                assert_eq!(error.kind(), kind, "{error}");
                assert!(error.to_string().contains(&object), "{error}");
            }
            Ok(document) => {
                assert_eq!(kind, Kind::Internal, "nobody noticed");
                let part = document.parts.iter().find(|part| part.name == name).unwrap();
                assert!(part.sha256.starts_with(&name.digest.to_string()), "the hash of damaged bytes");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_lost_again_and_again_ends_the_backup() {
    let two = Two::new();
    let scripts: Vec<Script> = (0..10).map(|_| two.cut(20, PgError::Closed)).collect();
    let process = Process::new(&MemoryStore::new(), Compression::Lz4);
    let error = process.take(None, scripts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Postgres);
    assert!(error.to_string().contains("--resume 20261120T140300Z"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_would_say_again_is_not_tried_again() {
    let two = Two::new();
    for state in ["57014", "53100", "58030", "XX001"] {
        let error = PgError::Server(Box::new(message("ERROR", state, "it cannot be")));
        let process = Process::new(&MemoryStore::new(), Compression::Lz4);
        let error = process.take(None, [two.cut(20, error), two.second.script()]).await.unwrap_err();
        assert!(error.to_string().contains("it cannot be"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_unfinished_and_left_alone_is_gone_on_with() {
    let two = Two::new();
    let store = MemoryStore::new();
    let process = Process::new(&store, Compression::Lz4);
    // One that nobody has begun
    let error = process.find().await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.to_string().contains("there is no base backup"), "{error}");
    // One that another process works on
    process.take(None, [two.cut(20, PgError::Closed)]).await.unwrap_err();
    let more = async {
        sleep(Duration::from_secs(5)).await;
        let name = format!("{FOLDER}base.00009.{}.tar.lz4", "0".repeat(32));
        store.create(&name, bytes::Bytes::from_static(b"x").into(), Metadata::new()).await.unwrap();
    };
    let (found, ()) = tokio::join!(process.find(), more);
    assert_eq!(found.unwrap_err().kind(), Kind::Busy);
    // Another cluster's
    let id = BackupId::parse("20261120T140300Z").unwrap();
    let other = Unfinished::find(&process.repository, &id, SYSTEM + 1, &Clock::system()).await.unwrap_err();
    assert!(other.kind() == Kind::Diverged && other.to_string().contains(&SYSTEM.to_string()), "{other}");
    // One of the other type
    let unfinished = process.find().await.unwrap();
    assert!(unfinished.check_full().is_ok());
    assert_eq!(unfinished.incremental_reference().unwrap_err().kind(), Kind::Refused);
    // One than which a newer one is finished
    let newer = BackupId::parse("20261120T150000Z").unwrap();
    let begin: Option<BackupBegin> = process.repository.read_document(&Key::BackupBegin(id)).await.unwrap();
    let begin = BackupBegin { id: newer.clone(), ..begin.unwrap() };
    process.writer.store_document(&Key::BackupBegin(newer.clone()), &begin).await.unwrap();
    process.find().await.unwrap();
    let end = Key::BackupEnd(newer);
    process.writer.store_plain(&end, bytes::Bytes::from_static(b"{}")).await.unwrap();
    let error = process.find().await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.to_string().contains("20261120T150000Z"), "{error}");
    store.delete(&process.repository.layout.name(&end)).await.unwrap();
    // One that is finished
    process.take(Some(unfinished), [two.second.script()]).await.unwrap();
    let error = process.find().await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.to_string().contains("is finished"), "{error}");
}

#[test]
fn only_what_may_pass_is_waited_for() {
    let of_server = |state: &str| Error::from(PgError::Server(Box::new(message("FATAL", state, "no"))));
    for error in [of_server("57P03"), of_server("53300"), PgError::Closed.into(), Error::new(Kind::Busy, "cut again")] {
        assert!(may_pass(&error.context("while connecting")), "this would have passed");
    }
    let wrong_password = PgError::Auth { message: "no".into(), hint: None };
    for error in [of_server("28P01"), of_server("42501"), wrong_password.into(), Error::new(Kind::Refused, "no")] {
        assert!(!may_pass(&error), "{error}: nobody gets in by trying on");
    }
}

#[test]
fn a_backup_never_begins_before_it_first_began() {
    let at = |timeline, lsn| (TimelineId(timeline), Lsn(lsn));
    for (first, now) in [(at(1, 7), at(1, 7)), (at(1, 7), at(1, 8)), (at(1, 7), at(2, 5))] {
        check_not_before(first, now).unwrap();
    }
    for (first, now) in [(at(1, 7), at(1, 6)), (at(2, 5), at(1, 9))] {
        assert_eq!(check_not_before(first, now).unwrap_err().kind(), Kind::Refused);
    }
}
