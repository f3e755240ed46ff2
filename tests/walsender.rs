//! The wire against a scripted walsender: exact bytes both ways, and what no real server does on request.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/walsender.rs"]
mod walsender;

use seawall::error::{Error, Kind};
use seawall::postgres::{
    BackupEvent, BaseBackupOptions, Client, ConnInfo, Mode, PgError, SlotState, StatusUpdate, Streaming, Tablespace,
    WalMessage, WalStream,
};
use seawall::secret::{Secret, Source};
use seawall::wal::{Lsn, TimelineId};
use walsender::Step::{
    Anything, ClientCloses, Expect, Query, Scram, Send, SendInPieces, Startup, Status, StatusReaching,
};
use walsender::{Step, Walsender, say};

fn info(text: &str) -> ConnInfo {
    ConnInfo::parse(text, &|_| None).unwrap()
}

async fn connect(server: &Walsender) -> Client {
    Client::connect(&info(&server.conninfo()), Mode::Physical, &[]).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect_with(server: &Walsender, more: &str) -> Result<Client, PgError> {
    Client::connect(&info(&format!("{} {more}", server.conninfo())), Mode::Physical, &[]).await
}

/// The steps of a login without a question, and then `steps`.
fn after_login(steps: Vec<Step>) -> Vec<Step> {
    let mut all = vec![Startup(vec![]), Send(say::welcome("15.18 (Debian 15.18-0+deb12u1)"))];
    all.extend(steps);
    all
}

/// The steps until WAL flows, and then `steps`.
fn while_streaming(steps: Vec<Step>) -> Vec<Step> {
    let start = Query("START_REPLICATION SLOT \"seawall\" PHYSICAL 0/3000000 TIMELINE 1");
    let mut all = after_login(vec![start, Send(say::copy_both())]);
    all.extend(steps);
    all
}

async fn stream_from(server: &Walsender) -> WalStream {
    let client = connect(server).await;
    match client.start_replication(Some("seawall"), Lsn(0x300_0000), TimelineId(1)).await {
        Ok(Streaming::Wal(stream)) => stream,
        other => panic!("no stream: {other:?}"),
    }
}

#[tokio::test]
async fn the_startup_message_says_who_we_are_and_what_we_want() {
    let cases = [
        (Mode::Physical, vec![("replication", "true"), ("database", "replication")]),
        (Mode::Database, vec![("replication", "database"), ("database", "app")]),
        (Mode::Sql, vec![("database", "app"), ("client_encoding", "UTF8")]),
    ];
    for (mode, mut expected) in cases {
        expected.extend([
            ("user", "tester"),
            ("application_name", "seawall"),
            ("options", "-c geqo=off -c wal_sender_timeout=10s"),
        ]);
        let server = Walsender::script(vec![Startup(expected), Send(say::welcome("15.18")), ClientCloses]);
        let text = format!("{} dbname=app options='-c geqo=off'", server.conninfo());
        let client = Client::connect(&info(&text), mode, &[("wal_sender_timeout", "10s")]).await.unwrap();
        assert_eq!(client.server_version(), 150_018);
        assert_eq!(client.parameter("in_hot_standby"), Some("off"));
        assert_eq!(client.host(), format!("127.0.0.1:{}", server.port()));
        client.close().await;
        server.finish();
    }
}

#[tokio::test]
async fn md5_is_answered_with_the_hash_of_the_hash() {
    // md5 of (md5 of "sesame" + "tester", in hexadecimal) + the salt 01 02 03 04, computed with md5sum.
    let answer = [b"p\0\0\0\x28".as_slice(), MD5_OF_SESAME.as_bytes(), b"\0"].concat();
    let server = Walsender::script(vec![
        Startup(vec![]),
        Send(say::authentication(5, &[1, 2, 3, 4])),
        Expect(answer),
        Send(say::welcome("15.18")),
    ]);
    connect_with(&server, "password=sesame").await.unwrap();
    server.finish();
}

const MD5_OF_SESAME: &str = "md540846a5d4107b2f671eebcff9c7a1820";

#[tokio::test]
async fn scram_proves_both_sides() {
    let login = |forged| vec![Startup(vec![]), Scram { password: "sesame", end_point: None, forged }];
    let with = |forged, last| login(forged).into_iter().chain([last]).collect();

    let server = Walsender::script(with(false, Send(say::welcome("15.18"))));
    connect_with(&server, "password=sesame").await.unwrap();
    server.finish();

    // Given a server that does not know the password, when it says that we are in, then we are not.
    let server = Walsender::script(with(true, ClientCloses));
    let error = connect_with(&server, "password=sesame").await.unwrap_err();
    assert!(error.to_string().contains("SCRAM failed"), "{error}");
    assert!(!error.is_transient());
    server.finish();

    // Given a server that leaves its proof out.
    let server = Walsender::script(vec![
        Startup(vec![]),
        Send(say::authentication(10, b"SCRAM-SHA-256\0\0")),
        Anything,
        Send(say::welcome("15.18")),
        ClientCloses,
    ]);
    let error = connect_with(&server, "password=sesame").await.unwrap_err();
    assert!(error.to_string().contains("before it proved"), "{error}");
    server.finish();

    let server = Walsender::script(with(false, ClientCloses));
    let error = connect_with(&server, "password=barley").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"));
    let shown = Error::from(error);
    assert_eq!(shown.kind(), Kind::Postgres);
    assert!(shown.hint_text().is_some_and(|hint| hint.contains("password")), "{shown:?}");
    assert!(!format!("{shown:?}").contains("barley"), "the error shows the password: {shown:?}");
    server.finish();
}

#[tokio::test]
async fn what_would_give_the_password_away_is_not_done() {
    let cases: [(Vec<u8>, &str, &str); 6] = [
        (say::authentication(3, &[]), "password=sesame", "in the clear"),
        (say::authentication(10, b"SCRAM-SHA-256\0\0"), "", "there is none"),
        (say::authentication(10, b"SCRAM-SHA-256\0\0"), "password=sesame channel_binding=require", "channel_binding"),
        (say::authentication(5, &[1, 2, 3, 4]), "password=sesame channel_binding=require", "channel_binding"),
        (say::welcome("15.18"), "channel_binding=require", "channel_binding"),
        (say::authentication(7, &[]), "password=sesame", "GSSAPI"),
    ];
    for (request, more, expected) in cases {
        let server = Walsender::script(vec![Startup(vec![]), Send(request), ClientCloses]);
        let error = connect_with(&server, more).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{more}: {error}");
        assert!(!error.is_transient(), "{error}");
        assert!(Error::from(error).hint_text().is_some(), "{expected}: no hint");
        server.finish();
    }
}

#[tokio::test]
async fn wal_and_keepalives_come_through_and_status_goes_back() {
    let server = Walsender::script(while_streaming(vec![
        Send(say::wal(Lsn(0x300_0000), Lsn(0x300_0010), 7, b"sixteen bytes it")),
        // Given what a server may say at any moment, a promotion for instance.
        Send(say::parameter("in_hot_standby", "off")),
        Send(say::notice("WARNING", "01000", "by the way")),
        Send(say::keepalive(Lsn(0x300_0010), -8, true)),
        Expect(
            [
                b"d\0\0\0\x26r\0\0\0\0\x03\0\0\x10\0\0\0\0\x03\0\0\x08\0\0\0\0\0\0\0\0".as_slice(),
                &77i64.to_be_bytes(),
                &[1],
            ]
            .concat(),
        ),
        StatusReaching(Lsn(0x300_0010)),
    ]));
    let mut stream = stream_from(&server).await;
    let data = WalMessage::Data {
        start: Lsn(0x300_0000),
        server_end: Lsn(0x300_0010),
        server_time_micros: 7,
        bytes: "sixteen bytes it".into(),
    };
    assert_eq!(stream.next().await.unwrap(), data);
    let keepalive =
        WalMessage::Keepalive { server_end: Lsn(0x300_0010), server_time_micros: -8, reply_requested: true };
    assert_eq!(stream.next().await.unwrap(), keepalive);
    let mut status = StatusUpdate { written: Lsn(0x300_0010), flushed: Lsn(0x300_0008), ..StatusUpdate::default() };
    stream.send_status(StatusUpdate { reply_requested: true, ..status }, 77).await.unwrap();
    stream.send_status(status, 78).await.unwrap();
    status.flushed = Lsn(0x300_0010);
    stream.send_status(status, 79).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn frames_may_arrive_a_byte_at_a_time() {
    let wal = say::wal(Lsn(0x300_0000), Lsn(0x300_0003), 1, b"abc");
    let server = Walsender::script(vec![
        Startup(vec![]),
        SendInPieces(say::welcome("15.18"), 1),
        Query("IDENTIFY_SYSTEM"),
        SendInPieces(say::identity(7_012_345_678_901_234_567, 3, Lsn(0x1_0000_0028)), 1),
        Query("START_REPLICATION SLOT \"seawall\" PHYSICAL 0/3000000 TIMELINE 1"),
        SendInPieces([say::copy_both(), wal, say::keepalive(Lsn(0x300_0003), 2, false)].concat(), 1),
    ]);
    let mut client = connect(&server).await;
    let identity = client.identify_system().await.unwrap();
    assert_eq!(identity.system_identifier, 7_012_345_678_901_234_567);
    assert_eq!((identity.timeline, identity.flush_lsn), (TimelineId(3), Lsn(0x1_0000_0028)));
    let streaming = client.start_replication(Some("seawall"), Lsn(0x300_0000), TimelineId(1)).await.unwrap();
    let Streaming::Wal(mut stream) = streaming else { panic!("no stream") };
    assert!(matches!(stream.next().await.unwrap(), WalMessage::Data { bytes, .. } if bytes == "abc"));
    assert!(matches!(stream.next().await.unwrap(), WalMessage::Keepalive { .. }));
    server.finish();
}

#[tokio::test]
async fn we_end_the_stream_and_go_on_with_the_connection() {
    let server = Walsender::script(while_streaming(vec![
        Expect(b"c\0\0\0\x04".to_vec()),
        // Given WAL and a notice that were on their way.
        Send(say::wal(Lsn(0x300_0000), Lsn(0x300_0003), 1, b"abc")),
        Send(say::notice("NOTICE", "00000", "by the way")),
        Send([say::copy_done(), say::complete("START_STREAMING"), say::complete("START_REPLICATION")].concat()),
        Send(say::ready()),
        Query("SHOW \"wal_segment_size\""),
        Send([say::result(&["wal_segment_size"], &[Some("64MB")]), say::ready()].concat()),
    ]));
    let stream = stream_from(&server).await;
    let mut client = stream.end().await.unwrap();
    assert_eq!(client.wal_segment_size().await.unwrap().bytes(), 64 << 20);
    server.finish();
}

#[tokio::test]
async fn a_timeline_ends_and_names_the_next() {
    let next = say::result(&["next_tli", "next_tli_startpos"], &[Some("2"), Some("0/3000200")]);
    let end = [next, say::complete("START_STREAMING"), say::complete("START_REPLICATION"), say::ready()].concat();
    // Given a stream that reaches the end of its timeline.
    let server = Walsender::script(while_streaming(vec![
        Send(say::copy_done()),
        Expect(b"c\0\0\0\x04".to_vec()),
        // The answer to a status message that was on its way.
        Send(say::keepalive(Lsn(0x300_0200), 1, false)),
        Send(end.clone()),
        Query("TIMELINE_HISTORY 2"),
        Send([say::result(&["filename", "content"], &[Some("00000002.history"), Some("1\t0/3000200\tx\n")])].concat()),
        Send(say::ready()),
    ]));
    let mut stream = stream_from(&server).await;
    assert_eq!(stream.next().await.unwrap(), WalMessage::EndOfTimeline);
    let (mut client, next, switch) = stream.finish_timeline().await.unwrap();
    assert_eq!((next, switch), (TimelineId(2), Lsn(0x300_0200)));
    assert_eq!(client.timeline_history(next).await.unwrap(), "1\t0/3000200\tx\n");
    server.finish();

    // Given a timeline that ended exactly where we ask to start.
    let start = Query("START_REPLICATION PHYSICAL 0/3000200 TIMELINE 1");
    let server = Walsender::script(after_login(vec![start, Send(end)]));
    let client = connect(&server).await;
    match client.start_replication(None, Lsn(0x300_0200), TimelineId(1)).await {
        Ok(Streaming::TimelineEnded { next: TimelineId(2), switch: Lsn(0x300_0200), .. }) => {}
        other => panic!("{other:?}"),
    }
    server.finish();
}

#[tokio::test]
async fn a_server_that_shuts_down_says_so_without_ending_the_copy() {
    let server = Walsender::script(while_streaming(vec![
        Send(say::keepalive(Lsn(0x300_0000), 1, true)),
        Status { written: Lsn(5), flushed: Lsn(5), applied: Lsn(0), reply_requested: false },
        Send(say::complete("COPY 0")),
    ]));
    let mut stream = stream_from(&server).await;
    assert!(matches!(stream.next().await.unwrap(), WalMessage::Keepalive { reply_requested: true, .. }));
    let status = StatusUpdate { written: Lsn(5), flushed: Lsn(5), ..StatusUpdate::default() };
    stream.send_status(status, 1).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), WalMessage::ServerShutdown);
    assert!(matches!(stream.next().await, Err(PgError::Closed)));
    server.finish();
}

