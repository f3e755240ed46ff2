//! Resets, delays, throttles and half-open connections, before the store and before the server.

use crate::scene::{Archiver, Scene};
use crate::support::oracle::Oracle;
use crate::support::postgres::{DEBIAN, pgbench_tables};
use crate::support::proxy::{Proxy, Way};
use crate::support::waiting::{PATIENCE, wait_for};
use crate::{assert_complete, clients, more_are_told};
use std::time::Duration;

/// What a network does, until it is healed.
struct Break {
    what: &'static str,
    does: fn(&Proxy),
    effect: Effect,
}

/// How it is known that a fault has been felt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// It strikes what lives at a moment: again and again, so that it strikes in the middle of something.
    Strikes,
    /// Bytes pass all the same.
    Passes,
    /// Nothing passes, and the published loss grows.
    Blocks,
}

const BREAKS: [Break; 8] = [
    Break { what: "closed", does: Proxy::cut, effect: Effect::Strikes },
    Break { what: "reset", does: Proxy::reset, effect: Effect::Strikes },
    Break {
        what: "late",
        does: |proxy| proxy.set(|network| network.delay = Duration::from_millis(300)),
        effect: Effect::Passes,
    },
    Break {
        what: "slow",
        does: |proxy| proxy.set(|network| network.bytes_per_second = Some(40_000)),
        effect: Effect::Passes,
    },
    Break {
        what: "half open towards the server",
        does: |proxy| proxy.set(|network| network.stalled_up = true),
        effect: Effect::Blocks,
    },
    Break {
        what: "half open towards the client",
        does: |proxy| proxy.set(|network| network.stalled_down = true),
        effect: Effect::Blocks,
    },
    Break {
        what: "silent",
        does: |proxy| {
            proxy.set(|network| {
                network.stalled_up = true;
                network.stalled_down = true;
            });
        },
        effect: Effect::Blocks,
    },
    Break {
        what: "refusing",
        does: |proxy| {
            proxy.set(|network| network.refusing = true);
            proxy.reset();
        },
        effect: Effect::Blocks,
    },
];

/// A scene whose archiver goes through proxies, with a base backup and clients.
struct Between {
    scene: Scene,
    archiver: Archiver,
    clients: Oracle,
    to_server: Proxy,
    to_bucket: Proxy,
}

impl Between {
    async fn new() -> Between {
        let mut scene = Scene::new(DEBIAN, &[]).await;
        let to_server = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
        let to_bucket = Proxy::before_endpoint(&scene.bucket.endpoint()).await;
        let port = to_server.address().port();
        scene.environment.push(("SEAWALL_PG", format!("host=127.0.0.1 port={port} user=postgres sslmode=disable")));
        scene.environment.push(("AWS_ENDPOINT_URL", format!("http://{}", to_bucket.address())));
        let archiver = scene.archived().await;
        let clients = clients(&scene);
        Between { scene, archiver, clients, to_server, to_bucket }
    }

    /// Breaks a way, and waits until that has been felt.
    async fn strike(&self, proxy: &Proxy, broken: &Break) {
        let passed = || proxy.bytes(Way::Up) + proxy.bytes(Way::Down);
        let before = passed();
        (broken.does)(proxy);
        match broken.effect {
            Effect::Strikes => {
                let mut seen = proxy.connections();
                for _ in 0..2 {
                    wait_for("a connection to strike", PATIENCE, async || (proxy.connections() > seen).then_some(()))
                        .await;
                    seen = proxy.connections();
                    more_are_told(&self.clients).await;
                    (broken.does)(proxy);
                }
            }
            Effect::Passes => {
                wait_for(broken.what, PATIENCE, async || (passed() > before + 30_000).then_some(())).await;
            }
            Effect::Blocks => {
                wait_for(broken.what, PATIENCE, async || {
                    let metrics = self.archiver.metrics.scrape().await?;
                    (metrics.value("seawall_rpo_seconds") > 1.5).then_some(())
                })
                .await;
            }
        }
    }

    /// The process of the server that streams to the archiver.
    async fn walsender(&self) -> String {
        self.scene.server.value("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'").await
    }

