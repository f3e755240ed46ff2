//! What the contract's stories do not tell about S3: servers that fail, refuse, lie or lack `If-None-Match`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/s3_store.rs"]
mod s3_store;
#[path = "support/waiting.rs"]
mod waiting;

use bytes::Bytes;
use s3::{Fault, Op, S3Server};
use s3_store::{options, store};
use seawall::error::{Error, Kind};
use seawall::runtime::RetryPolicy;
use seawall::secret::{Secret, Source};
use seawall::store::{
    Checksum, Conditional, ConditionalWrites, Created, Metadata, NoObserver, Opener, Operation, Store, StoreErrorKind,
    StoreObserver, StoreOptions, list_all, open, probe,
};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use waiting::{PATIENCE, wait_for};

/// One attempt only, so that a test sees what the store itself says.
fn once(server: &S3Server) -> StoreOptions {
    let mut options = options(server);
    options.retry.budget = Some(Duration::ZERO);
    options
}

fn looking_around(server: &S3Server) -> StoreOptions {
    let mut options = once(server);
    options.s3.conditional_writes = Conditional::Head;
    options
}

async fn create(store: &dyn Store, key: &str, text: &'static str) -> Created {
    store.create(key, Bytes::from_static(text.as_bytes()).into(), Metadata::new()).await.expect("create")
}

async fn read(store: &dyn Store, key: &str) -> Bytes {
    store.get(key, None).await.expect("get").collect().await.expect("body")
}

#[tokio::test]
async fn every_refusal_has_its_kind_and_a_sentence() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    let table = [
        (Fault::NO_SUCH_BUCKET, StoreErrorKind::NoBucket, "404 NoSuchBucket"),
        (Fault::WRONG_REGION, StoreErrorKind::WrongRegion, "(the bucket is in eu-test-1)"),
        (Fault::ACCESS_DENIED, StoreErrorKind::Denied, "403 AccessDenied"),
        (Fault::EXPIRED_TOKEN, StoreErrorKind::Credentials, "400 ExpiredToken"),
        (Fault::SLOW_DOWN, StoreErrorKind::Throttled, "503 SlowDown"),
        (Fault::INTERNAL_ERROR, StoreErrorKind::Transient, "500 InternalError"),
        (Fault::CONFLICT, StoreErrorKind::Transient, "409 ConditionalRequestConflict"),
        (Fault::BAD_DIGEST, StoreErrorKind::Corrupt, "400 BadDigest"),
        (Fault::RequestLost, StoreErrorKind::Transient, "no answer"),
    ];
    for (fault, kind, text) in table {
        for op in [Op::Put, Op::Get, Op::Head, Op::List, Op::Delete, Op::CreateUpload] {
            server.fault(op, fault);
            if op == Op::Head {
                // The reply to HEAD has no reason in it: it is asked for with a GET.
                server.fault(Op::Get, fault);
            }
            let error = match op {
                Op::Put => store.create("a", Bytes::new().into(), Metadata::new()).await.map(|_| ()),
                Op::Get => store.get("a", None).await.map(|_| ()),
                Op::Head => store.head("a").await.map(|_| ()),
                Op::List => store.list_page("", None).await.map(|_| ()),
                Op::Delete => store.delete("a").await,
                _ => store.begin_upload("a", Metadata::new()).await.map(|_| ()),
            };
            let error = error.expect_err("a scripted refusal");
            assert_eq!(error.kind, kind, "{op:?} {fault:?}: {error:?}");
            let person = Error::from(error);
            assert!(person.to_string().contains(text), "{op:?} {fault:?}: {person}");
            assert!(person.to_string().contains("s3://seawall-test"), "{op:?} {fault:?} must name what: {person}");
            server.clear();
        }
    }
    assert!(server.snapshot().is_empty());
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_not_a_missing_object() {
    let server = S3Server::start();
    let store = open("s3://no-such-bucket/prefix", &once(&server), Arc::new(NoObserver)).await.expect("open");
    let kinds = [
        store.get("a", None).await.expect_err("get").kind,
        store.head("a").await.expect_err("head").kind,
        store.list_page("", None).await.expect_err("list").kind,
        store.list_level("").await.expect_err("level").kind,
        store.create("a", Bytes::new().into(), Metadata::new()).await.expect_err("create").kind,
        store.delete("a").await.expect_err("delete").kind,
    ];
    assert_eq!(kinds, [StoreErrorKind::NoBucket; 6]);
}

