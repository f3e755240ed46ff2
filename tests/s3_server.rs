//! The S3 server that other tests rely on keeps what it promises, seen through the client that the program uses.
#![allow(missing_docs, clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/s3/mod.rs"]
mod s3;

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, ConfigBag, Intercept, Region, RuntimeComponents};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use s3::{Fault, Op, S3Server};
use sha2::Digest;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

const BUCKET: &str = S3Server::BUCKET;
const MIB: usize = 1 << 20;

fn client_with(server: &S3Server, secret: &str, checksums: RequestChecksumCalculation) -> Client {
    let credentials = Credentials::new(S3Server::ACCESS_KEY, secret, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(S3Server::REGION))
        .credentials_provider(credentials)
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .request_checksum_calculation(checksums)
        .response_checksum_validation(ResponseChecksumValidation::WhenSupported)
        .build();
    Client::from_conf(config)
}

fn client(server: &S3Server) -> Client {
    client_with(server, S3Server::SECRET_KEY, RequestChecksumCalculation::WhenSupported)
}

/// Bytes that differ from place to place.
fn pattern(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// `Ok`, the S3 error code, the bare status of an answer without a body, or `connection` where there was no answer.
fn verdict<T, E: ProvideErrorMetadata>(result: &Result<T, SdkError<E>>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(SdkError::DispatchFailure(_) | SdkError::ResponseError(_) | SdkError::TimeoutError(_)) => {
            "connection".to_owned()
        }
        Err(error) => match (error.code(), error.raw_response()) {
            (Some(code), _) => code.to_owned(),
            (None, Some(response)) => response.status().as_u16().to_string(),
            (None, None) => panic!("neither code nor response in {error:?}", error = error.meta()),
        },
    }
}

async fn create(client: &Client, key: &str, body: impl Into<Bytes>) -> String {
    let body = ByteStream::from(body.into());
    verdict(&client.put_object().bucket(BUCKET).key(key).if_none_match("*").body(body).send().await)
}

