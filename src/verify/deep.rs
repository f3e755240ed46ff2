//! Every object's contents, several at a time, in the order in which the store lists them.

use super::backups::wrong_length;
use super::contents::{Expected, Judged, Others, judge};
use super::fetched::{BACKUP_DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_MAX, Document, Fetched, fetch, parse, read_document};
use super::listing::{WAL_OBJECT_BYTES_MAX, pages, wrong_wal_length};
use super::pace::Pace;
use super::report::{Finding, FindingKind, Findings, Reading};
use super::state::State;
use super::{VerifyOptions, VerifyProgress};
use crate::codec::Buffers;
use crate::error::{Error, Result};
use crate::history::index::Indexes;
use crate::repository::{
    Archive, BackupDocument, BackupId, Catalog, ContentDigest, DeadBranchNote, GapNote, Heartbeat, Key, NamesAt,
    PART_BYTES_MAX, PartName, Repository, Subject, WithoutFiles, hex,
};
use crate::runtime;
use crate::store::{ObjectInfo, StoreError};
use crate::wal::{TimelineId, WalRange};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::watch;

/// A manifest of ten million files.
const MANIFEST_OBJECT_BYTES_MAX: u64 = 2 << 30;

/// An index is no longer: readers take no more, even uncompressed. Nor is a list of names.
const INDEX_OBJECT_BYTES_MAX: u64 = 64 << 20;

/// What an object is held against.
#[derive(Clone, Debug)]
enum Against {
    /// A part that `backup.json` names, at this place of its list.
    Part(Arc<BackupDocument>, usize),
    /// A part that no finished backup names: `--resume` may take it, by its name.
    LeftPart(BackupId, PartName),
    /// The manifest that `backup.json` names.
    Manifest(Arc<BackupDocument>),
    /// Another manifest.
    LeftManifest(BackupId),
    /// A block or a tail.
    Wal(WalRange),
    /// What the records in a range say.
    Records(WalRange),
    /// Names of relations.
    Names(NamesAt),
    /// A heartbeat, a gap, a dead branch: its name says what is in it.
    Note(Key),
}

impl Against {
    fn bytes_max(&self) -> u64 {
        match self {
            Against::Part(..) | Against::LeftPart(..) => PART_BYTES_MAX,
            Against::Manifest(_) | Against::LeftManifest(_) => MANIFEST_OBJECT_BYTES_MAX,
            Against::Wal(_) => WAL_OBJECT_BYTES_MAX,
            Against::Records(_) | Against::Names(_) => INDEX_OBJECT_BYTES_MAX,
            Against::Note(_) => DOCUMENT_BYTES_MAX,
        }
    }

    /// What is known of it besides its name, in one word: if that changes, it must be read again.
    fn word(&self) -> &str {
        match self {
            Against::Part(document, at) => document.parts.get(*at).map_or("-", |part| part.sha256.as_str()),
            Against::Manifest(document) => &document.manifest_sha256,
            _ => "-",
        }
    }

    fn backup(&self) -> Option<&BackupId> {
        match self {
            Against::Part(document, _) | Against::Manifest(document) => Some(&document.id),
            Against::LeftPart(id, _) | Against::LeftManifest(id) => Some(id),
            Against::Wal(_) | Against::Records(_) | Against::Names(_) | Against::Note(_) => None,
        }
    }
}

/// What became of an object.
enum Read {
    /// An earlier process has read it.
    Before,
    /// It was replaced by a larger one since it was listed.
    Replaced,
    Judged(Judged),
}

/// Reads everything.
pub(super) struct Deep<'a> {
    repository: &'a Repository,
    system_identifier: u64,
    downloads: usize,
    pace: Pace,
    state: Option<Arc<State>>,
    buffers: Buffers,
    others: Arc<Others>,
    progress: &'a watch::Sender<VerifyProgress>,
}

/// What was read, and what was found.
type Results<'a> = (&'a mut Reading, &'a mut Findings);

