//! The built program with real servers: a base backup that another process takes is noticed without looking for it.

use crate::s3::{Op, S3Server};
use crate::support::postgres::{Postgres, SERVER_VERSIONS};
use crate::support::program::Seawall;
use crate::support::waiting::{PATIENCE, wait_for};
use seawall::scratch::ServerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Requests that only look.
fn looks(bucket: &S3Server) -> Vec<(Op, String)> {
    bucket.log().into_iter().filter(|(op, _)| [Op::List, Op::Get, Op::Head].contains(op)).collect()
}

/// A metric, whose line begins so; `None` where it is not there or 0.
async fn metric(address: &str, line: &str) -> Option<f64> {
    let mut connection = TcpStream::connect(address).await.ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await.ok()?;
    let line = text.lines().find(|it| it.starts_with(line))?;
    line.rsplit(' ').next()?.parse().ok().filter(|value| *value > 0.0)
}

async fn notices_a_backup(version: u32) {
    // Given the daemon beside a server
    let server = Postgres::create(version, ServerOptions::default()).await;
    let bucket = S3Server::start();
    let seawall = |arguments: &[&str]| {
        let repository = format!("s3://{}/backups", S3Server::BUCKET);
        let seawall = Seawall::new(arguments).env("SEAWALL_PG", server.conninfo()).env("SEAWALL_REPO", repository);
        bucket.env().into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    };
    let mut running = seawall(&["run", "--listen", "127.0.0.1:0"]).start();
    running.wait_for_text("metrics at").await;
    let log = running.stderr();
    let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let archived = async |what: &str| {
        let lsn = server.value("SELECT pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        wait_for(what, PATIENCE, async || (server.value(&query).await != "0").then_some(())).await;
    };
    server.sql("CREATE TABLE t (n int)").await.unwrap();
    archived("the stream to begin").await;
    // and what it looks up for its metrics when the stream has begun is done
    let begun = wait_for("the beginning to be over", PATIENCE, async || {
        let before = looks(&bucket).len();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        (looks(&bucket).len() == before).then_some(before)
    })
    .await;
    // When WAL comes, in tails and in segments that are left early
    for _ in 0..5 {
        server.sql("INSERT INTO t SELECT generate_series(1, 1000); SELECT pg_switch_wal()").await.unwrap();
        archived("the WAL to be safe").await;
    }
    // Then it asks for nothing
    assert_eq!(looks(&bucket)[begun..], [], "PostgreSQL {version}");
    // And when another process takes a base backup
    let name = "seawall_last_backup_timestamp_seconds{";
    assert_eq!(metric(&address, name).await, None);
    seawall(&["backup", "--fast"]).run_ok().await;
    // Then it sees that in the WAL, and what it is in the repository
    let what = format!("the backup in the metrics, with PostgreSQL {version}");
    wait_for(&what, PATIENCE * 3, async || metric(&address, name).await).await;
    // and looks at what is stored, which that process has not done
    let (what, verified) = ("a verification behind it", "seawall_job_last_result{task=\"verify\"");
    wait_for(what, PATIENCE * 2, async || metric(&address, verified).await).await;
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_by_another_process_is_noticed_in_the_wal() {
    futures_util::future::join_all(SERVER_VERSIONS.map(notices_a_backup)).await;
}
