//! What the index of records costs: catch-up of the same waiting WAL with it and without. `seawall run` always has it, so what is
//! measured is the archiver and what keeps the index, as `run` puts them together, in a process of their own.

use crate::Scale;
use crate::fixture::Fixture;
use crate::s3::S3Server;
use crate::s3_process::S3Process;
use crate::s3_store;
use crate::throughput::{catches_up, mb, report};
use seawall::archive::{ArchiveOptions, Archiver, IndexKeeper, PostgresSource, keep_index};
use seawall::codec::Form;
use seawall::history::index::Indexer;
use seawall::postgres::ConnInfo;
use seawall::runtime::{Clock, Shutdown, Tasks, processors};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// The first argument with which this program is an archiver: then come the server, the store, and whether there is an index.
pub const ARCHIVE: &str = "--archive";

const INDEXED: &str = "indexed";

/// Streams and stores until SIGTERM.
pub fn archive(arguments: &[String]) {
    let [conninfo, endpoint, kind] = arguments else { panic!("a server, a store and a kind, not {arguments:?}") };
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    // As many threads for sockets as the program has.
    let threads = (processors() / 2).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    runtime.block_on(async {
        let shutdown = Shutdown::default();
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut tasks = Tasks::default();
        let stop = shutdown.clone();
        tasks.start(async move {
            terminate.recv().await;
            stop.begin_stop();
        });
        let clock = Clock::system();
        let store = s3_store::store(s3_store::options_at(endpoint.clone())).await;
        let info = ConnInfo::parse(conninfo, &|_| None).unwrap();
        let source = Arc::new(PostgresSource::new(info, "seawall", clock.clone()));
        let indexer = (kind == INDEXED).then(|| Indexer::new(false));
        let options = ArchiveOptions { indexer: indexer.clone(), ..ArchiveOptions::default() };
        let archiver = Archiver::new(source, store.clone(), "main", options, clock);
        if let Some(indexer) = indexer.clone() {
            let kept = indexer.clone();
            let open = async move || IndexKeeper::open(store.clone(), "main", Form::default(), kept.clone()).await;
            tasks.start(keep_index(archiver.state(), indexer, open, shutdown.clone()));
        }
        let mut archiving = Tasks::default();
        archiving.start(async move { archiver.run(&shutdown).await });
        archiving.next().await.unwrap().unwrap().unwrap();
        // What was not walked over cost nothing: of a store that forgets it cannot be read back.
        let (failures, unstored) = indexer.map_or((0, 0), |indexer| indexer.failures());
        assert_eq!(failures, 0, "WAL was not understood");
        if unstored > 0 {
            eprintln!("{unstored} stretches of WAL came too fast for the index");
        }
    });
}

/// With records as a bulk load writes them, and with small ones.
pub async fn index(scale: &Scale) {
    let fixture = Fixture::create(scale.waiting_scale, 16, crate::fixture::DISK).await;
    share(scale, &fixture, "of a bulk load").await;
    let fixture = Fixture::with_updates(scale.waiting_scale).await;
    share(scale, &fixture, "of `UPDATE` of every row").await;
}

async fn share(scale: &Scale, fixture: &Fixture, which: &str) {
    let bytes = fixture.waiting_bytes();
    let mut rounds = Vec::new();
    for _ in 0..scale.discarded + scale.rounds {
        let indexed = catches_up(fixture, |store| archiver(fixture, store, INDEXED)).await;
        let bare = catches_up(fixture, |store| archiver(fixture, store, "bare")).await;
        rounds.push([indexed, bare]);
    }
    let names = ["the archiver, with the index of records", "without"];
    report(&format!("The index of {} of waiting WAL {which}", mb(bytes)), bytes, &names, &rounds[scale.discarded..]);
}

fn archiver(fixture: &Fixture, store: &S3Process, kind: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([ARCHIVE, &fixture.server.conninfo(), store.endpoint(), kind]);
    command.envs(S3Server::env_at(store.endpoint())).stdout(Stdio::null());
    command
}
