//! The cluster that is verified: a base backup, WAL on two timelines, tails, and what a failover leaves.

use crate::invented::{Invented, MIB, SYSTEM, wal_bytes};
use bytes::Bytes;
use jiff::Timestamp;
use seawall::error::Error;
use seawall::repository::{DeadBranchNote, FORMAT_VERSION, GapNote, Heartbeat, Key, Repository, Writer};
use seawall::runtime::Clock;
use seawall::store::list_all;
use seawall::verify::{Finding, FindingKind, Report, VerifyOptions, VerifyProgress, verify};
use seawall::wal::{Lsn, TimelineId, WalRange};
use std::ops::Deref;
use tokio::sync::watch;

/// Where timeline 1 was left.
pub(crate) const SWITCH: u64 = 5 * MIB + 5000;

pub(crate) struct Stage {
    invented: Invented,
    pub(crate) writer: Writer,
}

impl Deref for Stage {
    type Target = Invented;

    fn deref(&self) -> &Invented {
        &self.invented
    }
}

pub(crate) fn range(timeline: u32, start: u64, end: u64) -> WalRange {
    WalRange { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
}

impl Stage {
    /// Timeline 1 from 2 MiB up to [`SWITCH`], with a dead branch behind it; timeline 2 from there up to 8 MiB and a tail.
    pub(crate) async fn new() -> Stage {
        let invented = Invented::new().await;
        let writer = Writer::new(invented.store.clone(), invented.repository.layout.clone(), SYSTEM);
        let stage = Stage { invented, writer };
        stage.block(range(1, 5 * MIB, SWITCH)).await;
        let dead = range(1, SWITCH, SWITCH + 3000);
        stage.block(range(1, 5 * MIB, dead.end.0)).await;
        let WalRange { timeline, start, end } = dead;
        let note = DeadBranchNote { format: FORMAT_VERSION, timeline, start, end };
        stage.writer.store_document(&Key::DeadBranch(dead), &note).await.unwrap();
        let history = format!("1\t{}\tno recovery target specified\n", Lsn(SWITCH));
        stage.writer.store_plain(&Key::History(TimelineId(2)), Bytes::from(history)).await.unwrap();
        for start in [5, 6, 7] {
            stage.block(range(2, start * MIB, (start + 1) * MIB)).await;
        }
        stage.tail(range(2, 8 * MIB, 8 * MIB + 100)).await;
        stage.tail(range(2, 8 * MIB + 50, 8 * MIB + 400)).await;
        stage.heartbeat(8 * MIB + 400).await;
        stage
    }

    pub(crate) async fn block(&self, range: WalRange) -> String {
        self.writer.store_wal(&Key::Block(range), range, wal_bytes(range)).await.unwrap();
        self.layout().name(&Key::Block(range))
    }

    pub(crate) async fn tail(&self, range: WalRange) -> String {
        self.writer.store_wal(&Key::Tail(range), range, wal_bytes(range)).await.unwrap();
        self.layout().name(&Key::Tail(range))
    }

    pub(crate) async fn heartbeat(&self, flush: u64) -> String {
        let (timeline, flush, time) = (TimelineId(2), Lsn(flush), Timestamp::from_second(1_795_132_800).unwrap());
        let heartbeat = Heartbeat { format: FORMAT_VERSION, time, timeline, flush_lsn: flush };
        let key = Key::Heartbeat { timeline, time, flush };
        self.writer.store_document(&key, &heartbeat).await.unwrap();
        self.layout().name(&key)
    }

    pub(crate) async fn gap(&self, lost: WalRange) -> String {
        let (found_at, reason) = (Timestamp::UNIX_EPOCH, "a test's".to_owned());
        let WalRange { timeline, start, end } = lost;
        let note = GapNote { format: FORMAT_VERSION, timeline, start, end, found_at, reason };
        self.writer.store_document(&Key::Gap(lost), &note).await.unwrap();
        self.layout().name(&Key::Gap(lost))
    }

    pub(crate) fn layout(&self) -> &seawall::repository::Layout {
        &self.repository.layout
    }

    pub(crate) async fn delete(&self, name: &str) {
        assert!(self.store.head(name).await.is_ok(), "{name} is there to be deleted");
        self.store.delete(name).await.unwrap();
    }

    pub(crate) async fn swap(&self, one: &str, other: &str) {
        let (first, second) = (self.read(one).await, self.read(other).await);
        self.replace(one, second).await;
        self.replace(other, first).await;
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        list_all(self.store.as_ref(), "").await.unwrap().into_iter().map(|object| object.key).collect()
    }

    pub(crate) async fn looked(&self) -> Report {
        self.verified(&VerifyOptions::default(), Clock::system().now()).await.unwrap()
    }

    pub(crate) async fn read_all(&self) -> Report {
        self.verified(&deep(), Clock::system().now()).await.unwrap()
    }

    pub(crate) async fn verified(&self, options: &VerifyOptions, now: Timestamp) -> Result<Report, Error> {
        let cluster = Repository::read_cluster(self.store.as_ref(), "main").await.unwrap().unwrap();
        let (progress, _) = watch::channel(VerifyProgress::default());
        verify(&self.repository, cluster, options, now, &progress).await
    }
}

pub(crate) fn deep() -> VerifyOptions {
    VerifyOptions { deep: true, ..VerifyOptions::default() }
}

/// The kinds and objects that were found, without what follows from them for plans.
pub(crate) fn found(report: &Report) -> Vec<(FindingKind, String)> {
    let is_cause = |finding: &&Finding| finding.kind != FindingKind::BackupNotRestorable;
    let named = |finding: &Finding| (finding.kind, finding.object.clone().unwrap_or_default());
    report.findings.iter().filter(is_cause).map(named).collect()
}

pub(crate) fn assert_sound(report: &Report) {
    assert!(report.is_sound && report.findings.is_empty(), "{:#?}", report.findings);
}

pub(crate) fn count(report: &Report, kind: FindingKind) -> u64 {
    report.counts[&kind]
}
