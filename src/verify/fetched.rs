//! Documents and other small objects, read without trust: what is there may be anything.

use super::report::{Finding, FindingKind};
use crate::error::{Error, Kind, Result};
use crate::repository::FORMAT_VERSION;
use crate::store::{Store, StoreError, StoreErrorKind};
use bytes::Bytes;
use serde::de::DeserializeOwned;

/// `backup.json` lists every file: ten million of them take about so much.
pub(super) const BACKUP_DOCUMENT_BYTES_MAX: u64 = 1 << 30;

/// Documents about one thing, and history files.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// An object's bytes, or why there are none.
#[derive(Debug)]
pub(super) enum Fetched {
    /// It is not there.
    Gone,
    /// It has more bytes than such an object can have.
    TooLong(u64),
    /// The store has it, and cannot give it.
    Unreadable(StoreError),
    /// All of it.
    Whole(Bytes),
}

/// Reads an object that has no more than `bytes_max`.
///
/// # Errors
/// If the store cannot be used. That it cannot give this one object is an answer.
pub(super) async fn fetch(store: &dyn Store, name: &str, bytes_max: u64) -> Result<Fetched> {
    let fetched = async {
        let stream = store.get(name, None).await?;
        match stream.head.info.bytes {
            bytes if bytes > bytes_max => Ok(Fetched::TooLong(bytes)),
            _ => stream.collect().await.map(Fetched::Whole),
        }
    };
    match fetched.await {
        Ok(fetched) => Ok(fetched),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(Fetched::Gone),
        // A disk that cannot read a sector; a store whose own checksum does not fit, however often it is asked.
        Err(error) if matches!(error.kind, StoreErrorKind::Corrupt | StoreErrorKind::Permanent) => {
            Ok(Fetched::Unreadable(error))
        }
        Err(error) => Err(error.into()),
    }
}

impl Fetched {
    /// The bytes, or the finding that there are none; `Ok(None)` if it is gone.
    pub(super) fn or_finding(self, name: &str) -> Result<Option<Bytes>, Box<Finding>> {
        match self {
            Fetched::Whole(bytes) => Ok(Some(bytes)),
            Fetched::Gone => Ok(None),
            Fetched::TooLong(bytes) => Err(Box::new(too_long(name, bytes))),
            Fetched::Unreadable(error) => Err(Box::new(unreadable(name, error))),
        }
    }
}

pub(super) fn too_long(name: &str, bytes: u64) -> Finding {
    Finding::of_object(FindingKind::WrongLength, name, format_args!("has {bytes} bytes, as no such object has"))
}

fn unreadable(name: &str, error: StoreError) -> Finding {
    let error = Error::from(error);
    Finding::of_object(FindingKind::WrongContents, name, format_args!("cannot be read: {error}"))
}

/// A document as it was found.
#[derive(Debug)]
pub(super) enum Document<T> {
    /// It is not there.
    Absent,
    /// It is there and no use, as was reported.
    Damaged,
    /// It is there.
    There(T),
}

impl<T> Document<T> {
    pub(super) fn as_ref(&self) -> Option<&T> {
        match self {
            Document::There(document) => Some(document),
            _ => None,
        }
    }
}

/// Reads a document.
///
/// # Errors
/// If the store cannot be used, or the document is of a later format: then nothing here can be judged.
pub(super) async fn read_document<T: DeserializeOwned>(
    store: &dyn Store,
    name: &str,
    bytes_max: u64,
    mut found: impl FnMut(Finding),
) -> Result<Document<T>> {
    let bytes = match fetch(store, name, bytes_max).await?.or_finding(name) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Document::Absent),
        Err(finding) => {
            found(*finding);
            return Ok(Document::Damaged);
        }
    };
    match parse(name, &bytes)? {
        Ok(document) => Ok(Document::There(document)),
        Err(finding) => {
            found(*finding);
            Ok(Document::Damaged)
        }
    }
}

/// Reads the text of a document.
///
/// # Errors
/// If it is of a later format.
pub(super) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<Result<T, Box<Finding>>> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    if let Ok(Format { format }) = serde_json::from_slice(bytes)
        && format > FORMAT_VERSION
    {
        return Err(Error::new(Kind::Refused, format!("{name} has format {format}"))
            .hint("It was written by a later Seawall: use that one or a newer one."));
    }
    Ok(serde_json::from_slice(bytes).map_err(|error| {
        let why = format_args!("cannot be read: {error}").to_string();
        Box::new(Finding::of_object(FindingKind::WrongContents, name, why))
    }))
}
