//! An invented cluster in a store in memory: a base backup built by hand, byte by byte, and WAL that is only bytes.
#![allow(unreachable_pub)]

use age::secrecy::ExposeSecret;
use bytes::Bytes;
use seawall::codec::encryption::{encrypt, generate_identity};
use seawall::codec::{Buffers, Compression, FRAME_BYTES, Form, FrameEncoder, Identities, Recipients};
use seawall::repository::{
    Archive, BackupBegin, BackupDocument, BackupFile, BackupId, BackupPart, BackupTablespace, Catalog, Cluster,
    ContentDigest, Continuation, FORMAT_VERSION, FilePath, Findings, Identity, Key, Layout, PartName, Repository,
    Subject, WalReader, Writer,
};
use seawall::restore::{FetchCommand, Plan, Request, RestoreOptions, Target, TargetAction};
use seawall::runtime::Clock;
use seawall::store::{Body, MemoryStore, Metadata, Store};
use seawall::wal::{Lsn, SegmentSize, TimelineId, WalRange};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub const SYSTEM: u64 = 7_300_000_000_000_000_001;
pub const MIB: u64 = 1 << 20;
/// A file that is cut into two parts, and longer than a frame.
pub const LARGE: &str = "base/5/16400";
pub const TABLESPACE: u32 = 16_384;

/// A file of the data directory or, with `in_tablespace`, of the tablespace.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: String,
    pub content: Vec<u8>,
    pub in_tablespace: bool,
}

impl Entry {
    /// Its path below the data directory.
    pub fn full_path(&self) -> String {
        let folder = if self.in_tablespace { format!("pg_tblspc/{TABLESPACE}/") } else { String::new() };
        format!("{folder}{}", self.path)
    }
}

fn entry(path: &str, content: impl Into<Vec<u8>>) -> Entry {
    Entry { path: path.to_owned(), content: content.into(), in_tablespace: false }
}

/// What the server had.
pub fn files() -> Vec<Entry> {
    let noise = |bytes: usize| (0..bytes).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>();
    let control = [&SYSTEM.to_ne_bytes(), noise(8184).as_slice()].concat();
    vec![
        entry("backup_label", "START WAL LOCATION: 0/200028\n"),
        entry("tablespace_map", format!("{TABLESPACE} /srv/fast\n")),
        entry("PG_VERSION", "15\n"),
        entry("base/5/112", noise(8192)),
        entry("base/5/empty", ""),
        entry("standby.signal", ""),
        entry("postgresql.auto.conf", "# by hand\nwork_mem = '64MB'\nprimary_conninfo = 'password=hush'\n"),
        Entry { in_tablespace: true, ..entry("PG_15_202209061/5/16500", noise(20_000)) },
        entry(LARGE, noise(6 << 20)),
        entry("global/pg_control", control),
    ]
}

/// A store with one cluster, archived from 2 to 5 MiB, and its backup.
pub struct Invented {
    pub store: Arc<dyn Store>,
    pub repository: Repository,
    pub document: BackupDocument,
}

/// How the parts differ from what they should be. The documents agree with the parts, and the manifest does not.
#[derive(Clone, Debug, Default)]
pub struct Twist {
    /// These files instead.
    pub files: Option<Vec<Entry>>,
    /// Raw headers at the end of the first part.
    pub headers: Vec<[u8; 512]>,
    /// Another cluster's parts.
    pub system: Option<u64>,
    /// Files, with their lengths, that only the manifest knows.
    pub listed: Vec<(String, u64)>,
    /// Nobody reads it without the private key, which whoever restores has.
    pub is_encrypted: bool,
}

impl Invented {
    pub async fn new() -> Invented {
        Invented::twisted(Twist::default()).await
    }

