//! S3's operations over the storage.

use super::S3Server;
use super::bucket::Lock;
use super::checksum::{self, PartSum, Verifier};
use super::listing::{Position, list};
use super::storage::{Object, Part, Storage, Upload, e_tag};
use async_trait::async_trait;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

/// The smallest part but the last: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
const PART_BYTES_MIN: u64 = 5 << 20;

/// What `encoding-type=url` leaves as it is.
const KEPT_IN_URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b'/');

/// Goes with a request whose `If-None-Match` shall be ignored.
#[derive(Clone)]
pub(super) struct IgnoresIfNoneMatch;

/// Set on a request whose answer does not say how the listing goes on.
#[derive(Clone, Copy)]
pub(super) struct LosesToken;

pub(super) struct Wire {
    storage: Arc<Storage>,
}

/// The checksums that an input declares.
macro_rules! declared {
    ($input:expr) => {
        Checksum {
            checksum_crc32: $input.checksum_crc32.take(),
            checksum_crc32c: $input.checksum_crc32c.take(),
            checksum_crc64nvme: $input.checksum_crc64nvme.take(),
            checksum_sha1: $input.checksum_sha1.take(),
            checksum_sha256: $input.checksum_sha256.take(),
            checksum_type: None,
        }
    };
}

/// Shows checksums in an output.
macro_rules! show {
    ($output:expr, $checksum:expr) => {{
        let checksum: Checksum = $checksum;
        $output.checksum_crc32 = checksum.checksum_crc32;
        $output.checksum_crc32c = checksum.checksum_crc32c;
        $output.checksum_crc64nvme = checksum.checksum_crc64nvme;
        $output.checksum_sha1 = checksum.checksum_sha1;
        $output.checksum_sha256 = checksum.checksum_sha256;
    }};
}

impl Wire {
    pub(super) fn new(storage: Arc<Storage>) -> Wire {
        Wire { storage }
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        let mut visible = self.storage.visible();
        let object = visible.bucket(bucket)?.get(key).cloned();
        object.ok_or_else(|| s3_error!(NoSuchKey, "there is no object {key}"))
    }
}

/// Whether a write may only create.
fn only_new<T>(
    request: &S3Request<T>,
    if_match: Option<&IfMatch>,
    if_none_match: Option<&IfNoneMatch>,
) -> S3Result<bool> {
    if if_match.is_some() {
        return Err(s3_error!(NotImplemented, "If-Match on a write"));
    }
    match if_none_match {
        None => Ok(false),
        Some(IfNoneMatch::Any) => Ok(request.extensions.get::<IgnoresIfNoneMatch>().is_none()),
        Some(IfNoneMatch::ETag(_)) => Err(s3_error!(NotImplemented, "If-None-Match on a write with anything but *")),
    }
}

fn strong(tag: &str) -> Option<ETag> {
    Some(ETag::Strong(tag.to_owned()))
}

