//! What was promised, read back through the production code: plans of restores, and the bytes that they name.

use crate::invariant::Invariant;
use crate::ledger::{CLUSTER, Ledger};
use crate::server::SYSTEM_IDENTIFIER;
use crate::wal::{BranchId, Wal};
use jiff::Timestamp;
use seawall::backup::{RepositoryWaiter, WalWaiter};
use seawall::error::Kind;
use seawall::repository::{
    BackupBegin, BackupDocument, BackupId, Catalog, FORMAT_VERSION, Findings, Key, Repository, WalNeed, WalReader,
    Writer,
};
use seawall::restore::{Plan, Request, Target, TargetAction, plan};
use seawall::store::Store;
use seawall::wal::{Lsn, TimelineId, WalRange};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A base backup, as far as WAL is concerned: where it begins and where it is consistent.
#[derive(Clone, Debug)]
pub struct Marker {
    pub id: BackupId,
    pub branch: BranchId,
    pub start: Lsn,
    pub stop: Lsn,
    pub started_at: Timestamp,
}

impl Marker {
    /// Stored first.
    pub async fn begin(&self, store: Arc<dyn Store>, ledger: &Ledger) {
        let document = BackupBegin {
            format: FORMAT_VERSION,
            id: self.id.clone(),
            system_identifier: SYSTEM_IDENTIFIER,
            started_at: self.started_at,
            start_lsn: self.start,
            timeline: ledger.wal.timeline(self.branch),
            reference: None,
        };
        let writer = Writer::new(store, ledger.layout.clone(), SYSTEM_IDENTIFIER);
        writer.store_document(&Key::BackupBegin(self.id.clone()), &document).await.unwrap();
    }

    /// Stored last: the backup exists.
    pub async fn end(&self, store: Arc<dyn Store>, ledger: &Ledger, now: Timestamp) {
        let timeline = ledger.wal.timeline(self.branch);
        let document = BackupDocument {
            ending: seawall::codec::Ending::default(),
            format: FORMAT_VERSION,
            id: self.id.clone(),
            reference: None,
            label: "simulated".to_owned(),
            system_identifier: SYSTEM_IDENTIFIER,
            postgres_version: 170_000,
            started_at: self.started_at,
            ended_at: now,
            start_lsn: self.start,
            timeline,
            end_lsn: self.stop,
            end_timeline: timeline,
            wal_ranges: Vec::new(),
            settings: BTreeMap::new(),
            tablespaces: Vec::new(),
            plain_bytes: 0,
            restored_bytes: None,
            stored_bytes: 0,
            manifest_sha256: String::new(),
            findings: Findings::default(),
            parts: Vec::new(),
            files: seawall::repository::BackupFiles::default(),
        };
        let writer = Writer::new(store, ledger.layout.clone(), SYSTEM_IDENTIFIER);
        writer.store_document(&Key::BackupEnd(self.id.clone()), &document).await.unwrap();
    }

    /// True if all that it needs to become consistent is stored, and what waits for that sees it.
    pub async fn is_covered(&self, store: Arc<dyn Store>, ledger: &Ledger) -> bool {
        let start = ledger.wal.size.segment_start(self.start);
        let timeline = ledger.wal.timeline(self.branch);
        let waiter = RepositoryWaiter::new(Repository { store, layout: ledger.layout.clone() });
        let needs = [WalNeed { timeline, start, end: self.stop }];
        let waiting = waiter.wait_covered(&needs);
        let is_seen = tokio::time::timeout(Duration::from_millis(1), waiting).await.is_ok_and(|seen| seen.is_ok());
        is_seen && ledger.stored_from(self.branch, start, self.stop) >= self.stop
    }
}

/// The files that recovery reads from `start` to `end` on the way to `branch`, each by the branch whose it is.
fn files(wal: &Wal, branch: BranchId, start: Lsn, end: Lsn) -> Vec<(BranchId, Lsn, Lsn)> {
    let mut steps: Vec<(BranchId, TimelineId, Lsn)> = Vec::new();
    for (of, branch) in wal.lineage(branch) {
        match steps.last_mut() {
            // What was rolled back has its files in common with where it went on.
            Some(last) if last.1 == branch.timeline => last.2 = branch.begin,
            _ => steps.push((of, branch.timeline, branch.begin)),
        }
    }
    let mut files = Vec::new();
    let mut upto = end;
    for (of, _, begin) in steps {
        let begin = wal.size.segment_start(begin).max(start);
        if begin < upto {
            files.push((of, begin, upto));
            upto = begin;
        }
    }
    files.reverse();
    files
}

