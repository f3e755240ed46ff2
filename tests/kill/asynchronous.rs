//! Without anybody waiting, what is lost is no older than what was published: `seawall_rpo_seconds` at the kill plus one
//! second, and once the archiver had caught up, the flush interval plus two.
//!
//! Both are bounds of the contract. A machine without time to spare can break them without a defect, by being late at
//! any of the steps from a commit to its object; so a control measures how late it is, and each step is allowed that.

use crate::control::Control;
use crate::scene::{Archiver, Copy, Scene};
use crate::support::metrics::Endpoint;
use crate::support::oracle::{Commit, Oracle, missing};
use crate::support::postgres::DEBIAN;
use crate::support::proxy::Proxy;
use crate::support::waiting::{PATIENCE, wait_for};
use crate::{Victim, archived_under_load, load, on_every_version, rounds};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// `--flush-interval` as it is without being said.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Steps from a commit to its object that another process or thread has to be woken for.
const STEPS: u32 = 10;

/// A scrape.
#[derive(Clone, Copy, Debug)]
struct Published {
    /// Just before it was asked for: what it says is about a later moment.
    asked: Instant,
    rpo_seconds: f64,
    is_connected: bool,
}

/// Scrapes without pause, as long as it lives.
struct Scraper {
    seen: Arc<Mutex<Vec<Published>>>,
    task: JoinHandle<()>,
}

impl Scraper {
    fn start(metrics: Endpoint) -> Scraper {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let writing = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                if let Some(metrics) = metrics.scrape().await {
                    let rpo_seconds = metrics.value("seawall_rpo_seconds");
                    let is_connected = metrics.value("seawall_connected") == 1.0;
                    writing.lock().unwrap().push(Published { asked, rpo_seconds, is_connected });
                }
                sleep(Duration::from_millis(30)).await;
            }
        });
        Scraper { seen, task }
    }

    fn seen(&self) -> Vec<Published> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was known when it happened.
struct Evidence {
    what: String,
    published: Option<Published>,
    /// Nothing but a caught-up archiver was seen for the last seconds.
    caught_up: bool,
    allowance: Duration,
    told: Vec<Commit>,
    at: Instant,
    copy: Copy,
}

impl Evidence {
    /// Everything at one moment: first what was published, then what was told, then the bucket.
    fn now(what: impl Into<String>, scraper: &Scraper, control: &Control, clients: &Oracle, scene: &Scene) -> Evidence {
        let seen = scraper.seen();
        let (told, at) = (clients.told(), Instant::now());
        let copy = scene.bucket.snapshot();
        let recent: Vec<&Published> = seen.iter().filter(|seen| at - seen.asked < 4 * FLUSH_INTERVAL).collect();
        let since_long = seen.first().is_some_and(|first| at - first.asked >= 4 * FLUSH_INTERVAL);
        let steady = (2 * FLUSH_INTERVAL).as_secs_f64();
        let caught_up = since_long
            && !recent.is_empty()
            && recent.iter().all(|seen| seen.is_connected && seen.rpo_seconds < steady);
        let allowance = STEPS * control.worst();
        Evidence { what: what.into(), published: seen.last().copied(), caught_up, allowance, told, at, copy }
    }

    /// The two bounds, against what the copy has.
    fn judge(&self, rows: &BTreeSet<i64>) {
        let missing = missing(&self.told, rows);
        let Some(oldest) = missing.first() else { return };
        let lost = missing.len();
        if let Some(published) = self.published {
            // A commit that was told before this moment should be there.
            let age = published.asked.saturating_duration_since(oldest.told).as_secs_f64();
            let bound = published.rpo_seconds + 1.0 + self.allowance.as_secs_f64();
            assert!(
                age <= bound,
                "{}: {lost} commits are lost, the oldest {age:.2} s old when {published:?} was asked for (allowance \
                 {:?})",
                self.what,
                self.allowance
            );
        }
        if self.caught_up {
            let age = self.at - oldest.told;
            let bound = FLUSH_INTERVAL + Duration::from_secs(2) + self.allowance;
            assert!(age <= bound, "{}: {lost} commits are lost, the oldest {age:?} old, bound {bound:?}", self.what);
        }
    }
}

