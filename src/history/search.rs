//! What is looked for in the stored WAL, and which of it has to be read for that: what an index says nothing of, and what it says
//! that it matters.

use super::index::{Fact, Indexes, Outline};
use crate::repository::WalReader;
use crate::wal::{Lsn, SegmentSize, WalRange};
use jiff::{SignedDuration, Timestamp};

/// Sessions' clocks and the order of their records need not agree: so much later than wanted something must be for all that
/// follows to be too late.
pub const DISORDER: SignedDuration = SignedDuration::from_mins(1);

/// So many blocks in front of what is wanted are read as well: most transactions that end in it begin there, and who else was
/// at work is logged every fifteen seconds (`LOG_SNAPSHOT_INTERVAL_MS` in `bgwriter.c`).
const LEAD_BLOCKS: u64 = 4;

/// A moment, as one is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// By the server's clock.
    Time(Timestamp),
    /// By position.
    Lsn(Lsn),
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Search {
    /// From here on.
    pub from: Bound,
    /// Up to here; without, to the end.
    pub to: Option<Bound>,
    /// Only transactions that removed something.
    pub removals: bool,
    /// What each transaction did has to be known from its beginning. Of what removed something it is in any case.
    pub whole: bool,
}

impl Search {
    fn is_early(&self, outline: &Outline) -> bool {
        match self.from {
            Bound::Time(from) => outline.dated.is_none_or(|latest| latest < from),
            Bound::Lsn(from) => outline.end <= from,
        }
    }

    fn is_late(&self, outline: &Outline) -> bool {
        match self.to {
            None => false,
            Some(Bound::Time(to)) => outline.times.is_some_and(|(earliest, _)| earliest.duration_since(to) > DISORDER),
            // A record that begins before may end behind.
            Some(Bound::Lsn(_)) => false,
        }
    }

    /// True if no record that begins up to where this ends ends behind `outline`.
    fn is_last(&self, outline: &Outline) -> bool {
        matches!(self.to, Some(Bound::Lsn(to)) if outline.next_record > to)
    }

    fn wants(&self, outline: &Outline) -> bool {
        let removes = |fact: &Fact| {
            matches!(fact, Fact::Dropped { .. } | Fact::DatabaseDropped { .. } | Fact::TablespaceDropped { .. })
        };
        let may_matter = !self.removals || outline.is_cut || outline.events.iter().any(|event| removes(&event.fact));
        // What removes a database or a tablespace is committed later.
        let is_committed_later =
            |fact: &Fact| matches!(fact, Fact::DatabaseDropped { .. } | Fact::TablespaceDropped { .. });
        let may_be_later = self.removals && outline.events.iter().any(|event| is_committed_later(&event.fact));
        may_matter && (may_be_later || !self.is_early(outline)) && !self.is_late(outline)
    }

    /// The stretches of `files`, which follow on one another, that have to be read, in order and apart from one another.
    pub(super) async fn stretches(&self, reader: &WalReader, indexes: &Indexes, files: &[WalRange]) -> Vec<Wanted> {
        let (mut wanted, mut is_over) = (Vec::new(), false);
        for file in files {
            let mut at = file.start;
            while at < file.end && !is_over {
                let known = indexes.best_at(reader, file.timeline, at).await;
                let Some((range, outlines)) = known else {
                    let end = indexes.next(file.timeline, at).map_or(file.end, |next| next.min(file.end));
                    wanted.push((at, end));
                    at = end;
                    continue;
                };
                for outline in outlines.iter().filter(|outline| outline.end > at && outline.start < file.end) {
                    if self.wants(outline) {
                        wanted.push((outline.start.max(at), outline.end.min(file.end)));
                    }
                    is_over = self.is_last(outline);
                    if is_over {
                        break;
                    }
                }
                at = range.end.min(file.end);
            }
        }
        if !self.removals {
            // Who committed in between matters too, and clocks are set.
            let whole = wanted.first().zip(wanted.last()).map(|(first, last)| (first.0, last.1));
            wanted = whole.into_iter().collect();
        }
        let (start, size) =
            (files.first().map_or(Lsn(0), |file| file.start), reader.repository().layout.segment_size());
        with_leads(wanted, start, size)
    }
}

/// WAL that has to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// From here on, the first byte of a segment: behind a switch the rest of one has no pages to begin at.
    pub(super) start: Lsn,
    /// What is looked for is not before this.
    pub(super) from: Lsn,
    /// Up to here.
    pub(super) end: Lsn,
}

impl Wanted {
    /// The same, with several times as much in front of it, from `first` on at most.
    pub(super) fn wider(self, first: Lsn, size: SegmentSize) -> Wanted {
        let lead = 4 * (self.from - self.start).max(LEAD_BLOCKS * size.block_bytes());
        Wanted { start: lead_start(self.from, lead, first, size), ..self }
    }
}

fn lead_start(from: Lsn, lead: u64, first: Lsn, size: SegmentSize) -> Lsn {
    size.segment_start(Lsn(from.0.saturating_sub(lead))).max(first)
}

