//! A server, or the way to it, that says nothing any more: every question has its bound.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/walsender.rs"]
mod walsender;

use seawall::archive::{FeedMessage, PostgresSource, Source, SourceError, SourceErrorKind, Started};
use seawall::postgres::ConnInfo;
use seawall::runtime::Clock;
use seawall::wal::{Lsn, TimelineId};
use std::time::Duration;
use walsender::Step::{Anything, ClientCloses, Expect, Pause, Query, Send, Startup};
use walsender::{Step, Walsender, say};

const START: Lsn = Lsn(0x300_0000);

/// Little, for what is answered at once, and a little more for what may be work.
const ANSWER: Duration = Duration::from_secs(1);
const WORK: Duration = Duration::from_secs(4);

fn source(server: &Walsender, more: &str) -> PostgresSource {
    let info = ConnInfo::parse(&format!("{} {more}", server.conninfo()), &|_| None).unwrap();
    PostgresSource::new(info, "seawall", Clock::system()).with_patience(ANSWER, WORK)
}

fn login() -> Vec<Step> {
    vec![Startup(vec![]), Send(say::welcome("17.1"))]
}

fn identified() -> Vec<Step> {
    let mut steps = login();
    steps.extend([Query("IDENTIFY_SYSTEM"), Send(say::identity(1, 1, START))]);
    steps.extend([Query("SHOW \"wal_segment_size\""), Send(one("wal_segment_size", "16MB"))]);
    steps
}

fn one(column: &str, value: &str) -> Vec<u8> {
    [say::result(&[column], &[Some(value)]), say::ready()].concat()
}

fn assert_lost(error: SourceError) {
    assert_eq!(error.kind, SourceErrorKind::Lost, "{error}");
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(error.error.hint_text().is_some(), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_say_who_it_is_is_given_up() {
    let mut steps = login();
    steps.extend([Query("IDENTIFY_SYSTEM"), ClientCloses]);
    let server = Walsender::script(steps);
    assert_lost(source(&server, "").connect().await.unwrap_err());
    server.finish();
}

#[tokio::test]
async fn a_server_that_says_nothing_of_the_slot_or_of_history_is_given_up() {
    let mut steps = identified();
    steps.extend([Query("READ_REPLICATION_SLOT \"seawall\""), ClientCloses]);
    let server = Walsender::script(steps);
    let mut session = source(&server, "").connect().await.unwrap();
    assert_lost(session.take_slot().await.unwrap_err());
    drop(session);
    server.finish();

    let mut steps = identified();
    steps.extend([Query("TIMELINE_HISTORY 2"), ClientCloses]);
    let server = Walsender::script(steps);
    let mut session = source(&server, "").connect().await.unwrap();
    assert_lost(session.history_file(TimelineId(2)).await.unwrap_err());
    drop(session);
    server.finish();
}

#[tokio::test]
async fn what_may_be_work_has_more_time_and_not_for_ever() {
    const START_REPLICATION: Step = Query("START_REPLICATION SLOT \"seawall\" PHYSICAL 0/3000000 TIMELINE 1");
    // Given a server that takes its time to begin, more than an answer may take, then it streams
    let mut steps = identified();
    steps.extend([START_REPLICATION, Pause(2 * ANSWER), Send(say::copy_both()), ClientCloses]);
    let server = Walsender::script(steps);
    let session = source(&server, "").connect().await.unwrap();
    assert!(matches!(session.start(START, TimelineId(1)).await.unwrap(), Started::Streaming(_)));
    server.finish();
    // Given one that never begins, then it is given up
    let mut steps = identified();
    steps.extend([START_REPLICATION, ClientCloses]);
    let server = Walsender::script(steps);
    let session = source(&server, "").connect().await.unwrap();
    assert_lost(session.start(START, TimelineId(1)).await.unwrap_err());
    server.finish();
}

#[tokio::test]
async fn a_timeline_whose_end_is_not_explained_is_given_up() {
    let mut steps = identified();
    steps.extend([Query("START_REPLICATION SLOT \"seawall\" PHYSICAL 0/3000000 TIMELINE 1"), Send(say::copy_both())]);
    steps.extend([Send(say::copy_done()), Expect(say::copy_done()), ClientCloses]);
    let server = Walsender::script(steps);
    let session = source(&server, "").connect().await.unwrap();
    let Started::Streaming(mut feed) = session.start(START, TimelineId(1)).await.unwrap() else { panic!("it streams") };
    assert!(matches!(feed.next().await.unwrap(), FeedMessage::EndOfTimeline));
    assert_lost(feed.finish_timeline().await.unwrap_err());
    server.finish();
}

#[tokio::test]
async fn the_second_connection_does_not_wait_for_ever_either() {
    let mut steps = login();
    steps.extend([Query("SHOW \"synchronous_standby_names\""), ClientCloses]);
    let server = Walsender::script(steps);
    let mut observer = source(&server, "").observe().await.unwrap();
    assert_lost(observer.commit_waits().await.unwrap_err());
    drop(observer);
    server.finish();

    let mut steps = login();
    steps.extend([Query("IDENTIFY_SYSTEM"), ClientCloses]);
    let server = Walsender::script(steps);
    let mut observer = source(&server, "").observe().await.unwrap();
    assert_lost(observer.flush_lsn().await.unwrap_err());
    drop(observer);
    server.finish();
}

#[tokio::test]
async fn a_spare_does_not_wait_for_a_server_that_is_gone() {
    let mut steps = login();
    steps.extend([Anything, ClientCloses]);
    let server = Walsender::script(steps);
    assert_lost(source(&server, "").wait_for_slot().await.unwrap_err());
    server.finish();
}

#[tokio::test]
async fn the_server_is_to_notice_within_seconds_that_we_are_gone_unless_the_user_says_otherwise() {
    for (given, expected) in [
        ("", "-c wal_sender_timeout=10s"),
        ("options='-c geqo=off'", "-c geqo=off -c wal_sender_timeout=10s"),
        ("options='-c wal_sender_timeout=45s'", "-c wal_sender_timeout=45s"),
    ] {
        let mut steps = identified();
        steps[0] = Startup(vec![("options", expected), ("replication", "true")]);
        steps.push(ClientCloses);
        let server = Walsender::script(steps);
        drop(source(&server, given).connect().await.unwrap());
        server.finish();
    }
}