async fn read(output: GetObjectOutput) -> Result<Bytes, String> {
    output.body.collect().await.map(|body| body.into_bytes()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn an_object_comes_back_as_it_was_put() {
    let server = S3Server::start();
    let client = client(&server);
    let body = pattern(100_000, 1);
    let put = client.put_object().bucket(BUCKET).key("a/b=c_d.lz4").metadata("end-lsn", "0/16B374D8");
    let put = put.content_type("application/x-lz4").body(body.clone().into()).send().await.unwrap();

    let got = client.get_object().bucket(BUCKET).key("a/b=c_d.lz4").send().await.unwrap();
    assert_eq!(got.e_tag(), put.e_tag());
    assert_eq!(got.content_length(), Some(100_000));
    assert_eq!(got.content_type(), Some("application/x-lz4"));
    assert_eq!(got.metadata().unwrap()["end-lsn"], "0/16B374D8");
    assert_eq!(read(got).await.unwrap(), body);

    let head = client.head_object().bucket(BUCKET).key("a/b=c_d.lz4").send().await.unwrap();
    assert_eq!(head.content_length(), Some(100_000));
    assert_eq!(head.metadata().unwrap()["end-lsn"], "0/16B374D8");
    let age = std::time::SystemTime::now().duration_since((*head.last_modified().unwrap()).try_into().unwrap());
    assert!(age.unwrap() < Duration::from_secs(60), "stored just now, by the server's clock");
}

#[tokio::test]
async fn an_empty_object_is_an_object() {
    let server = S3Server::start();
    let client = client(&server);
    assert_eq!(create(&client, "empty", Bytes::new()).await, "Ok");
    let got = client.get_object().bucket(BUCKET).key("empty").send().await.unwrap();
    assert_eq!(got.content_length(), Some(0));
    assert_eq!(read(got).await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = S3Server::start();
    let client = client(&server);
    assert_eq!(verdict(&client.get_object().bucket(BUCKET).key("none").send().await), "NoSuchKey");
    assert_eq!(verdict(&client.head_object().bucket(BUCKET).key("none").send().await), "NotFound");
    assert_eq!(verdict(&client.get_object().bucket("nowhere").key("none").send().await), "NoSuchBucket");
    assert_eq!(verdict(&client.list_objects_v2().bucket("nowhere").send().await), "NoSuchBucket");
    let put = client.put_object().bucket("nowhere").key("k").body(Bytes::from("x").into()).send().await;
    assert_eq!(verdict(&put), "NoSuchBucket");
}

#[tokio::test]
async fn buckets_are_made_and_looked_at() {
    let server = S3Server::start();
    let client = client(&server);
    let head = client.head_bucket().bucket(BUCKET).send().await.unwrap();
    assert_eq!(head.bucket_region(), Some(S3Server::REGION));
    assert_eq!(verdict(&client.head_bucket().bucket("another").send().await), "NotFound");
    assert_eq!(verdict(&client.create_bucket().bucket("another").send().await), "Ok");
    assert_eq!(verdict(&client.head_bucket().bucket("another").send().await), "Ok");
    assert_eq!(verdict(&client.create_bucket().bucket("another").send().await), "BucketAlreadyOwnedByYou");
}

#[tokio::test]
async fn a_second_create_is_refused_and_changes_nothing() {
    let server = S3Server::start();
    let client = client(&server);
    assert_eq!(create(&client, "k", "first").await, "Ok");
    assert_eq!(create(&client, "k", "second").await, "PreconditionFailed");
    assert_eq!(server.get("k").unwrap(), "first");

    // Without the condition a write replaces, as in S3.
    client.put_object().bucket(BUCKET).key("k").body(Bytes::from("third").into()).send().await.unwrap();
    assert_eq!(server.get("k").unwrap(), "third");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_creates_exactly_one_wins() {
    let server = S3Server::start();
    let client = client(&server);
    for round in 0..8 {
        let key = format!("race/{round}");
        // Held until all have arrived, so that they do race.
        let hold = server.hold(Op::Put.at(key.as_str()));
        let racers = (0..16_u64).map(|racer| {
            let (client, key) = (client.clone(), key.clone());
            tokio::spawn(async move { (racer, create(&client, &key, pattern(40_000, racer)).await) })
        });
        let racers: Vec<_> = racers.collect();
        hold.arrived(16).await;
        hold.release();
        let mut winners = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                (racer, verdict) if verdict == "Ok" => winners.push(racer),
                (_, verdict) => assert_eq!(verdict, "PreconditionFailed"),
            }
        }
        assert_eq!(winners.len(), 1, "one create wins, not {winners:?}");
        assert_eq!(server.get(&key).unwrap(), pattern(40_000, winners[0]), "the bytes are the winner's");
    }
}

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

/// From a test without a runtime, as one that starts the program as a child.
#[test]
fn it_serves_without_a_runtime_of_the_test() {
    let server = S3Server::start();
    let endpoint = server.endpoint();
    let mut stream = std::net::TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "GET /{BUCKET}/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "anonymous requests are refused: {answer}");
    assert_eq!(server.log(), [(Op::Get, "k".to_owned())]);
    let names: BTreeSet<_> = server.env().into_iter().map(|(name, _)| name).collect();
    assert!(
        names.is_superset(&["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"].into())
    );
}

#[tokio::test]
async fn ranges_are_cut_at_the_end() {
    let server = S3Server::start();
    let client = client(&server);
    server.put("k", "0123456789");
    let get = |range: &str| client.get_object().bucket(BUCKET).key("k").range(range).send();
    let got = get("bytes=2-4").await.unwrap();
    assert_eq!((got.content_range(), got.content_length()), (Some("bytes 2-4/10"), Some(3)));
    assert_eq!(read(got).await.unwrap(), "234");
    assert_eq!(read(get("bytes=7-99").await.unwrap()).await.unwrap(), "789");
    assert_eq!(read(get("bytes=7-").await.unwrap()).await.unwrap(), "789");
    assert_eq!(read(get("bytes=-2").await.unwrap()).await.unwrap(), "89");
    assert_eq!(verdict(&get("bytes=10-12").await), "InvalidRange");
}

#[tokio::test]
async fn deleting_is_final_and_idempotent() {
    let server = S3Server::start();
    let client = client(&server);
    server.put("k", "x");
    for _ in 0..2 {
        assert_eq!(verdict(&client.delete_object().bucket(BUCKET).key("k").send().await), "Ok");
    }
    assert_eq!(server.get("k"), None);
    assert_eq!(create(&client, "k", "again").await, "Ok");
}

/// All pages of a listing: the keys and prefixes of each.
async fn pages(client: &Client, prefix: &str, delimiter: Option<&str>, max_keys: Option<i32>) -> Vec<Vec<String>> {
    let list = client.list_objects_v2().bucket(BUCKET).prefix(prefix);
    let list = list.set_delimiter(delimiter.map(str::to_owned)).set_max_keys(max_keys);
    let (mut pages, mut token) = (Vec::new(), None);
    loop {
        let page = list.clone().set_continuation_token(token).send().await.unwrap();
        let prefixes = page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap().to_owned());
        let names: Vec<_> = page.contents().iter().map(|o| o.key().unwrap().to_owned()).chain(prefixes).collect();
        assert_eq!(page.key_count(), Some(names.len() as i32));
        assert_eq!(page.is_truncated(), Some(page.next_continuation_token().is_some()));
        pages.push(names);
        token = page.next_continuation_token;
        if token.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn listings_come_in_pages() {
    let server = S3Server::start();
    let client = client(&server);
    for key in ["a", "p/1/x", "p/1/y", "p/2", "p/3/x", "p/4", "p0", "q"] {
        server.put(key, key);
    }
    assert_eq!(pages(&client, "", None, None).await, [["a", "p/1/x", "p/1/y", "p/2", "p/3/x", "p/4", "p0", "q"]]);
    assert_eq!(pages(&client, "p/", None, Some(2)).await, [vec!["p/1/x", "p/1/y"], vec!["p/2", "p/3/x"], vec!["p/4"]]);
    assert_eq!(pages(&client, "p/", Some("/"), None).await, [["p/2", "p/4", "p/1/", "p/3/"]]);
    let one_by_one = pages(&client, "p/", Some("/"), Some(1)).await;
    assert_eq!(one_by_one, [["p/1/"], ["p/2"], ["p/3/"], ["p/4"]], "a prefix is given once, whatever the pages");
    assert_eq!(pages(&client, "", Some("/"), Some(3)).await, [vec!["a", "p0", "p/"], vec!["q"]]);
    assert_eq!(pages(&client, "none/", None, None).await, [Vec::<String>::new()]);

    server.set_page_keys(3);
    assert_eq!(pages(&client, "", None, None).await.len(), 3, "the server's own page size");

    let after = client.list_objects_v2().bucket(BUCKET).start_after("p/3/x").send().await.unwrap();
    let keys: Vec<_> = after.contents().iter().map(|object| object.key().unwrap()).collect();
    assert_eq!(keys, ["p/4", "p0", "q"]);
    assert_eq!(after.contents()[0].size(), Some(3));
}

#[tokio::test]
async fn a_listing_has_a_thousand_keys_at_most() {
    let server = S3Server::start();
    let client = client(&server);
    for number in 0..1001 {
        server.put(&format!("many/{number:04}"), "");
    }
    let sizes: Vec<_> = pages(&client, "many/", None, Some(5000)).await.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1000, 1]);
}

struct Multipart<'a> {
    client: &'a Client,
    key: &'a str,
    id: String,
    done: Vec<CompletedPart>,
}

