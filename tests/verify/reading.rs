//! What reading every object tells.

use crate::invented::MIB;
use crate::stage::{Stage, assert_sound, count, deep, found, range};
use seawall::error::Kind;
use seawall::repository::{Key, Repository};
use seawall::runtime::Clock;
use seawall::store::{ObservedStore, Operation, StoreErrorKind, StoreObserver};
use seawall::verify::{FindingKind, VerifyOptions};
use seawall::wal::TimelineId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Names of everything that has frames.
async fn objects(stage: &Stage) -> Vec<String> {
    stage.names().await.into_iter().filter(|name| name.ends_with(".lz4")).collect()
}

#[tokio::test]
async fn an_intact_repository_is_read_to_its_last_byte_and_is_sound() {
    let stage = Stage::new().await;
    let report = stage.read_all().await;
    assert_sound(&report);
    let read = report.read.expect("it was read");
    let documents = ["cluster.json", "begin.json", "backup.json", "00000002.history"];
    let names = stage.names().await;
    let others = names.iter().filter(|name| !documents.iter().any(|document| name.ends_with(document)));
    assert_eq!(read.objects, others.count() as u64, "and the documents were parsed");
    assert_eq!((read.sealed_objects, read.resumed_objects), (0, 0));
}

#[tokio::test]
async fn a_bit_that_is_flipped_anywhere_is_found_and_named() {
    let stage = Stage::new().await;
    for name in objects(&stage).await {
        let sound = stage.read(&name).await;
        let last = sound.len() - 1;
        for at in [0, 5, 30, last / 3, last / 2, last - 3, last] {
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << (at % 8);
            stage.replace(&name, flipped).await;
            let report = stage.read_all().await;
            let causes = found(&report);
            assert!(causes.len() == 1 && causes[0].1 == name, "byte {at} of {name}: {:#?}", report.findings);
            assert_eq!(report.problems, 1, "byte {at} of {name}");
        }
        stage.replace(&name, sound).await;
    }
    assert_sound(&stage.read_all().await);
}

/// A segment of 1 MiB as PostgreSQL 15 begins one (`XLogLongPageHeaderData` in `xlog_internal.h`), with one record of `body`, whose
/// checksum is said to be `checksum`, and zeros behind it.
fn segment(start: u64, body: &[u8], checksum: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend((1_u32 << 20).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    bytes.extend((24 + body.len() as u32).to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend((start - 100).to_le_bytes());
    // Of the resource manager of heaps.
    bytes.extend([0, 10, 0, 0]);
    bytes.extend(checksum.to_le_bytes());
    bytes.extend(body);
    bytes.resize(MIB as usize, 0);
    bytes
}

#[tokio::test]
async fn a_record_that_the_server_sent_damaged_is_named() {
    // Given WAL as it was received, in which a record is what it must be
    let stage = Stage::new().await;
    stage.block(range(2, 8 * MIB, 9 * MIB)).await;
    let (block, body) = (range(2, 9 * MIB, 10 * MIB), [7; 100]);
    let header = &segment(9 * MIB, &body, 0)[40..60];
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&body), header);
    let key = Key::Block(block);
    stage.writer.store_wal(&key, block, segment(9 * MIB, &body, checksum).into()).await.unwrap();
    assert_sound(&stage.read_all().await);
    // When it is not, and its object is sound nevertheless
    stage.delete(&stage.layout().name(&key)).await;
    stage.writer.store_wal(&key, block, segment(9 * MIB, &body, checksum ^ 1).into()).await.unwrap();
    // Then nobody says so without reading it, and who reads it says where recovery will end.
    assert_sound(&stage.looked().await);
    let report = stage.read_all().await;
    assert_eq!(found(&report), [(FindingKind::WrongRecord, stage.layout().name(&key))], "{:#?}", report.findings);
    assert!(report.findings[0].message.contains("0/900028"), "{:#?}", report.findings);
    assert_eq!(report.problems, 1, "{:#?}", report.findings);
}

#[tokio::test]
async fn an_object_that_is_cut_is_found_and_named_also_where_a_frame_ends() {
    let stage = Stage::new().await;
    for name in objects(&stage).await {
        let sound = stage.read(&name).await;
        let identity = 8 + u32::from_le_bytes(sound[4..8].try_into().unwrap()) as usize;
        for bytes in [0, 1, identity, sound.len() / 2, sound.len() - 1] {
            stage.replace(&name, sound[..bytes].to_vec()).await;
            let report = stage.read_all().await;
            let causes = found(&report);
            assert!(causes.len() == 1 && causes[0].1 == name, "{bytes} bytes of {name}: {:#?}", report.findings);
            let is_length = count(&report, FindingKind::WrongLength) == 1;
            assert!(is_length || bytes != identity, "{bytes} bytes of {name}: {:#?}", report.findings);
        }
        stage.replace(&name, sound).await;
    }
}

