//! Recorded holes and the base backups that answer them. Nothing behind a hole can be restored until a base backup that
//! begins behind it is finished.

use super::documents::BackupDocument;
use super::{Catalog, Repository};
use crate::error::Result;
use crate::wal::{History, Lsn, TimelineId, WalRange};

/// The last hole on the way of `history` behind which no base backup begins; `backups` are where the finished ones do.
fn unanswered_gap(
    history: &History,
    gaps: impl IntoIterator<Item = WalRange>,
    backups: impl IntoIterator<Item = (TimelineId, Lsn)>,
) -> Option<WalRange> {
    let is_on_path = |timeline: TimelineId, lsn: Lsn| {
        history.passes(timeline) && history.switch_from(timeline).is_none_or(|switch| lsn < switch)
    };
    let gaps = gaps.into_iter().filter(|gap| is_on_path(gap.timeline, gap.start));
    let last = gaps.max_by_key(|gap| (gap.timeline, gap.end))?;
    // On a path, a later timeline is a later position.
    let answers = |(timeline, start): (TimelineId, Lsn)| {
        is_on_path(timeline, start) && timeline >= last.timeline && start >= last.end
    };
    (!backups.into_iter().any(answers)).then_some(last)
}

/// Lost WAL, and the base backup that would answer it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The newest finished base backup, without its list of files.
    pub newest_backup: Option<BackupDocument>,
    /// The newest full one, which may be the same.
    pub newest_full: Option<BackupDocument>,
    /// The oldest sound one on the way behind which nothing is recorded as lost: from its end on every moment can be restored.
    pub oldest_backup: Option<BackupDocument>,
    /// Recorded holes, of all timelines.
    pub gaps: Vec<WalRange>,
    /// The last hole, if no sound base backup begins behind it: nothing behind it can be restored.
    pub unanswered: Option<WalRange>,
    /// And no damaged one does either. Another one would be as damaged, until somebody has mended the server.
    pub wants_backup: bool,
}

impl Catalog {
    /// The last hole on the way to the timeline that was archived last behind which no sound base backup begins.
    pub fn unanswered_gap(&self) -> Option<WalRange> {
        let in_gaps = self.gaps.iter().map(|gap| gap.range.timeline).max();
        let history = self.history(self.followed_timeline().max(in_gaps)?);
        let sound = self.finished_backups().filter(|backup| !backup.findings.damaged);
        let backups = sound.map(|backup| (backup.timeline, backup.start_lsn));
        unanswered_gap(&history, self.gaps.iter().map(|gap| gap.range), backups)
    }
}