impl<'a> Multipart<'a> {
    async fn begin(client: &'a Client, key: &'a str, algorithm: Option<ChecksumAlgorithm>) -> Multipart<'a> {
        let begun = client.create_multipart_upload().bucket(BUCKET).key(key).metadata("kind", "part");
        let begun = begun.set_checksum_algorithm(algorithm).send().await.unwrap();
        Multipart { client, key, id: begun.upload_id.unwrap(), done: Vec::new() }
    }

    async fn part(&mut self, number: i32, body: Bytes, algorithm: Option<ChecksumAlgorithm>) {
        let part = self.client.upload_part().bucket(BUCKET).key(self.key).upload_id(&self.id).part_number(number);
        let part = part.set_checksum_algorithm(algorithm).body(body.into()).send().await.unwrap();
        let done = CompletedPart::builder().part_number(number).set_e_tag(part.e_tag);
        self.done.push(done.set_checksum_crc32_c(part.checksum_crc32_c).build());
    }

    fn complete(&self) -> CompleteMultipartUploadFluentBuilder {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.done.clone())).build();
        let complete = self.client.complete_multipart_upload().bucket(BUCKET).key(self.key).upload_id(&self.id);
        complete.multipart_upload(parts).if_none_match("*")
    }

    async fn abort(&self) -> String {
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

#[tokio::test]
async fn a_lost_reply_leaves_the_object() {
    let server = S3Server::start();
    let client = client(&server);
    server.fault(Op::Put, Fault::ReplyLost);
    assert_eq!(create(&client, "k", "x").await, "connection");
    assert_eq!(server.get("k").unwrap(), "x");
    assert_eq!(create(&client, "k", "x").await, "PreconditionFailed", "the retry meets its own object");

    server.fault(Op::CompleteUpload, Fault::ReplyLost);
    let mut upload = Multipart::begin(&client, "m", None).await;
    upload.part(1, Bytes::from("y"), None).await;
    assert_eq!(verdict(&upload.complete().send().await), "connection");
    assert_eq!(server.get("m").unwrap(), "y");
    assert_eq!(server.faults_left(), 0);
}

#[tokio::test]
async fn a_lost_request_leaves_nothing() {
    let server = S3Server::start();
    let client = client(&server);
    server.fault(Op::Put, Fault::RequestLost);
    assert_eq!(create(&client, "k", "x").await, "connection");
    assert!(server.snapshot().is_empty());
    assert_eq!(create(&client, "k", "x").await, "Ok");
}

#[tokio::test]
async fn scripted_answers_come_in_order_and_carry_nothing_out() {
    let server = S3Server::start();
    let client = client(&server);
    for (fault, code) in [
        (Fault::CONFLICT, "ConditionalRequestConflict"),
        (Fault::PRECONDITION_FAILED, "PreconditionFailed"),
        (Fault::INTERNAL_ERROR, "InternalError"),
        (Fault::SLOW_DOWN, "SlowDown"),
        (Fault::EXPIRED_TOKEN, "ExpiredToken"),
        (Fault::ACCESS_DENIED, "AccessDenied"),
        (Fault::NO_SUCH_BUCKET, "NoSuchBucket"),
        (Fault::WRONG_REGION, "PermanentRedirect"),
        (Fault::BAD_DIGEST, "BadDigest"),
    ] {
        server.fault(Op::Put, fault);
        server.fault(Op::Put, Fault::Answer(502, "BadGateway"));
        let body = pattern(3 * MIB, 1);
        assert_eq!(create(&client, "k", body.clone()).await, code);
        assert_eq!(create(&client, "k", body).await, "BadGateway");
    }
    assert!(server.snapshot().is_empty());
    assert_eq!(create(&client, "k", "x").await, "Ok", "the script is at its end");
}

#[tokio::test]
async fn a_failure_may_hide_behind_status_200() {
    let server = S3Server::start();
    let client = client(&server);
    server.fault(Op::CompleteUpload, Fault::Answer(200, "InternalError"));
    let mut upload = Multipart::begin(&client, "k", None).await;
    upload.part(1, Bytes::from("x"), None).await;
    assert_eq!(verdict(&upload.complete().send().await), "InternalError");
    assert_eq!(verdict(&upload.complete().send().await), "Ok");
}

#[tokio::test]
async fn faults_strike_where_they_are_aimed() {
    let server = S3Server::start();
    let client = client(&server);
    server.always(Op::Put.at("wal/"), Fault::SLOW_DOWN);
    server.fault(Op::List.at("base/"), Fault::INTERNAL_ERROR);
    for _ in 0..3 {
        assert_eq!(create(&client, "wal/1", "x").await, "SlowDown");
    }
    assert_eq!(create(&client, "base/1", "x").await, "Ok");
    let list = |prefix: &str| client.list_objects_v2().bucket(BUCKET).prefix(prefix).send();
    assert_eq!(verdict(&list("wal/").await), "Ok");
    assert_eq!(verdict(&list("base/1").await), "InternalError");
    server.clear();
    assert_eq!(create(&client, "wal/1", "x").await, "Ok");
}

#[tokio::test]
async fn a_held_write_lands_even_when_nobody_waits_for_it() {
    let server = S3Server::start();
    let client = client(&server);
    let hold = server.hold(Op::Put.at("late"));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { create(&client, "late", "x").await }
    });
    hold.arrived(1).await;
    assert_eq!(create(&client, "other", "y").await, "Ok", "others pass");
    assert_eq!(server.get("late"), None);
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    hold.release();
    let landed = async {
        while server.get("late").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), landed).await.expect("the late write lands");
}