/// `wanted`, in order, each with what is read in front of it; those that touch become one.
fn with_leads(wanted: Vec<(Lsn, Lsn)>, first: Lsn, size: SegmentSize) -> Vec<Wanted> {
    let mut stretches: Vec<Wanted> = Vec::new();
    for (from, end) in wanted {
        let start = lead_start(from, LEAD_BLOCKS * size.block_bytes(), first, size);
        match stretches.last_mut().filter(|last| last.end >= start) {
            Some(last) => last.end = end,
            None => stretches.push(Wanted { start, from, end }),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::super::index::{Event, Span};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// Of a block of 16 MiB, with transactions that ended at these seconds.
    fn outline(index: u64, times: Option<(i64, i64)>, facts: &[Fact]) -> Outline {
        let (start, end) = (Lsn(16 * MIB * index), Lsn(16 * MIB * (index + 1)));
        let mut outline = super::super::index::Outliner::new(start, false).finish(end, end);
        outline.times = times.map(|(earliest, latest)| (at(earliest), at(latest)));
        outline.dated = times.map(|(_, latest)| at(latest));
        let event = |fact: &Fact| Event { at: Span { start, end: start + 100 }, xid: 7, fact: fact.clone() };
        outline.events = facts.iter().map(event).collect();
        outline
    }

    #[test]
    fn a_block_is_read_if_something_in_it_lies_between_the_bounds() {
        let search = |from, to| Search { from, to, removals: false, whole: false };
        let block = outline(3, Some((10, 20)), &[]);
        let time = |second| Bound::Time(at(second));
        for (from, to, wanted) in [
            (time(5), None, true),
            (time(20), None, true),
            (time(21), None, false),
            (time(0), Some(time(10)), true),
            (time(0), Some(time(-50)), true),
            (time(-200), Some(time(-51)), false),
            (Bound::Lsn(Lsn(64 * MIB - 1)), None, true),
            (Bound::Lsn(Lsn(64 * MIB)), None, false),
        ] {
            assert_eq!(search(from, to).wants(&block), wanted, "{from:?} to {to:?}");
        }
        assert!(!search(time(0), None).wants(&outline(3, None, &[])), "nothing in it has a date");
    }

    #[test]
    fn a_record_that_begins_up_to_the_end_may_end_in_a_later_block() {
        let search =
            |to| Search { from: Bound::Lsn(Lsn(0)), to: Some(Bound::Lsn(Lsn(to))), removals: false, whole: false };
        let mut block = outline(3, Some((10, 20)), &[]);
        block.next_record = Lsn(64 * MIB - 100);
        assert!(!search(64 * MIB - 100).is_last(&block), "that one ends behind it");
        assert!(search(64 * MIB - 101).is_last(&block));
    }

    #[test]
    fn for_removals_only_blocks_are_read_that_have_some_or_do_not_tell() {
        let search = Search { from: Bound::Lsn(Lsn(0)), to: None, removals: true, whole: false };
        assert!(!search.wants(&outline(1, Some((1, 2)), &[Fact::DatabaseCreated { oid: 5 }])));
        for fact in [
            Fact::Dropped { time: None, relations: 1 },
            Fact::DatabaseDropped { oid: 5 },
            Fact::TablespaceDropped { oid: 5 },
        ] {
            assert!(search.wants(&outline(1, Some((1, 2)), std::slice::from_ref(&fact))), "{fact:?}");
        }
        // A database is removed before that is committed.
        let late = Search { from: Bound::Time(at(3)), ..search };
        assert!(late.wants(&outline(1, Some((1, 2)), &[Fact::DatabaseDropped { oid: 5 }])));
        assert!(!late.wants(&outline(1, Some((1, 2)), &[Fact::Dropped { time: None, relations: 1 }])));
        let mut cut = outline(1, Some((1, 2)), &[]);
        cut.is_cut = true;
        assert!(search.wants(&cut));
    }

    #[test]
    fn what_is_wanted_is_read_with_what_lies_in_front_of_it_and_never_twice() {
        let size = SegmentSize::new(16 * MIB).unwrap();
        let block = |index: u64| (Lsn(16 * MIB * index), Lsn(16 * MIB * (index + 1)));
        let stretch = |start: u64, from: u64, end: u64| Wanted {
            start: Lsn(16 * MIB * start),
            from: Lsn(16 * MIB * from),
            end: Lsn(16 * MIB * end),
        };
        let wanted = |indexes: &[u64]| with_leads(indexes.iter().copied().map(block).collect(), Lsn(16 * MIB), size);
        assert_eq!(wanted(&[]), []);
        assert_eq!(wanted(&[3]), [stretch(1, 3, 4)], "not before the first byte");
        assert_eq!(wanted(&[10]), [stretch(6, 10, 11)]);
        assert_eq!(wanted(&[10, 11, 15]), [stretch(6, 10, 16)], "the lead of the last one touches");
        assert_eq!(wanted(&[10, 16]), [stretch(6, 10, 11), stretch(12, 16, 17)]);
        // Wider, until there is no more.
        let wider = stretch(96, 100, 101).wider(Lsn(16 * MIB), size);
        assert_eq!(wider, stretch(84, 100, 101));
        assert_eq!(wider.wider(Lsn(16 * MIB), size), stretch(36, 100, 101));
        assert_eq!(wider.wider(Lsn(16 * MIB), size).wider(Lsn(16 * MIB), size), stretch(1, 100, 101));
        // In large segments from the beginning of one.
        let size = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(with_leads(vec![block(70)], Lsn(0), size), [stretch(64, 70, 71)]);
    }
}