#[tokio::test]
async fn a_swapped_pair_is_found_to_be_one() {
    let stage = Stage::new().await;
    let name = |key: Key| stage.layout().name(&key);
    let block = |timeline, start: u64| name(Key::Block(range(timeline, start * MIB, (start + 1) * MIB)));
    let tail = |start: u64, end: u64| name(Key::Tail(range(2, 8 * MIB + start, 8 * MIB + end)));
    let heartbeat = stage.heartbeat(7 * MIB).await;
    let pairs = [
        (stage.part(0), stage.part(1)),
        (stage.part(2), stage.part(3)),
        (stage.part(0), stage.manifest()),
        // These have one length.
        (block(1, 3), block(1, 4)),
        (block(1, 4), block(2, 6)),
        (block(2, 7), tail(0, 100)),
        (tail(0, 100), tail(50, 400)),
        (heartbeat.clone(), stage.heartbeat(8 * MIB + 400).await),
    ];
    for (one, other) in pairs {
        stage.swap(&one, &other).await;
        let report = stage.read_all().await;
        let mut expected = [(FindingKind::SwappedObject, one.clone()), (FindingKind::SwappedObject, other.clone())];
        expected.sort();
        assert_eq!(found(&report), expected, "{:#?}", report.findings);
        assert_eq!(count(&report, FindingKind::SwappedObject), 2);
        stage.swap(&one, &other).await;
    }
    assert_sound(&stage.read_all().await);
}

#[tokio::test]
async fn what_is_missing_is_said_once_by_whoever_reads_everything_too() {
    let stage = Stage::new().await;
    let block = Key::Block(range(2, 6 * MIB, 7 * MIB));
    for name in [stage.part(1), stage.layout().name(&block), stage.layout().name(&Key::History(TimelineId(2)))] {
        stage.delete(&name).await;
    }
    let report = stage.read_all().await;
    let kinds: Vec<FindingKind> = found(&report).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [FindingKind::MissingObject, FindingKind::MissingHistory, FindingKind::Hole]);
}

#[tokio::test]
async fn a_part_of_an_attempt_that_failed_is_read_as_well_since_a_resume_would_take_it() {
    let stage = Stage::new().await;
    let backup = &stage.document.id;
    let archive = seawall::repository::Archive::Base;
    let frames = vec![stage.writer.encode_frame(b"left over")];
    let left = stage.writer.store_part(backup, (archive, 9), frames, 9, &Default::default()).await.unwrap();
    let name = stage.layout().name(&Key::BackupPart(backup.clone(), left.name));
    let report = stage.read_all().await;
    assert_sound(&report);
    assert_eq!(report.checked.leftover_objects, 1);
    // Another content, in whole frames of its own
    let frames = vec![stage.writer.encode_frame(b"something")];
    let other = stage.writer.store_part(backup, (archive, 9), frames, 9, &Default::default()).await.unwrap();
    let other = stage.layout().name(&Key::BackupPart(backup.clone(), other.name));
    stage.replace(&name, stage.read(&other).await).await;
    assert_eq!(found(&stage.read_all().await), [(FindingKind::WrongContents, name)]);
}

/// Counts what is read.
#[derive(Debug, Default)]
struct Gets(AtomicU64);