/// The first position from `start` to `end` on the way to `branch` that is not stored.
fn first_missing(ledger: &Ledger, branch: BranchId, start: Lsn, end: Lsn) -> Option<Lsn> {
    files(&ledger.wal, branch, start, end).into_iter().find_map(|(branch, start, end)| {
        let stored = ledger.stored_from(branch, start, end);
        (stored < end).then_some(stored)
    })
}

/// Checks every promise of `ledger` against what is in `store`. `others` are positions that nobody promised.
pub async fn check(
    store: Arc<dyn Store>,
    ledger: &Ledger,
    markers: &[Marker],
    others: &[Lsn],
    now: Timestamp,
    mut count: impl FnMut(&'static str),
) {
    let repository = Repository { store: store.clone(), layout: ledger.layout.clone() };
    let reader = WalReader::new(repository.clone(), SYSTEM_IDENTIFIER);
    let violate = |what: String| ledger.violate(Invariant::AcknowledgedRestores, what);
    let cluster = match Repository::read_cluster(store.as_ref(), CLUSTER).await {
        Ok(Some(cluster)) => cluster,
        // Nobody has come so far as to store anything.
        Ok(None) if ledger.promised().is_empty() => return,
        Ok(None) => return violate("cluster.json is gone".to_owned()),
        Err(error) => return violate(format!("cluster.json cannot be read: {error}")),
    };
    let catalog = match Catalog::read(&repository, cluster).await {
        Ok(catalog) => catalog,
        Err(error) => return violate(format!("the repository cannot be read: {error}: {error:?}")),
    };
    if !catalog.unknown.is_empty() {
        ledger.violate(Invariant::StoredIsTheServers, format!("strange names: {:?}", catalog.unknown));
    }
    for (branch, base, gaps, told) in ledger.promised() {
        let Some(&last) = told.last() else { continue };
        let timeline = ledger.wal.timeline(branch);
        // Whatever was acknowledged is there, with or without a backup
        let mut start = base;
        for (from, upto) in gaps.into_iter().chain([(last, last)]) {
            if from.min(last) > start {
                read_back(&reader, ledger, branch, timeline, start, from.min(last)).await;
                count("check: ranges read back");
            }
            start = start.max(upto);
        }
        // And every backup on the path reaches it
        let on_path = |marker: &&Marker| {
            ledger.wal.pieces(branch, marker.start, marker.stop)
                == ledger.wal.pieces(marker.branch, marker.start, marker.stop)
        };
        let of_path: Vec<&Marker> = markers.iter().filter(on_path).collect();
        let mut ends = vec![of_path.first(), of_path.last()];
        ends.dedup_by_key(|marker| marker.map(|marker| &marker.id));
        for marker in ends.into_iter().flatten() {
            let promised = &told[told.partition_point(|told| *told < marker.stop)..];
            if let Some(&target) = promised.last() {
                count("check: restores planned to what was acknowledged");
                let goal = Goal { branch, marker, target, is_promised: true, reads: true };
                reach(&reader, &catalog, ledger, goal, now).await;
            }
        }
        if let Some(marker) = of_path.last() {
            let some = told.get(told.len() / 2).map(|target| (*target, *target >= marker.stop));
            for (target, is_promised) in some.into_iter().chain(others.iter().map(|target| (*target, false))) {
                count("check: restores planned to anywhere");
                let goal = Goal { branch, marker, target, is_promised, reads: false };
                reach(&reader, &catalog, ledger, goal, now).await;
            }
        }
    }
}

async fn read_back(reader: &WalReader, ledger: &Ledger, branch: BranchId, timeline: TimelineId, start: Lsn, end: Lsn) {
    let range = WalRange { timeline, start, end };
    let what = match reader.read_range(range).await {
        Ok(window) if window.end != end => format!("reads only up to {}", window.end),
        Ok(window) if window.pieces.concat() != ledger.wal.bytes(branch, start, end) => "reads differently".to_owned(),
        Ok(_) => return,
        Err(error) => format!("cannot be read: {error}: {error:?}"),
    };
    ledger.violate(Invariant::AcknowledgedRestores, format!("{range} was acknowledged and {what}"));
}

/// A restore to try.
#[derive(Clone, Copy)]
struct Goal<'a> {
    branch: BranchId,
    marker: &'a Marker,
    target: Lsn,
    /// The target was acknowledged.
    is_promised: bool,
    /// All the WAL is read, which takes time.
    reads: bool,
}