impl<'a> Deep<'a> {
    pub(super) async fn new(
        repository: &'a Repository,
        system_identifier: u64,
        options: &VerifyOptions,
        progress: &'a watch::Sender<VerifyProgress>,
    ) -> Result<Deep<'a>> {
        let subject = format!("{} {}", repository.store.describe(), repository.layout.cluster());
        let state = match options.resume.clone() {
            Some(path) => {
                let open = move || State::open(&path, system_identifier, &subject);
                Some(Arc::new(runtime::blocking(open).await??))
            }
            None => None,
        };
        let downloads = options.downloads.max(1);
        let (pace, buffers) = (Pace::new(options.bytes_per_second), Buffers::new(downloads));
        let size = repository.layout.segment_size();
        let (backups, beginnings, dead_branches) = (BTreeSet::new(), Vec::new(), Vec::new());
        let others = Arc::new(Others { size, backups, beginnings, dead_branches });
        Ok(Deep { repository, system_identifier, downloads, pace, state, buffers, others, progress })
    }

    /// Reads everything, base backups first: they are fewer, and more is lost with one.
    pub(super) async fn read(mut self, catalog: Catalog, findings: &mut Findings) -> Result<Reading> {
        let size = self.repository.layout.segment_size();
        let beginnings = catalog.finished_backups().map(|backup| (backup.timeline, backup.start_lsn)).collect();
        let backups: Vec<BackupId> = catalog.backups.into_iter().map(|entry| entry.id).collect();
        let known = backups.iter().cloned().collect();
        self.others = Arc::new(Others { size, backups: known, beginnings, dead_branches: catalog.dead_branches });
        let mut reading = Reading::default();
        for id in backups {
            self.read_backup(id, (&mut reading, findings)).await?;
        }
        let layout = &self.repository.layout;
        for prefix in [layout.index_root(), layout.open_root(), layout.wal_prefix()] {
            let against = |object: &ObjectInfo| match layout.parse(&object.key).ok()? {
                // Too short or too long, which the listing has said.
                Key::Block(_) | Key::Tail(_) if wrong_wal_length(object).is_some() => None,
                Key::Block(range) | Key::Tail(range) => Some(Against::Wal(range)),
                Key::Records(range) => Some(Against::Records(range)),
                Key::Names(at) => Some(Against::Names(at)),
                key @ (Key::Heartbeat { .. } | Key::Gap(_) | Key::DeadBranch(_)) => Some(Against::Note(key)),
                _ => None,
            };
            self.read_below(&prefix, against, (&mut reading, findings)).await?;
        }
        if let Some(state) = self.state {
            runtime::blocking(move || state.finish()).await??;
        }
        Ok(reading)
    }

    async fn read_backup(&self, id: BackupId, results: Results<'_>) -> Result<()> {
        let layout = &self.repository.layout;
        let name = layout.name(&Key::BackupEnd(id.clone()));
        // What is wrong with it was found before.
        let document: Document<WithoutFiles> =
            read_document(self.repository.store.as_ref(), &name, BACKUP_DOCUMENT_BYTES_MAX, |_| {}).await?;
        let document = match document {
            Document::There(WithoutFiles(document)) if document.id == id => Some(Arc::new(document)),
            _ => None,
        };
        let places: HashMap<String, usize> = match &document {
            Some(document) => {
                let name = |part: PartName| layout.name_in(&Key::BackupPart(id.clone(), part), document.ending);
                document.parts.iter().enumerate().map(|(at, part)| (name(part.name), at)).collect()
            }
            None => Default::default(),
        };
        let manifest = document.as_ref().and_then(|document| self.repository.manifest_name(document).ok());
        let against = |object: &ObjectInfo| match (&document, layout.parse(&object.key).ok()?) {
            (Some(document), Key::BackupPart(..)) if places.contains_key(&object.key) => {
                Some(Against::Part(Arc::clone(document), places.get(&object.key).copied()?))
            }
            (Some(document), Key::BackupManifest(..)) if manifest.as_ref() == Some(&object.key) => {
                Some(Against::Manifest(Arc::clone(document)))
            }
            (_, Key::BackupPart(id, part)) => Some(Against::LeftPart(id, part)),
            (_, Key::BackupManifest(id, _)) => Some(Against::LeftManifest(id)),
            _ => None,
        };
        self.read_below(&layout.backup_prefix(&id), against, results).await
    }

    /// Reads the objects below `prefix` that are to be held against something.
    async fn read_below(
        &self,
        prefix: &str,
        against: impl Fn(&ObjectInfo) -> Option<Against>,
        (reading, findings): Results<'_>,
    ) -> Result<()> {
        let listed = pages(self.repository.store.as_ref(), prefix);
        let objects = listed.map_ok(|page| stream::iter(page.into_iter().map(Ok::<_, StoreError>))).try_flatten();
        let wanted = objects.try_filter_map(|object| {
            let against = against(&object);
            std::future::ready(Ok(against.map(|against| (object, against))))
        });
        let reads = wanted.map(|wanted| async move {
            let (object, against) = wanted?;
            let read = self.read_one(&object, &against).await?;
            Ok::<_, Error>((object, against, read))
        });
        let mut reads = pin!(reads.buffer_unordered(self.downloads));
        while let Some((object, against, read)) = reads.try_next().await? {
            self.progress.send_modify(|progress| progress.done_bytes += object.bytes);
            let (objects, bytes) = match &read {
                Read::Before => (&mut reading.resumed_objects, &mut reading.resumed_bytes),
                Read::Judged(Judged::Sealed) => (&mut reading.sealed_objects, &mut reading.sealed_bytes),
                Read::Replaced | Read::Judged(_) => (&mut reading.objects, &mut reading.bytes),
            };
            (*objects, *bytes) = (*objects + 1, *bytes + object.bytes);
            if let Read::Judged(Judged::Wrong(finding)) = read {
                findings.add(match against.backup() {
                    Some(backup) => finding.in_backup(backup),
                    None => finding,
                });
            }
        }
        Ok(())
    }

    async fn read_one(&self, object: &ObjectInfo, against: &Against) -> Result<Read> {
        if self.state.as_ref().is_some_and(|state| state.is_done(object, against.word())) {
            return Ok(Read::Before);
        }
        let too_long = object.bytes > against.bytes_max();
        self.pace.wait(if too_long { 0 } else { object.bytes }).await;
        let fetched = match too_long {
            true => Fetched::TooLong(object.bytes),
            false => fetch(self.repository.store.as_ref(), &object.key, against.bytes_max()).await?,
        };
        let bytes = match fetched.or_finding(&object.key) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return self.gone(object, against).await,
            Err(finding) => return Ok(Read::Judged(Judged::Wrong(*finding))),
        };
        let (object, against, state) = (object.clone(), against.clone(), self.state.clone());
        let judge = Judge {
            repository: self.repository.clone(),
            system_identifier: self.system_identifier,
            buffers: self.buffers.clone(),
            others: Arc::clone(&self.others),
        };
        runtime::blocking(move || {
            let judged = judge.judge(&object.key, bytes, &against)?;
            if let (Some(state), Judged::Sound) = (state, &judged) {
                state.add(&object, against.word())?;
            }
            Ok(Read::Judged(judged))
        })
        .await?
    }

    /// It was listed and is gone. Of a tail that means that something larger has replaced it.
    async fn gone(&self, object: &ObjectInfo, against: &Against) -> Result<Read> {
        if let Against::Wal(range) = against {
            let coverage = self.repository.read_coverage(range.timeline, range.start).await?;
            if coverage.chain(range.start, range.end).is_ok() {
                return Ok(Read::Replaced);
            }
        }
        let finding = Finding::of_object(FindingKind::MissingObject, &object.key, "was listed and is gone");
        Ok(Read::Judged(Judged::Wrong(finding)))
    }
}