#[tokio::test]
async fn an_error_in_the_stream_is_the_servers_own_and_a_silent_end_is_told_apart() {
    let gone = "requested WAL segment 000000010000000000000003 has already been removed";
    let server =
        Walsender::script(while_streaming(vec![Send([say::error("ERROR", "58P01", gone), say::ready()].concat())]));
    let mut stream = stream_from(&server).await;
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("58P01"));
    assert!(error.is_wal_removed() && !error.is_transient());
    server.finish();

    let server = Walsender::script(while_streaming(vec![]));
    let mut stream = stream_from(&server).await;
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, PgError::Closed) && error.is_transient(), "{error:?}");
    server.finish();

    // Given a slot in use: the error comes instead of the stream.
    let busy = say::error("ERROR", "55006", "replication slot \"seawall\" is active for PID 4711");
    let start = Query("START_REPLICATION SLOT \"seawall\" PHYSICAL 0/3000000 TIMELINE 1");
    let server = Walsender::script(after_login(vec![start, Send([busy, say::ready()].concat())]));
    let client = connect(&server).await;
    let error = client.start_replication(Some("seawall"), Lsn(0x300_0000), TimelineId(1)).await.unwrap_err();
    assert_eq!(error.slot_holder(), Some(4711));
    assert_eq!(Error::from(error).kind(), Kind::Busy);
    server.finish();
}