    pub async fn twisted(twist: Twist) -> Invented {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let form = if twist.is_encrypted { encrypted() } else { Form::default() };
        let layout = Layout::new("main", SegmentSize::new(MIB).unwrap(), form);
        let repository = Repository { store: store.clone(), layout: layout.clone() };
        let writer = Writer::new(store.clone(), layout, SYSTEM);
        let time = Clock::system().now();
        let cluster = Cluster {
            format: FORMAT_VERSION,
            system_identifier: SYSTEM,
            postgres_version: 150_018,
            segment_bytes: MIB,
            created_at: time,
        };
        writer.store_document(&Key::Cluster, &cluster).await.unwrap();
        store_wal(&writer).await;

        let id = BackupId::at(time, 0);
        let begin = BackupBegin {
            format: FORMAT_VERSION,
            id: id.clone(),
            system_identifier: SYSTEM,
            started_at: time,
            start_lsn: Lsn(2 * MIB + 40),
            timeline: TimelineId(1),
            reference: None,
        };
        writer.store_document(&Key::BackupBegin(id.clone()), &begin).await.unwrap();
        let maker = Maker { repository: &repository, id: &id, system: twist.system.unwrap_or(SYSTEM) };
        let mut parts = Vec::new();
        let (laid_out, listed) = parts_of(&twist.files.clone().unwrap_or_else(files));
        for (number, (archive, part_number, tar, continues)) in laid_out.into_iter().enumerate() {
            let mut tar = tar;
            if number == 0 {
                tar.extend(twist.headers.iter().flatten());
            }
            parts.push(maker.part(archive, part_number, &tar, continues).await);
        }
        let manifest = manifest_of(&files(), &twist.listed);
        let digest = ContentDigest::of_sha256(Sha256::digest(manifest.as_bytes()).into());
        maker
            .object(
                &Key::BackupManifest(id.clone(), digest),
                Subject::Manifest { backup: id.clone() },
                manifest.as_bytes(),
            )
            .await;
        let document = BackupDocument {
            ending: repository.layout.form().ending(),
            format: FORMAT_VERSION,
            id: id.clone(),
            reference: None,
            label: "invented".into(),
            system_identifier: SYSTEM,
            postgres_version: 150_018,
            started_at: time,
            ended_at: time,
            start_lsn: Lsn(2 * MIB + 40),
            timeline: TimelineId(1),
            end_lsn: Lsn(2 * MIB + 1000),
            end_timeline: TimelineId(1),
            wal_ranges: Vec::new(),
            settings: BTreeMap::from([
                ("max_connections".to_owned(), "123".to_owned()),
                ("data_directory_mode".to_owned(), "0750".to_owned()),
            ]),
            tablespaces: vec![BackupTablespace { oid: TABLESPACE, location: "/srv/fast".into() }],
            plain_bytes: parts.iter().map(|part| part.plain_bytes).sum(),
            restored_bytes: None,
            stored_bytes: parts.iter().map(|part| part.stored_bytes).sum(),
            manifest_sha256: hex(&Sha256::digest(manifest.as_bytes())),
            findings: Findings::default(),
            parts,
            files: listed.into_iter().collect(),
        };
        writer.store_document(&Key::BackupEnd(id), &document).await.unwrap();
        Invented { store, repository, document }
    }

    pub fn reader(&self) -> WalReader {
        WalReader::new(self.repository.clone(), SYSTEM)
    }

    /// A plan to the end of the archive.
    pub async fn plan(&self) -> Plan {
        let cluster = Repository::read_cluster(self.store.as_ref(), "main").await.unwrap().unwrap();
        let catalog = Catalog::read(&self.repository, cluster).await.unwrap();
        let request = Request {
            target: Target::End,
            exclusive: false,
            backup: None,
            timeline: None,
            action: TargetAction::Promote,
        };
        seawall::restore::plan(&self.reader(), &catalog, &request, Clock::system().now()).await.unwrap()
    }

    /// The name of a part's object, counted from 0.
    pub fn part(&self, index: usize) -> String {
        self.repository.layout.name(&Key::BackupPart(self.document.id.clone(), self.document.parts[index].name))
    }

    pub fn manifest(&self) -> String {
        self.repository.manifest_name(&self.document).unwrap()
    }

    pub async fn read(&self, name: &str) -> Vec<u8> {
        self.store.get(name, None).await.unwrap().collect().await.unwrap().to_vec()
    }

    /// What no store does by itself, and every disk some day.
    pub async fn replace(&self, name: &str, bytes: Vec<u8>) {
        self.store.delete(name).await.unwrap();
        self.store.create(name, Body::from(Bytes::from(bytes)), Metadata::new()).await.unwrap();
    }
}

/// Options of a restore into `data`, with the tablespace beside it.
pub fn options(data: &Path) -> RestoreOptions {
    let command = FetchCommand {
        executable: "/usr/bin/seawall".into(),
        arguments: vec!["--repo".into(), "s3://bucket/50%".into()],
        ..FetchCommand::default()
    };
    let is_root = nix::unistd::Uid::effective().is_root();
    RestoreOptions {
        tablespace_map: vec![("/srv/fast".into(), data.with_file_name("fast"))],
        owner: is_root.then(|| "nobody".to_owned()),
        ..RestoreOptions::new(data.to_owned(), command)
    }
}

/// A key, and what is stored for it.
fn encrypted() -> Form {
    let (secret, public) = generate_identity();
    Form {
        compression: Compression::Lz4,
        recipients: Recipients::parse([public.as_str()]).unwrap(),
        identities: Identities::parse(secret.expose_secret().as_bytes()).unwrap(),
    }
}

/// Three whole blocks and a tail.
async fn store_wal(writer: &Writer) {
    let timeline = TimelineId(1);
    for start in [2 * MIB, 3 * MIB, 4 * MIB] {
        let range = WalRange { timeline, start: Lsn(start), end: Lsn(start + MIB) };
        writer.store_wal(&Key::Block(range), range, wal_bytes(range)).await.unwrap();
    }
    let range = WalRange { timeline, start: Lsn(5 * MIB), end: Lsn(5 * MIB + 5000) };
    writer.store_wal(&Key::Tail(range), range, wal_bytes(range)).await.unwrap();
}

/// No records: recovery's planner says so, and goes to the end all the same.
pub fn wal_bytes(range: WalRange) -> Bytes {
    (range.start.0..range.end.0).map(|at| (at % 253) as u8 | 1).collect::<Vec<u8>>().into()
}