#[async_trait]
impl S3 for Wire {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        if !self.storage.create_bucket(&request.input.bucket) {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{}", request.input.bucket)) }))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.storage.visible().bucket(&request.input.bucket)?;
        let region = Some(S3Server::REGION.to_owned());
        Ok(S3Response::new(HeadBucketOutput { bucket_region: region, ..Default::default() }))
    }

    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let only_new = only_new(&request, request.input.if_match.as_ref(), request.input.if_none_match.as_ref())?;
        let input = &mut request.input;
        let trailers = request.trailing_headers.take();
        let (mode, until) = (input.object_lock_mode.take(), input.object_lock_retain_until_date.take());
        let lock = Lock::asked(mode, until, input.object_lock_legal_hold_status.as_ref())?;
        let declared = declared!(input);
        let has_checksum = input.content_md5.is_some() || declared != Checksum::default();
        let verifier = Verifier::new(declared, input.content_md5.as_deref(), &request.headers, trailers)?;
        self.storage.visible().bucket(&input.bucket)?;
        lock.check(&self.storage.visible().settings(&input.bucket), has_checksum)?;
        let received = self.storage.receive(input.body.take(), input.content_length, verifier).await?;
        let object = Object {
            bytes: received.piece.bytes(),
            pieces: vec![received.piece],
            metadata: input.metadata.take().unwrap_or_default(),
            content_type: input.content_type.take(),
            checksum: received.verified.checksum,
            e_tag: e_tag(&received.verified.crc64nvme),
            modified: SystemTime::now(),
            lock,
        };
        let mut output = PutObjectOutput { e_tag: strong(&object.e_tag), ..Default::default() };
        output.checksum_type = object.checksum.checksum_type.clone();
        show!(output, object.checksum.clone());
        self.storage.visible().publish(&input.bucket, &input.key, object, only_new)?;
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.object(&input.bucket, &input.key)?;
        let range = input.range.map(|range| range.check(object.bytes)).transpose()?;
        let mut output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_range: range
                .clone()
                .map(|range| format!("bytes {}-{}/{}", range.start, range.end - 1, object.bytes)),
            content_type: object.content_type.clone(),
            e_tag: strong(&object.e_tag),
            last_modified: Some(object.modified.into()),
            metadata: Some(object.metadata.clone()),
            ..Default::default()
        };
        // The checksum is that of the whole object: a part of it goes without.
        if input.checksum_mode.is_some() && range.is_none() {
            output.checksum_type = object.checksum.checksum_type.clone();
            show!(output, object.checksum.clone());
        }
        let range = range.unwrap_or(0..object.bytes);
        output.content_length = Some((range.end - range.start) as i64);
        output.body = Some(object.stream(range.start, range.end));
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.object(&input.bucket, &input.key)?;
        let mut output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(object.bytes as i64),
            content_type: object.content_type.clone(),
            e_tag: strong(&object.e_tag),
            last_modified: Some(object.modified.into()),
            metadata: Some(object.metadata.clone()),
            ..Default::default()
        };
        if input.checksum_mode.is_some() {
            output.checksum_type = object.checksum.checksum_type.clone();
            show!(output, object.checksum.clone());
        }
        Ok(S3Response::new(output))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        if request.input.version_id.is_some() {
            return Err(s3_error!(NotImplemented, "deleting one version"));
        }
        self.storage.visible().remove(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn put_object_legal_hold(
        &self,
        request: S3Request<PutObjectLegalHoldInput>,
    ) -> S3Result<S3Response<PutObjectLegalHoldOutput>> {
        let PutObjectLegalHoldInput { bucket, key, legal_hold, .. } = request.input;
        let status = legal_hold.and_then(|hold| hold.status);
        let status = status.ok_or_else(|| s3_error!(MalformedXML, "neither ON nor OFF"))?;
        if !self.storage.visible().settings(&bucket).lock {
            return Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"));
        }
        let object = self.object(&bucket, &key)?;
        let lock = Lock { is_held: status.as_str() == ObjectLockLegalHoldStatus::ON, ..object.lock.clone() };
        let same = Object { lock, ..Object::clone(&object) };
        self.storage.visible().bucket(&bucket)?.insert(key, Arc::new(same));
        Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.storage.visible().settings(&request.input.bucket).versioning().map(S3Response::new)
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        self.storage.visible().settings(&request.input.bucket).object_lock().map(S3Response::new)
    }

    async fn get_bucket_encryption(
        &self,
        request: S3Request<GetBucketEncryptionInput>,
    ) -> S3Result<S3Response<GetBucketEncryptionOutput>> {
        self.storage.visible().settings(&request.input.bucket).encryption().map(S3Response::new)
    }

    async fn get_public_access_block(
        &self,
        request: S3Request<GetPublicAccessBlockInput>,
    ) -> S3Result<S3Response<GetPublicAccessBlockOutput>> {
        self.storage.visible().settings(&request.input.bucket).public_access().map(S3Response::new)
    }

    async fn get_bucket_policy_status(
        &self,
        request: S3Request<GetBucketPolicyStatusInput>,
    ) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
        self.storage.visible().settings(&request.input.bucket).policy_status().map(S3Response::new)
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
        self.storage.visible().settings(&request.input.bucket).lifecycle().map(S3Response::new)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let loses_token = request.extensions.get::<LosesToken>().is_some();
        let input = request.input;
        let page_keys = self.storage.page_keys(input.max_keys);
        let page = {
            let mut visible = self.storage.visible();
            let objects = visible.bucket(&input.bucket)?;
            let after = match &input.continuation_token {
                Some(token) => Position::parse(token)?,
                None => Position::Key(input.start_after.clone().unwrap_or_default()),
            };
            let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
            list(objects, input.prefix.as_deref().unwrap_or(""), delimiter, after, page_keys)
        };
        let in_url = input.encoding_type.as_ref().is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
        let name = |name: String| if in_url { utf8_percent_encode(&name, KEPT_IN_URL).to_string() } else { name };
        let objects = page.objects.into_iter().map(|(key, object)| s3s::dto::Object {
            key: Some(name(key)),
            size: Some(object.bytes as i64),
            e_tag: strong(&object.e_tag),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        });
        let objects: Vec<_> = objects.collect();
        let prefixes: Vec<_> =
            page.prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(name(prefix)) }).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            max_keys: Some(page_keys as i32),
            key_count: Some((objects.len() + prefixes.len()) as i32),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.filter(|_| !loses_token).map(|next| next.token()),
            contents: Some(objects),
            common_prefixes: Some(prefixes),
            prefix: input.prefix.map(name),
            delimiter: input.delimiter.map(name),
            start_after: input.start_after.map(name),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let id = format!("upload-{}", self.storage.number());
        let hold = input.object_lock_legal_hold_status.as_ref();
        let lock = Lock::asked(input.object_lock_mode, input.object_lock_retain_until_date, hold)?;
        lock.check(&self.storage.visible().settings(&input.bucket), input.checksum_algorithm.is_some())?;
        let upload = Upload {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            metadata: input.metadata.unwrap_or_default(),
            content_type: input.content_type,
            algorithm: input.checksum_algorithm.as_ref().map(|algorithm| algorithm.as_str().to_owned()),
            checksum_kind: input.checksum_type.as_ref().map(|kind| kind.as_str().to_owned()),
            initiated: SystemTime::now(),
            lock,
            parts: BTreeMap::new(),
        };
        let mut visible = self.storage.visible();
        visible.bucket(&input.bucket)?;
        visible.uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..Default::default()
        }))
    }

    async fn upload_part(&self, mut request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = &mut request.input;
        if !(1..=10_000).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "parts are numbered from 1 to 10000"));
        }
        self.storage.visible().upload(&input.bucket, &input.key, &input.upload_id)?;
        let trailers = request.trailing_headers.take();
        let verifier = Verifier::new(declared!(input), input.content_md5.as_deref(), &request.headers, trailers)?;
        let received = self.storage.receive(input.body.take(), input.content_length, verifier).await?;
        let part = Part {
            piece: received.piece,
            e_tag: e_tag(&received.verified.crc64nvme),
            checksum: received.verified.checksum,
            crc64nvme: received.verified.crc64nvme,
            modified: SystemTime::now(),
        };
        let mut output = UploadPartOutput { e_tag: strong(&part.e_tag), ..Default::default() };
        show!(output, part.checksum.clone());
        let mut visible = self.storage.visible();
        // Aborted or completed meanwhile: the part is gone with its upload.
        visible.upload(&input.bucket, &input.key, &input.upload_id)?.parts.insert(input.part_number, part);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let only_new = only_new(&request, request.input.if_match.as_ref(), request.input.if_none_match.as_ref())?;
        let input = &mut request.input;
        let chosen = input.multipart_upload.take().and_then(|upload| upload.parts).unwrap_or_default();
        let mut visible = self.storage.visible();
        let upload = visible.upload(&input.bucket, &input.key, &input.upload_id)?;
        let parts = choose(upload, &chosen)?;
        let sums: Vec<_> = parts.iter().map(|part| part.sum()).collect();
        let bytes = sums.iter().map(|sum| sum.bytes).sum();
        if input.mpu_object_size.is_some_and(|expected| expected as u64 != bytes) {
            return Err(s3_error!(InvalidRequest, "the parts have {bytes} bytes, not the size you specified"));
        }
        let (algorithm, kind) = (upload.algorithm.as_deref(), upload.checksum_kind.as_deref());
        let checksum = checksum::of_parts(&sums, algorithm, kind, &declared!(input))?;
        let whole = checksum::of_parts(&sums, None, None, &Checksum::default())?;
        let tag = e_tag(&whole.checksum_crc64nvme.expect("the default"));
        let object = Object {
            bytes,
            e_tag: format!("{tag}-{}", parts.len()),
            pieces: parts.iter().map(|part| part.piece.clone()).collect(),
            metadata: upload.metadata.clone(),
            content_type: upload.content_type.clone(),
            checksum,
            modified: SystemTime::now(),
            lock: upload.lock.clone(),
        };
        let mut output = CompleteMultipartUploadOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            e_tag: strong(&object.e_tag),
            checksum_type: object.checksum.checksum_type.clone(),
            ..Default::default()
        };
        show!(output, object.checksum.clone());
        // Refused because the name is taken: the upload stays, until it is aborted.
        visible.publish(&input.bucket, &input.key, object, only_new)?;
        // Completing it once more meets no upload: the less convenient of S3's answers to a lost reply.
        visible.uploads.remove(&input.upload_id);
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let mut visible = self.storage.visible();
        visible.upload(&input.bucket, &input.key, &input.upload_id)?;
        visible.uploads.remove(&input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let page = self.storage.page_keys(input.max_parts);
        let mut visible = self.storage.visible();
        let upload = visible.upload(&input.bucket, &input.key, &input.upload_id)?;
        let after = input.part_number_marker.unwrap_or(0);
        let mut rest = upload.parts.range((Bound::Excluded(after), Bound::Unbounded));
        let parts = rest.by_ref().take(page).map(|(number, part)| {
            let mut shown = s3s::dto::Part {
                part_number: Some(*number),
                size: Some(part.piece.bytes() as i64),
                e_tag: strong(&part.e_tag),
                last_modified: Some(part.modified.into()),
                ..Default::default()
            };
            show!(shown, part.checksum.clone());
            shown
        });
        let parts: Vec<_> = parts.collect();
        let last = parts.last().and_then(|part| part.part_number);
        Ok(S3Response::new(ListPartsOutput {
            is_truncated: Some(rest.next().is_some()),
            next_part_number_marker: last,
            max_parts: Some(page as i32),
            parts: Some(parts),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut visible = self.storage.visible();
        visible.bucket(&input.bucket)?;
        let after = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone());
        let mut found: Vec<_> = visible
            .uploads
            .iter()
            .filter(|(id, upload)| {
                let is_after = match &after.1 {
                    None => upload.key > after.0,
                    Some(marker) => (&upload.key, *id) > (&after.0, marker),
                };
                upload.bucket == input.bucket && upload.key.starts_with(&prefix) && is_after
            })
            .collect();
        found.sort_by_key(|(id, upload)| (upload.key.clone(), (*id).clone()));
        let page = self.storage.page_keys(input.max_uploads);
        let uploads = found.iter().take(page).map(|(id, upload)| MultipartUpload {
            key: Some(upload.key.clone()),
            upload_id: Some((*id).clone()),
            initiated: Some(upload.initiated.into()),
            ..Default::default()
        });
        let uploads: Vec<_> = uploads.collect();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            is_truncated: Some(found.len() > page),
            next_key_marker: uploads.last().and_then(|upload| upload.key.clone()),
            next_upload_id_marker: uploads.last().and_then(|upload| upload.upload_id.clone()),
            max_uploads: Some(page as i32),
            uploads: Some(uploads),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            ..Default::default()
        }))
    }
}

