//! Encrypted repositories: with the private key everything is checked; without it what can be, and what cannot be is said.

use crate::invented::{MIB, SYSTEM, hex, wal_bytes};
use crate::stage::{assert_sound, deep, found, range};
use age::secrecy::ExposeSecret;
use bytes::Bytes;
use jiff::Timestamp;
use seawall::codec::encryption::generate_identity;
use seawall::codec::{Compression, Form, Identities, Recipients};
use seawall::repository::{
    Archive, BackupBegin, BackupDocument, BackupId, BackupPart, Cluster, ContentDigest, FORMAT_VERSION, Findings, Key,
    Layout, Repository, Subject, Writer,
};
use seawall::runtime::Clock;
use seawall::store::{Body, MemoryStore, Metadata, Store};
use seawall::verify::{FindingKind, Report, VerifyProgress, verify};
use seawall::wal::{Lsn, SegmentSize, TimelineId};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::watch;

/// Three blocks and a base backup of one part, all encrypted.
struct Sealed {
    store: Arc<dyn Store>,
    key: Identities,
    part: String,
    blocks: [String; 2],
}

fn layout(form: Form) -> Layout {
    Layout::new("main", SegmentSize::new(MIB).unwrap(), form)
}

fn new_key() -> (Identities, String) {
    let (secret, public) = generate_identity();
    (Identities::parse(secret.expose_secret().as_bytes()).unwrap(), public)
}

impl Sealed {
    async fn new() -> Sealed {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (key, public) = new_key();
        let recipients = Recipients::parse([public.as_str()]).unwrap();
        let layout = layout(Form { compression: Compression::Zstd(1), recipients, identities: Identities::default() });
        let writer = Writer::new(store.clone(), layout.clone(), SYSTEM);
        let (time, format, timeline) = (Timestamp::UNIX_EPOCH, FORMAT_VERSION, TimelineId(1));
        let (system_identifier, postgres_version) = (SYSTEM, 150_018);
        let cluster = Cluster { format, system_identifier, postgres_version, segment_bytes: MIB, created_at: time };
        writer.store_document(&Key::Cluster, &cluster).await.unwrap();
        let blocks = [2, 3, 4].map(|start| range(1, start * MIB, (start + 1) * MIB));
        for block in blocks {
            writer.store_wal(&Key::Block(block), block, wal_bytes(block)).await.unwrap();
        }
        let (id, start_lsn) = (BackupId::at(time, 0), Lsn(2 * MIB + 40));
        let begin = BackupBegin {
            format,
            id: id.clone(),
            system_identifier,
            started_at: time,
            start_lsn,
            timeline,
            reference: None,
        };
        writer.store_document(&Key::BackupBegin(id.clone()), &begin).await.unwrap();
        let plain: Vec<u8> = (0..300_000u32).map(|n| (n * 31 % 251) as u8).collect();
        let frames = vec![writer.encode_frame(&plain)];
        let (archive, plain_bytes) = (Archive::Base, plain.len() as u64);
        let stored = writer.store_part(&id, (archive, 1), frames, plain_bytes, &Default::default()).await.unwrap();
        let manifest = b"{ \"PostgreSQL-Backup-Manifest-Version\": 1 }";
        let sha256: [u8; 32] = Sha256::digest(manifest).into();
        let key_of_manifest = Key::BackupManifest(id.clone(), ContentDigest::of_sha256(sha256));
        let subject = Subject::Manifest { backup: id.clone() };
        let frames = vec![writer.encode_frame(manifest)];
        writer.store_frames(&key_of_manifest, subject, frames, manifest.len() as u64).await.unwrap();
        let part = layout.name(&Key::BackupPart(id.clone(), stored.name));
        let document = BackupDocument {
            ending: layout.form().ending(),
            format,
            id: id.clone(),
            reference: None,
            label: String::new(),
            system_identifier,
            postgres_version,
            started_at: time,
            ended_at: time,
            start_lsn,
            timeline,
            end_lsn: Lsn(2 * MIB + 1000),
            end_timeline: timeline,
            wal_ranges: Vec::new(),
            settings: Default::default(),
            tablespaces: Vec::new(),
            plain_bytes,
            restored_bytes: None,
            stored_bytes: stored.bytes,
            manifest_sha256: hex(&sha256),
            findings: Findings::default(),
            parts: vec![BackupPart {
                name: stored.name,
                plain_bytes,
                stored_bytes: stored.bytes,
                sha256: stored.sha256,
                added_bytes: 0,
                continues: None,
            }],
            files: seawall::repository::BackupFiles::default(),
        };
        writer.store_document(&Key::BackupEnd(id), &document).await.unwrap();
        let blocks = [blocks[1], blocks[2]].map(|block| layout.name(&Key::Block(block)));
        Sealed { store, key, part, blocks }
    }

