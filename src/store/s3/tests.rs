//! What goes over the wire, and replies that a proper S3 server does not give: against a responder of canned replies.
//! Everything else about S3 is in `tests/store_s3.rs`.

use super::*;
use crate::runtime::RetryPolicy;
use crate::store::{NoObserver, StoreOptions, open};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Answers one request after the other with a canned reply and returns what was asked: head and body of each.
struct Canned {
    endpoint: String,
    serving: JoinHandle<Vec<(String, Vec<u8>)>>,
}

impl Canned {
    async fn new(replies: &[&str]) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let replies: Vec<String> = replies.iter().map(|reply| reply.replace('\n', "\r\n")).collect();
        let serving = crate::runtime::spawn(async move {
            let mut requests = Vec::new();
            for reply in replies {
                // A connection each, so that a reply may end with the connection.
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.push(read_request(&mut stream).await);
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
            requests
        });
        Canned { endpoint, serving }
    }

    async fn store(&self) -> Arc<dyn Store> {
        let key = Credentials::new("AKID", "secret", None, None, "test");
        store_at(&self.endpoint, SharedCredentialsProvider::new(key)).await
    }

    async fn requests(self) -> Vec<(String, Vec<u8>)> {
        self.serving.await.unwrap()
    }
}

async fn store_at(endpoint: &str, credentials: SharedCredentialsProvider) -> Arc<dyn Store> {
    let s3 = S3Options {
        region: Some("eu-test-1".into()),
        endpoint: Some(endpoint.into()),
        credentials: Some(credentials),
        kms_key: Some("alias/backup".into()),
        storage_class: Some("STANDARD_IA".into()),
        lock: ObjectLock {
            mode: Some(LockMode::Governance),
            days: 30,
            is_permanent: |name| !name.starts_with("open/"),
        },
        ..S3Options::default()
    };
    let retry = RetryPolicy { budget: Some(Duration::ZERO), ..RetryPolicy::STORE };
    open("s3://bucket/prefix", &StoreOptions { s3, retry }, Arc::new(NoObserver)).await.unwrap()
}

async fn read_request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let head_bytes = loop {
        stream.read_buf(&mut bytes).await.unwrap();
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8(bytes[..head_bytes].to_vec()).unwrap();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head_bytes + length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    (head, bytes.split_off(head_bytes))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name).map(|(_, value)| value)
}

const DONE: &str = "HTTP/1.1 200 OK\ncontent-length: 0\nconnection: close\n\n";

#[tokio::test]
async fn a_create_is_conditional_checked_and_not_hashed() {
    let canned = Canned::new(&[DONE]).await;
    let store = canned.store().await;
    let body = Body::from(vec![Bytes::from_static(b"1234"), Bytes::new(), Bytes::from_static(b"56789")]);

    let created = store.create("wal/a", body, [("range".to_string(), "0-9".to_string())].into()).await.unwrap();

    assert_eq!(created, Created::New);
    let (head, body) = canned.requests().await.remove(0);
    assert!(head.starts_with("PUT /bucket/prefix/wal/a?x-id=PutObject HTTP/1.1"), "{head}");
    assert_eq!(body, b"123456789", "the body goes out as it is, without chunk headers");
    let expected = [
        ("if-none-match", "*"),
        ("content-length", "9"),
        // The check value of CRC-32C, e3069283, big-endian in base64.
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-meta-range", "0-9"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "alias/backup"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
    ];
    for (name, value) in expected {
        assert_eq!(header(&head, name), Some(value), "{name} in:\n{head}");
    }
    for name in ["content-encoding", "transfer-encoding", "x-amz-trailer", "x-amz-decoded-content-length"] {
        assert_eq!(header(&head, name), None, "{name} in:\n{head}");
    }
}

#[tokio::test]
async fn a_lock_has_its_end_and_what_passes_has_none() {
    let canned = Canned::new(&[DONE, DONE]).await;
    let store = canned.store().await;
    let before = Clock::system().now();
    store.create("wal/a", Body::default(), Metadata::new()).await.unwrap();
    store.create("open/a", Body::default(), Metadata::new()).await.unwrap();
    let requests = canned.requests().await;
    let until: Timestamp = header(&requests[0].0, "x-amz-object-lock-retain-until-date").unwrap().parse().unwrap();
    let days = until.duration_since(before).as_secs_f64() / 86_400.0;
    assert!((days - 30.0).abs() < 0.01, "{days} days");
    for name in ["x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"] {
        assert_eq!(header(&requests[1].0, name), None, "{name} in:\n{}", requests[1].0);
    }
}