#[tokio::test]
async fn a_hold_lets_go_when_dropped() {
    let server = S3Server::start();
    let client = client(&server);
    let hold = server.hold(Op::Head);
    server.put("k", "x");
    let heads = (0..3).map(|_| tokio::spawn(client.head_object().bucket(BUCKET).key("k").send()));
    let heads: Vec<_> = heads.collect();
    hold.arrived(3).await;
    assert_eq!(hold.count(), 3);
    drop(hold);
    for head in heads {
        assert_eq!(verdict(&head.await.unwrap()), "Ok");
    }
    assert_eq!(verdict(&client.head_object().bucket(BUCKET).key("k").send().await), "Ok");
}

#[tokio::test]
async fn slow_is_slow() {
    let server = S3Server::start();
    let client = client(&server);
    server.put("k", pattern(200_000, 1));
    let timed = async |fault: Option<Fault>| {
        server.clear();
        if let Some(fault) = fault {
            server.always(Op::Get, fault);
            server.always(Op::Put, fault);
        }
        let start = std::time::Instant::now();
        let got = client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
        assert_eq!(read(got).await.unwrap(), pattern(200_000, 1));
        let got = start.elapsed();
        client.put_object().bucket(BUCKET).key("w").body(pattern(200_000, 2).into()).send().await.unwrap();
        assert_eq!(server.get("w").unwrap(), pattern(200_000, 2));
        (got, start.elapsed() - got)
    };
    // At least what the script says: the pauses are the server's, the machine only adds to them.
    let (get, put) = timed(Some(Fault::Delay(Duration::from_millis(150)))).await;
    assert!(get.min(put) >= Duration::from_millis(150), "delayed: {get:?} {put:?}");
    let (get, put) = timed(Some(Fault::BytesPerSecond(1_000_000))).await;
    assert!(get.min(put) >= Duration::from_millis(150), "200 kB at 1 MB/s: {get:?} {put:?}");
    timed(None).await;
}