#[tokio::test]
async fn wrong_keys_are_credentials() {
    let server = S3Server::start();
    let mut options = once(&server);
    options.s3.credentials = Some(s3_store::credentials(S3Server::ACCESS_KEY, "wrong"));
    let error = store(options).await.head("a").await.expect_err("head");
    assert_eq!(error.kind, StoreErrorKind::Credentials);
    let error = Error::from(error);
    assert_eq!(error.kind(), Kind::Store);
    assert!(error.to_string().contains("SignatureDoesNotMatch") && !error.to_string().contains("wrong"), "{error}");
}

#[tokio::test]
async fn keys_in_files_are_read_again_when_the_store_refuses_them_or_somebody_says_so() {
    let server = S3Server::start();
    let place = tempfile::tempdir().unwrap();
    let (id, key) = (place.path().join("id"), place.path().join("key"));
    let hold = |file: &Path, text: &str| {
        std::fs::write(file, format!("{text}\n")).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let mut options = once(&server);
    options.s3.credentials = None;
    options.s3.access_key_id = Some(Secret::new("s3.access_key_id", Source::File(id.clone())));
    options.s3.secret_access_key = Some(Secret::new("s3.secret_access_key", Source::File(key.clone())));
    let opener = Opener::default();
    let store = opener.open(&s3_store::url(), &options, Arc::new(NoObserver)).await.unwrap();
    // Given files that are not there, then one of them is named
    let error = Error::from(store.create("a", Bytes::new().into(), Metadata::new()).await.unwrap_err());
    assert!(error.to_string().contains("_file: there is no"), "{error}");
    // and one that holds what is wrong: refused, and read again with the next request
    hold(&id, S3Server::ACCESS_KEY);
    hold(&key, "not-the-secret");
    let error = store.create("a", Bytes::new().into(), Metadata::new()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Credentials);
    assert!(!format!("{error:?}").contains("not-the-secret"), "{error:?}");
    hold(&key, S3Server::SECRET_KEY);
    assert_eq!(create(store.as_ref(), "a", "hello").await, Created::New);
    // When they change, then those in use are good until somebody says so
    hold(&key, "not-the-secret");
    assert_eq!(read(store.as_ref(), "a").await, "hello");
    opener.renew().await;
    wait_for("others to be used", PATIENCE, async || {
        store.get("a", None).await.map(|_| ()).err().filter(|error| error.kind == StoreErrorKind::Credentials)
    })
    .await;
    // And where they are gone, those in use are good for longer
    hold(&key, S3Server::SECRET_KEY);
    assert_eq!(read(store.as_ref(), "a").await, "hello");
    std::fs::remove_file(&key).unwrap();
    opener.renew().await;
    assert_eq!(read(store.as_ref(), "a").await, "hello");
}

#[tokio::test]
async fn a_program_that_hangs_when_others_are_wanted_stops_nobody_who_has_good_keys() {
    let server = S3Server::start();
    let place = tempfile::tempdir().unwrap();
    // Given keys that a program prints, which hangs from the second time on
    let asked = place.path().join("asked");
    let script = format!("[ -e '{0}' ] && sleep 600; touch '{0}'; echo {1}", asked.display(), S3Server::SECRET_KEY);
    let mut options = once(&server);
    options.s3.credentials = None;
    let id = Source::Given(S3Server::ACCESS_KEY.to_owned());
    options.s3.access_key_id = Some(Secret::new("s3.access_key_id", id));
    let program = Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec());
    options.s3.secret_access_key = Some(Secret::new("s3.secret_access_key", program));
    let opener = Opener::default();
    let store = opener.open(&s3_store::url(), &options, Arc::new(NoObserver)).await.unwrap();
    assert_eq!(create(store.as_ref(), "a", "hello").await, Created::New);
    // When somebody wants others, then what is stored is stored at once
    opener.renew().await;
    for number in 0..100 {
        let name = format!("b{number}");
        let created = create(store.as_ref(), &name, "hello");
        let created = tokio::time::timeout(Duration::from_secs(20), created).await.expect("it waits for the program");
        assert_eq!(created, Created::New);
    }
}

