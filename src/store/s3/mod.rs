//! Amazon S3 and servers that speak its protocol, by aws-sdk-s3. Uses `runtime` for its CPU work and clock.
//!
//! * A create is one `PutObject` with `If-None-Match: *`. Servers that ignore that header can be used with
//!   [`Conditional::Head`], which looks before and after; it narrows the race of two writers but cannot close it.
//! * Every body goes out with a CRC32C that is computed here, over the pieces, and checked by the server before it
//!   publishes. It is not hashed with SHA-256: the payload is signed as `UNSIGNED-PAYLOAD`, which the signature of the
//!   request covers together with the CRC32C header. TLS keeps both together on the way.
//! * The SDK retries nothing and validates nothing of its own: `RetryingStore` and this module do.

mod body;
mod bucket;
mod credentials;
mod errors;
mod options;
mod upload;

pub(super) use credentials::{FromSecrets, Renewing};
pub use options::{Checksum, Conditional, LockMode, ObjectLock, S3Options, ServerSideEncryption};

use super::{
    Body, BucketSettings, Created, Level, ListPage, Metadata, ObjectHead, ObjectInfo, ObjectStream, Store, StoreError,
    StoreErrorKind, Upload, key,
};
use crate::runtime::Clock;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, ObjectLockMode, StorageClass};
use aws_smithy_types::DateTime;
use errors::Subject;
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time for a request without its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the server to put the pieces of a large object together.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(300);
/// A body may be as slow as this, in bytes per second, before its request counts as lost.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 * 1024;
/// Facts beside an object whose writer looks afterwards whether it was the one.
const PUT_ID: &str = "put-id";

/// A bucket, or the part of it below a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct S3Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    credentials: Renewing,
    bucket: String,
    /// Empty, or ends in `/`.
    prefix: String,
    options: S3Options,
    clock: Clock,
    /// Makes put ids unique: when this store was opened, by whom, and how many there were.
    opened: Timestamp,
    put_ids: AtomicU64,
}

impl S3Store {
    /// The objects of `bucket` below `prefix`, which is empty or ends in `/`. `client` must not retry and must not
    /// compute or validate checksums of its own, as `open` configures it, and has its `credentials` from there.
    pub(super) fn new(
        client: Client,
        credentials: Renewing,
        bucket: String,
        prefix: String,
        options: S3Options,
    ) -> S3Store {
        let clock = Clock::system();
        let opened = clock.now();
        S3Store {
            shared: Arc::new(Shared {
                client,
                credentials,
                bucket,
                prefix,
                options,
                clock,
                opened,
                put_ids: AtomicU64::new(0),
            }),
        }
    }