impl Part {
    fn sum(&self) -> PartSum<'_> {
        PartSum { bytes: self.piece.bytes(), checksum: &self.checksum, crc64nvme: &self.crc64nvme }
    }
}

/// The parts that a client completes an upload with, if they are what it was told they are.
fn choose<'a>(upload: &'a Upload, chosen: &[CompletedPart]) -> S3Result<Vec<&'a Part>> {
    if chosen.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload is completed with at least one part"));
    }
    if !chosen.is_sorted_by(|a, b| a.part_number < b.part_number) {
        return Err(s3_error!(InvalidPartOrder, "the parts are not in ascending order"));
    }
    let find = |chosen: &CompletedPart| {
        let part = chosen.part_number.and_then(|number| upload.parts.get(&number));
        let part = part.filter(|part| chosen.e_tag.as_ref().is_some_and(|tag| tag.value() == part.e_tag));
        part.ok_or_else(|| s3_error!(InvalidPart, "part {:?} was not uploaded so", chosen.part_number))
    };
    let parts: Vec<_> = chosen.iter().map(find).collect::<S3Result<_>>()?;
    if parts[..parts.len() - 1].iter().any(|part| part.piece.bytes() < PART_BYTES_MIN) {
        return Err(s3_error!(EntityTooSmall, "a part other than the last has less than {PART_BYTES_MIN} bytes"));
    }
    Ok(parts)
}