#[tokio::test]
async fn a_lost_reply_ends_in_exists_with_the_bytes_that_were_sent() {
    let server = S3Server::start();
    let store = store(options(&server)).await;
    server.fault(Op::Put, Fault::ReplyLost);

    assert_eq!(create(store.as_ref(), "a", "hello").await, Created::Exists);

    assert_eq!(read(store.as_ref(), "a").await, "hello");
    assert_eq!(server.count(Op::Put), 2, "one attempt, one retry: the SDK must not retry by itself");
}

#[tokio::test]
async fn conflicts_and_throttling_are_tried_again() {
    let server = S3Server::start();
    let store = store(options(&server)).await;
    for fault in [Fault::CONFLICT, Fault::SLOW_DOWN, Fault::INTERNAL_ERROR, Fault::RequestLost] {
        server.fault(Op::Put, fault);
    }
    assert_eq!(create(store.as_ref(), "a", "hello").await, Created::New);
    assert_eq!((server.count(Op::Put), server.faults_left()), (5, 0));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let server = S3Server::start();
    let store = store(options(&server)).await;
    let whole: Bytes = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    server.put("repo/a", whole.clone());
    server.fault(Op::Get, Fault::CutAt(1_000_000));
    server.fault(Op::Get, Fault::RequestLost);
    server.fault(Op::Get, Fault::CutAt(500_000));

    let got = read(store.as_ref(), "a").await;

    assert!(got == whole, "the parts must join without a gap");
    assert_eq!((server.count(Op::Get), server.faults_left()), (4, 0));
}

#[tokio::test]
async fn a_bit_that_flips_on_the_way_is_noticed() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    create(store.as_ref(), "a", "hello").await;
    for fault in [Fault::FlipBit(1), Fault::WrongChecksum] {
        server.fault(Op::Get, fault);
        let error = store.get("a", None).await.expect("get").collect().await.expect_err("a wrong body");
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{fault:?}");
    }
    server.flip_bit("repo/a", 1);
    let error = store.get("a", None).await.expect("get").collect().await.expect_err("a rotten body");
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert!(Error::from(error).to_string().contains("CRC32C"));
}

#[tokio::test]
async fn an_upload_has_a_checksum_of_the_whole() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    let mut upload = store.begin_upload("a", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from(vec![7; 5 << 20]).into()).await.expect("piece");
    upload.put_piece(Bytes::from_static(b"tail").into()).await.expect("piece");
    assert_eq!(upload.complete().await.expect("complete"), Created::New);

    assert_eq!(read(store.as_ref(), "a").await.len(), (5 << 20) + 4);
    server.flip_bit("repo/a", 5 << 20);
    let error = store.get("a", None).await.expect("get").collect().await.expect_err("a rotten body");
    assert_eq!(error.kind, StoreErrorKind::Corrupt, "{error:?}");
}