#[tokio::test]
async fn metadata_can_be_missing() {
    let server = S3Server::start();
    let client = client(&server);
    client.put_object().bucket(BUCKET).key("k").metadata("a", "b").body(Bytes::from("x").into()).send().await.unwrap();
    server.fault(Op::Get, Fault::MetadataLost);
    server.fault(Op::Head, Fault::MetadataLost);
    for expected in [0, 1] {
        let got = client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
        assert_eq!(got.metadata().map_or(0, |metadata| metadata.len()), expected);
        assert_eq!(read(got).await.unwrap(), "x");
        let head = client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
        assert_eq!(head.metadata().map_or(0, |metadata| metadata.len()), expected);
    }
}

#[tokio::test]
async fn replies_can_be_damaged_on_the_way() {
    let server = S3Server::start();
    let client = client(&server);
    let body = pattern(500_000, 1);
    server.put("k", body.clone());
    let get = |mode: Option<ChecksumMode>| client.get_object().bucket(BUCKET).key("k").set_checksum_mode(mode).send();
    for (fault, cause) in [
        (Fault::CutAt(1000), "the connection ends early"),
        (Fault::FlipBit(123_456), "the checksum disagrees"),
        (Fault::WrongChecksum, "the checksum disagrees"),
    ] {
        server.fault(Op::Get, fault);
        let got = get(Some(ChecksumMode::Enabled)).await.unwrap();
        assert!(read(got).await.is_err(), "{fault:?}: {cause}");
        assert_eq!(read(get(None).await.unwrap()).await.unwrap(), body, "the object itself is sound");
    }
    // In a range, which has no checksum, the flipped bit passes.
    server.fault(Op::Get, Fault::FlipBit(3));
    let range = client.get_object().bucket(BUCKET).key("k").range("bytes=10-19").send().await.unwrap();
    let mut expected = body[10..20].to_vec();
    expected[3] ^= 1;
    assert_eq!(read(range).await.unwrap(), expected);
}

#[tokio::test]
async fn the_condition_can_be_ignored() {
    let server = S3Server::start();
    let client = client(&server);
    server.always(Op::Put, Fault::IgnoreIfNoneMatch);
    assert_eq!(create(&client, "k", "first").await, "Ok");
    assert_eq!(create(&client, "k", "second").await, "Ok");
    assert_eq!(server.get("k").unwrap(), "second");
}