#[tokio::test]
async fn a_server_that_goes_away_is_heard_out_although_we_could_not_write() {
    let last_words = say::error("FATAL", "57P01", "terminating connection due to administrator command");
    let server = Walsender::script(while_streaming(vec![Send(last_words)]));
    let mut stream = stream_from(&server).await;
    // The server is gone when it is finished; the kernel tells us at the second write at the latest.
    server.finish();
    let status = StatusUpdate::default();
    let _ = stream.send_status(status, 1).await;
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
}

#[tokio::test]
async fn slots_are_read_as_the_version_allows() {
    let columns = ["slot_type", "restart_lsn", "restart_tli"];
    let answer = |values: [Option<&str>; 3]| Send([say::result(&columns, &values), say::ready()].concat());
    let ask = || Query("READ_REPLICATION_SLOT \"s\"");
    let server = Walsender::script(after_login(vec![
        ask(),
        answer([None, None, None]),
        ask(),
        answer([Some("physical"), None, None]),
        ask(),
        answer([Some("physical"), Some("1/2"), Some("3")]),
        ask(),
        Send(
            [say::error("ERROR", "0A000", "cannot use READ_REPLICATION_SLOT with a logical slot"), say::ready()]
                .concat(),
        ),
        Query("CREATE_REPLICATION_SLOT \"s\" PHYSICAL RESERVE_WAL"),
        Send([say::error("ERROR", "42710", "replication slot \"s\" already exists"), say::ready()].concat()),
        Query("DROP_REPLICATION_SLOT \"we\"\"ird\""),
        Send([say::complete("DROP_REPLICATION_SLOT"), say::ready()].concat()),
    ]));
    let mut client = connect(&server).await;
    assert_eq!(client.read_slot("s").await.unwrap(), SlotState::Absent);
    assert_eq!(client.read_slot("s").await.unwrap(), SlotState::Present { restart_lsn: None, restart_timeline: None });
    assert_eq!(
        client.read_slot("s").await.unwrap(),
        SlotState::Present { restart_lsn: Some(Lsn(0x1_0000_0002)), restart_timeline: Some(TimelineId(3)) }
    );
    assert_eq!(client.read_slot("s").await.unwrap(), SlotState::NotPhysical);
    assert_eq!(client.create_slot("s").await.unwrap_err().sqlstate(), Some("42710"));
    client.drop_slot("we\"ird").await.unwrap();
    server.finish();

    let server = Walsender::script(vec![Startup(vec![]), Send(say::welcome("14.23"))]);
    let mut client = connect(&server).await;
    assert_eq!(client.read_slot("s").await.unwrap(), SlotState::Unknown);
    server.finish();
}