    fn client(&self) -> &Client {
        &self.shared.client
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.shared.prefix)
    }

    fn object<'a>(&'a self, action: &'static str, key: &str) -> Subject<'a> {
        let (bucket, credentials) = (&self.shared.bucket, &self.shared.credentials);
        Subject { action, bucket, key: Some(self.key(key)), credentials }
    }

    fn listing<'a>(&'a self, prefix: &str) -> Subject<'a> {
        let key = self.key(prefix);
        let (bucket, credentials) = (&self.shared.bucket, &self.shared.credentials);
        Subject { action: "list", bucket, key: (!key.is_empty()).then_some(key), credentials }
    }

    /// The facts to send with an object, and the id by which its writer knows it again where that is needed.
    fn metadata_to_send(&self, metadata: Metadata) -> (HashMap<String, String>, Option<String>) {
        let mut sent: HashMap<_, _> = metadata.into_iter().collect();
        let id = match self.shared.options.conditional_writes {
            Conditional::Header => None,
            Conditional::Head => {
                let count = self.shared.put_ids.fetch_add(1, Ordering::Relaxed);
                Some(format!("{}-{}-{count}", self.shared.opened.as_nanosecond(), std::process::id()))
            }
        };
        if let Some(id) = &id {
            sent.insert(PUT_ID.to_string(), id.clone());
        }
        (sent, id)
    }

    fn encryption(&self) -> Option<aws_sdk_s3::types::ServerSideEncryption> {
        use aws_sdk_s3::types::ServerSideEncryption as Header;
        match (self.shared.options.sse, &self.shared.options.kms_key) {
            (Some(ServerSideEncryption::S3), _) => Some(Header::Aes256),
            (Some(ServerSideEncryption::Kms), _) | (None, Some(_)) => Some(Header::AwsKms),
            (None, None) => None,
        }
    }

    fn storage_class(&self) -> Option<StorageClass> {
        self.shared.options.storage_class.as_deref().map(StorageClass::from)
    }

    /// Until when an object that is stored now stays, if it is one that stays, and how strictly.
    fn lock_of(&self, key: &str) -> Option<(ObjectLockMode, DateTime)> {
        let lock = &self.shared.options.lock;
        let mode = match lock.mode? {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        };
        let until = self.shared.clock.now().saturating_add(lock.period()).unwrap_or(Timestamp::MAX);
        (lock.is_permanent)(key).then(|| (mode, DateTime::from_secs(until.as_second())))
    }

    /// True if something has that name. One half of [`Conditional::Head`].
    async fn is_taken(&self, key: &str) -> Result<bool, StoreError> {
        match self.look(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whose object is there after a put without a condition. The other half.
    async fn whose(&self, key: &str, id: &str) -> Result<Created, StoreError> {
        let (_, found) = self.look(key).await?;
        Ok(if found.as_deref() == Some(id) { Created::New } else { Created::Exists })
    }

    /// The head of an object, and its put id.
    async fn look(&self, key: &str) -> Result<(ObjectHead, Option<String>), StoreError> {
        let subject = self.object("look at", key);
        let request = self.client().head_object().bucket(&self.shared.bucket).key(self.key(key)).send();
        match errors::within(REQUEST_TIMEOUT, request).await {
            Ok(output) => head_of(key, output.content_length, output.last_modified.as_ref(), output.metadata)
                .map_err(|why| subject.unusable(why)),
            // The reply to HEAD has no body, and so no reason: "no such key" and "no such bucket" look alike. GET says.
            Err(failure) if failure.is_answer() => {
                let output = self.open_object(&subject, key, None).await?;
                head_of(key, output.content_length, output.last_modified.as_ref(), output.metadata)
                    .map_err(|why| subject.unusable(why))
            }
            Err(failure) => Err(subject.failed(failure)),
        }
    }

    async fn open_object(
        &self,
        subject: &Subject<'_>,
        key: &str,
        range: Option<&Range<u64>>,
    ) -> Result<GetObjectOutput, StoreError> {
        let mut request = self.client().get_object().bucket(&self.shared.bucket).key(self.key(key));
        if let Some(range) = range {
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        // The header only, not the SDK's `checksum_mode`: that verifies by itself, logs what it cannot verify, and
        // takes the checksum of the whole for that of a range where a server sends it with one.
        let request = request.customize().mutate_request(|request| {
            request.headers_mut().insert("x-amz-checksum-mode", "ENABLED");
        });
        match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(output) => Ok(output),
            Err(failure) => Err(subject.failed(failure)),
        }
    }
}

#[async_trait]
impl Store for S3Store {
    async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
        key::check("store", key)?;
        let subject = self.object("store", key);
        let (metadata, id) = self.metadata_to_send(metadata);
        if id.is_some() && self.is_taken(key).await? {
            return Ok(Created::Exists);
        }
        let bytes = body.bytes();
        let crc32c = self.checksum_of(&body).await?.map(body::header_of);
        let (lock_mode, locked_until) = self.lock_of(key).unzip();
        let request = self
            .client()
            .put_object()
            .bucket(&self.shared.bucket)
            .key(self.key(key))
            .set_if_none_match(id.is_none().then(|| "*".to_string()))
            .set_checksum_crc32_c(crc32c)
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.shared.options.kms_key.clone())
            .set_storage_class(self.storage_class())
            .set_object_lock_mode(lock_mode)
            .set_object_lock_retain_until_date(locked_until)
            .set_metadata((!metadata.is_empty()).then_some(metadata))
            .content_type("application/octet-stream")
            .body(body::to_send(body));
        match errors::within(time_for(bytes), request.customize().disable_payload_signing().send()).await {
            Ok(_) => match id {
                None => Ok(Created::New),
                Some(id) => self.whose(key, &id).await,
            },
            Err(failure) if failure.is_precondition() => Ok(Created::Exists),
            Err(failure) => Err(subject.failed(failure)),
        }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
        key::check("read", key)?;
        let subject = self.object("read", key);
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            // HTTP has no way to ask for nothing.
            let (head, _) = self.look(key).await?;
            return Ok(ObjectStream { head, bytes: stream::empty().boxed() });
        }
        let output = self.open_object(&subject, key, range.as_ref()).await?;
        let sent = output.content_length.and_then(|bytes| u64::try_from(bytes).ok());
        let Some(sent) = sent else { return Err(subject.unusable("a reply without a length")) };
        let whole = match (&range, output.content_range.as_deref()) {
            (_, Some(header)) => total_of(header).ok_or_else(|| subject.unusable("a Content-Range without a total"))?,
            (None, None) => sent,
            // A server may answer a range that covers everything with everything.
            (Some(range), None) if range.start == 0 && range.end >= sent => sent,
            (Some(_), None) => {
                return Err(StoreError::new(StoreErrorKind::Unsupported, "read", subject.to_string())
                    .because("the server sent the whole object where a part was asked for"));
            }
        };
        if let Some(range) = &range
            && sent != range.end.min(whole).saturating_sub(range.start)
        {
            return Err(subject.unusable("a reply with another range than was asked for"));
        }
        // What covers only parts of the object ("…-7") is no checksum of what comes.
        let crc32c = match (&range, &output.checksum_type) {
            (Some(_), _) | (None, Some(ChecksumType::Composite)) => None,
            (None, _) => output.checksum_crc32_c.as_deref().and_then(body::from_header),
        };
        let whole = i64::try_from(whole).ok();
        let (head, _) =
            head_of(key, whole, output.last_modified.as_ref(), output.metadata).map_err(|why| subject.unusable(why))?;
        Ok(ObjectStream { head, bytes: body::received(output.body, subject.to_string(), sent, crc32c).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        key::check("look at", key)?;
        Ok(self.look(key).await?.0)
    }

    async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
        key::check_prefix(prefix)?;
        let subject = self.listing(prefix);
        let request = self
            .client()
            .list_objects_v2()
            .bucket(&self.shared.bucket)
            .set_prefix(subject.key.clone())
            .set_continuation_token(token);
        match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(output) => {
                let next = next_page(&subject, output.is_truncated, output.next_continuation_token)?;
                let objects = self.infos(&subject, output.contents.unwrap_or_default())?;
                Ok(ListPage { objects, next })
            }
            Err(failure) => Err(subject.failed(failure)),
        }
    }

    async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
        key::check_prefix(prefix)?;
        let subject = self.listing(prefix);
        let mut level = Level::default();
        let mut token = None;
        loop {
            let request = self
                .client()
                .list_objects_v2()
                .bucket(&self.shared.bucket)
                .set_prefix(subject.key.clone())
                .delimiter("/")
                .set_continuation_token(token);
            let output = match errors::within(REQUEST_TIMEOUT, request.send()).await {
                Ok(output) => output,
                Err(failure) => return Err(subject.failed(failure)),
            };
            level.objects.extend(self.infos(&subject, output.contents.unwrap_or_default())?);
            let below = output.common_prefixes.unwrap_or_default().into_iter().filter_map(|below| below.prefix);
            level.prefixes.extend(below.filter_map(|below| {
                let below = below.strip_prefix(&self.shared.prefix)?;
                key::is_legal(below.strip_suffix('/')?).then(|| below.to_string())
            }));
            token = next_page(&subject, output.is_truncated, output.next_continuation_token)?;
            if token.is_none() {
                return Ok(level);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check("delete", key)?;
        let subject = self.object("delete", key);
        let request = self.client().delete_object().bucket(&self.shared.bucket).key(self.key(key));
        match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(_) => Ok(()),
            Err(failure) => match subject.failed(failure) {
                error if error.kind == StoreErrorKind::NotFound => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
        key::check("store", key)?;
        let subject = self.object("store", key);
        let (metadata, put_id) = self.metadata_to_send(metadata);
        let checked = self.shared.options.checksum == Checksum::Crc32c;
        let (lock_mode, locked_until) = self.lock_of(key).unzip();
        let request = self
            .client()
            .create_multipart_upload()
            .bucket(&self.shared.bucket)
            .key(self.key(key))
            .set_checksum_algorithm(checked.then_some(ChecksumAlgorithm::Crc32C))
            .set_checksum_type(checked.then_some(ChecksumType::FullObject))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.shared.options.kms_key.clone())
            .set_storage_class(self.storage_class())
            .set_object_lock_mode(lock_mode)
            .set_object_lock_retain_until_date(locked_until)
            .set_metadata((!metadata.is_empty()).then_some(metadata))
            .content_type("application/octet-stream");
        let output = match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(output) => output,
            Err(failure) => return Err(subject.failed(failure)),
        };
        let upload_id = output.upload_id.ok_or_else(|| subject.unusable("a reply without an upload id"))?;
        Ok(Box::new(upload::S3Upload::new(self.clone(), key.to_string(), upload_id, put_id)))
    }

    fn lock_period(&self) -> Option<SignedDuration> {
        let lock = &self.shared.options.lock;
        lock.mode.map(|_| lock.period())
    }

    async fn set_legal_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        key::check("hold", key)?;
        self.put_hold(key, on).await
    }

    async fn settings(&self, prefix: &str) -> Result<Option<BucketSettings>, StoreError> {
        key::check_prefix(prefix)?;
        self.read_settings(prefix).await.map(Some)
    }

    fn describe(&self) -> String {
        let mut text = format!("s3://{}/{}", self.shared.bucket, self.shared.prefix);
        text.truncate(text.trim_end_matches('/').len());
        text
    }
}

