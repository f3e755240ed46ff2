//! Scripted faults, holds, rot and the bucket's past.

use crate::multipart::Multipart;
use crate::s3::{Fault, Op, S3Server};
use crate::{BUCKET, client, create, pattern, read, verdict};
use aws_sdk_s3::types::ChecksumMode;
use bytes::Bytes;
use std::time::Duration;

const MIB: usize = 1 << 20;

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
async fn only_one_session_token_is_let_in() {
    let server = S3Server::start();
    let client = client(&server);
    server.require_token(Some("new"));
    assert_eq!(create(&client, "k", "x").await, "ExpiredToken");
    assert!(server.get("k").is_none());
    server.require_token(None);
    assert_eq!(create(&client, "k", "x").await, "Ok");
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
    // An answer to HEAD has no body and so no code.
    server.fault(Op::Head, Fault::SLOW_DOWN);
    assert_eq!(verdict(&client.head_object().bucket(BUCKET).key("k").send().await), "503");
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