#[tokio::test]
async fn stored_objects_can_rot() {
    let server = S3Server::start();
    let client = client(&server);
    server.put("flipped", "hello");
    server.put("short", "hello");
    server.put("gone", "hello");
    server.flip_bit("flipped", 1);
    server.truncate("short", 2);
    server.remove("gone");
    assert_eq!(server.get("flipped").unwrap(), "hdllo");
    assert_eq!(server.get("short").unwrap(), "he");
    assert_eq!(server.get("gone"), None);
    let get = |key: &str| client.get_object().bucket(BUCKET).key(key).checksum_mode(ChecksumMode::Enabled).send();
    assert!(read(get("flipped").await.unwrap()).await.is_err(), "the stored checksum is the old one");
    assert_eq!(get("short").await.unwrap().content_length(), Some(2));
}

#[tokio::test]
async fn a_bucket_goes_back_to_what_it_was() {
    let server = S3Server::start();
    let client = client(&server);
    client.put_object().bucket(BUCKET).key("k").metadata("a", "b").body(Bytes::from("x").into()).send().await.unwrap();
    let mut before = server.snapshot();
    assert_eq!(create(&client, "later", "y").await, "Ok");
    let upload = Multipart::begin(&client, "m", None).await;
    server.truncate("k", 0);

    server.restore_from(&before);
    assert_eq!(server.snapshot(), before);
    assert_eq!(upload.abort().await, "NoSuchUpload", "uploads in progress are gone too");
    let got = client.get_object().bucket(BUCKET).key("k").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(got.metadata().unwrap()["a"], "b");
    assert_eq!(read(got).await.unwrap(), "x");

    before.get_mut("k").unwrap().metadata.clear();
    server.restore_from(&before);
    let head = client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(head.metadata().map_or(0, |metadata| metadata.len()), 0, "as copied without metadata");
}

#[tokio::test]
async fn requests_are_counted_and_logged() {
    let server = S3Server::start();
    let client = client(&server);
    create(&client, "wal/1", "x").await;
    create(&client, "wal/1", "x").await;
    create(&client, "base/1", "x").await;
    let _ = client.get_object().bucket(BUCKET).key("wal/1").send().await;
    let _ = client.head_object().bucket(BUCKET).key("wal/2").send().await;
    let _ = client.list_objects_v2().bucket(BUCKET).prefix("wal/").send().await;
    let _ = client.delete_object().bucket(BUCKET).key("wal/1").send().await;
    let _ = client.head_bucket().bucket(BUCKET).send().await;
    let mut upload = Multipart::begin(&client, "m k", None).await;
    upload.part(1, Bytes::from("x"), None).await;
    let _ = client.list_parts().bucket(BUCKET).key("m k").upload_id(&upload.id).send().await;
    let _ = client.list_multipart_uploads().bucket(BUCKET).prefix("m").send().await;
    let _ = upload.complete().send().await;
    upload.abort().await;
    let _ = client.create_bucket().bucket("second").send().await;
    let _ = client.list_buckets().send().await;

    let log = [
        (Op::Put, "wal/1"),
        (Op::Put, "wal/1"),
        (Op::Put, "base/1"),
        (Op::Get, "wal/1"),
        (Op::Head, "wal/2"),
        (Op::List, "wal/"),
        (Op::Delete, "wal/1"),
        (Op::HeadBucket, ""),
        (Op::CreateUpload, "m k"),
        (Op::UploadPart, "m k"),
        (Op::ListParts, "m k"),
        (Op::ListUploads, "m"),
        (Op::CompleteUpload, "m k"),
        (Op::AbortUpload, "m k"),
        (Op::CreateBucket, ""),
        (Op::Other, ""),
    ];
    assert_eq!(server.log(), log.map(|(op, key)| (op, key.to_owned())));
    assert_eq!(server.count(Op::Put), 3);
    assert_eq!(server.count(Op::Put.at("wal/")), 2);
    assert_eq!(server.counts()[&Op::Put], 3);
    assert_eq!(server.counts().values().sum::<usize>(), 16);
    server.clear_log();
    assert!(server.counts().is_empty());
}
