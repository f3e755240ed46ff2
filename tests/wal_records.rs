//! The record walker against PostgreSQL's own readers of WAL, over WAL of real servers: `pg_waldump` of 15, the extension
//! `pg_walinspect` of 16 and later, and what `pg_waldump` of 13 and 14 said of WAL that was recorded.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "wal_records/mutated.rs"]
mod mutated;
#[path = "wal_records/recorded.rs"]
mod recorded;
mod support;

use seawall::scratch::{Server, ServerOptions, StopMode};
use seawall::wal::{Lsn, Record, RecordKind, RecordWalker, Segment, SegmentSize, TimelineId};
use std::path::Path;
use support::postgres::{DEBIAN, Postgres, pgbench_tables, pgbench_transactions, tool};

/// A record as PostgreSQL sees it, described as `pg_waldump` does.
struct Dumped {
    rmgr: String,
    bytes: u32,
    xid: u32,
    start: Lsn,
    description: String,
}

/// Everything of a timeline from `start` to the end of its WAL, as `pg_waldump` sees it.
fn dump(server: &Postgres, timeline: u32, start: Lsn) -> Vec<Dumped> {
    let wal = server.data_directory().join("pg_wal");
    let mut pg_waldump = tool("pg_waldump");
    pg_waldump.env("TZ", "UTC").arg("-p").arg(wal).args(["-t", &timeline.to_string(), "-s", &start.to_string()]);
    // It ends with an error where WAL ends.
    let output = pg_waldump.output().unwrap();
    let lines = read_dump(&String::from_utf8_lossy(&output.stdout));
    assert!(!lines.is_empty(), "pg_waldump printed no records: {}", String::from_utf8_lossy(&output.stderr));
    lines
}

/// What `pg_waldump` printed.
fn read_dump(text: &str) -> Vec<Dumped> {
    let field = |line: &str, name: &str| {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("no {name:?} in {line:?}")).1;
        rest.trim_start().split([' ', ',']).next().unwrap().to_owned()
    };
    let parse = |line: &str| Dumped {
        rmgr: field(line, "rmgr:"),
        bytes: field(line.split_once("rec/tot):").unwrap().1, "/").parse().unwrap(),
        xid: field(line, " tx:").parse().unwrap(),
        start: field(line, " lsn:").parse().unwrap(),
        description: line.split_once("desc: ").unwrap().1.to_owned(),
    };
    text.lines().filter(|line| line.starts_with("rmgr:")).map(parse).collect()
}

/// The segments of a timeline in `pg_wal`, in order, with their bytes: also those beyond the end, which hold older WAL or zeros.
fn segments(data: &Path, timeline: u32, size: SegmentSize) -> Vec<(Segment, Vec<u8>)> {
    let entries = std::fs::read_dir(data.join("pg_wal")).unwrap().map(Result::unwrap);
    let mut segments: Vec<_> = entries
        .filter_map(|entry| {
            let segment = Segment::parse(entry.file_name().to_str()?, size).ok()?;
            (segment.timeline == TimelineId(timeline)).then(|| (segment, std::fs::read(entry.path()).unwrap()))
        })
        .collect();
    segments.sort_by_key(|(segment, _)| segment.start);
    segments
}

fn walk(segments: &[(Segment, Vec<u8>)], size: SegmentSize, piece_bytes: usize) -> (RecordWalker, Vec<Record>) {
    let mut walker = RecordWalker::new(size, segments[0].0.start).with_details();
    let mut records = vec![];
    for (segment, bytes) in segments {
        for piece in bytes.chunks(piece_bytes) {
            walker
                .push(walker.position(), piece, &mut |record| records.push(record))
                .unwrap_or_else(|error| panic!("in segment {segment}: {error}"));
        }
    }
    (walker, records)
}