#[tokio::test]
async fn an_empty_body_has_a_length() {
    let canned = Canned::new(&[DONE]).await;
    canned.store().await.create("a", Body::default(), Metadata::new()).await.unwrap();
    let (head, _) = canned.requests().await.remove(0);
    assert_eq!(header(&head, "content-length"), Some("0"), "{head}");
    assert_eq!(header(&head, "x-amz-checksum-crc32c"), Some("AAAAAA=="), "{head}");
}

#[tokio::test]
async fn a_web_server_that_knows_no_s3_does_not_prove_absence() {
    let nginx = "HTTP/1.1 404 Not Found\ncontent-length: 22\nconnection: close\n\n<html>Not here.</html>";
    let empty = "HTTP/1.1 404 Not Found\ncontent-length: 0\nconnection: close\n\n";
    let canned = Canned::new(&[nginx, empty, empty, nginx]).await;
    let store = canned.store().await;
    for attempt in 0..2 {
        let error = store.get("a", None).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Permanent, "get {attempt}: {error:?}");
    }
    let error = store.head("a").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent, "head: {error:?}");
    canned.requests().await;
}

#[tokio::test]
async fn a_body_that_ends_early_is_not_taken_for_the_whole() {
    let reply =
        "HTTP/1.1 200 OK\ncontent-length: 10\nlast-modified: Wed, 01 Jan 2025 00:00:00 GMT\nconnection: close\n\n12345";
    let canned = Canned::new(&[reply]).await;
    let error = canned.store().await.get("a", None).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error:?}");
}

#[tokio::test]
async fn a_checksum_of_parts_is_not_taken_for_one_of_the_whole() {
    let date = "last-modified: Wed, 01 Jan 2025 00:00:00 GMT\nconnection: close";
    let composite = format!("HTTP/1.1 200 OK\ncontent-length: 5\nx-amz-checksum-crc32c: AAAAAA==-3\n{date}\n\n12345");
    let said = format!(
        "HTTP/1.1 200 OK\ncontent-length: 5\nx-amz-checksum-crc32c: AAAAAA==\nx-amz-checksum-type: COMPOSITE\n{date}\n\n12345"
    );
    let wrong = format!("HTTP/1.1 200 OK\ncontent-length: 5\nx-amz-checksum-crc32c: AAAAAA==\n{date}\n\n12345");
    let canned = Canned::new(&[&composite, &said, &wrong]).await;
    let store = canned.store().await;
    for _ in 0..2 {
        assert_eq!(store.get("a", None).await.unwrap().collect().await.unwrap(), "12345");
    }
    let error = store.get("a", None).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt, "{error:?}");
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_is_told_from_one_that_does() {
    let whole =
        "HTTP/1.1 200 OK\ncontent-length: 5\nlast-modified: Wed, 01 Jan 2025 00:00:00 GMT\nconnection: close\n\n12345";
    let canned = Canned::new(&[whole, whole]).await;
    let store = canned.store().await;
    assert_eq!(store.get("a", Some(0..9)).await.unwrap().collect().await.unwrap(), "12345");
    assert_eq!(store.get("a", Some(1..3)).await.unwrap_err().kind, StoreErrorKind::Unsupported);
}

#[derive(Debug)]
struct Nobody;

impl ProvideCredentials for Nobody {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("no profile, no environment")))
    }
}

#[tokio::test]
async fn without_credentials_the_error_says_so() {
    let store = store_at("http://127.0.0.1:1", SharedCredentialsProvider::new(Nobody)).await;
    let error = store.get("a", None).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Credentials, "{error:?}");
    let error = crate::error::Error::from(error);
    assert!(error.to_string().starts_with("cannot read s3://bucket/prefix/a: no credentials: "), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("AWS_ACCESS_KEY_ID")), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let key = Credentials::new("AKID", "secret", None, None, "test");
    let error = store_at(&endpoint, SharedCredentialsProvider::new(key)).await.head("a").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error:?}");
    let text = crate::error::Error::from(error).to_string();
    assert!(text.contains("Connection refused"), "{text}");
}
