//! The promise against `kill -9`: of the archiver, of PostgreSQL, of a backup, of a restore, while clients commit and
//! remember what they were told. What decides is a restore from a copy of the bucket, taken at the moment of the kill.
//!
//! `SEAWALL_KILL_ROUNDS` makes it longer: the number of kills on each major version (3 without).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;

mod asynchronous;
mod control;
mod halfway;
mod synchronous;

use scene::{Archiver, Scene};
use seawall::scratch::StopMode;
use std::future::Future;
use support::postgres::{Load, SERVER_VERSIONS, pgbench_tables};

/// What is killed, in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    /// `kill -9`.
    Archiver,
    /// `kill -9` of the postmaster and everything below it.
    Server,
    /// `pg_ctl stop -m immediate`.
    ServerAtOnce,
    /// `kill -9` of both.
    Both,
}

impl Victim {
    const ALL: [Victim; 4] = [Victim::Archiver, Victim::Server, Victim::ServerAtOnce, Victim::Both];

    /// Each version begins with another one, so that a short run has all of them.
    fn of(version: u32, round: usize) -> Victim {
        Victim::ALL[(version as usize + round) % Victim::ALL.len()]
    }

    fn is_archiver(self) -> bool {
        matches!(self, Victim::Archiver | Victim::Both)
    }

    /// Kills, and starts again: the server first.
    async fn kill_and_start(self, scene: &mut Scene, archiver: &mut Archiver) {
        if self.is_archiver() {
            archiver.running.kill();
        }
        match self {
            Victim::Archiver => {}
            Victim::Server | Victim::Both => scene.server.kill().await.unwrap(),
            Victim::ServerAtOnce => scene.server.stop(StopMode::Immediate).await.unwrap(),
        }
        scene.server.start().await.unwrap();
        if self.is_archiver() {
            *archiver = scene.archiver().await;
        }
        assert!(archiver.running.is_running(), "the archiver ended:\n{}", archiver.running.stderr());
    }
}

/// Transactions a second beside the clients that remember: the versions run side by side on few processors.
const LOAD_PER_SECOND: u32 = 20;

/// An archiver that streams, a base backup, and pgbench at work.
async fn archived_under_load(scene: &Scene) -> (Archiver, Load) {
    pgbench_tables(&scene.server, 1).await;
    let archiver = scene.archived().await;
    (archiver, load(scene))
}

/// pgbench at work until the server goes.
fn load(scene: &Scene) -> Load {
    Load::paced(&scene.server, 2, LOAD_PER_SECOND)
}

fn rounds() -> usize {
    std::env::var("SEAWALL_KILL_ROUNDS").map_or(3, |text| text.parse().expect("SEAWALL_KILL_ROUNDS is a number"))
}

/// Runs a scenario on every major version, side by side.
async fn on_every_version<F: Future<Output = ()>>(scenario: impl Fn(u32) -> F) {
    futures_util::future::join_all(SERVER_VERSIONS.map(scenario)).await;
}