/// The resource manager's name and how `pg_waldump` begins to describe such a record.
fn expected(kind: &RecordKind) -> (&'static str, String) {
    // The names of `rmgrlist.h`, in its order.
    const RMGRS: [&str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];
    let time = |micros: &i64| {
        let epoch: jiff::Timestamp = "2000-01-01T00:00:00Z".parse().unwrap();
        let time = epoch + jiff::SignedDuration::from_micros(*micros);
        time.strftime("%Y-%m-%d %H:%M:%S%.6f UTC").to_string()
    };
    let prepared = |xid: &Option<u32>| xid.map_or(String::new(), |xid| format!("_PREPARED {xid}:"));
    match kind {
        RecordKind::Commit { time_micros, prepared_xid, .. } => {
            ("Transaction", format!("COMMIT{} {}", prepared(prepared_xid), time(time_micros)))
        }
        RecordKind::Abort { time_micros, prepared_xid, .. } => {
            ("Transaction", format!("ABORT{} {}", prepared(prepared_xid), time(time_micros)))
        }
        RecordKind::RestorePoint { name, .. } => ("XLOG", format!("RESTORE_POINT {name}")),
        RecordKind::Checkpoint { shutdown, redo, timeline, previous_timeline, .. } => {
            let kind = if *shutdown { "SHUTDOWN" } else { "ONLINE" };
            ("XLOG", format!("CHECKPOINT_{kind} redo {redo}; tli {timeline}; prev tli {previous_timeline};"))
        }
        RecordKind::EndOfRecovery { timeline, .. } => ("XLOG", format!("END_OF_RECOVERY tli {timeline}")),
        RecordKind::BackupEnd { start } => ("XLOG", format!("BACKUP_END {start}")),
        RecordKind::ParameterChange(settings) => (
            "XLOG",
            format!(
                "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} \
                 max_prepared_xacts={} max_locks_per_xact={} wal_level={}",
                settings.max_connections,
                settings.max_worker_processes,
                settings.max_wal_senders,
                settings.max_prepared_xacts,
                settings.max_locks_per_xact,
                ["minimal", "replica", "logical"][settings.wal_level as usize],
            ),
        ),
        RecordKind::OverwriteContrecord { overwritten, .. } => {
            ("XLOG", format!("OVERWRITE_CONTRECORD lsn {overwritten}"))
        }
        RecordKind::Switch => ("XLOG", "SWITCH".into()),
        RecordKind::TablespaceCreate { oid, path } => ("Tablespace", format!("CREATE {oid} \"{path}\"")),
        RecordKind::TablespaceDrop { oid } => ("Tablespace", format!("DROP {oid}")),
        RecordKind::DatabaseCreate { oid, tablespace } => {
            // The tablespace comes first, and which of two strategies made it is not told.
            ("Database", format!("{tablespace}/{oid}"))
        }
        RecordKind::DatabaseDrop { oid } => ("Database", format!("DROP dir 1663/{oid}")),
        RecordKind::Truncate { tablespace, database, file, first_block } => {
            assert_eq!(*tablespace, 1663, "only tables in the default tablespace are truncated");
            ("Storage", format!("TRUNCATE base/{database}/{file} to {first_block} blocks"))
        }
        RecordKind::RelationCreate { tablespace, database, file } => {
            let place = match tablespace {
                1663 => format!("base/{database}"),
                1664 => "global".to_owned(),
                // Its folder is called by the version.
                other => return ("Storage", format!("CREATE pg_tblspc/{other}/PG_")),
            };
            ("Storage", format!("CREATE {place}/{file}"))
        }
        RecordKind::Subtransactions { top_xid, xids } => {
            let xids: Vec<_> = xids.iter().map(u32::to_string).collect();
            ("Transaction", format!("ASSIGNMENT xtop {top_xid}: subxacts: {}", xids.join(" ")))
        }
        RecordKind::RunningTransactions { next_xid, .. } => ("Standby", format!("RUNNING_XACTS nextXid {next_xid} ")),
        RecordKind::Other { rmgr, .. } => (RMGRS[usize::from(*rmgr)], String::new()),
    }
}

/// The words behind `name` in a description, up to the next semicolon.
fn listed<'a>(description: &'a str, name: &str) -> Vec<&'a str> {
    let list = description.split("; ").find_map(|part| part.strip_prefix(name));
    list.map_or(vec![], |list| list.split_whitespace().collect())
}

