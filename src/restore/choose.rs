//! Which path of timelines a restore follows, and which backups it may begin with. Pure.

use super::refusal;
use super::request::{Request, Target, TargetAction};
use super::route::{Covered, Route};
use crate::error::{Error, Kind, Result};
use crate::repository::{BackupDocument, BrokenChain, Catalog};
use crate::wal::{History, Lsn, SegmentSize, TimelineId, WalRange};
use jiff::Timestamp;

/// What was chosen so far: the path, and what it was chosen from.
#[derive(Clone, Debug)]
pub(super) struct Choice<'a> {
    /// The cluster's name.
    pub(super) cluster: &'a str,
    /// What is there.
    pub(super) catalog: &'a Catalog,
    /// What is asked for.
    pub(super) request: &'a Request,
    /// The files along the path.
    pub(super) route: Route,
}

/// A backup that may reach the target.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    /// The backup.
    pub(super) backup: &'a BackupDocument,
    /// What it builds on, the nearest first.
    pub(super) references: Vec<&'a BackupDocument>,
    /// How far its WAL is stored.
    pub(super) covered: Covered,
    /// Look no further than here: what lies behind was looked at from a newer backup on.
    pub(super) until: Option<Lsn>,
    /// Why it was chosen.
    pub(super) why: String,
}

