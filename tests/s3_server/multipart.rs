//! Objects in parts, and bodies on disk.

use crate::s3::S3Server;
use crate::{BUCKET, client, create, pattern, read, verdict};
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

const MIB: usize = 1 << 20;

/// An upload on its way.
pub(crate) struct Multipart<'a> {
    client: &'a Client,
    key: &'a str,
    pub(crate) id: String,
    done: Vec<CompletedPart>,
}

impl<'a> Multipart<'a> {
    pub(crate) async fn begin(client: &'a Client, key: &'a str, algorithm: Option<ChecksumAlgorithm>) -> Multipart<'a> {
        let begun = client.create_multipart_upload().bucket(BUCKET).key(key).metadata("kind", "part");
        let begun = begun.set_checksum_algorithm(algorithm).send().await.unwrap();
        Multipart { client, key, id: begun.upload_id.unwrap(), done: Vec::new() }
    }

    pub(crate) async fn part(&mut self, number: i32, body: Bytes, algorithm: Option<ChecksumAlgorithm>) {
        let part = self.client.upload_part().bucket(BUCKET).key(self.key).upload_id(&self.id).part_number(number);
        let part = part.set_checksum_algorithm(algorithm).body(body.into()).send().await.unwrap();
        let done = CompletedPart::builder().part_number(number).set_e_tag(part.e_tag);
        self.done.push(done.set_checksum_crc32_c(part.checksum_crc32_c).build());
    }

    pub(crate) fn complete(&self) -> CompleteMultipartUploadFluentBuilder {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.done.clone())).build();
        let complete = self.client.complete_multipart_upload().bucket(BUCKET).key(self.key).upload_id(&self.id);
        complete.multipart_upload(parts).if_none_match("*")
    }

    pub(crate) async fn abort(&self) -> String {
        verdict(&self.client.abort_multipart_upload().bucket(BUCKET).key(self.key).upload_id(&self.id).send().await)
    }
}

#[tokio::test]
async fn a_multipart_upload_appears_when_completed() {
    let server = S3Server::start();
    let client = client(&server);
    let (first, second, third) = (pattern(5 * MIB, 1), pattern(6 * MIB + 17, 2), pattern(1000, 3));
    let whole: Bytes = [&first[..], &second, &third].concat().into();

    let mut upload = Multipart::begin(&client, "big", None).await;
    upload.part(1, first, None).await;
    upload.part(3, third, None).await;
    upload.part(2, pattern(10, 9), None).await;
    upload.done.pop();
    upload.part(2, second, None).await;
    upload.done.sort_by_key(|part| part.part_number);
    assert!(server.snapshot().is_empty(), "parts are no object");

    let listed = client.list_parts().bucket(BUCKET).key("big").upload_id(&upload.id).max_parts(2).send().await.unwrap();
    let sizes: Vec<_> = listed.parts().iter().map(|part| part.size().unwrap()).collect();
    assert_eq!(sizes, [5 * MIB as i64, 6 * MIB as i64 + 17], "the second of two part 2 counts");
    assert_eq!((listed.is_truncated(), listed.next_part_number_marker()), (Some(true), Some("2")));
    let uploads = client.list_multipart_uploads().bucket(BUCKET).prefix("bi").send().await.unwrap();
    assert_eq!(uploads.uploads()[0].upload_id(), Some(upload.id.as_str()));

    assert_eq!(verdict(&upload.complete().send().await), "Ok");
    assert_eq!(server.get("big").unwrap(), whole);
    let got = client.get_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert_eq!(got.metadata().unwrap()["kind"], "part");
    assert!(got.checksum_crc64_nvme().is_some(), "the client checks the joined parts against this");
    assert_eq!(read(got).await.unwrap(), whole);
    let middle = client.get_object().bucket(BUCKET).key("big").range(format!("bytes={}-{}", 5 * MIB - 2, 5 * MIB + 1));
    assert_eq!(read(middle.send().await.unwrap()).await.unwrap(), whole[5 * MIB - 2..5 * MIB + 2]);

    // The upload is gone: whoever lost the reply has to look.
    assert_eq!(verdict(&upload.complete().send().await), "NoSuchUpload");
    assert_eq!(client.list_multipart_uploads().bucket(BUCKET).send().await.unwrap().uploads(), []);
}

#[tokio::test]
async fn completing_a_taken_name_is_refused() {
    let server = S3Server::start();
    let client = client(&server);
    let mut upload = Multipart::begin(&client, "taken", None).await;
    upload.part(1, Bytes::from("mine"), None).await;
    assert_eq!(create(&client, "taken", "theirs").await, "Ok");
    assert_eq!(verdict(&upload.complete().send().await), "PreconditionFailed");
    assert_eq!(server.get("taken").unwrap(), "theirs");
    assert_eq!(upload.abort().await, "Ok");
    assert_eq!(upload.abort().await, "NoSuchUpload");
}