impl StoreObserver for Gets {
    fn finished(&self, operation: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {
        if operation == Operation::Get {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn verified(
    stage: &Stage,
    gets: &Arc<Gets>,
    options: &VerifyOptions,
) -> Result<seawall::verify::Report, seawall::error::Error> {
    let store = Arc::new(ObservedStore::new(stage.store.clone(), gets.clone()));
    let repository = Repository { store, layout: stage.layout().clone() };
    let cluster = Repository::read_cluster(stage.store.as_ref(), "main").await.unwrap().unwrap();
    let (progress, _) = tokio::sync::watch::channel(Default::default());
    Box::pin(seawall::verify::verify(&repository, cluster, options, Clock::system().now(), &progress)).await
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_verification_goes_on_and_reads_nothing_twice() {
    let stage = Stage::new().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("verify");
    // Given one that was interrupted half way, and damage in what it had read
    let damaged = stage.part(0);
    let sound = stage.read(&damaged).await;
    let mut flipped = sound.clone();
    flipped[100] ^= 1;
    stage.replace(&damaged, flipped).await;
    let bytes = stage.read_all().await.checked.object_bytes;
    let options =
        VerifyOptions { bytes_per_second: Some(bytes / 100), downloads: 2, resume: Some(file.clone()), ..deep() };
    let gets = Arc::new(Gets::default());
    let half = timeout(Duration::from_secs(60), verified(&stage, &gets, &options)).await;
    assert!(half.is_err() && file.exists(), "it was interrupted");
    let first = gets.0.swap(0, Ordering::SeqCst);
    // When the same command runs again
    let report = verified(&stage, &gets, &options).await.unwrap();
    // Then what was sound is not read again, what was damaged is, and both runs together have read everything
    assert_eq!(found(&report), [(FindingKind::WrongContents, damaged)]);
    let read = report.read.unwrap();
    assert!(read.resumed_objects > 3 && read.objects > 3, "{read:?}");
    let second = gets.0.swap(0, Ordering::SeqCst);
    assert!(!file.exists(), "the next one begins anew");
    let third =
        verified(&stage, &gets, &VerifyOptions { resume: None, ..options.clone() }).await.unwrap().read.unwrap();
    assert_eq!(third.objects, read.objects + read.resumed_objects);
    let whole = gets.0.load(Ordering::SeqCst);
    assert_eq!(second, whole - read.resumed_objects, "after {first} in the first run");
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_again_since_the_interruption_is_read_again() {
    let stage = Stage::new().await;
    let directory = tempfile::tempdir().unwrap();
    let options = VerifyOptions { resume: Some(directory.path().join("verify")), ..deep() };
    let bytes = stage.read_all().await.checked.object_bytes;
    let slow = VerifyOptions { bytes_per_second: Some(bytes / 100), downloads: 1, ..options.clone() };
    let gets = Arc::new(Gets::default());
    assert!(timeout(Duration::from_secs(60), verified(&stage, &gets, &slow)).await.is_err());
    let mut flipped = stage.read(&stage.part(0)).await;
    flipped[100] ^= 1;
    stage.replace(&stage.part(0), flipped).await;
    let report = verified(&stage, &gets, &options).await.unwrap();
    assert_eq!(found(&report), [(FindingKind::WrongContents, stage.part(0))]);
}

#[tokio::test]
async fn a_file_to_resume_from_that_is_another_repositorys_is_refused_before_anything_is_read() {
    let stage = Stage::new().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("verify");
    std::fs::write(&file, "seawall-verify 1 1 file:///elsewhere main\n").unwrap();
    let gets = Arc::new(Gets::default());
    let options = VerifyOptions { resume: Some(file), ..deep() };
    let error = verified(&stage, &gets, &options).await.unwrap_err();
    assert_eq!((error.kind(), gets.0.load(Ordering::SeqCst)), (Kind::Refused, 0), "{error}");
}

#[tokio::test(start_paused = true)]
async fn half_the_rate_takes_twice_the_time_however_many_read_at_once() {
    let stage = Stage::new().await;
    let bytes = stage.read_all().await.read.unwrap().bytes;
    let took = async |bytes_per_second, downloads| {
        let (began, gets) = (Instant::now(), Arc::new(Gets::default()));
        let options = VerifyOptions { bytes_per_second: Some(bytes_per_second), downloads, ..deep() };
        verified(&stage, &gets, &options).await.unwrap();
        began.elapsed().as_secs_f64()
    };
    let (fast, slow, alone) = (took(bytes / 100, 8).await, took(bytes / 200, 8).await, took(bytes / 100, 1).await);
    assert!((1.9..2.1).contains(&(slow / fast)), "{slow} s and {fast} s");
    assert!((0.9..1.1).contains(&(alone / fast)), "{alone} s and {fast} s");
    assert!(fast > 80.0, "{fast} s for what takes 100, but for the last object");
}

#[tokio::test]
async fn hostile_bytes_are_a_finding_and_no_panic() {
    let stage = Stage::new().await;
    let names = stage.names().await.into_iter().filter(|name| !name.ends_with("cluster.json"));
    let mut seed = 7u64;
    for name in names.collect::<Vec<_>>() {
        let sound = stage.read(&name).await;
        for bytes in [1, 64, 5000] {
            let noise: Vec<u8> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .take(bytes)
            .collect();
            stage.replace(&name, noise).await;
            let report = stage.read_all().await;
            assert!(found(&report).iter().any(|(_, object)| *object == name), "{name}: {:#?}", report.findings);
        }
        stage.replace(&name, sound).await;
    }
}