#[tokio::test]
async fn an_upload_survives_lost_replies_and_refusals() {
    let server = S3Server::start();
    let store = store(options(&server)).await;
    server.fault(Op::CreateUpload, Fault::SLOW_DOWN);
    server.fault(Op::UploadPart, Fault::ReplyLost);
    server.fault(Op::UploadPart, Fault::BAD_DIGEST);
    // With status 200, as S3 reports what went wrong after it began to answer.
    server.fault(Op::CompleteUpload, Fault::Answer(200, "InternalError"));
    server.fault(Op::CompleteUpload, Fault::ReplyLost);

    let mut upload = store.begin_upload("a", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"hello").into()).await.expect("piece");
    // The lost reply's object is met again, as with a create.
    assert_eq!(upload.complete().await.expect("complete"), Created::Exists);

    assert_eq!(read(store.as_ref(), "a").await, "hello");
    assert_eq!(server.faults_left(), 0);
}

#[tokio::test]
async fn an_upload_that_the_server_dropped_is_an_error() {
    let server = S3Server::start();
    let store = store(options(&server)).await;
    let mut upload = store.begin_upload("a", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"hello").into()).await.expect("piece");
    upload.abort().await.expect("abort");
    upload.abort().await.expect("aborting again is fine");
    assert_eq!(upload.complete().await.expect_err("complete").kind, StoreErrorKind::Permanent);
}

#[tokio::test]
async fn an_upload_that_meets_an_object_takes_its_parts_back() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    let mut upload = store.begin_upload("a", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"second").into()).await.expect("piece");
    create(store.as_ref(), "a", "first").await;
    // Whether that works or not: the answer is known.
    server.fault(Op::AbortUpload, Fault::ACCESS_DENIED);

    assert_eq!(upload.complete().await.expect("complete"), Created::Exists);

    assert_eq!(server.count(Op::AbortUpload), 1);
    assert_eq!(read(store.as_ref(), "a").await, "first");
}

#[tokio::test]
async fn a_silent_server_gives_way_when_the_future_is_dropped() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    let hold = server.hold(Op::Put);
    let creating = tokio::spawn({
        let store = store.clone();
        async move { create(store.as_ref(), "a", "late").await }
    });
    hold.arrived(1).await;
    creating.abort();
    hold.release();
    // What was dropped may have happened or not: a second create says which, and either way there is one object.
    create(store.as_ref(), "a", "late").await;
    assert_eq!(read(store.as_ref(), "a").await, "late");
}

#[tokio::test]
async fn only_our_own_objects_are_listed() {
    let server = S3Server::start();
    let store = store(once(&server)).await;
    create(store.as_ref(), "main/a", "x").await;
    for foreign in ["repo", "repository/a", "other/a", "repo/", "repo/main/", "repo/.hidden", "repo/a b", "repo/.x/y"] {
        server.put(foreign, Bytes::new());
    }
    let keys: Vec<_> = list_all(store.as_ref(), "").await.expect("list").into_iter().map(|info| info.key).collect();
    assert_eq!(keys, ["main/a"]);
    let level = store.list_level("").await.expect("level");
    assert_eq!((level.objects.len(), level.prefixes), (0, vec!["main/".to_string()]));
}

