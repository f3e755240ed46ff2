//! A base backup's folder: its documents, and whether every object that they name is there, as long as it was stored.

use super::fetched::{BACKUP_DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_MAX, Document, read_document};
use super::listing::{pages, unknown};
use super::report::{Checked, Finding, FindingKind, Findings};
use crate::error::Result;
use crate::repository::{
    BackupBegin, BackupDocument, BackupEntry, BackupFiles, BackupId, Key, PART_BYTES_MAX, Repository,
};
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::pin::pin;

/// Between its manifest and `backup.json`, a base backup waits for WAL. If that takes longer, nobody is at it any more.
const LONGEST_END: SignedDuration = SignedDuration::from_hours(1);

/// What a base backup's folder says.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) id: BackupId,
    begin: Document<BackupBegin>,
    /// Without its files.
    pub(super) document: Document<BackupDocument>,
}

impl Folder {
    /// Reads `begin.json` and `backup.json`. They must be read before the folder is listed: then everything that they name is
    /// stored.
    ///
    /// # Errors
    /// If the store cannot be used, or a document is of a later format.
    pub(super) async fn read(
        repository: &Repository,
        system_identifier: u64,
        id: BackupId,
        findings: &mut Findings,
    ) -> Result<Folder> {
        let store = repository.store.as_ref();
        let mut found = |finding: Finding| findings.add(finding.in_backup(&id));
        let name = repository.layout.name(&Key::BackupBegin(id.clone()));
        let begin = read_document(store, &name, DOCUMENT_BYTES_MAX, &mut found).await?;
        let begin = whose(begin, &name, &id, system_identifier, &mut found);
        let name = repository.layout.name(&Key::BackupEnd(id.clone()));
        let document = read_document(store, &name, BACKUP_DOCUMENT_BYTES_MAX, &mut found).await?;
        let mut document: Document<BackupDocument> = whose(document, &name, &id, system_identifier, &mut found);
        if let Document::There(document) = &mut document {
            // Many, and of no use here.
            document.files = BackupFiles::default();
            if let Err(error) = repository.manifest_name(document) {
                found(Finding::of_object(FindingKind::WrongContents, &name, format_args!("is wrong: {error}")));
            }
            let is_too_long = |bytes| bytes > PART_BYTES_MAX;
            if document.parts.iter().any(|part| is_too_long(part.stored_bytes) || is_too_long(part.plain_bytes)) {
                let what = format_args!("names a part of more than {PART_BYTES_MAX} bytes, as no part has").to_string();
                found(Finding::of_object(FindingKind::WrongContents, &name, what));
            }
        }
        Ok(Folder { id, begin, document })
    }

    /// What it must hold, by name: the bytes, if they are known.
    fn expected(&self, repository: &Repository) -> HashMap<String, Option<u64>> {
        let Some(document) = self.document.as_ref() else { return HashMap::new() };
        let part = |part: &crate::repository::BackupPart| {
            let key = Key::BackupPart(self.id.clone(), part.name);
            (repository.layout.name_in(&key, document.ending), Some(part.stored_bytes))
        };
        let manifest = repository.manifest_name(document).ok().map(|name| (name, None));
        document.parts.iter().map(part).chain(manifest).collect()
    }

    /// Compares the folder with what it must hold. With `lengths`, lengths too: who reads everything afterwards finds out more of an
    /// object that has another.
    ///
    /// # Errors
    /// If the store cannot be used.
    pub(super) async fn compare(
        &self,
        repository: &Repository,
        now: Timestamp,
        lengths: bool,
        (checked, findings): (&mut Checked, &mut Findings),
    ) -> Result<()> {
        let mut expected = self.expected(repository);
        let mut manifest_stored = None;
        let prefix = repository.layout.backup_prefix(&self.id);
        let mut pages = pin!(pages(repository.store.as_ref(), &prefix));
        while let Some(page) = pages.try_next().await? {
            for object in page {
                checked.objects += 1;
                checked.object_bytes += object.bytes;
                match (expected.remove(&object.key), repository.layout.parse(&object.key)) {
                    (Some(Some(bytes)), _) if lengths && bytes != object.bytes => {
                        findings.add(wrong_length(&object.key, object.bytes, bytes).in_backup(&self.id));
                    }
                    (Some(None), _) if object.bytes == 0 && lengths => {
                        let empty = Finding::of_object(FindingKind::WrongLength, &object.key, "is empty");
                        findings.add(empty.in_backup(&self.id));
                    }
                    (Some(_), _) | (None, Ok(Key::BackupBegin(_) | Key::BackupEnd(_))) => {}
                    (None, Ok(key)) => {
                        checked.leftover_objects += 1;
                        checked.leftover_bytes += object.bytes;
                        if let Key::BackupManifest(..) = key {
                            manifest_stored = Some(object.modified);
                        }
                    }
                    (None, Err(_)) => findings.add(unknown(&object.key)),
                }
            }
        }
        let mut missing: Vec<String> = expected.into_keys().collect();
        missing.sort();
        for name in missing {
            let what = format_args!("is missing, and backup {} cannot be restored without it", self.id).to_string();
            findings.add(Finding::of_object(FindingKind::MissingObject, &name, what).in_backup(&self.id));
        }
        self.judge_documents(repository, now, manifest_stored, findings);
        Ok(())
    }