    /// The archiver has been heard for longer than the server bears silence, since this began.
    async fn wait_longer_than_the_timeout(&self) {
        let since = self.scene.server.value("SELECT clock_timestamp()").await;
        let query = format!(
            "SELECT count(*) FROM pg_stat_replication \
             WHERE state = 'streaming' AND reply_time > timestamptz '{since}' + interval '6 s'"
        );
        self.scene.wait("status messages to go on", &query).await;
    }

    async fn assert_complete(self) {
        self.to_server.heal();
        self.to_bucket.heal();
        assert_complete(self.scene, self.archiver, self.clients).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_on_the_way_to_the_store_the_stream_lives_and_catches_up() {
    // Given an archiver under load
    let between = Between::new().await;
    let walsender = between.walsender().await;
    for broken in &BREAKS {
        // When the network before the store breaks, and commits go on
        between.strike(&between.to_bucket, broken).await;
        more_are_told(&between.clients).await;
        if broken.what == "silent" {
            // and also more than fits into memory
            pgbench_tables(&between.scene.server, 6).await;
            // Then the server hears from the archiver, for longer than it would bear silence
            between.wait_longer_than_the_timeout().await;
        }
        // and when it is mended, everything is stored
        between.to_bucket.heal();
        between.scene.settle().await;
    }
    // on one connection all the time
    assert_eq!(between.walsender().await, walsender, "the stream broke, and only the store was bad");
    between.assert_complete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_on_the_way_to_the_server_it_comes_back_and_catches_up() {
    let between = Between::new().await;
    for broken in &BREAKS {
        between.strike(&between.to_server, broken).await;
        more_are_told(&between.clients).await;
        between.to_server.heal();
        between.scene.settle().await;
    }
    between.assert_complete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ways_may_be_bad_at_once() {
    let between = Between::new().await;
    // Given every fault of the one with another of the other
    for (index, of_store) in BREAKS.iter().enumerate() {
        let of_server = &BREAKS[(index * 3 + 1) % BREAKS.len()];
        // The first one is felt before the second comes.
        if index % 2 == 0 {
            between.strike(&between.to_bucket, of_store).await;
            (of_server.does)(&between.to_server);
        } else {
            between.strike(&between.to_server, of_server).await;
            (of_store.does)(&between.to_bucket);
        }
        more_are_told(&between.clients).await;
        // Mended one after the other, either one first
        let (first, second) = match index % 2 {
            0 => (&between.to_bucket, &between.to_server),
            _ => (&between.to_server, &between.to_bucket),
        };
        first.heal();
        more_are_told(&between.clients).await;
        second.heal();
        between.scene.settle().await;
    }
    between.assert_complete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_die_without_a_word_are_given_up() {
    let strand = async |to_store: bool, to_server: bool| {
        // Given connections that nothing comes through any more, while new ones would work
        let between = Between::new().await;
        let made = (between.to_bucket.connections(), between.to_server.connections());
        if to_store {
            between.to_bucket.strand();
        }
        if to_server {
            between.to_server.strand();
        }
        // Then new ones are made, and everything arrives
        more_are_told(&between.clients).await;
        between.scene.settle().await;
        assert!(!to_store || between.to_bucket.connections() > made.0, "no new connection to the store");
        assert!(!to_server || between.to_server.connections() > made.1, "no new connection to the server");
        between.assert_complete().await;
    };
    futures_util::future::join(strand(true, false), strand(false, true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_in_the_middle_of_its_beginning_is_given_up() {
    // Given a server that takes connections and says nothing
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let to_server = Proxy::start(([127, 0, 0, 1], scene.server.port()).into()).await;
    let port = to_server.address().port();
    scene.environment.push(("SEAWALL_PG", format!("host=127.0.0.1 port={port} user=postgres sslmode=disable")));
    to_server.set(|network| network.stalled_down = true);
    let archiver = scene.archiver().await;
    wait_for("the archiver to come", PATIENCE, async || (to_server.bytes(Way::Up) > 0).then_some(())).await;
    // When that connection is dead for ever, and others would work
    to_server.strand();
    to_server.heal();
    // Then another one is made
    scene.settle().await;
    let clients = clients(&scene);
    scene.seawall(&["backup", "--fast"]).run_ok().await;
    assert_complete(scene, archiver, clients).await;
}