/// Holds the lists of a transaction's end against what `pg_waldump` says of it.
fn compare_lists(kind: &RecordKind, dumped: &Dumped) {
    let description = &dumped.description;
    let numbers = |xids: &[u32]| xids.iter().map(u32::to_string).collect::<Vec<_>>();
    match kind {
        RecordKind::Commit { dropped, dropped_relations, subtransactions, changed, .. } => {
            let files: Vec<_> = dropped.iter().map(|it| format!("{}/{}", it.database, it.file)).collect();
            let listed_files = listed(description, "rels:");
            assert_eq!(*dropped_relations as usize, listed_files.len(), "{description}");
            for (file, listed) in files.iter().zip(&listed_files) {
                assert!(listed.ends_with(&format!("/{file}")), "{file} in {description}");
            }
            assert_eq!(numbers(subtransactions), listed(description, "subxacts:"), "{description}");
            let messages = listed(description, "inval msgs:");
            let mut relations = vec![];
            for pair in messages.windows(2).filter(|pair| pair[0] == "relcache") {
                if !relations.contains(&pair[1]) {
                    relations.push(pair[1]);
                }
            }
            // Those of relations that all databases share are not ours.
            let ours = numbers(changed);
            assert!(ours.iter().all(|oid| relations.contains(&oid.as_str())), "{ours:?} in {description}");
            let shared = relations.iter().filter(|oid| !ours.iter().any(|it| it == *oid));
            assert!(shared.clone().all(|oid| oid.parse::<u32>().unwrap() < 16_384), "{ours:?} in {description}");
        }
        RecordKind::Abort { subtransactions, .. } => {
            assert_eq!(numbers(subtransactions), listed(description, "subxacts:"), "{description}");
        }
        _ => {}
    }
}

/// Statements that write every kind of record that a workload can be made to write, before and after a restart.
fn workload(version: u32, rows: u32, tablespace: &Path) -> (Vec<String>, Vec<String>) {
    let create_tablespace = format!("CREATE TABLESPACE fast LOCATION '{}'", tablespace.display());
    let insert = format!("INSERT INTO t SELECT i, repeat('x', i % 700) FROM generate_series(1, {rows}) i");
    // Before 15 there is one strategy, that of copied files.
    let [create_one, create_two] = match version {
        ..15 => ["CREATE DATABASE one", "CREATE DATABASE two"],
        _ => ["CREATE DATABASE one STRATEGY wal_log", "CREATE DATABASE two STRATEGY file_copy"],
    };
    let before = [
        "CREATE TABLE t (id int PRIMARY KEY, filler text)",
        &insert,
        "BEGIN; INSERT INTO t VALUES (-1); SAVEPOINT a; INSERT INTO t VALUES (-2); SAVEPOINT b; \
         INSERT INTO t VALUES (-3); ROLLBACK TO a; INSERT INTO t VALUES (-4); COMMIT",
        "BEGIN; DELETE FROM t WHERE id < 10; ROLLBACK",
        "SELECT pg_create_restore_point('before the upgrade')",
        "BEGIN; CREATE TABLE p (id int); INSERT INTO p VALUES (1); PREPARE TRANSACTION 'first'",
        "BEGIN; DROP TABLE IF EXISTS q; CREATE TABLE q (id int); PREPARE TRANSACTION 'second'",
        "COMMIT PREPARED 'first'",
        "ROLLBACK PREPARED 'second'",
        "SELECT pg_switch_wal()",
        // A record of several segments.
        "SELECT length(pg_logical_emit_message(true, 'seawall', repeat('large ', 600000))::text) > 0",
        "DO $$ BEGIN FOR i IN 1..3000 LOOP \
         BEGIN INSERT INTO t VALUES (100000 + i); EXCEPTION WHEN division_by_zero THEN NULL; END; \
         END LOOP; END $$",
        &create_tablespace,
        "CREATE TABLE elsewhere (id int) TABLESPACE fast",
        "DROP TABLE elsewhere",
        "DROP TABLESPACE fast",
        create_one,
        create_two,
        "DROP DATABASE two",
        "DELETE FROM t WHERE id NOT BETWEEN 1 AND 1000",
        "VACUUM t",
        "TRUNCATE p",
        "DROP TABLE t, p",
        "ALTER SYSTEM SET max_connections = 37",
        "CHECKPOINT",
    ];
    let after = ["CREATE TABLE last (id int)", "INSERT INTO last SELECT generate_series(1, 1000)"];
    (before.map(str::to_owned).into(), after.map(str::to_owned).into())
}