#[tokio::test]
async fn a_multipart_upload_is_checked() {
    let server = S3Server::start();
    let client = client(&server);
    let mut upload = Multipart::begin(&client, "k", None).await;
    upload.part(1, pattern(100, 1), None).await;
    upload.part(2, pattern(100, 2), None).await;
    assert_eq!(verdict(&upload.complete().send().await), "EntityTooSmall", "only the last part may be small");
    upload.done.reverse();
    assert_eq!(verdict(&upload.complete().send().await), "InvalidPartOrder");
    upload.done.truncate(1);
    let wrong = BASE64_STANDARD.encode([1; 8]);
    assert_eq!(verdict(&upload.complete().checksum_crc64_nvme(wrong).send().await), "BadDigest");
    assert_eq!(verdict(&upload.complete().mpu_object_size(99).send().await), "InvalidRequest");
    let part = client.upload_part().bucket(BUCKET).key("k").upload_id(&upload.id).part_number(3);
    let part = part.body(pattern(100, 3).into()).checksum_crc32_c(BASE64_STANDARD.encode([1; 4])).send().await;
    assert_eq!(verdict(&part), "BadDigest");
    upload.done.push(CompletedPart::builder().part_number(3).e_tag("unknown").build());
    assert_eq!(verdict(&upload.complete().send().await), "InvalidPart", "a refused part is not kept");
    assert!(server.snapshot().is_empty());
}

#[tokio::test]
async fn checksums_of_parts_become_one() {
    let server = S3Server::start();
    let client = client(&server);
    let crc32c = Some(ChecksumAlgorithm::Crc32C);
    let (first, second) = (pattern(5 * MIB, 1), pattern(12_345, 2));
    let whole = crc32c::crc32c_append(crc32c::crc32c(&first), &second);

    let mut composite = Multipart::begin(&client, "composite", crc32c.clone()).await;
    composite.part(1, first.clone(), crc32c.clone()).await;
    composite.part(2, second.clone(), crc32c.clone()).await;
    let completed = composite.complete().send().await.unwrap();
    assert_eq!(completed.checksum_type(), Some(&ChecksumType::Composite));
    let joined = [crc32c::crc32c(&first).to_be_bytes(), crc32c::crc32c(&second).to_be_bytes()].concat();
    let expected = format!("{}-2", BASE64_STANDARD.encode(crc32c::crc32c(&joined).to_be_bytes()));
    assert_eq!(completed.checksum_crc32_c(), Some(expected.as_str()));

    let begun =
        client.create_multipart_upload().bucket(BUCKET).key("full").checksum_algorithm(ChecksumAlgorithm::Crc32C);
    let begun = begun.checksum_type(ChecksumType::FullObject).send().await.unwrap();
    let mut full = Multipart { client: &client, key: "full", id: begun.upload_id.unwrap(), done: Vec::new() };
    full.part(1, first, crc32c.clone()).await;
    full.part(2, second, crc32c).await;
    let whole = BASE64_STANDARD.encode(whole.to_be_bytes());
    let completed =
        full.complete().checksum_crc32_c(&whole).checksum_type(ChecksumType::FullObject).send().await.unwrap();
    assert_eq!(completed.checksum_crc32_c(), Some(whole.as_str()));
    let got = client.get_object().bucket(BUCKET).key("full").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    read(got).await.expect("the client's own check of the whole object agrees");
}

#[tokio::test]
async fn bodies_can_live_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let server = S3Server::on_disk(directory.path());
    let client = client(&server);
    let body = pattern(3 * MIB, 1);
    assert_eq!(create(&client, "k", body.clone()).await, "Ok");
    assert_eq!(create(&client, "k", "other").await, "PreconditionFailed");
    let put = client.put_object().bucket(BUCKET).key("bad").body(Bytes::from("x").into());
    assert_eq!(verdict(&put.checksum_crc32_c("AAAAAA==").send().await), "BadDigest");
    assert_eq!(files(), 1, "what was refused leaves no file");

    let got = client.get_object().bucket(BUCKET).key("k").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(read(got).await.unwrap(), body);
    let mut upload = Multipart::begin(&client, "parts", None).await;
    upload.part(1, pattern(5 * MIB, 2), None).await;
    upload.part(2, pattern(10, 3), None).await;
    assert_eq!(verdict(&upload.complete().send().await), "Ok");
    let range = client.get_object().bucket(BUCKET).key("parts").range(format!("bytes={}-", 5 * MIB - 1)).send().await;
    assert_eq!(read(range.unwrap()).await.unwrap(), [&pattern(5 * MIB, 2)[5 * MIB - 1..], &pattern(10, 3)].concat());
    client.delete_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(files(), 2, "a deleted object's file is deleted");
    drop((client, server));
    assert_eq!(files(), 0, "the server takes its files with it");
}