impl Repository {
    /// What was lost, and what was done about it: on the way to `followed`, or to the newest timeline that is stored.
    /// Lists the index and the backups alone: the WAL itself may be years of objects.
    ///
    /// # Errors
    /// If the store fails or a document is unreadable.
    pub async fn read_loss(&self, followed: Option<TimelineId>) -> Result<Loss> {
        let timelines = self.read_timelines().await?;
        let mut gaps = Vec::new();
        for &timeline in &timelines {
            let notes = self.read_gaps(timeline).await?;
            gaps.extend(notes.iter().map(|note| WalRange { timeline, start: note.start, end: note.end }));
        }
        let (mut newest_backup, mut newest_full, mut sound) = (None, None, None);
        let ids = self.backup_ids().await?;
        for id in &ids {
            let Some(backup) = self.finished_backup(id).await? else { continue };
            if !backup.findings.damaged {
                // One that was gone on with begins later than it said at its beginning.
                sound = Some((backup.timeline, backup.start_lsn));
            }
            if newest_full.is_none() && backup.reference.is_none() {
                newest_full = Some(backup.clone());
            }
            newest_backup.get_or_insert(backup);
            // An older one matters only if it is the one that answers a hole, or what the newest one builds on.
            if newest_full.is_some() && (sound.is_some() || gaps.is_empty()) {
                break;
            }
        }
        let (mut unanswered, mut wants_backup, mut oldest_backup) = (None, false, None);
        if let Some(timeline) = followed.or(timelines.last().copied()) {
            let text = self.read_history_file(timeline).await?;
            let path = text.and_then(|text| History::parse(timeline, &text).ok());
            let path = path.unwrap_or_else(|| History::root(timeline));
            let unanswered_by = |backup| unanswered_gap(&path, gaps.iter().copied(), backup);
            let newest = newest_backup.as_ref().map(|backup| (backup.timeline, backup.start_lsn));
            (unanswered, wants_backup) = (unanswered_by(sound), unanswered_by(newest).is_some());
            for id in ids.iter().rev().filter(|_| unanswered.is_none()) {
                let backup = self.finished_backup(id).await?.filter(|backup| {
                    let is_sound = backup.reference.is_none() && !backup.findings.damaged;
                    is_sound
                        && backup.is_on_path(&path)
                        && unanswered_by(Some((backup.timeline, backup.start_lsn))).is_none()
                });
                if backup.is_some() {
                    oldest_backup = backup;
                    break;
                }
            }
        }
        Ok(Loss { newest_backup, newest_full, oldest_backup, gaps, unanswered, wants_backup })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use crate::repository::documents::{BackupBegin, FORMAT_VERSION, Findings, GapNote, tests::sample};
    use crate::repository::{BackupId, Key, Layout, Writer};
    use crate::store::MemoryStore;
    use crate::wal::SegmentSize;
    use std::sync::Arc;

    fn gap(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn a_hole_is_answered_by_a_backup_that_begins_behind_it() {
        let history = History::root(TimelineId(1));
        let gaps = [gap(1, 100, 200), gap(1, 300, 400)];
        let unanswered =
            |starts: &[u64]| unanswered_gap(&history, gaps, starts.iter().map(|start| (TimelineId(1), Lsn(*start))));
        assert_eq!(unanswered(&[]), Some(gap(1, 300, 400)));
        assert_eq!(unanswered(&[50, 250]), Some(gap(1, 300, 400)), "the last one is what counts");
        assert_eq!(unanswered(&[399]), Some(gap(1, 300, 400)), "one that begins inside needs what is lost");
        assert_eq!(unanswered(&[50, 400]), None);
        assert_eq!(unanswered_gap(&history, [], []), None);
    }

    #[tokio::test]
    async fn a_damaged_backup_answers_no_hole_and_no_other_is_wanted() {
        // Given a hole, and nothing behind it
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let repository = Repository { store: Arc::new(MemoryStore::new()), layout: layout.clone() };
        let writer = Writer::new(repository.store.clone(), layout, 7);
        let lost = gap(1, 0x100, 0x200);
        let (timeline, found_at) = (lost.timeline, jiff::Timestamp::UNIX_EPOCH);
        let (start, end, reason) = (lost.start, lost.end, "a test's".to_owned());
        let note = GapNote { format: FORMAT_VERSION, timeline, start, end, found_at, reason };
        writer.store_document(&Key::Gap(lost), &note).await.unwrap();
        let look = async || {
            let loss = repository.read_loss(Some(timeline)).await.unwrap();
            (loss.unanswered, loss.wants_backup)
        };
        assert_eq!(look().await, (Some(lost), true));
        // When a damaged backup is there, then it can be restored by name only, and another would be no better
        let backup = async |name: &str, damaged: bool| {
            let id = BackupId::parse(name).unwrap();
            // Its first attempt began before the hole.
            let (start_lsn, started_at) = (lost.start, found_at);
            let begin = BackupBegin {
                format: FORMAT_VERSION,
                id: id.clone(),
                system_identifier: 7,
                started_at,
                start_lsn,
                timeline,
                reference: None,
            };
            writer.store_document(&Key::BackupBegin(id.clone()), &begin).await.unwrap();
            let findings = Findings { damaged, ..Findings::default() };
            let start_lsn = lost.end;
            let document = BackupDocument { id: id.clone(), timeline, start_lsn, findings, ..sample() };
            writer.store_document(&Key::BackupEnd(id), &document).await.unwrap();
        };
        backup("20261120T140300Z", true).await;
        assert_eq!(look().await, (Some(lost), false));
        // When a sound one follows, then the hole is answered, also behind one more that is damaged
        backup("20261120T150300Z", false).await;
        assert_eq!(look().await, (None, false));
        backup("20261120T160300Z", true).await;
        assert_eq!(look().await, (None, false));
    }

    #[tokio::test]
    async fn the_window_begins_with_the_oldest_sound_full_backup_behind_every_hole() {
        // Given a damaged backup, a sound one, an incremental one, and one more behind them
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let repository = Repository { store: Arc::new(MemoryStore::new()), layout: layout.clone() };
        let writer = Writer::new(repository.store.clone(), layout, 7);
        let timeline = TimelineId(1);
        let id = |hour: u32| BackupId::parse(&format!("20261120T{hour:02}0000Z")).unwrap();
        for (hour, damaged, reference) in [(1, true, None), (2, false, None), (3, false, Some(2)), (4, false, None)] {
            let (start_lsn, end_lsn) = (Lsn(u64::from(hour) * 0x1000), Lsn(u64::from(hour) * 0x1000 + 0x100));
            let (findings, reference) = (Findings { damaged, ..Findings::default() }, reference.map(id));
            let document = BackupDocument {
                id: id(hour),
                timeline,
                end_timeline: timeline,
                start_lsn,
                end_lsn,
                findings,
                reference,
                ..sample()
            };
            writer.store_document(&Key::BackupEnd(id(hour)), &document).await.unwrap();
        }
        let look = async || {
            let loss = repository.read_loss(Some(timeline)).await.unwrap();
            let named = |backup: Option<BackupDocument>| backup.map(|backup| backup.id);
            (named(loss.oldest_backup), named(loss.newest_full))
        };
        assert_eq!(look().await, (Some(id(2)), Some(id(4))));
        // When WAL is lost between them, then what lies before it is no part of the window
        let lost = gap(1, 0x3800, 0x3900);
        let note = |range: WalRange| GapNote {
            format: FORMAT_VERSION,
            timeline,
            start: range.start,
            end: range.end,
            found_at: jiff::Timestamp::UNIX_EPOCH,
            reason: "a test's".to_owned(),
        };
        writer.store_document(&Key::Gap(lost), &note(lost)).await.unwrap();
        assert_eq!(look().await, (Some(id(4)), Some(id(4))));
        // and when it is lost behind all of them, there is none
        let lost = gap(1, 0x5000, 0x6000);
        writer.store_document(&Key::Gap(lost), &note(lost)).await.unwrap();
        assert_eq!(look().await, (None, Some(id(4))));
    }

    #[test]
    fn only_what_is_on_the_path_counts() {
        let history = History::parse(TimelineId(2), b"1\t0/100\tx\n").unwrap();
        let backup = |timeline, start| Some((TimelineId(timeline), Lsn(start)));
        assert_eq!(unanswered_gap(&history, [gap(1, 0x200, 0x300)], []), None, "a dead branch");
        assert_eq!(unanswered_gap(&history, [gap(1, 0x50, 0x100)], backup(1, 0x40)), Some(gap(1, 0x50, 0x100)));
        assert_eq!(unanswered_gap(&history, [gap(1, 0x50, 0x100)], backup(2, 0x110)), None);
        assert_eq!(unanswered_gap(&history, [gap(2, 0x150, 0x200)], backup(1, 0x300)), Some(gap(2, 0x150, 0x200)));
    }
}
