//! Checksums, signatures and payload forms.

use crate::s3::S3Server;
use crate::{BUCKET, client, client_with, create, pattern, read, verdict};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RequestChecksumCalculation, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use sha2::Digest;
use std::path::Path;

#[tokio::test]
async fn a_bad_checksum_leaves_nothing() {
    let server = S3Server::start();
    let client = client(&server);
    let put = || client.put_object().bucket(BUCKET).key("bad").body(Bytes::from("content").into());
    let wrong = |bytes: usize| BASE64_STANDARD.encode(vec![7; bytes]);
    for (name, put) in [
        ("crc32", put().checksum_crc32(wrong(4))),
        ("crc32c", put().checksum_crc32_c(wrong(4))),
        ("crc64nvme", put().checksum_crc64_nvme(wrong(8))),
        ("sha1", put().checksum_sha1(wrong(20))),
        ("sha256", put().checksum_sha256(wrong(32))),
        ("md5", put().content_md5(wrong(16))),
    ] {
        assert_eq!(verdict(&put.send().await), "BadDigest", "{name}");
    }
    assert_eq!(verdict(&put().content_md5("short").send().await), "InvalidDigest");
    assert!(server.snapshot().is_empty(), "nothing is published");
}

#[tokio::test]
async fn a_body_that_is_not_the_signed_one_leaves_nothing() {
    let server = S3Server::start();
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("forged").body(Bytes::from("content").into()).customize();
    let put = put.interceptor(Forge("CONTENT")).send().await;
    assert_eq!(verdict(&put), "XAmzContentSHA256Mismatch");
    assert!(server.snapshot().is_empty());
}

/// Exchanges the body for another of the same length after the request was signed.
#[derive(Debug)]
struct Forge(&'static str);

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Forge {
    fn name(&self) -> &'static str {
        "forge"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *context.request_mut().body_mut() = self.0.into();
        Ok(())
    }
}

#[tokio::test]
async fn good_checksums_are_kept_and_shown_when_asked() {
    let server = S3Server::start();
    let client = client(&server);
    let body = pattern(70_000, 3);
    let crc32c = BASE64_STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
    let sha256 = BASE64_STANDARD.encode(sha2::Sha256::digest(&body));
    let put = |key: &str| client.put_object().bucket(BUCKET).key(key).body(body.clone().into());
    put("crc32c").checksum_crc32_c(&crc32c).send().await.unwrap();
    put("sha256").checksum_sha256(&sha256).send().await.unwrap();
    put("computed").checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).send().await.unwrap();
    let silent = client_with(&server, S3Server::SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    silent.put_object().bucket(BUCKET).key("none").body(body.clone().into()).send().await.unwrap();

    let head = |key: &str| client.head_object().bucket(BUCKET).key(key);
    let asked = |key: &str| head(key).checksum_mode(ChecksumMode::Enabled).send();
    assert_eq!(asked("crc32c").await.unwrap().checksum_crc32_c(), Some(crc32c.as_str()));
    assert_eq!(asked("sha256").await.unwrap().checksum_sha256(), Some(sha256.as_str()));
    let computed = asked("computed").await.unwrap();
    assert!(computed.checksum_crc64_nvme().is_some());
    assert_eq!(asked("none").await.unwrap().checksum_crc64_nvme(), computed.checksum_crc64_nvme(), "S3's default");
    let not_asked = head("crc32c").send().await.unwrap();
    assert_eq!(not_asked.checksum_crc32_c(), None);

    // The client verifies what it reads against it.
    let got =
        client.get_object().bucket(BUCKET).key("crc32c").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(got.checksum_crc32_c(), Some(crc32c.as_str()));
    assert_eq!(read(got).await.unwrap(), body);
    // A range has no checksum of its own.
    let part = client.get_object().bucket(BUCKET).key("crc32c").checksum_mode(ChecksumMode::Enabled).range("bytes=0-9");
    assert_eq!(part.send().await.unwrap().checksum_crc32_c(), None);
}

#[tokio::test]
async fn unsigned_payloads_and_trailers_are_accepted() {
    let server = S3Server::start();
    let client = client(&server);
    let body = pattern(300_000, 4);
    let put = client.put_object().bucket(BUCKET).key("unsigned").body(body.clone().into()).customize();
    put.disable_payload_signing().send().await.unwrap();
    assert_eq!(server.get("unsigned").unwrap(), body);

    // A body that is not in memory goes in chunks with its checksum behind it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let expected = BASE64_STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
    for (key, client) in [("signed", &client), ("unsigned", &client_as_over_tls(&server))] {
        let put = put_from(client, key, file.path()).await.checksum_algorithm(ChecksumAlgorithm::Crc32C);
        put.send().await.unwrap();
        assert_eq!(server.get(key).unwrap(), body, "{key} chunks");
        let head = client.head_object().bucket(BUCKET).key(key).checksum_mode(ChecksumMode::Enabled).send().await;
        assert_eq!(head.unwrap().checksum_crc32_c(), Some(expected.as_str()), "the trailer's checksum is kept");
    }
}

/// A client that prepares its requests as for a server with TLS, where it leaves the payload unsigned.
fn client_as_over_tls(server: &S3Server) -> Client {
    let config = client(server).config().to_builder().endpoint_url(server.endpoint().replacen("http:", "https:", 1));
    Client::from_conf(config.interceptor(SendInTheClear).build())
}

#[derive(Debug)]
struct SendInTheClear;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for SendInTheClear {
    fn name(&self) -> &'static str {
        "send in the clear"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri().replacen("https:", "http:", 1);
        Ok(context.request_mut().set_uri(uri)?)
    }
}

async fn put_from(client: &Client, key: &str, path: &Path) -> PutObjectFluentBuilder {
    client.put_object().bucket(BUCKET).key(key).body(ByteStream::from_path(path).await.unwrap())
}

#[tokio::test]
async fn a_bad_trailer_leaves_nothing() {
    let server = S3Server::start();
    let client = client_as_over_tls(&server);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "content").unwrap();
    for (forged, code) in [
        ("7\r\ncontent\r\n0\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n", "BadDigest"),
        ("7\r\ncontent\r\n0\r\nx-amz-checksum-______:AAAAAA==\r\n\r\n", "InvalidRequest"),
        ("6\r\nconten\r\n00\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n", "IncompleteBody"),
    ] {
        let put = put_from(&client, "k", file.path()).await.checksum_algorithm(ChecksumAlgorithm::Crc32C).customize();
        assert_eq!(verdict(&put.interceptor(Forge(forged)).send().await), code);
    }
    assert!(server.snapshot().is_empty());
}

#[tokio::test]
async fn only_the_right_key_opens() {
    let server = S3Server::start();
    let stranger = client_with(&server, "another secret", RequestChecksumCalculation::WhenSupported);
    assert_eq!(create(&stranger, "k", "x").await, "SignatureDoesNotMatch");
    assert!(server.snapshot().is_empty());
}