impl<'a> Choice<'a> {
    /// Chooses the path.
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is none, the timeline is not known, or the target is in the future; [`Kind::Usage`]
    /// if the request contradicts itself.
    pub(super) fn new(
        cluster: &'a str,
        catalog: &'a Catalog,
        request: &'a Request,
        now: Timestamp,
    ) -> Result<Choice<'a>> {
        if request.exclusive && matches!(request.target, Target::End | Target::Immediate) {
            return Err(Error::new(Kind::Usage, format!("{} cannot be left out", request.target))
                .hint("--to-exclusive goes with --to, --to-lsn and --to-xid."));
        }
        if request.action == TargetAction::Follow && (request.target != Target::End || request.timeline.is_some()) {
            return Err(Error::new(Kind::Usage, "a standby follows the archive, and has neither target nor timeline")
                .hint("Leave --standby out to stop somewhere, or leave out what says where."));
        }
        let size = SegmentSize::new(catalog.cluster.segment_bytes).ok_or_else(|| {
            Error::new(Kind::Damaged, format!("cluster.json names segments of {} bytes", catalog.cluster.segment_bytes))
        })?;
        let followed = catalog.followed_timeline();
        let timeline = request.timeline.or(followed).ok_or_else(|| {
            Error::new(Kind::Refused, format!("the repository holds no WAL of {cluster}"))
                .hint("Has `seawall run` ever run for this cluster, and is --cluster right?")
        })?;
        let history = known_history(catalog, timeline)?;
        let choice = Choice { cluster, catalog, request, route: Route::new(history, size, catalog) };
        match request.target {
            Target::Time(time) if time > now => Err(refusal::future(time, now)),
            _ => Ok(choice),
        }
    }

    /// The backups that may reach the target, the best first.
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is none, with what can be reached instead.
    pub(super) fn candidates(&self) -> Result<Vec<Candidate<'a>>> {
        let mut on_path: Vec<&BackupDocument> =
            self.catalog.finished_backups().filter(|backup| backup.is_on_path(&self.route.history)).collect();
        on_path.sort_by_key(|backup| std::cmp::Reverse((backup.end_lsn, backup.ended_at)));
        if let Some(id) = &self.request.backup {
            let known = self.catalog.finished_backups().find(|backup| backup.id == *id);
            let backup = known.ok_or_else(|| refusal::unknown_backup(self.catalog, id))?;
            if !on_path.contains(&backup) {
                return Err(refusal::not_on_path(self, backup));
            }
            on_path = vec![backup];
        } else {
            // Of use to whoever has nothing else, and asks for it.
            on_path.retain(|backup| !backup.findings.damaged);
        }
        let mut candidates = Vec::new();
        let mut until = None;
        let mut broken = None;
        for backup in &on_path {
            let references = match self.catalog.chain(backup) {
                Ok(references) => references,
                // Another one may do, and its plan says so.
                Err(chain) if self.fits(backup) => {
                    broken.get_or_insert(chain);
                    continue;
                }
                Err(_) => continue,
            };
            let covered = self.route.covered(self.catalog, self.route.size.segment_start(backup.start_lsn));
            if self.fits(backup) || self.request.backup.is_some() {
                candidates.push(Candidate { backup, references, covered, until, why: self.why(backup) });
            }
            // Only these are looked for from one backup after the other.
            if matches!(self.request.target, Target::Xid(_) | Target::Name(_)) {
                until = Some(backup.end_lsn);
            }
        }
        if matches!(self.request.target, Target::End | Target::Immediate) {
            candidates.truncate(1);
        }
        match (candidates.first(), broken) {
            (None, Some(chain)) => Err(refusal::broken_chain(self, &chain)),
            (None, None) => Err(refusal::before_first(self, &on_path)),
            (Some(first), _) => {
                self.check_stored(first)?;
                self.check_latest(first)?;
                Ok(candidates)
            }
        }
    }

    /// Fails for a standby that would not go where the archiver went: it takes for the latest timeline the last of those
    /// whose numbers follow on one another (`timeline.c`, `findNewestTimeLine`).
    fn check_latest(&self, first: &Candidate<'_>) -> Result<()> {
        let followed = self.route.history.timeline;
        let numbers = first.backup.end_timeline.0.saturating_add(1)..;
        let histories = numbers.map_while(|number| self.catalog.histories.get(&TimelineId(number)));
        match histories.last() {
            Some(latest) if self.request.action == TargetAction::Follow && !latest.passes(followed) => {
                Err(refusal::leads_elsewhere(followed, latest.timeline))
            }
            _ => Ok(()),
        }
    }

    /// True if it may reach the target.
    fn fits(&self, backup: &BackupDocument) -> bool {
        match self.request.target {
            Target::Time(time) => backup.started_at <= time,
            Target::Lsn(lsn) => backup.end_lsn <= lsn,
            Target::End | Target::Immediate | Target::Xid(_) | Target::Name(_) => true,
        }
    }

    /// The newest backup that may reach the target and was passed over because it is damaged.
    pub(super) fn passed_over(&self) -> Option<&'a BackupDocument> {
        let is_passed_over = |backup: &&BackupDocument| {
            self.request.backup.is_none()
                && backup.findings.damaged
                && self.fits(backup)
                && backup.is_on_path(&self.route.history)
        };
        self.catalog.finished_backups().filter(is_passed_over).max_by_key(|backup| (backup.end_lsn, backup.ended_at))
    }

    /// The newest backup that may reach the target and cannot be used, since what it builds on cannot.
    pub(super) fn broken_chain(&self) -> Option<BrokenChain> {
        let backups = self.catalog.finished_backups();
        let fitting = backups.filter(|backup| self.fits(backup) && backup.is_on_path(&self.route.history));
        let newest = fitting.max_by_key(|backup| (backup.end_lsn, backup.ended_at));
        newest.and_then(|backup| self.catalog.chain(backup).err())
    }

    /// Fails if what is stored from the best candidate on does not reach the target; then no other can.
    fn check_stored(&self, first: &Candidate<'_>) -> Result<()> {
        let (backup, covered) = (first.backup, first.covered);
        if covered.until < backup.end_lsn {
            return Err(refusal::hole(self, first));
        }
        match self.request.target {
            Target::Lsn(lsn) if lsn > covered.until || (lsn == covered.until && !self.request.exclusive) => {
                Err(refusal::lsn_not_stored(self, first, lsn))
            }
            // What was never acknowledged may lie behind a hole; what is known to be lost is another matter.
            Target::End if covered.next.is_some() && self.is_lost(covered.timeline, covered.until) => {
                Err(refusal::hole(self, first))
            }
            // Whoever asks for an old backup is told in the plan how far that leads. Nobody else shall take a hole for the end.
            Target::End
                if covered.next.is_some()
                    && self.request.backup.is_none()
                    && self.is_pruned(covered.timeline, covered.until) =>
            {
                Err(refusal::hole(self, first))
            }
            _ => Ok(()),
        }
    }

    /// True if retention deleted the byte at `lsn`.
    pub(super) fn is_pruned(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let holds = |range: &WalRange| range.timeline == timeline && range.start <= lsn && lsn < range.end;
        self.catalog.pruned.iter().any(holds)
    }

    /// True if the byte at `lsn` was recorded as lost.
    pub(super) fn is_lost(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let lost = |range: WalRange| range.timeline == timeline && range.start <= lsn && lsn < range.end;
        self.catalog.gaps.iter().any(|gap| lost(gap.range))
    }

    /// The last moment at which the server is known to have lived and to have had no WAL behind what is stored.
    pub(super) fn last_heartbeat(&self, candidate: &Candidate<'_>) -> Option<Timestamp> {
        self.route.last_heartbeat(self.catalog, candidate.backup.start_lsn, candidate.covered.until)
    }

    fn why(&self, backup: &BackupDocument) -> String {
        match (&self.request.backup, &self.request.target) {
            (Some(_), _) => "asked for by name".to_owned(),
            (None, Target::End | Target::Immediate) => {
                format!("the newest on the path to timeline {}", self.route.history.timeline)
            }
            (None, _) => format!("the newest that is consistent before the target, complete at {}", backup.ended_at),
        }
    }
}

/// The path to `timeline`.
fn known_history(catalog: &Catalog, timeline: TimelineId) -> Result<History> {
    let has_wal = catalog.coverage.contains_key(&timeline);
    match catalog.histories.get(&timeline) {
        Some(history) => Ok(history.clone()),
        None if timeline == TimelineId(1) && has_wal => Ok(History::root(timeline)),
        None if has_wal => Err(Error::new(
            Kind::Damaged,
            format!("timeline {timeline} has WAL here, but {} is missing", timeline.history_name()),
        )
        .hint("Was it deleted? PostgreSQL cannot recover to a timeline without it: copy it back from the server's pg_wal.")),
        None => Err(refusal::unknown_timeline(catalog, timeline)),
    }
}
