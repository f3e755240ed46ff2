//! Whether a repository holds what it must: its catalogue against what the store lists, WAL without a hole, a plan for every base
//! backup, and on demand every object's contents. Writes nothing. May use `repository` and all that it may, and `restore` for plans.
//!
//! ```text
//! documents of base backups ─► listing of their folders ─► listing of index, open, wal ─► catalogue: histories, holes, plans
//!                                                  on demand: listing once more ─► every object, several at a time
//! ```
//!
//! What is there may be anything: a document that cannot be read is a finding, and memory is bounded by the ranges of WAL and by one
//! backup's list of parts.

mod backups;
mod contents;
mod deep;
mod fetched;
mod listing;
mod pace;
mod report;
mod state;
mod timelines;

pub use report::{Checked, Finding, FindingKind, MissingWal, Reading, Report};

use crate::error::{Error, Kind, Result};
use crate::repository::{BackupEntry, Catalog, Cluster, Key, Repository};
use crate::restore::{self, Request, Target, TargetAction};
use crate::wal::{History, SegmentSize, TimelineId};
use backups::Folder;
use deep::Deep;
use fetched::{DOCUMENT_BYTES_MAX, fetch};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use listing::{Listing, pages, report, unknown};
use report::Findings;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use tokio::sync::watch;

/// A hole so near to the end may be one of an archiver that stores several objects at once: it is looked at twice.
const IN_FLIGHT_BYTES: u64 = 1 << 30;

/// How a repository is verified.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Every object is read.
    pub deep: bool,
    /// How many at once: each is up to 64 MiB of memory, and mostly 16.
    pub downloads: usize,
    /// They are read no faster than this.
    pub bytes_per_second: Option<u64>,
    /// A file with what was read, for the case that the verification is interrupted; and what an interrupted one has read is passed
    /// over. It is removed at the end.
    pub resume: Option<PathBuf>,
}

impl Default for VerifyOptions {
    fn default() -> VerifyOptions {
        VerifyOptions { deep: false, downloads: 4, bytes_per_second: None, resume: None }
    }
}

/// How far it is with reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of objects that were read, now or by the process that was interrupted.
    pub done_bytes: u64,
    /// Bytes of all objects; 0 while they are listed.
    pub total_bytes: u64,
}

/// Verifies the folder of `cluster`.
///
/// # Errors
/// If the store cannot be used, what is there is of a later format, or the file of an interrupted verification is of no use. Whatever is
/// wrong with what is there is in the report.
pub async fn verify(
    repository: &Repository,
    cluster: Cluster,
    options: &VerifyOptions,
    now: Timestamp,
    progress: &watch::Sender<VerifyProgress>,
) -> Result<Report> {
    let system_identifier = cluster.system_identifier;
    // First of all: a file that is of no use is known of before anything is listed.
    let deep = match options.deep {
        true => Some(Deep::new(repository, system_identifier, options, progress).await?),
        false => None,
    };
    let mut verification = Verification {
        repository,
        system_identifier,
        now,
        lengths: deep.is_none(),
        checked: Checked::default(),
        findings: Findings::default(),
    };
    let catalog = verification.look(cluster).await?;
    let read = match deep {
        Some(deep) => {
            progress.send_modify(|progress| progress.total_bytes = verification.checked.object_bytes);
            Some(Box::pin(deep.read(catalog, &mut verification.findings)).await?)
        }
        None => None,
    };
    Ok(verification.report(read))
}

struct Verification<'a> {
    repository: &'a Repository,
    system_identifier: u64,
    now: Timestamp,
    /// Lengths are compared with the listing; else they are with the contents.
    lengths: bool,
    checked: Checked,
    findings: Findings,
}