/// In one session.
fn backup(version: u32) -> &'static str {
    match version {
        ..15 => "SELECT pg_start_backup('walk', true, false); SELECT lsn FROM pg_stop_backup(false)",
        _ => "SELECT pg_backup_start('walk', true); SELECT lsn FROM pg_backup_stop()",
    }
}

/// Holds a record against what PostgreSQL says of it.
fn compare(record: &Record, dumped: &Dumped) {
    let at = format!("{record:?} against {} {}", dumped.rmgr, dumped.description);
    assert_eq!((record.start, record.xid, record.bytes), (dumped.start, dumped.xid, dumped.bytes), "{at}");
    compare_lists(&record.kind, dumped);
    let relation = record.relation.map(|it| format!("{}/{}/{}", it.tablespace, it.database, it.file));
    let first = dumped.description.split_once("blkref #0: rel ").map(|(_, rest)| rest.split_once(' ').unwrap().0);
    assert_eq!(relation.as_deref(), first, "{at}");
    let (rmgr, description) = expected(&record.kind);
    assert_eq!(rmgr, dumped.rmgr, "{at}");
    match record.kind {
        RecordKind::DatabaseCreate { .. } => assert!(dumped.description.ends_with(&description), "{at}"),
        _ => assert!(dumped.description.starts_with(&description), "{at}, not {description}"),
    }
    let must_be_read = [
        "COMMIT",
        "ABORT",
        "RESTORE_POINT",
        "CHECKPOINT_ONLINE",
        "CHECKPOINT_SHUTDOWN",
        "BACKUP_END",
        "PARAMETER_CHANGE",
        "SWITCH",
        "TRUNCATE base",
        "END_OF_RECOVERY",
        "OVERWRITE_CONTRECORD",
    ];
    let read = !matches!(record.kind, RecordKind::Other { .. });
    let ours = matches!(&dumped.rmgr[..], "XLOG" | "Transaction" | "Storage");
    let must = ours && must_be_read.iter().any(|it| dumped.description.starts_with(it));
    assert!(read || !must && !matches!(&dumped.rmgr[..], "Database" | "Tablespace"), "{at}");
}

/// The workload did write what these tests are about.
fn assert_all_kinds_are_there(records: &[Record]) {
    let has = |what: &str, test: &dyn Fn(&RecordKind) -> bool| {
        assert!(records.iter().any(|record| test(&record.kind)), "the WAL has no {what}");
    };
    has("prepared commit", &|kind| matches!(kind, RecordKind::Commit { prepared_xid: Some(_), .. }));
    has("prepared abort", &|kind| matches!(kind, RecordKind::Abort { prepared_xid: Some(_), .. }));
    has("dropped tables", &|kind| matches!(kind, RecordKind::Commit { dropped_relations: 3.., .. }));
    has("restore point", &|kind| matches!(kind, RecordKind::RestorePoint { .. }));
    has("tablespace", &|kind| matches!(kind, RecordKind::TablespaceCreate { path, .. } if path.ends_with("/fast")));
    has("dropped tablespace", &|kind| matches!(kind, RecordKind::TablespaceDrop { .. }));
    has("dropped database", &|kind| matches!(kind, RecordKind::DatabaseDrop { .. }));
    has("truncation", &|kind| matches!(kind, RecordKind::Truncate { .. }));
    has("new relation", &|kind| matches!(kind, RecordKind::RelationCreate { .. }));
    has("backup end", &|kind| matches!(kind, RecordKind::BackupEnd { .. }));
    has("switch", &|kind| matches!(kind, RecordKind::Switch));
    has("new setting", &|kind| matches!(kind, RecordKind::ParameterChange(it) if it.max_connections == 37));
    let created = records.iter().filter(|it| matches!(it.kind, RecordKind::DatabaseCreate { .. })).count();
    assert!(created >= 2, "one database by each strategy was created, {created} were seen");
}