#[tokio::test]
async fn a_question_that_was_dropped_does_not_confuse_the_next() {
    // Given a server that answers the first question only when the second is asked.
    let show = |value| [say::result(&["x"], &[Some(value)]), say::ready()].concat();
    let server = Walsender::script(after_login(vec![
        Query("SHOW \"first\""),
        Send(say::row_description(&["first"])),
        Send([say::data_row(&[Some("1")]), say::complete("SHOW"), say::ready()].concat()),
        Query("SHOW \"second\""),
        Send(show("2")),
    ]));
    let mut client = connect(&server).await;
    {
        let mut question = Box::pin(client.show("first"));
        // The first poll sends the question and cannot have its answer.
        let polled = futures_util::future::poll_fn(|context| {
            let polled = Future::poll(question.as_mut(), context);
            std::task::Poll::Ready(polled.is_ready())
        });
        let _ = polled.await;
    }
    assert_eq!(client.show("second").await.unwrap(), "2");
    server.finish();
}

const POSITION: [&str; 2] = ["recptr", "tli"];
const SPACES: [&str; 3] = ["spcoid", "spclocation", "size"];

fn backup_start() -> Vec<u8> {
    [
        say::result(&POSITION, &[Some("0/2000028"), Some("1")]),
        say::row_description(&SPACES),
        say::data_row(&[Some("16385"), Some("/srv/fast"), Some("20")]),
        say::data_row(&[None, None, Some("100")]),
        say::complete("SELECT"),
    ]
    .concat()
}