    /// Says which of the two documents are missing.
    fn judge_documents(
        &self,
        repository: &Repository,
        now: Timestamp,
        manifest_stored: Option<Timestamp>,
        findings: &mut Findings,
    ) {
        let id = &self.id;
        let missing = |key: Key, what: &str| {
            let name = repository.layout.name(&key);
            Finding::of_object(FindingKind::MissingObject, &name, what).in_backup(id)
        };
        match (&self.begin, &self.document, manifest_stored) {
            (Document::Absent, Document::There(_) | Document::Damaged, _) => {
                let key = Key::BackupBegin(id.clone());
                findings.add(missing(key, "is missing: it was stored before everything else of the backup"));
            }
            (_, Document::Absent, Some(stored)) if now.duration_since(stored) > LONGEST_END => {
                let key = Key::BackupEnd(id.clone());
                let what = "is missing, and everything that it would have named was stored: it was deleted, or the backup was \
                            interrupted at its very end";
                findings.add(missing(key, what).hint(format!(
                    "Is there another copy of the bucket (versions, replication)? `seawall backup --resume {id}` takes what is \
                     missing once more."
                )));
            }
            (_, Document::Absent, _) => {
                let message = format!("backup {id} is not finished: it is being taken, or was interrupted");
                let finding = Finding::of_backup(FindingKind::UnfinishedBackup, id, message);
                findings.add(finding.into_note().hint(format!("`seawall backup --resume {id}` goes on with it.")));
            }
            (_, Document::There(_) | Document::Damaged, _) => {}
        }
    }

    /// As the catalogue has it, without the lists of objects.
    pub(super) fn into_entry(self) -> BackupEntry {
        let without_parts = |document| BackupDocument { parts: Vec::new(), ..document };
        let document = match self.document {
            Document::There(document) => Some(without_parts(document)),
            _ => None,
        };
        BackupEntry { id: self.id, document, begin: None }
    }
}

pub(super) fn wrong_length(name: &str, found: u64, stored: u64) -> Finding {
    Finding::of_object(FindingKind::WrongLength, name, format_args!("has {found} bytes instead of {stored}"))
}

/// What says of which backup and cluster it is.
trait Signed {
    fn signature(&self) -> (&BackupId, u64);
}

impl Signed for BackupBegin {
    fn signature(&self) -> (&BackupId, u64) {
        (&self.id, self.system_identifier)
    }
}

impl Signed for BackupDocument {
    fn signature(&self) -> (&BackupId, u64) {
        (&self.id, self.system_identifier)
    }
}

/// A document that is another backup's or another cluster's is no use.
fn whose<T: Signed>(
    document: Document<T>,
    name: &str,
    id: &BackupId,
    system_identifier: u64,
    found: &mut impl FnMut(Finding),
) -> Document<T> {
    let Document::There(there) = &document else { return document };
    let (other_id, other_system) = there.signature();
    let what = if other_id != id {
        format!("is that of backup {other_id}")
    } else if other_system != system_identifier {
        format!("is of the cluster {other_system}, not of {system_identifier}")
    } else {
        return document;
    };
    found(Finding::of_object(FindingKind::SwappedObject, name, what).hint("Was it renamed, or copied from elsewhere?"));
    Document::Damaged
}