    async fn read_with(&self, identities: &Identities) -> Report {
        let cluster = Repository::read_cluster(self.store.as_ref(), "main").await.unwrap().unwrap();
        let form = Form { identities: identities.clone(), ..Form::default() };
        let repository = Repository { store: self.store.clone(), layout: layout(form) };
        let (progress, _) = watch::channel(VerifyProgress::default());
        verify(&repository, cluster, &deep(), Clock::system().now(), &progress).await.unwrap()
    }

    async fn bytes(&self, name: &str) -> Vec<u8> {
        self.store.get(name, None).await.unwrap().collect().await.unwrap().to_vec()
    }

    async fn replace(&self, name: &str, bytes: Vec<u8>) {
        self.store.delete(name).await.unwrap();
        self.store.create(name, Body::from(Bytes::from(bytes)), Metadata::new()).await.unwrap();
    }
}

#[tokio::test]
async fn with_the_key_all_is_read_and_without_it_what_was_not_is_counted() {
    let sealed = Sealed::new().await;
    let report = sealed.read_with(&sealed.key).await;
    assert_sound(&report);
    let read = report.read.unwrap();
    assert_eq!((read.objects, read.sealed_objects), (5, 0), "three blocks, a part, a manifest");
    for other in [Identities::default(), new_key().0] {
        let report = sealed.read_with(&other).await;
        assert_sound(&report);
        let read = report.read.unwrap();
        assert_eq!((read.objects, read.sealed_objects), (0, 5));
        assert!(read.sealed_bytes > 0);
    }
}

#[tokio::test]
async fn a_bit_of_a_part_is_found_without_the_key_and_one_of_wal_with_it() {
    let sealed = Sealed::new().await;
    for (name, without) in [(&sealed.part, true), (&sealed.blocks[0], false)] {
        let whole = sealed.bytes(name).await;
        let mut flipped = whole.clone();
        let last = flipped.len() - 10;
        flipped[last] ^= 1;
        sealed.replace(name, flipped).await;
        let expected = [(FindingKind::WrongContents, name.clone())];
        assert_eq!(found(&sealed.read_with(&sealed.key).await), expected);
        let report = sealed.read_with(&Identities::default()).await;
        let as_expected = if without { expected.to_vec() } else { Vec::new() };
        assert_eq!(found(&report), as_expected);
        assert!(report.read.unwrap().sealed_objects >= 4, "what cannot be told is counted");
        sealed.replace(name, whole).await;
    }
}

#[tokio::test]
async fn a_swapped_pair_is_found_by_what_it_says_in_clear() {
    let sealed = Sealed::new().await;
    let [one, other] = &sealed.blocks;
    let (first, second) = (sealed.bytes(one).await, sealed.bytes(other).await);
    sealed.replace(one, second).await;
    sealed.replace(other, first).await;
    let swapped = [(FindingKind::SwappedObject, one.clone()), (FindingKind::SwappedObject, other.clone())];
    for identities in [sealed.key.clone(), Identities::default(), new_key().0] {
        assert_eq!(found(&sealed.read_with(&identities).await), swapped);
    }
}