fn backup_end() -> Vec<u8> {
    [say::result(&POSITION, &[Some("0/2000138"), Some("1")]), say::complete("BASE_BACKUP"), say::ready()].concat()
}

const COMMAND_15: &str = "BASE_BACKUP (LABEL 'seawall', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
                          MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')";
const COMMAND_14: &str =
    "BASE_BACKUP LABEL 'seawall' PROGRESS FAST NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'";

/// The copy of 15 and later.
fn typed_copy() -> Vec<u8> {
    [
        say::copy_out(),
        say::copy_data(b"n16385.tar\0/srv/fast\0"),
        say::copy_data(b"done tar of 16385"),
        say::copy_data(b"p\0\0\0\0\0\0\x50\0"),
        say::copy_data(b"nbase.tar\0\0"),
        say::copy_data(b"dbase, first"),
        say::notice("WARNING", "01000", "checksum verification failed"),
        say::copy_data(b"dbase, second"),
        say::copy_data(b"m"),
        say::copy_data(b"d{manifest}"),
        say::copy_done(),
    ]
    .concat()
}

/// The copies of 13 and 14.
fn untyped_copies() -> Vec<u8> {
    let copy = |pieces: &[&[u8]]| {
        let data: Vec<u8> = pieces.iter().flat_map(|piece| say::copy_data(piece)).collect();
        [say::copy_out(), data, say::copy_done()].concat()
    };
    let warning = say::notice("WARNING", "01000", "checksum verification failed");
    let base = [say::copy_out(), say::copy_data(b"base, first"), warning, say::copy_data(b"base, second")].concat();
    [copy(&[b"one tar of 16385"]), base, say::copy_done(), copy(&[b"{manifest}"])].concat()
}

async fn events(server: &Walsender) -> (Vec<BackupEvent>, Result<BackupEvent, PgError>) {
    let client = connect(server).await;
    let (start, mut stream) = client.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert_eq!((start.start_lsn, start.timeline), (Lsn(0x200_0028), TimelineId(1)));
    assert_eq!(start.total_kib, Some(120));
    let space = Tablespace { oid: 16385, location: "/srv/fast".into(), size_kib: Some(20) };
    assert_eq!(start.tablespaces, [space]);
    let mut events = Vec::new();
    loop {
        match stream.next().await {
            Ok(end @ BackupEvent::End { .. }) => return (events, Ok(end)),
            Ok(event) => events.push(event),
            Err(error) => return (events, Err(error)),
        }
    }
}