/// Judges what was read. CPU work.
struct Judge {
    repository: Repository,
    system_identifier: u64,
    buffers: Buffers,
    others: Arc<Others>,
}

impl Judge {
    fn judge(&self, name: &str, stored: Bytes, against: &Against) -> Result<Judged> {
        Ok(match against {
            Against::Part(document, at) => self.part(name, stored, document, *at),
            Against::LeftPart(id, part) => {
                let is_named_by_hash = !crate::codec::encryption::is_encrypted(&stored);
                let digest = ContentDigest::of_sha256(Sha256::digest(&stored).into());
                let judged = self.contents(name, stored, self.of_part(id, part.archive));
                match judged {
                    Judged::Sound if is_named_by_hash && digest != part.digest => {
                        Judged::Wrong(wrong(name, "is not what its name says"))
                    }
                    judged => judged,
                }
            }
            Against::Manifest(document) => {
                let plain_sha256 = Some(document.manifest_sha256.clone());
                let expected = Expected { plain_sha256, ..self.of(Subject::Manifest { backup: document.id.clone() }) };
                self.contents(name, stored, expected)
            }
            Against::LeftManifest(id) => self.contents(name, stored, self.of(Subject::Manifest { backup: id.clone() })),
            Against::Wal(range) => {
                let plain_bytes = Some(range.bytes());
                let expected = Expected { plain_bytes, has_blake3: true, ..self.of(Subject::wal(*range)) };
                self.contents(name, stored, expected)
            }
            Against::Records(range) => match self.contents(name, stored.clone(), self.of(Subject::records(*range))) {
                Judged::Sound => Indexes::check(name, *range, &stored)
                    .map_or_else(|error| Judged::Wrong(index_is_wrong(name, &error)), |()| Judged::Sound),
                judged => judged,
            },
            Against::Names(at) => self.contents(name, stored, self.of(Subject::names(*at))),
            Against::Note(key) => note(name, &stored, key)?,
        })
    }

