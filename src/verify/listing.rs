//! The store's listing, in a stream, and what of it is kept: of WAL the ranges that are covered, and no names.

use super::report::{Checked, Finding, FindingKind};
use super::timelines::Proven;
use crate::codec::Ending;
use crate::repository::{Coverage, Gap, Key, Layout, Stored};
use crate::store::{ObjectInfo, Store, StoreError};
use crate::wal::{BLOCK_BYTES_MAX, Lsn, TimelineId, WalRange};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that an object with WAL can have: a block that does not shrink, in frames, with its headers, encrypted.
pub(super) const WAL_OBJECT_BYTES_MAX: u64 = BLOCK_BYTES_MAX + (1 << 20);

/// Every object below `prefix`, a page at a time.
pub(super) fn pages<'a>(
    store: &'a dyn Store,
    prefix: &'a str,
) -> impl Stream<Item = Result<Vec<ObjectInfo>, StoreError>> + 'a {
    // The token of the next page; `None` once there is no other.
    stream::try_unfold(Some(None), move |token| async move {
        let Some(token) = token else { return Ok(None) };
        let page = store.list_page(prefix, token).await?;
        Ok(Some((page.objects, page.next.map(Some))))
    })
}

/// What was listed below `wal/`, `open/` and `index/`.
#[derive(Debug, Default)]
pub(super) struct Listing {
    wal: BTreeMap<TimelineId, Runs>,
    /// Timelines that have a history file.
    pub(super) histories: BTreeSet<TimelineId>,
    pub(super) gaps: Vec<Gap>,
    pub(super) dead_branches: Vec<WalRange>,
    /// What retention deleted behind a base backup that it kept.
    pub(super) pruned: Vec<WalRange>,
    /// By heartbeats, which are stored once everything is.
    pub(super) proven: Proven,
}

impl Listing {
    /// Takes in an object; says what is wrong with its name or its length.
    pub(super) fn take(&mut self, layout: &Layout, object: &ObjectInfo, checked: &mut Checked) -> Option<Finding> {
        checked.objects += 1;
        checked.object_bytes += object.bytes;
        match layout.parse(&object.key) {
            Ok(Key::Block(range) | Key::Tail(range)) => {
                self.wal.entry(range.timeline).or_default().add(range, object.modified);
                return wrong_wal_length(object);
            }
            Ok(Key::History(timeline)) => _ = self.histories.insert(timeline),
            Ok(Key::Gap(range)) => self.gaps.push(Gap { range }),
            Ok(Key::DeadBranch(range)) => self.dead_branches.push(range),
            Ok(Key::Pruned(range)) => self.pruned.push(range),
            Ok(Key::Heartbeat { timeline, flush, .. }) => {
                let proven = self.proven.entry(timeline).or_default();
                *proven = flush.max(*proven);
            }
            Ok(Key::Probe(_) | Key::Lease(_) | Key::Cluster | Key::Records(_) | Key::Names(_)) => {}
            _ => return Some(unknown(&object.key)),
        }
        None
    }

    /// What is covered, as if every stretch without a hole were one object.
    pub(super) fn coverage(&mut self) -> BTreeMap<TimelineId, Coverage> {
        let wal = std::mem::take(&mut self.wal);
        wal.into_iter().map(|(timeline, runs)| (timeline, runs.coverage(timeline))).collect()
    }
}

/// Takes in a report or a mark, which no restore needs; says what is wrong with its name.
pub(super) fn report(layout: &Layout, object: &ObjectInfo, checked: &mut Checked) -> Option<Finding> {
    checked.objects += 1;
    checked.object_bytes += object.bytes;
    let is_known = matches!(
        layout.parse(&object.key),
        Ok(Key::Drill(_) | Key::Audit(_) | Key::Prune(_) | Key::Keep(..) | Key::Intent(..))
    );
    (!is_known).then(|| unknown(&object.key))
}

/// A name that is none of ours.
pub(super) fn unknown(name: &str) -> Finding {
    Finding::of_object(FindingKind::UnknownObject, name, "is not Seawall's: no object is called so")
        .hint("Nothing of Seawall reads it. Was it renamed, or does another program write here?")
}

/// No object with WAL is so short, or so long.
pub(super) fn wrong_wal_length(object: &ObjectInfo) -> Option<Finding> {
    let is_possible = (1..=WAL_OBJECT_BYTES_MAX).contains(&object.bytes);
    let what = format_args!("has {} bytes, as no object with WAL has", object.bytes).to_string();
    (!is_possible).then(|| Finding::of_object(FindingKind::WrongLength, &object.key, what))
}

/// Stretches without a hole between them, by their starts, with their ends and the time of what was stored last.
#[derive(Debug, Default)]
struct Runs(BTreeMap<Lsn, (Lsn, Timestamp)>);

impl Runs {
    fn add(&mut self, range: WalRange, modified: Timestamp) {
        let (mut start, mut end, mut modified) = (range.start, range.end, modified);
        // Those that overlap with it, or touch it, become one with it.
        while let Some((&before, &(reaches, stored))) = self.0.range(..=end).next_back()
            && reaches >= start
        {
            self.0.remove(&before);
            (start, end, modified) = (start.min(before), end.max(reaches), modified.max(stored));
        }
        self.0.insert(start, (end, modified));
    }

    fn coverage(self, timeline: TimelineId) -> Coverage {
        let runs = self.0.into_iter().map(|(start, (end, modified))| Stored {
            range: WalRange { timeline, start, end },
            name: String::new(),
            ending: Ending::default(),
            is_block: true,
            stored_bytes: 0,
            modified,
        });
        Coverage::new(runs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_what_was_added_in_any_order(pieces in prop::collection::vec((0u64..300, 1u64..40), 0..30)) {
            let timeline = TimelineId(1);
            let mut runs = Runs::default();
            let stored = |&(start, bytes): &(u64, u64)| {
                let range = WalRange { timeline, start: Lsn(start), end: Lsn(start + bytes) };
                let (name, ending, modified) = (String::new(), Ending::default(), Timestamp::UNIX_EPOCH);
                Stored { range, name, ending, is_block: true, stored_bytes: 0, modified }
            };
            pieces.iter().for_each(|piece| runs.add(stored(piece).range, Timestamp::UNIX_EPOCH));
            let whole = Coverage::new(pieces.iter().map(stored).collect());
            prop_assert_eq!(runs.coverage(timeline).runs(), whole.runs());
        }
    }
}