fn shape(events: &[BackupEvent]) -> Vec<String> {
    let shape = |event: &BackupEvent| match event {
        BackupEvent::Archive { tablespace, location } => {
            format!("archive {} {}", tablespace.unwrap_or(0), location.as_deref().unwrap_or("-"))
        }
        BackupEvent::Data(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        BackupEvent::Manifest => "manifest".into(),
        BackupEvent::Progress(bytes) => format!("{bytes} bytes"),
        BackupEvent::Notice(notice) => notice.message.clone(),
        BackupEvent::End { .. } => "end".into(),
    };
    events.iter().map(shape).collect()
}

const END: BackupEvent = BackupEvent::End { end_lsn: Lsn(0x200_0138), timeline: TimelineId(1), damage: None };

#[tokio::test]
async fn both_wire_forms_of_a_base_backup_give_the_same_events() {
    // Given a server of 15 or later; every frame in pieces of seven bytes.
    let steps = vec![Query(COMMAND_15), SendInPieces([backup_start(), typed_copy(), backup_end()].concat(), 7)];
    let server = Walsender::script(after_login(steps));
    let (typed, end) = events(&server).await;
    assert_eq!(end.unwrap(), END);
    let expected = [
        "archive 16385 /srv/fast",
        "one tar of 16385",
        "20480 bytes",
        "archive 0 -",
        "base, first",
        "checksum verification failed",
        "base, second",
        "manifest",
        "{manifest}",
    ];
    assert_eq!(shape(&typed), expected);
    server.finish();

    // Given a server of 13 or 14.
    let server = Walsender::script(vec![
        Startup(vec![]),
        Send(say::welcome("13.23")),
        Query(COMMAND_14),
        Send([backup_start(), untyped_copies(), backup_end()].concat()),
    ]);
    let (untyped, end) = events(&server).await;
    assert_eq!(end.unwrap(), END);
    let same: Vec<&str> = expected.into_iter().filter(|line| *line != "20480 bytes").collect();
    assert_eq!(shape(&untyped), same);
    server.finish();
}

/// A manifest of two messages, of which the server hears each.
fn long_manifest() -> Vec<u8> {
    (0..200_000u32).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn a_manifest_is_uploaded_and_the_backup_that_follows_is_incremental() {
    const INCREMENTAL: &str = "BASE_BACKUP (LABEL 'seawall', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
                               MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', INCREMENTAL)";
    let manifest = long_manifest();
    let server = Walsender::script(vec![
        Startup(vec![]),
        Send(say::welcome("17.10")),
        Query("UPLOAD_MANIFEST"),
        Send(say::copy_in()),
        Expect(say::copy_data(&manifest[..128 << 10])),
        Expect(say::copy_data(&manifest[128 << 10..])),
        Expect(say::copy_done()),
        Send([say::complete("UPLOAD_MANIFEST"), say::ready()].concat()),
        Query(INCREMENTAL),
        Send([backup_start(), typed_copy(), backup_end()].concat()),
    ]);
    let mut client = connect(&server).await;
    client.upload_manifest([&manifest].into_iter()).await.unwrap();
    let options = BaseBackupOptions { incremental: true, ..BaseBackupOptions::default() };
    let (_, mut stream) = client.base_backup(&options).await.unwrap();
    while !matches!(stream.next().await.unwrap(), BackupEvent::End { .. }) {}
    server.finish();
}

#[tokio::test]
async fn a_manifest_that_the_server_refuses_leaves_a_connection_that_works() {
    let refusal = || [say::error("ERROR", "XX000", "manifest checksum mismatch"), say::ready()].concat();
    let manifest = long_manifest();
    let server = Walsender::script(vec![
        Startup(vec![]),
        Send(say::welcome("17.10")),
        // One that knows no such command,
        Query("UPLOAD_MANIFEST"),
        Send(refusal()),
        // and one that has read it all.
        Query("UPLOAD_MANIFEST"),
        Send(say::copy_in()),
        Expect(say::copy_data(&manifest[..128 << 10])),
        Expect(say::copy_data(&manifest[128 << 10..])),
        Expect(say::copy_done()),
        Send(refusal()),
        Query("IDENTIFY_SYSTEM"),
        Send(say::identity(7, 1, Lsn(0x300_0000))),
    ]);
    let mut client = connect(&server).await;
    for _ in 0..2 {
        let error = client.upload_manifest([&manifest].into_iter()).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("XX000"), "{error}");
    }
    assert_eq!(client.identify_system().await.unwrap().system_identifier, 7);
    server.finish();
}

#[tokio::test]
async fn wrong_page_checksums_are_a_verdict_and_any_other_error_is_an_end() {
    let end = || say::result(&POSITION, &[Some("0/2000138"), Some("1")]);
    let corrupted = || say::error("ERROR", "XX001", "checksum verification failure during base backup");
    let shut_down = say::error("FATAL", "57P01", "terminating connection due to administrator command");
    let cases = [
        ("everything, and then that pages are damaged", [end(), corrupted()].concat(), None),
        ("that pages are damaged, and no end", corrupted(), Some("XX001")),
        ("everything, and another error", [end(), shut_down].concat(), Some("57P01")),
    ];
    for (what, last, error) in cases {
        // Given a server that sends this behind its manifest
        let steps = vec![Query(COMMAND_15), Send([backup_start(), typed_copy(), last, say::ready()].concat())];
        let server = Walsender::script(after_login(steps));
        // When it is read, then only the first is a backup, and says what it is worth
        let (got, end) = events(&server).await;
        assert_eq!(got.len(), 9, "{what}");
        match (end, error) {
            (Ok(BackupEvent::End { end_lsn, damage, .. }), None) => {
                assert_eq!(end_lsn, Lsn(0x200_0138), "{what}");
                assert!(damage.is_some_and(|damage| damage.message.contains("checksum")), "{what}");
            }
            (end, error) => assert_eq!(end.unwrap_err().sqlstate(), error, "{what}"),
        }
        server.finish();
    }
}

#[tokio::test]
async fn a_base_backup_that_is_not_the_protocol_is_refused() {
    let cases: [(&str, Vec<u8>); 7] = [
        ("an unknown type byte", [say::copy_out(), say::copy_data(b"nbase.tar\0\0"), say::copy_data(b"?x")].concat()),
        ("data before a name", [say::copy_out(), say::copy_data(b"dx")].concat()),
        ("an archive of nothing", [say::copy_out(), say::copy_data(b"n99999.tar\0/x\0")].concat()),
        ("an archive outside", [say::copy_out(), say::copy_data(b"n../base.tar\0\0")].concat()),
        ("an empty message", [say::copy_out(), say::copy_data(b"")].concat()),
        ("no manifest", [say::copy_out(), say::copy_data(b"nbase.tar\0\0"), say::copy_done(), backup_end()].concat()),
        ("success without a copy", backup_end()),
    ];
    for (what, copy) in cases {
        let steps = vec![Query(COMMAND_15), Send([backup_start(), copy].concat()), ClientCloses];
        let server = Walsender::script(after_login(steps));
        let (_, end) = events(&server).await;
        assert!(matches!(end, Err(PgError::Protocol(_))), "{what}: {end:?}");
        server.finish();
    }
}

#[tokio::test]
async fn a_hostile_server_is_refused() {
    let huge = b"R\x7F\xFF\xFF\xFF".to_vec();
    let small = b"R\0\0\0\x03".to_vec();
    let later = [say::welcome("15.18"), b"T\x7F\xFF\xFF\xFF".to_vec()].concat();
    for (what, bytes) in
        [("before the login", huge), ("a length below itself", small), ("HTTP", b"HTTP/1.1 400\r\n".to_vec())]
    {
        let server = Walsender::script(vec![Startup(vec![]), Send(bytes), ClientCloses]);
        let error = connect_with(&server, "").await.unwrap_err();
        assert!(!error.is_transient(), "{what}: {error}");
        server.finish();
    }
    let server = Walsender::script(vec![Startup(vec![]), Send(later), Query("IDENTIFY_SYSTEM"), ClientCloses]);
    let mut client = connect(&server).await;
    assert!(matches!(client.identify_system().await, Err(PgError::Protocol(_))));
    drop(client);
    server.finish();
}

#[tokio::test]
async fn a_password_is_read_again_where_it_was_refused_and_not_where_nobody_asked_for_it() {
    let place = tempfile::tempdir().unwrap();
    let runs = place.path().join("runs");
    let script = format!("echo run >> '{0}'; wc -l < '{0}'", runs.display());
    let source = Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec());
    let password = Secret::new("password", source);
    let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let no = || Send(say::error("FATAL", "28000", "no"));
    let asked = || vec![Startup(vec![]), Send(say::authentication(5, b"salt")), Anything];
    let let_in = || Send([say::authentication(0, b""), say::error("FATAL", "28000", "no")].concat());
    // Given a server that refuses before it asks, and one that refuses what comes behind a password that was good
    for steps in [vec![Startup(vec![]), no()], asked().into_iter().chain([let_in()]).collect()] {
        let server = Walsender::script(steps);
        let info = info(&server.conninfo()).with_password(password.clone());
        let error = Client::connect(&info, Mode::Sql, &[]).await.unwrap_err();
        assert_eq!((error.sqlstate(), count()), (Some("28000"), 1), "{error}: the command has run again");
        server.finish();
    }
    // And one that has checked it
    let refused = asked().into_iter().chain([no()]).collect();
    let server = Walsender::scripts(vec![refused, after_login(vec![ClientCloses])]);
    let info = info(&server.conninfo()).with_password(password);
    Client::connect(&info, Mode::Sql, &[]).await.unwrap().close().await;
    assert_eq!(count(), 2);
    server.finish();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn hosts_are_tried_in_order_and_all_that_failed_are_named() {
    // Given nobody, a server that starts, a standby and a primary.
    let starting = vec![Startup(vec![]), Send(say::error("FATAL", "57P03", "the database system is starting up"))];
    let standby = || {
        let states = [
            say::authentication(0, &[]),
            say::parameter("in_hot_standby", "on"),
            say::parameter("default_transaction_read_only", "off"),
        ];
        vec![
            Startup(vec![]),
            Send([states.concat(), say::parameter("server_version", "15.18"), say::ready()].concat()),
            ClientCloses,
        ]
    };
    let primary = || vec![Startup(vec![]), Send(say::welcome("15.18")), ClientCloses];
    let (starting, standby_server, primary_server) =
        (Walsender::script(starting), Walsender::scripts(vec![standby()]), Walsender::script(primary()));
    let (nobody, a, b, c) = (free_port(), starting.port(), standby_server.port(), primary_server.port());
    let text = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1,127.0.0.1 port={nobody},{a},{b},{c} user=tester sslmode=disable \
         target_session_attrs=primary"
    );
    let client = Client::connect(&info(&text), Mode::Physical, &[]).await.unwrap();
    assert_eq!(client.host(), format!("127.0.0.1:{c}"));
    drop(client);
    [starting, standby_server, primary_server].into_iter().for_each(Walsender::finish);

    // When none will do, every one has its say; prefer-standby takes the primary in a second pass.
    let primary_server = Walsender::scripts(vec![primary(), primary(), primary()]);
    let at = format!("host=127.0.0.1,127.0.0.1 port={nobody},{} user=tester sslmode=disable", primary_server.port());
    let standby_wanted = info(&format!("{at} target_session_attrs=standby"));
    let error = Client::connect(&standby_wanted, Mode::Physical, &[]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{nobody}: cannot connect")), "{text}");
    assert!(text.contains("a primary, and target_session_attrs asks for standby"), "{text}");
    let either = info(&format!("{at} target_session_attrs=prefer-standby"));
    drop(Client::connect(&either, Mode::Physical, &[]).await.unwrap());
    primary_server.finish();

    // Given a wrong password, when there are more hosts, then they are not tried.
    let refusing = Walsender::script(vec![Startup(vec![]), Send(say::error("FATAL", "28P01", "no"))]);
    let at = format!("host=127.0.0.1,127.0.0.1 port={},{nobody} user=tester sslmode=disable", refusing.port());
    let error = Client::connect(&info(&at), Mode::Physical, &[]).await.unwrap_err();
    assert!(!error.to_string().contains(&nobody.to_string()), "{error}");
    refusing.finish();
}

#[tokio::test]
async fn an_old_server_is_asked_whether_it_is_a_standby() {
    let script = |value| {
        vec![
            Startup(vec![]),
            Send(say::welcome("13.23")),
            Query("SHOW \"transaction_read_only\""),
            Send([say::result(&["transaction_read_only"], &[Some(value)]), say::ready()].concat()),
            ClientCloses,
        ]
    };
    let server = Walsender::scripts(vec![script("on"), script("on")]);
    let error = connect_with(&server, "target_session_attrs=read-write").await.unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    drop(connect_with(&server, "target_session_attrs=standby").await.unwrap());
    server.finish();
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = Walsender::script(vec![Startup(vec![]), ClientCloses]);
    let error = connect_with(&server, "connect_timeout=1").await.unwrap_err();
    assert!(error.to_string().contains("no connection within 1 s"), "{error}");
    assert!(error.is_transient());
    server.finish();
}