impl Verification<'_> {
    fn report(self, read: Option<Reading>) -> Report {
        let (problems, counts, findings) = self.findings.finish();
        Report {
            cluster: self.repository.layout.cluster().to_owned(),
            system_identifier: self.system_identifier.to_string(),
            is_sound: problems == 0,
            problems,
            counts,
            checked: self.checked,
            read,
            findings,
        }
    }

    /// Everything that needs no object's contents but those of documents. Returns what there is, as far as those say it.
    async fn look(&mut self, cluster: Cluster) -> Result<Catalog> {
        let size = SegmentSize::new(cluster.segment_bytes).ok_or_else(|| {
            Error::new(Kind::Damaged, format!("cluster.json names segments of {} bytes", cluster.segment_bytes))
        })?;
        // Backups before WAL: what they say they need was stored before they say so.
        let backups = self.look_at_backups().await?;
        let mut listing = self.list_wal().await?;
        self.look_elsewhere().await?;
        let histories = self.read_histories(&listing).await?;
        let coverage = listing.coverage();
        self.checked.timelines = coverage.len() as u64;
        self.checked.wal_bytes = coverage.values().flat_map(|it| it.runs()).map(|run| run.end - run.start).sum();
        let (mut gaps, dead_branches, pruned) = (listing.gaps, listing.dead_branches, listing.pruned);
        gaps.sort_by_key(|gap| (gap.range.timeline, gap.range.start));
        let (heartbeats, records, names, unknown) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
        let catalog = Catalog {
            cluster,
            histories,
            coverage,
            gaps,
            pruned,
            dead_branches,
            heartbeats,
            records,
            names,
            backups,
            unknown,
        };
        let layout = &self.repository.layout;
        for finding in timelines::missing_histories(&catalog, &listing.histories, layout) {
            self.findings.add(finding);
        }
        for finding in timelines::contradictions(&catalog.histories, layout) {
            self.findings.add(finding);
        }
        for hole in timelines::holes(&catalog, &catalog.pruned, &listing.proven, size) {
            let is_pruned = timelines::is_within(&hole, &catalog.pruned);
            if is_pruned || self.is_still_there(&catalog, &hole).await? {
                let finding = self.hole(&catalog, hole, is_pruned, size);
                self.findings.add(finding);
            }
        }
        self.plan(&catalog);
        Ok(catalog)
    }

    async fn look_at_backups(&mut self) -> Result<Vec<BackupEntry>> {
        let (store, layout) = (self.repository.store.as_ref(), &self.repository.layout);
        let level = store.list_level(&layout.base_prefix()).await?;
        self.add_unknown(level.objects.iter().map(|object| (object.key.as_str(), object.bytes)));
        let mut entries = Vec::new();
        for prefix in level.prefixes {
            let Some(id) = layout.parse_backup_prefix(&prefix) else {
                self.list_unknown(&prefix).await?;
                continue;
            };
            let folder = Folder::read(self.repository, self.system_identifier, id, &mut self.findings).await?;
            let results = (&mut self.checked, &mut self.findings);
            folder.compare(self.repository, self.now, self.lengths, results).await?;
            entries.push(folder.into_entry());
        }
        entries.sort_by(|one, other| one.id.cmp(&other.id));
        self.checked.backups = entries.iter().filter(|entry| entry.document.is_some()).count() as u64;
        Ok(entries)
    }

    /// Heartbeats before the WAL that they speak of, and tails before the blocks that replace them.
    async fn list_wal(&mut self) -> Result<Listing> {
        let layout = &self.repository.layout;
        let mut listing = Listing::default();
        for prefix in [layout.index_root(), layout.open_root(), layout.wal_prefix()] {
            let mut pages = pin!(pages(self.repository.store.as_ref(), &prefix));
            while let Some(page) = pages.try_next().await? {
                for object in page {
                    if let Some(finding) = listing.take(layout, &object, &mut self.checked) {
                        self.findings.add(finding);
                    }
                }
            }
        }
        Ok(listing)
    }

    /// What lies beside the four folders.
    async fn look_elsewhere(&mut self) -> Result<()> {
        let layout = &self.repository.layout;
        let level = self.repository.store.list_level(&layout.root()).await?;
        let (known, strange): (Vec<_>, Vec<_>) =
            level.objects.iter().partition(|object| layout.parse(&object.key) == Ok(Key::Cluster));
        self.checked.objects += known.len() as u64;
        self.checked.object_bytes += known.iter().map(|object| object.bytes).sum::<u64>();
        self.add_unknown(strange.into_iter().map(|object| (object.key.as_str(), object.bytes)));
        let known = [layout.base_prefix(), layout.index_root(), layout.open_root(), layout.wal_prefix()];
        for prefix in level.prefixes.iter().filter(|prefix| !known.contains(prefix)) {
            let reports = [layout.drills_prefix(), layout.audit_root(), layout.prunes_prefix(), layout.keep_prefix()];
            match reports.contains(prefix) {
                true => self.look_at_reports(prefix).await?,
                false => self.list_unknown(prefix).await?,
            }
        }
        Ok(())
    }

    /// No restore depends on what drills found, on who did what, on what prunes did, or on marks: their names are enough.
    async fn look_at_reports(&mut self, prefix: &str) -> Result<()> {
        let mut pages = pin!(pages(self.repository.store.as_ref(), prefix));
        while let Some(page) = pages.try_next().await? {
            for object in page {
                if let Some(finding) = report(&self.repository.layout, &object, &mut self.checked) {
                    self.findings.add(finding);
                }
            }
        }
        Ok(())
    }

    async fn list_unknown(&mut self, prefix: &str) -> Result<()> {
        let mut pages = pin!(pages(self.repository.store.as_ref(), prefix));
        while let Some(page) = pages.try_next().await? {
            self.add_unknown(page.iter().map(|object| (object.key.as_str(), object.bytes)));
        }
        Ok(())
    }

    fn add_unknown<'b>(&mut self, objects: impl Iterator<Item = (&'b str, u64)>) {
        for (name, bytes) in objects {
            self.checked.objects += 1;
            self.checked.object_bytes += bytes;
            self.findings.add(unknown(name));
        }
    }

    async fn read_histories(&mut self, listing: &Listing) -> Result<BTreeMap<TimelineId, History>> {
        let mut histories = BTreeMap::new();
        for &timeline in &listing.histories {
            let name = self.repository.layout.name(&Key::History(timeline));
            let fetched = fetch(self.repository.store.as_ref(), &name, DOCUMENT_BYTES_MAX).await?;
            let wrong = |what: String| Finding::of_object(FindingKind::WrongContents, &name, what);
            let read = match fetched.or_finding(&name) {
                Ok(Some(text)) => {
                    History::parse(timeline, &text).map_err(|error| wrong(format!("is damaged: {error}")))
                }
                Ok(None) => Err(Finding::of_object(FindingKind::MissingObject, &name, "was listed and is gone")),
                Err(finding) => Err(*finding),
            };
            match read {
                Ok(history) if timeline > TimelineId(1) && history.ancestors.is_empty() => {
                    self.findings.add(wrong("does not say where its timeline begins".to_owned()));
                }
                Ok(history) => _ = histories.insert(timeline, history),
                Err(finding) => self.findings.add(finding),
            }
        }
        Ok(histories)
    }

    /// False if a hole was filled since the listing, or has been recorded.
    async fn is_still_there(&self, catalog: &Catalog, hole: &MissingWal) -> Result<bool> {
        let stored = catalog.coverage.get(&hole.timeline).and_then(|coverage| coverage.end());
        let is_near_the_end = stored.is_none_or(|end| end.0.saturating_sub(hole.start.0) < IN_FLIGHT_BYTES);
        if hole.is_recorded || !hole.is_needed || !is_near_the_end {
            return Ok(true);
        }
        let prefix = self.repository.layout.index_prefix(hole.timeline);
        let mut pages = pin!(pages(self.repository.store.as_ref(), &prefix));
        while let Some(page) = pages.try_next().await? {
            let keys = page.iter().filter_map(|object| self.repository.layout.parse(&object.key).ok());
            let covers = |key| matches!(key, Key::Gap(gap) if gap.start <= hole.start && hole.end <= gap.end);
            if keys.into_iter().any(covers) {
                return Ok(false);
            }
        }
        let coverage = self.repository.read_coverage(hole.timeline, hole.start).await?;
        Ok(coverage.chain(hole.start, hole.end).is_err())
    }

    fn hole(&self, catalog: &Catalog, hole: MissingWal, is_pruned: bool, size: SegmentSize) -> Finding {
        let MissingWal { timeline, start, end, is_recorded, is_needed } = hole;
        let segment = crate::wal::Segment::holding(timeline, start, size);
        let name = format!("{}{segment}", self.repository.layout.wal_directory(segment));
        let how = match (is_pruned, is_recorded) {
            (true, _) => "was deleted by `seawall prune`, as retention says",
            (false, true) => "was lost, which is recorded",
            (false, false) => "is missing",
        };
        let whose = if is_needed { "" } else { ", in front of all base backups: no restore needs it" };
        let message = format!("{name}: WAL from {start} to {end} of timeline {timeline} {how}{whose}");
        let finding = Finding { message, wal: Some(hole), ..Finding::of_object(FindingKind::Hole, &name, "") };
        let is_unanswered = catalog.unanswered_gap().is_some_and(|gap| gap.timeline == timeline && gap.end >= end);
        match (is_recorded, is_unanswered) {
            _ if is_pruned || !is_needed => finding.into_note(),
            (false, _) => finding.hint(
                "Is there another copy of the bucket (versions, replication)? If the server still has it, `seawall run` stores it \
                 again. If not, run `seawall backup`: no restore passes through the hole.",
            ),
            (true, true) => finding.hint("No sound base backup was taken behind it: run `seawall backup`."),
            (true, false) => finding.into_note(),
        }
    }

    /// Every finished backup must be restorable to its own end, and the newest to the end of what is stored.
    fn plan(&mut self, catalog: &Catalog) {
        let cluster = self.repository.layout.cluster();
        let request = |target, backup, timeline| Request {
            target,
            exclusive: false,
            backup,
            timeline,
            action: TargetAction::Promote,
        };
        let mut said = Vec::new();
        for backup in catalog.finished_backups() {
            let request = request(Target::Immediate, Some(backup.id.clone()), Some(backup.end_timeline));
            if let Err(error) = restore::check(cluster, catalog, &request, self.now) {
                let message = format!("backup {} cannot be restored: {error}", backup.id);
                said.push(error.to_string());
                let finding = Finding::of_backup(FindingKind::BackupNotRestorable, &backup.id, message);
                self.findings.add(Finding { hint: error.hint_text().map(str::to_owned), ..finding });
            }
        }
        if let Err(error) = restore::check(cluster, catalog, &request(Target::End, None, None), self.now)
            && !said.contains(&error.to_string())
        {
            self.findings.add(Finding {
                is_problem: true,
                kind: FindingKind::BackupNotRestorable,
                object: None,
                backup: None,
                wal: None,
                message: format!("what is stored cannot be restored to its end: {error}"),
                hint: error.hint_text().map(str::to_owned),
            });
        }
    }
}
