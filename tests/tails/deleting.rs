//! Rule 3: the archiver deletes below `open/` alone, and does without where it may not even do that.

use crate::s3::{Fault, Op, S3Server};
use crate::s3_store;
use crate::server::Server;
use crate::store::Latency;
use crate::support::waiting::{PATIENCE, wait_for};
use crate::world::{CLUSTER, HOUR, MIB, MILLISECOND, SECOND, World, on_a_paused_clock};
use seawall::archive::{ArchiveOptions, Archiver};
use seawall::codec::Compression;
use seawall::runtime::{Clock, Shutdown};
use seawall::store::list_all;
use seawall::wal::SegmentSize;
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Everything that is logged at warning and above on this thread, while it lives.
#[derive(Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Warnings {
    type Writer = Warnings;

    fn make_writer(&self) -> Warnings {
        self.clone()
    }
}

impl Warnings {
    pub fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
        tracing::subscriber::set_default(subscriber.with_writer(self.clone()).finish())
    }

    pub fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn tails_of_another_codec_are_compared_and_deleted_by_the_names_they_have() {
    on_a_paused_clock(async {
        // Given tails of an archiver that used Zstandard
        let zstd = ArchiveOptions { form: Compression::Zstd(1).into(), ..ArchiveOptions::default() };
        let mut world = World::begin(zstd, MIB, Latency::NEAR).await;
        world.trickle(700, SECOND / 2, 60 * SECOND).await;
        world.stop().await;
        let tails = async |world: &World, codec: &str| {
            let objects = list_all(&world.store, "main/open/").await.unwrap();
            objects.iter().filter(|object| object.key.ends_with(codec)).count()
        };
        assert!(tails(&world, ".zst").await > 0);
        // When one that uses LZ4 goes on
        world.options.form = Compression::Lz4.into();
        world.start().await;
        world.trickle(700, SECOND / 2, 10 * 60 * SECOND).await;
        // Then what it replaced is gone, and everything reads
        assert_eq!(tails(&world, ".zst").await, 0);
        assert!(tails(&world, ".lz4").await > 0);
        world.assert_readable().await;
    });
}

#[test]
fn nothing_is_deleted_that_is_not_below_open_and_replaced_for_five_minutes() {
    on_a_paused_clock(async {
        // Given blocks that fill slowly, at once, and across restarts, over a store that watches every deletion
        let mut world = World::begin(ArchiveOptions::default(), MIB, Latency::NEAR).await;
        for round in 0..6 {
            world.trickle(700, SECOND / 2, 10 * 60 * SECOND).await;
            world.trickle(100 << 10, SECOND / 10, 2 * SECOND).await;
            match round % 3 {
                0 => world.kill().await,
                1 => world.stop().await,
                _ => continue,
            }
            world.start().await;
        }
        world.trickle(1, SECOND, 6 * 60 * SECOND).await;
        // Then it saw deletions, and none that was wrong
        assert!(world.store.counts().deletes > 1_000, "{:?}", world.store.counts());
        world.assert_readable().await;
    });
}

#[test]
fn where_deleting_is_denied_the_archiver_works_and_says_so_once() {
    on_a_paused_clock(async {
        // Given credentials that may not delete
        let warnings = Warnings::default();
        let _listening = warnings.listen();
        let mut world = World::begin(ArchiveOptions::default(), MIB, Latency::NEAR).await;
        world.store.deny_deletes();
        // When it trickles for ten hours, blocks fill, and the connection breaks twice
        for _ in 0..3 {
            world.trickle(50, SECOND / 2, 3 * HOUR).await;
            world.server.cut();
            world.trickle(300 << 10, SECOND, 10 * SECOND).await;
            world.trickle(50, SECOND / 2, HOUR / 3).await;
        }
        // Then everything is stored, few deletions were tried, and the operator was told once
        let (counts, state) = (world.store.counts(), world.state().counts);
        assert!(counts.deletes <= 8 + 10, "{} deletions were tried", counts.deletes);
        let told: Vec<_> = warnings.lines().into_iter().filter(|line| line.contains("deleted")).collect();
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(told[0].contains("Denied"), "{told:?}");
        // and it knows how much is left to prune, but keeps no list of it
        assert!(state.undeleted > 50_000, "{state:?}");
        assert!(world.store.take_most_live() <= 75 + 16);
        world.assert_readable().await;
        // And when it is allowed after all, what comes from then on is deleted within the hour
        world.store.allow_deletes();
        let before = world.store.counts();
        world.trickle(50, SECOND, 2 * HOUR).await;
        assert!((world.store.counts() - before).deletes > 3_000, "{:?}", world.store.counts() - before);
    });
}

#[test]
fn garbage_that_was_due_while_the_connection_was_away_is_deleted_afterwards() {
    on_a_paused_clock(async {
        // Given a block that has just replaced many tails
        let mut world = World::begin(ArchiveOptions::default(), MIB, Latency::NEAR).await;
        world.trickle(50, SECOND / 2, 20 * 60 * SECOND).await;
        world.server.write(2 * MIB);
        world.server.all_safe().await;
        let garbage = world.store.garbage();
        assert!(garbage > 300, "only {garbage} tails are replaced");
        // When the connection breaks, and the stream begins behind that block
        world.server.cut();
        world.trickle(50, SECOND, 6 * 60 * SECOND).await;
        // Then they are deleted nevertheless
        assert_eq!(world.store.overdue(SECOND * 5), Vec::<String>::new());
        assert!(world.store.garbage() < garbage);
        world.assert_readable().await;
    });
}

#[tokio::test]
async fn where_s3_denies_deleting_there_is_one_warning_and_no_storm() {
    // Given a bucket whose policy lets nothing be deleted, and tails that are replaced at once
    let warnings = Warnings::default();
    let _listening = warnings.listen();
    let bucket = S3Server::start();
    bucket.always(Op::Delete, Fault::ACCESS_DENIED);
    let clock = Clock::system();
    let server = Server::new(SegmentSize::new(MIB).unwrap(), clock.clone());
    let store = s3_store::store(s3_store::options(&bucket)).await;
    let (flush_interval, garbage_age) = (5 * MILLISECOND, 100 * MILLISECOND);
    let options = ArchiveOptions { flush_interval, garbage_age, ..ArchiveOptions::default() };
    let archiver = Archiver::new(Arc::new(server.clone()), store, CLUSTER, options, clock);
    let (shutdown, state) = (Shutdown::default(), archiver.state());
    let token = shutdown.clone();
    let archiving = tokio::spawn(async move { archiver.run(&token).await });
    // When hundreds of them are due
    wait_for("tails that are left to prune", PATIENCE, async || {
        server.write(3_000);
        (state.borrow().counts.undeleted > 300).then_some(())
    })
    .await;
    // Then few deletions were tried, the operator was told once, and the archiver works and ends well
    let tried = bucket.count(Op::Delete);
    assert!((1..=8).contains(&tried), "{tried} deletions were tried");
    server.all_safe().await;
    shutdown.begin_stop();
    archiving.await.unwrap().expect("a good end");
    let told = warnings.lines();
    assert!(told.len() == 1 && told[0].contains("Denied"), "{told:#?}");
}
