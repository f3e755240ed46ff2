//! The S3 server that other tests rely on keeps what it promises, seen through the client that the program uses.
#![allow(missing_docs, clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/s3/mod.rs"]
mod s3;

mod faults;
mod integrity;
mod multipart;
mod rights;

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use s3::{Op, S3Server};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

const BUCKET: &str = S3Server::BUCKET;

fn client_with(server: &S3Server, secret: &str, checksums: RequestChecksumCalculation) -> Client {
    client_as(server, S3Server::ACCESS_KEY, secret, checksums)
}

/// Of somebody who was let in.
fn client_of(server: &S3Server, access_key: &str) -> Client {
    client_as(server, access_key, S3Server::SECRET_KEY, RequestChecksumCalculation::WhenSupported)
}

fn client_as(server: &S3Server, access_key: &str, secret: &str, checksums: RequestChecksumCalculation) -> Client {
    let credentials = Credentials::new(access_key, secret, None, None, "test");
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
    let mut upload = multipart::Multipart::begin(&client, "m k", None).await;
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
