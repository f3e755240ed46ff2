//! A large object in pieces: S3's multipart upload. The object appears with `CompleteMultipartUpload`.

use super::super::{Body, Created, StoreError, StoreErrorKind, Upload};
use super::errors;
use super::{COMPLETE_TIMEOUT, REQUEST_TIMEOUT, S3Store, body, time_for};
use async_trait::async_trait;
use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart};

/// S3's smallest part, but for the last ("Amazon S3 multipart upload limits" in its user guide).
const PART_BYTES_MIN: usize = 5 << 20;
/// S3's largest number of parts (same place).
const PARTS_MAX: usize = 10_000;

/// An upload under way. Dropping it leaves its parts to the bucket's rule for incomplete uploads.
#[derive(Debug)]
pub(super) struct S3Upload {
    store: S3Store,
    key: String,
    upload_id: String,
    /// With `Conditional::Head`, the id in the object's metadata.
    put_id: Option<String>,
    parts: Vec<CompletedPart>,
    bytes: u64,
    /// Of all parts one behind the other, as far as there are checksums.
    crc32c: Option<u32>,
}

impl S3Upload {
    pub(super) fn new(store: S3Store, key: String, upload_id: String, put_id: Option<String>) -> S3Upload {
        S3Upload { store, key, upload_id, put_id, parts: Vec::new(), bytes: 0, crc32c: None }
    }

    fn fail(&self, kind: StoreErrorKind, why: &'static str) -> StoreError {
        StoreError::new(kind, "store", self.store.object("store", &self.key).to_string()).because(why)
    }

    /// What became of an upload whose completion the server does not know any more: a reply may have been lost.
    async fn outcome(&self) -> Result<Created, StoreError> {
        if self.store.is_taken(&self.key).await? {
            return Ok(Created::Exists);
        }
        Err(self.fail(StoreErrorKind::Permanent, "the server has dropped the unfinished upload"))
    }
}

#[async_trait]
impl Upload for S3Upload {
    fn piece_bytes_min(&self) -> usize {
        PART_BYTES_MIN
    }

    async fn put_piece(&mut self, piece: Body) -> Result<(), StoreError> {
        let number = self.parts.len() + 1;
        let part_number = i32::try_from(number).ok().filter(|_| number <= PARTS_MAX);
        let Some(part_number) = part_number else {
            return Err(self.fail(StoreErrorKind::Permanent, "S3 takes at most 10,000 pieces of an object"));
        };
        let bytes = piece.bytes();
        let crc32c = self.store.checksum_of(&piece).await?;
        let shared = &self.store.shared;
        let request = shared
            .client
            .upload_part()
            .bucket(&shared.bucket)
            .key(self.store.key(&self.key))
            .upload_id(&self.upload_id)
            .part_number(part_number)
            .set_checksum_crc32_c(crc32c.map(body::header_of))
            .body(body::to_send(piece));
        let output = match errors::within(time_for(bytes), request.customize().disable_payload_signing().send()).await {
            Ok(output) => output,
            Err(failure) => return Err(self.store.object("store", &self.key).failed(failure)),
        };
        // Nothing is awaited from here on: a part is counted once, whatever was dropped before.
        self.parts.push(
            CompletedPart::builder()
                .part_number(part_number)
                .set_e_tag(output.e_tag)
                .set_checksum_crc32_c(crc32c.map(body::header_of))
                .build(),
        );
        if let Some(crc32c) = crc32c {
            // A part is a body in memory: its length is a `usize`.
            self.crc32c = Some(crc32c::crc32c_combine(self.crc32c.unwrap_or(0), crc32c, bytes as usize));
        }
        self.bytes += bytes;
        Ok(())
    }

    async fn complete(&mut self) -> Result<Created, StoreError> {
        if self.parts.is_empty() {
            // An upload must have a part, which may be empty.
            self.put_piece(Body::default()).await?;
        }
        if self.put_id.is_some() && self.store.is_taken(&self.key).await? {
            let _ = self.abort().await;
            return Ok(Created::Exists);
        }
        let shared = &self.store.shared;
        let request = shared
            .client
            .complete_multipart_upload()
            .bucket(&shared.bucket)
            .key(self.store.key(&self.key))
            .upload_id(&self.upload_id)
            .set_if_none_match(self.put_id.is_none().then(|| "*".to_string()))
            .set_checksum_crc32_c(self.crc32c.map(body::header_of))
            .set_checksum_type(self.crc32c.map(|_| ChecksumType::FullObject))
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone())).build());
        match errors::within(COMPLETE_TIMEOUT, request.send()).await {
            Ok(_) => match &self.put_id {
                None => Ok(Created::New),
                Some(id) => self.store.whose(&self.key, id).await,
            },
            Err(failure) if failure.is_precondition() => {
                // The answer is known; a server that keeps the parts has its own rule for them.
                let _ = self.abort().await;
                Ok(Created::Exists)
            }
            Err(failure) if failure.is_no_such_upload() => self.outcome().await,
            Err(failure) => Err(self.store.object("store", &self.key).failed(failure)),
        }
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        let request = shared
            .client
            .abort_multipart_upload()
            .bucket(&shared.bucket)
            .key(self.store.key(&self.key))
            .upload_id(&self.upload_id);
        match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_no_such_upload() => Ok(()),
            Err(failure) => Err(self.store.object("take back", &self.key).failed(failure)),
        }
    }
}