struct Maker<'a> {
    repository: &'a Repository,
    id: &'a BackupId,
    system: u64,
}

impl Maker<'_> {
    async fn object(&self, key: &Key, subject: Subject, plain: &[u8]) -> Vec<u8> {
        let identity = Identity {
            format: FORMAT_VERSION,
            system_identifier: self.system,
            subject,
            plain_bytes: plain.len() as u64,
            blake3: None,
        };
        let mut encoder = FrameEncoder::new(Compression::Lz4);
        let mut stored = identity.frame().unwrap().to_vec();
        for chunk in plain.chunks(FRAME_BYTES) {
            stored.extend_from_slice(&encoder.encode(chunk));
        }
        let recipients = &self.repository.layout.form().recipients;
        if !recipients.is_empty() {
            stored = encrypt(recipients, b"", None, [Bytes::from(stored)], &Buffers::new(0)).unwrap().concat();
        }
        let body = Body::from(Bytes::from(stored.clone()));
        self.repository.store.create(&self.repository.layout.name(key), body, Metadata::new()).await.unwrap();
        stored
    }

    async fn part(&self, archive: Archive, number: u32, tar: &[u8], continues: Option<Continuation>) -> BackupPart {
        let name = PartName { archive, number, digest: ContentDigest::of_sha256(Sha256::digest(tar).into()) };
        let key = Key::BackupPart(self.id.clone(), name);
        let stored = self.object(&key, Subject::part(self.id.clone(), archive), tar).await;
        BackupPart {
            name,
            plain_bytes: tar.len() as u64,
            stored_bytes: stored.len() as u64,
            sha256: hex(&Sha256::digest(&stored)),
            added_bytes: 0,
            continues,
        }
    }
}

type Part = (Archive, u32, Vec<u8>, Option<Continuation>);

/// Small files; the large one's beginning; its rest and what follows; the tablespace. And where each file is.
fn parts_of(files: &[Entry]) -> (Vec<Part>, Vec<BackupFile>) {
    let mut listed = Vec::new();
    let (mut parts, mut tar) = (Vec::new(), header("base/", b'5', 0, "").to_vec());
    let mut tablespace = header("PG_15_202209061/", b'5', 0, "").to_vec();
    let mut continues = None;
    let is_cut = files.iter().any(|entry| entry.path == LARGE);
    for entry in files {
        let (part, begin) = match (entry.in_tablespace, entry.path == LARGE) {
            (true, _) => (if is_cut { 3 } else { 1 }, tablespace.len()),
            (_, true) => (1, 0),
            _ => (parts.len() as u32, tar.len()),
        };
        listed.push(BackupFile {
            path: FilePath::parse(entry.full_path().as_bytes()).unwrap(),
            part,
            offset: begin as u64 + 512,
            bytes: entry.content.len() as u64,
        });
        if entry.in_tablespace {
            tablespace.extend(member(&entry.path, &entry.content));
        } else if entry.path == LARGE {
            parts.push((Archive::Base, 1, std::mem::take(&mut tar), None));
            let (whole, cut) = (member(LARGE, &entry.content), 5 << 20);
            parts.push((Archive::Base, 2, whole[..512 + cut].to_vec(), None));
            tar = whole[512 + cut..].to_vec();
            continues = Some(Continuation {
                path: FilePath::parse(LARGE.as_bytes()).unwrap(),
                file_offset: cut as u64,
                file_bytes: entry.content.len() as u64,
            });
        } else {
            tar.extend(member(&entry.path, &entry.content));
        }
    }
    tar.extend([0; 1024]);
    let number = parts.len() as u32 + 1;
    parts.push((Archive::Base, number, tar, continues));
    parts.push((Archive::Tablespace(TABLESPACE), 1, tablespace, None));
    (parts, listed)
}

/// A ustar header as PostgreSQL writes it.
pub fn header(path: &str, kind: u8, bytes: usize, target: &str) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, path.as_bytes());
    put(100, b"0000640\0");
    put(124, format!("{bytes:011o} ").as_bytes());
    put(136, b"14000000000 ");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn member(path: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(path, b'0', content.len(), "").to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn manifest_of(files: &[Entry], listed: &[(String, u64)]) -> String {
    let line = |path: &str, bytes: u64, content: &[u8]| {
        let checksum = hex(&crc32c::crc32c(content).to_le_bytes());
        format!(
            "{{ \"Path\": \"{path}\", \"Size\": {bytes}, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
        )
    };
    let real = files.iter().map(|entry| line(&entry.full_path(), entry.content.len() as u64, &entry.content));
    let lines: Vec<String> = real.chain(listed.iter().map(|(path, bytes)| line(path, *bytes, b""))).collect();
    let text = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \
         \"Start-LSN\": \"0/200028\", \"End-LSN\": \"0/2003E8\" }}\n],\n",
        lines.join(",\n")
    );
    let checksum = hex(&Sha256::digest(text.as_bytes()));
    format!("{text}\"Manifest-Checksum\": \"{checksum}\"}}\n")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