/// Waits until the archiver has caught up and clients have been told of commits since.
async fn wait_caught_up(scene: &Scene, archiver: &Archiver, clients: &Oracle) {
    let what = format!("the archiver to have caught up on PostgreSQL {}", scene.version);
    let before = clients.count();
    wait_for(&what, PATIENCE * 2, async || {
        let metrics = archiver.metrics.scrape().await?;
        let caught_up = metrics.value("seawall_connected") == 1.0 && metrics.value("seawall_rpo_seconds") < 1.0;
        (caught_up && clients.count() > before + 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_no_more_is_lost_than_was_published() {
    on_every_version(scenario).await;
}

async fn scenario(version: u32) {
    // Given an archiver, clients who commit, and somebody who scrapes
    let mut scene = Scene::new(version, &[]).await;
    let (mut archiver, mut pgbench) = archived_under_load(&scene).await;
    let control = Control::start();
    let clients = Oracle::start(&scene.server.conninfo(), 2, Duration::from_millis(10));
    let mut evidence = Vec::new();
    // When one or the other is killed, again and again
    for round in 0..rounds() {
        let victim = Victim::of(version, round);
        wait_caught_up(&scene, &archiver, &clients).await;
        let scraper = Scraper::start(archiver.metrics);
        // Long enough to be steady, and each time at another point of the flush interval.
        sleep(4 * FLUSH_INTERVAL + Duration::from_millis((round as u64 * 170 + u64::from(version) * 70) % 500)).await;
        evidence.push(Evidence::now(
            format!("PostgreSQL {version}, round {round}, {victim:?}"),
            &scraper,
            &control,
            &clients,
            &scene,
        ));
        if victim.is_archiver() {
            // Time in which nobody archives; then the new process has hardly begun when it is killed as well.
            archiver.running.kill();
            sleep(Duration::from_millis(1500)).await;
            archiver = scene.archiver().await;
            let scraper = Scraper::start(archiver.metrics);
            wait_for("a first scrape", PATIENCE, async || scraper.seen().first().map(|_| ())).await;
            evidence.push(Evidence::now(
                format!("PostgreSQL {version}, round {round}, begun"),
                &scraper,
                &control,
                &clients,
                &scene,
            ));
        }
        victim.kill_and_start(&mut scene, &mut archiver).await;
        pgbench = load(&scene);
    }
    archiver.running.kill();
    scene.server.kill().await.unwrap();
    drop((clients, pgbench));
    // Then the copies have what they should: one for which both bounds hold, and one of an archiver that had hardly begun
    let (steady, begun): (Vec<&Evidence>, Vec<_>) = evidence.iter().partition(|evidence| evidence.caught_up);
    assert!(!steady.is_empty(), "the archiver never stayed caught up for two seconds on PostgreSQL {version}");
    let chosen = [&steady, &begun].map(|kind| kind.get(version as usize % kind.len().max(1)));
    for (index, evidence) in chosen.into_iter().flatten().enumerate() {
        let rows = scene.rows_of(&evidence.copy, &format!("copy-{index}")).await;
        evidence.judge(&rows);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_or_silent_network_does_not_make_the_published_loss_look_good() {
    // Given an archiver behind a network, clients, and somebody who scrapes
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let network = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", network.address().port());
    scene.environment.push(("SEAWALL_PG", conninfo));
    let archiver = scene.archived().await;
    let control = Control::start();
    let clients = Oracle::start(&scene.server.conninfo(), 4, Duration::ZERO);
    let scraper = Scraper::start(archiver.metrics);
    wait_caught_up(&scene, &archiver, &clients).await;
    let mut evidence = Vec::new();
    // When it falls silent
    network.set(|network| network.stalled_down = true);
    sleep(Duration::from_millis(1700)).await;
    evidence.push(Evidence::now("silent", &scraper, &control, &clients, &scene));
    network.heal();
    wait_caught_up(&scene, &archiver, &clients).await;
    // or far too slow for what is written, so that WAL waits in buffers on the way
    network.set(|network| network.bytes_per_second = Some(30_000));
    sleep(Duration::from_secs(7)).await;
    evidence.push(Evidence::now("slow", &scraper, &control, &clients, &scene));
    drop(scraper);
    drop(archiver);
    scene.server.kill().await.unwrap();
    drop(clients);
    // Then what was published said so, every time
    for (index, evidence) in evidence.iter_mut().enumerate() {
        // A network that has just become bad is no caught-up archiver any more.
        evidence.caught_up = false;
        let rows = scene.rows_of(&evidence.copy, &format!("copy-{index}")).await;
        evidence.judge(&rows);
    }
}