/// A server that did a bit of everything, was started anew, for its settings change with that, and crashed, which leaves WAL
/// without an orderly end.
async fn crashed(version: u32, wal_segment_mib: u32, rows: u32) -> Postgres {
    let settings =
        [("wal_keep_size", "4GB"), ("max_prepared_transactions", "10"), ("timezone", "UTC"), ("autovacuum", "off")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = ServerOptions { settings, wal_segment_mib: Some(wal_segment_mib), ..ServerOptions::default() };
    let mut server = Postgres::create(version, options).await;
    let (before, after) = workload(version, rows, &server.side_directory("fast"));
    let sql = async |server: &Postgres, statement: &str| {
        server.sql(statement).await.unwrap_or_else(|error| panic!("{statement} on {version}: {error:?}"));
    };
    for statement in &before {
        sql(&server, statement).await;
    }
    sql(&server, backup(version)).await;
    server.stop(StopMode::Fast).await.unwrap();
    server.start().await.unwrap();
    for statement in &after {
        sql(&server, statement).await;
    }
    server.kill().await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walker_sees_what_pg_waldump_sees() {
    for megabytes in [1, 16] {
        // Given the WAL of a server that did a bit of everything,
        let size = SegmentSize::new(u64::from(megabytes) << 20).unwrap();
        let server = crashed(DEBIAN, megabytes, 20_000).await;
        let segments = segments(server.data_directory(), 1, size);
        let dumped = dump(&server, 1, segments[0].0.start);

        // when all files in `pg_wal` are walked over, however they come,
        let (walker, records) = walk(&segments, size, 1 << 20);
        let (_, pieces) = walk(&segments, size, 1237);
        assert!(records == pieces, "the records depend on how the WAL arrives");

        // then the records are those that PostgreSQL's own program prints,
        records.iter().zip(&dumped).for_each(|(record, dumped)| compare(record, dumped));
        assert_eq!(records.len(), dumped.len(), "one of the two stopped early");
        // each ends where the next begins, or a page header before it,
        for pair in records.windows(2) {
            let gap = pair[1].start - pair[0].end;
            let header = if size.offset(pair[0].end) == 0 { 40 } else { 24 };
            let expected = if pair[0].end.0 % 8192 == 0 { header } else { 0 };
            assert_eq!(gap, expected, "between {:?} and {:?}", pair[0], pair[1]);
        }
        // the end is behind the last one,
        assert_eq!(walker.end_of_wal(), records.last().map(|record| record.end));
        // and the workload did write what this test is about.
        assert_all_kinds_are_there(&records);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walker_sees_what_pg_waldump_sees_of_pgbench_an_overwritten_record_and_a_promotion() {
    // Given a server under pgbench that crashed in the middle of a record of several segments, of which the last were not written,
    let size = SegmentSize::new(1 << 20).unwrap();
    let settings = [("wal_keep_size", "4GB"), ("wal_buffers", "64kB"), ("autovacuum", "off")];
    let settings: Vec<_> = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = ServerOptions { settings: settings.clone(), wal_segment_mib: Some(1), ..ServerOptions::default() };
    let mut server = Postgres::create(DEBIAN, options).await;
    pgbench_tables(&server, 1).await;
    pgbench_transactions(&server, 300).await;
    let session = server.connect("postgres").await.unwrap();
    session.sql("BEGIN").await.unwrap();
    let begun: Lsn = server.value("SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
    session.sql("SELECT pg_logical_emit_message(false, 'seawall', repeat('x', 5000000))").await.unwrap();
    server.kill().await.unwrap();
    let (pg_wal, kept) = (server.data_directory().join("pg_wal"), size.segment_start(begun).0 + 2 * size.bytes());
    for (segment, _) in segments(server.data_directory(), 1, size).iter().filter(|it| it.0.start.0 >= kept) {
        std::fs::remove_file(pg_wal.join(segment.name())).unwrap();
    }
    server.start().await.unwrap();
    pgbench_transactions(&server, 300).await;
    // and that was promoted, and crashed again,
    server.stop(StopMode::Fast).await.unwrap();
    std::fs::write(server.data_directory().join("standby.signal"), "").unwrap();
    let options = ServerOptions { settings, standby: true, ..ServerOptions::default() };
    let mut promoted = Server::open(server.programs(), server.data_directory(), options).await.unwrap();
    promoted.sql("SELECT pg_promote()").await.unwrap();
    pgbench_transactions(&promoted, 300).await;
    promoted.kill().await.unwrap();
    // when the WAL of each timeline is walked over,
    for (timeline, what) in [(1, "OVERWRITE_CONTRECORD"), (2, "END_OF_RECOVERY")] {
        let segments = segments(server.data_directory(), timeline, size);
        let dumped = dump(&server, timeline, segments[0].0.start);
        let (walker, records) = walk(&segments, size, 1 << 20);
        // then the records are those that PostgreSQL's own program prints,
        records.iter().zip(&dumped).for_each(|(record, dumped)| compare(record, dumped));
        assert_eq!(records.len(), dumped.len(), "one of the two stopped early on timeline {timeline}");
        assert_eq!(walker.end_of_wal(), records.last().map(|record| record.end));
        // among them the one that this is about.
        assert!(dumped.iter().any(|dumped| dumped.description.starts_with(what)), "there is no {what}");
    }
}

/// Everything from `start` to `end`, as the extension sees it.
async fn inspect(server: &Postgres, start: Lsn, end: &str) -> Vec<Dumped> {
    server.sql("CREATE EXTENSION pg_walinspect").await.unwrap();
    let question = format!(
        "SELECT start_lsn, record_length, xid, resource_manager, record_type || ' ' || coalesce(description, '') \
           || ' ' || coalesce(block_ref, '') \
         FROM pg_get_wal_records_info('{start}', '{end}') ORDER BY start_lsn"
    );
    let rows = server.sql(&question).await.unwrap();
    let dumped = rows.into_iter().map(|row| {
        let mut fields = row.into_iter().map(|field| field.expect("it is never null"));
        let mut field = || fields.next().unwrap();
        Dumped {
            start: field().parse().unwrap(),
            bytes: field().parse().unwrap(),
            xid: field().parse().unwrap(),
            rmgr: field(),
            description: with_whole_time(field().trim_end()),
        }
    });
    dumped.collect()
}

/// A server prints `2026-11-22 04:54:02.3255+00` where `pg_waldump` prints `2026-11-22 04:54:02.325500 UTC`.
fn with_whole_time(description: &str) -> String {
    let is_of_transaction = description.starts_with("COMMIT") || description.starts_with("ABORT");
    let Some((before, behind)) = description.split_once("+00").filter(|_| is_of_transaction) else {
        return description.to_owned();
    };
    let (seconds, fraction) = match before.rsplit_once('.') {
        Some((seconds, fraction)) => (seconds, fraction),
        None => (before, ""),
    };
    format!("{seconds}.{fraction:0<6} UTC{behind}")
}

async fn the_walker_sees_what_pg_walinspect_sees(version: u32) {
    // Given the WAL of a server that did a bit of everything, and has recovered from a crash,
    let mut server = crashed(version, 16, 20_000).await;
    server.start().await.unwrap();
    // when it is walked over,
    let end = server.value("SELECT pg_current_wal_flush_lsn()").await;
    let segments = segments(server.data_directory(), 1, SegmentSize::DEFAULT);
    let (_, records) = walk(&segments, SegmentSize::DEFAULT, 1 << 20);
    // then the records are those that the server's own extension shows.
    let dumped = inspect(&server, segments[0].0.start, &end).await;
    records.iter().zip(&dumped).for_each(|(record, dumped)| compare(record, dumped));
    let end: Lsn = end.parse().unwrap();
    let seen = records.iter().filter(|record| record.end <= end).count();
    assert_eq!(seen, dumped.len(), "one of the two stopped early on PostgreSQL {version}");
    assert_all_kinds_are_there(&records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_walinspect_of_16_sees() {
    the_walker_sees_what_pg_walinspect_sees(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_walinspect_of_17_sees() {
    the_walker_sees_what_pg_walinspect_sees(17).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_walinspect_of_18_sees() {
    the_walker_sees_what_pg_walinspect_sees(18).await;
}