#[tokio::test]
async fn half_a_listing_never_passes_for_a_whole_one() {
    // Given a listing of several pages, and a server that does not say how to ask for the second
    let server = S3Server::start();
    server.set_page_keys(2);
    let store = store(once(&server)).await;
    for name in ["a/1", "a/2", "a/3", "b/1", "c/1"] {
        create(&*store, name, "x").await;
    }
    assert_eq!(list_all(&*store, "").await.unwrap().len(), 5);
    // Then what is there of it is none
    server.fault(Op::List, Fault::TokenLost);
    assert_eq!(list_all(&*store, "").await.unwrap_err().kind, StoreErrorKind::Transient);
    server.fault(Op::List, Fault::TokenLost);
    let error = Error::from(store.list_level("").await.unwrap_err());
    assert!(error.to_string().contains("no token"), "{error}");
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_recognised() {
    let server = S3Server::start();
    server.always(Op::Put, Fault::IgnoreIfNoneMatch);
    let store = store(once(&server)).await;
    assert_eq!(probe(store.as_ref(), "open/probe-1").await.expect("probe"), ConditionalWrites::Ignored);
    assert!(server.snapshot().is_empty(), "the probe must leave nothing");
}

#[tokio::test]
async fn looking_before_and_after_replaces_the_condition() {
    let server = S3Server::start();
    server.always(Op::Put, Fault::IgnoreIfNoneMatch);
    server.always(Op::CompleteUpload, Fault::IgnoreIfNoneMatch);
    let store = store(looking_around(&server)).await;

    let metadata: Metadata = [("range".to_string(), "0-5".to_string())].into();
    let created = store.create("a", Bytes::from_static(b"first").into(), metadata.clone()).await.expect("create");
    assert_eq!(created, Created::New);
    assert_eq!(create(store.as_ref(), "a", "second").await, Created::Exists);
    assert_eq!(read(store.as_ref(), "a").await, "first");
    assert_eq!(store.head("a").await.expect("head").metadata, metadata, "the put id is nobody else's business");

    let mut upload = store.begin_upload("b", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"first").into()).await.expect("piece");
    assert_eq!(upload.complete().await.expect("complete"), Created::New);
    let mut upload = store.begin_upload("b", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"second").into()).await.expect("piece");
    assert_eq!(upload.complete().await.expect("complete"), Created::Exists);
    assert_eq!(read(store.as_ref(), "b").await, "first");
}

#[tokio::test]
async fn looking_after_tells_a_writer_that_it_was_overwritten() {
    let server = S3Server::start();
    server.always(Op::Put, Fault::IgnoreIfNoneMatch);
    let (one, other) = (store(looking_around(&server)).await, store(looking_around(&server)).await);

    // Given two writers that have both looked, and a first whose look afterwards is held until the second has put.
    let hold = server.hold(Op::Put);
    let first = tokio::spawn({
        let one = one.clone();
        async move { create(one.as_ref(), "a", "one").await }
    });
    hold.arrived(1).await;
    let second = tokio::spawn(async move { create(other.as_ref(), "a", "other").await });
    hold.arrived(2).await;
    hold.release();

    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let bytes = read(one.as_ref(), "a").await;
    let last = if bytes == "one" { first } else { second };
    assert_eq!(last, Created::New, "the one whose bytes are there must be told so");
}

#[tokio::test]
async fn checksums_can_be_left_out_for_old_servers() {
    let server = S3Server::start();
    let mut options = once(&server);
    options.s3.checksum = Checksum::Off;
    let store = store(options).await;
    create(store.as_ref(), "a", "hello").await;
    let mut upload = store.begin_upload("b", Metadata::new()).await.expect("begin");
    upload.put_piece(Bytes::from_static(b"hello").into()).await.expect("piece");
    upload.complete().await.expect("complete");
    assert_eq!((read(store.as_ref(), "a").await, read(store.as_ref(), "b").await), ("hello".into(), "hello".into()));
}

#[derive(Default, Debug)]
struct Log(Mutex<Vec<(Operation, Option<StoreErrorKind>)>>);

impl StoreObserver for Log {
    fn finished(&self, operation: Operation, _: f64, _: u64, error: Option<StoreErrorKind>) {
        self.0.lock().unwrap().push((operation, error));
    }
}

#[tokio::test]
async fn an_observer_sees_every_attempt() {
    let server = S3Server::start();
    let log = Arc::new(Log::default());
    let options = StoreOptions {
        retry: RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::STORE },
        ..options(&server)
    };
    let store = open(&s3_store::url(), &options, log.clone()).await.expect("open");
    server.fault(Op::Put, Fault::SLOW_DOWN);
    create(store.as_ref(), "a", "hello").await;
    let told = log.0.lock().unwrap().clone();
    assert_eq!(told, [(Operation::Create, Some(StoreErrorKind::Throttled)), (Operation::Create, None)]);
}