impl S3Store {
    /// The CRC32C to send with a body, if one is to be sent.
    async fn checksum_of(&self, body: &Body) -> Result<Option<u32>, StoreError> {
        match self.shared.options.checksum {
            Checksum::Off => Ok(None),
            Checksum::Crc32c => body::crc32c(body).await.map(Some),
        }
    }

    /// Entries of a listing, without those that are not ours to name.
    fn infos(
        &self,
        subject: &Subject<'_>,
        listed: Vec<aws_sdk_s3::types::Object>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut infos = Vec::with_capacity(listed.len());
        for object in listed {
            let key = object.key.as_deref().and_then(|key| key.strip_prefix(&self.shared.prefix));
            let Some(key) = key.filter(|key| key::is_legal(key)) else { continue };
            let info = info_of(key, object.size, object.last_modified.as_ref());
            infos.push(info.map_err(|why| subject.unusable(why))?);
        }
        Ok(infos)
    }
}

/// The token of the next page; `None` behind the last. Half a listing must never pass for a whole one.
fn next_page(
    subject: &Subject<'_>,
    is_truncated: Option<bool>,
    token: Option<String>,
) -> Result<Option<String>, StoreError> {
    match (is_truncated, token) {
        (Some(true), None) => {
            Err(subject.unusable("a page of a listing that is not the last, and no token for the next"))
        }
        (Some(true), token) => Ok(token),
        _ => Ok(None),
    }
}

fn time_for(bytes: u64) -> Duration {
    REQUEST_TIMEOUT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
}

fn head_of(
    key: &str,
    bytes: Option<i64>,
    modified: Option<&DateTime>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(ObjectHead, Option<String>), &'static str> {
    let mut metadata: Metadata = metadata.unwrap_or_default().into_iter().collect();
    let put_id = metadata.remove(PUT_ID);
    Ok((ObjectHead { info: info_of(key, bytes, modified)?, metadata }, put_id))
}

fn info_of(key: &str, bytes: Option<i64>, modified: Option<&DateTime>) -> Result<ObjectInfo, &'static str> {
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or("an object without a size")?;
    let modified = modified
        .and_then(|time| Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok())
        .ok_or("an object without a date")?;
    Ok(ObjectInfo { key: key.to_string(), bytes, modified })
}

/// The size of the whole object from `bytes 0-9/100`.
fn total_of(content_range: &str) -> Option<u64> {
    content_range.rsplit_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests;