    fn of(&self, subject: Subject) -> Expected {
        let system_identifier = self.system_identifier;
        Expected { system_identifier, subject, plain_bytes: None, plain_sha256: None, has_blake3: false }
    }

    fn of_part(&self, id: &BackupId, archive: Archive) -> Expected {
        self.of(Subject::part(id.clone(), archive))
    }

    fn contents(&self, name: &str, stored: Bytes, expected: Expected) -> Judged {
        let tools = (&self.repository.layout.form().identities, &self.buffers);
        judge(name, stored, &expected, &self.others, tools)
    }

    /// A part of a finished backup: its stored bytes have a hash in `backup.json`, whoever can read them.
    fn part(&self, name: &str, stored: Bytes, document: &BackupDocument, at: usize) -> Judged {
        let Some(part) = document.parts.get(at) else { return Judged::Sound };
        let (sha256, bytes) = (hex(&Sha256::digest(&stored)), stored.len() as u64);
        let expected =
            Expected { plain_bytes: Some(part.plain_bytes), ..self.of_part(&document.id, part.name.archive) };
        let is_stored = sha256 == part.sha256 && bytes == part.stored_bytes;
        let judged = self.contents(name, stored, expected);
        if is_stored {
            return judged;
        }
        // What it is instead: that of another backup, another part of this one, a shorter one, or damage.
        if let Judged::Wrong(finding) = &judged
            && finding.kind == FindingKind::SwappedObject
        {
            return judged;
        }
        if let Some(other) = document.parts.iter().find(|other| other.sha256 == sha256) {
            let finding =
                Finding::of_object(FindingKind::SwappedObject, name, format_args!("is what {} must be", other.name));
            return Judged::Wrong(finding.hint("Was it renamed, swapped with another, or copied from elsewhere?"));
        }
        match bytes == part.stored_bytes {
            false => Judged::Wrong(wrong_length(name, bytes, part.stored_bytes)),
            true => Judged::Wrong(wrong(name, "does not have the SHA-256 that backup.json says")),
        }
    }
}

fn wrong(name: &str, what: &str) -> Finding {
    Finding::of_object(FindingKind::WrongContents, name, what)
        .hint("Is there another copy of the bucket (versions, replication)?")
}

fn index_is_wrong(name: &str, error: &Error) -> Finding {
    Finding::of_object(FindingKind::WrongContents, name, format!("cannot be read: {error}"))
        .hint("Nothing is lost with it: delete it, and `seawall index` makes another.")
}

/// A document of the index against its name.
fn note(name: &str, text: &[u8], key: &Key) -> Result<Judged> {
    let range = |timeline: TimelineId, start, end| WalRange { timeline, start, end };
    let found = match key {
        Key::Heartbeat { .. } => parse::<Heartbeat>(name, text)?.map(|note| {
            // Names have seconds.
            let time = note.time.as_second();
            let time = jiff::Timestamp::from_second(time).unwrap_or(note.time);
            Key::Heartbeat { timeline: note.timeline, time, flush: note.flush_lsn }
        }),
        Key::Gap(_) => parse::<GapNote>(name, text)?.map(|note| Key::Gap(range(note.timeline, note.start, note.end))),
        _ => {
            parse::<DeadBranchNote>(name, text)?.map(|note| Key::DeadBranch(range(note.timeline, note.start, note.end)))
        }
    };
    Ok(match found {
        Ok(found) if found == *key => Judged::Sound,
        Ok(_) => {
            let finding = Finding::of_object(FindingKind::SwappedObject, name, "does not say what its name says");
            Judged::Wrong(finding.hint("Was it renamed, or swapped with another?"))
        }
        Err(finding) => Judged::Wrong(*finding),
    })
}