/// Plans a restore and reads what the plan names, or looks whether the refusal is right.
async fn reach(reader: &WalReader, catalog: &Catalog, ledger: &Ledger, goal: Goal<'_>, now: Timestamp) {
    let Goal { branch, marker, target, is_promised, .. } = goal;
    let (wal, size) = (&ledger.wal, ledger.wal.size);
    let start = size.segment_start(marker.start);
    let request = Request {
        target: Target::Lsn(target),
        exclusive: true,
        backup: Some(marker.id.clone()),
        timeline: Some(wal.timeline(branch)),
        action: TargetAction::Promote,
    };
    let missing = first_missing(ledger, branch, start, target);
    let what = format!("from {} to {target} on timeline {}", marker.start, wal.timeline(branch));
    let invariant = if is_promised { Invariant::AcknowledgedRestores } else { Invariant::RefusalNamesWhatIsMissing };
    match plan(reader, catalog, &request, now).await {
        Ok(plan) => judge_plan(reader, ledger, goal, &plan, &what).await,
        Err(error) if error.kind() != Kind::Refused => {
            ledger.violate(invariant, format!("a restore {what} fails: {error}: {error:?}"));
        }
        Err(_) if target < marker.stop => {}
        Err(error) => match missing {
            None => {
                ledger.violate(invariant, format!("a restore {what} is refused, and everything is stored: {error}"))
            }
            Some(missing) if !error.to_string().contains(&missing.to_string()) => {
                ledger.violate(
                    Invariant::RefusalNamesWhatIsMissing,
                    format!("a restore {what} lacks {missing}, and is refused because {error}"),
                );
            }
            // What was acknowledged is missing only where it is recorded as lost.
            Some(missing) if is_promised && !is_lost(ledger, branch, missing) => {
                ledger.violate(
                    invariant,
                    format!("a restore {what} is refused, and nothing is recorded as lost: {error}"),
                );
            }
            Some(_) => {}
        },
    }
}

/// True if the byte is recorded as lost on a timeline of the path.
fn is_lost(ledger: &Ledger, branch: BranchId, lsn: Lsn) -> bool {
    let lineage = ledger.wal.lineage(branch).into_iter();
    lineage.map(|(_, of)| of.timeline).any(|timeline| ledger.first_gap(timeline, lsn, lsn + 1).is_some())
}

async fn judge_plan(reader: &WalReader, ledger: &Ledger, goal: Goal<'_>, plan: &Plan, what: &str) {
    let Goal { branch, marker, target, reads, .. } = goal;
    let wal = &ledger.wal;
    let violate = |text: String| ledger.violate(Invariant::AcknowledgedRestores, format!("a restore {what} {text}"));
    // Every record that was whole before the target.
    let border = wal.border_before(branch, target);
    let whole = if border.0 % 8192 <= 40 { Lsn(border.0 & !8191) } else { border };
    let whole = whole.max(marker.stop);
    if plan.end_lsn < whole {
        violate(format!("is planned only up to {}, not to {whole}", plan.end_lsn));
    }
    let mut position = wal.size.segment_start(marker.start);
    for need in &plan.wal {
        if need.start != position {
            violate(format!("is planned with a hole from {position} to {}", need.start));
        }
        position = need.end;
        if !reads {
            continue;
        }
        let range = WalRange { timeline: need.timeline, start: need.start, end: need.end };
        let expected = wal.bytes(branch, need.start, need.end);
        match reader.read_range(range).await {
            Ok(window) if window.end == need.end && window.pieces.concat() == expected => {}
            Ok(window) => violate(format!("reads {range} differently, or only up to {}", window.end)),
            Err(error) => violate(format!("cannot read {range}: {error}")),
        }
    }
    if position < plan.end_lsn {
        violate(format!("is planned to {} and names WAL only up to {position}", plan.end_lsn));
    }
}
