//! Reads the WAL between a backup and a target to find out what its records say, or what an index says of them. Uses `history`,
//! `repository`, `wal`.

use super::route::Route;
use super::survey::{Goal, Survey, Surveyor};
use crate::error::Result;
use crate::history::index::{Indexes, Outline, Span, Transaction};
use crate::repository::{RecordSink, WalReader, WalWalk};
use crate::wal::{Lsn, Record, WalRange};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// What to survey.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The files to read.
    pub route: Route,
    /// The first record that is replayed.
    pub from: Lsn,
    /// Where the backup is consistent.
    pub consistent: Lsn,
    /// Read no further; must be stored.
    pub until: Lsn,
}

/// Finds out what the records of `stretch` mean for a restore that looks for `goal`: from what `indexes` say of them, and by
/// walking over those where that is not enough.
///
/// # Errors
/// If the store fails, or what was listed cannot be read. Records that make no sense are not an error: see
/// [`Survey::unreadable`].
pub async fn survey(reader: &WalReader, indexes: &Indexes, stretch: &Stretch, goal: Goal) -> Result<Survey> {
    let size = stretch.route.size;
    let start = size.segment_start(stretch.from);
    let mut walk = WalWalk::new(size, start, Surveyor::new(goal, stretch.from, stretch.consistent));
    let mut outlines = Outlines::default();
    // Where the first record begins that is not known, and what was read or passed: in front of what is to be walked over.
    let (mut end, mut read) = (start, start);
    for file in stretch.route.files(start, stretch.until) {
        read = read.max(file.start);
        while read < file.end && !walk.is_over() {
            let rest = WalRange { start: read, ..file };
            outlines.load(reader, indexes, rest).await;
            match outlines.next(rest, |outline| walk.sink.may_pass(outline)) {
                Step::Pass(outline) => {
                    walk.sink.pass(&outline);
                    end = outline.next_record;
                    // What a switch left unused has no records, and no page headers to begin at.
                    read = outline.end.max(size.block_start(end)).min(file.end);
                }
                Step::Walk(until) => {
                    if walk.walker.position() != read {
                        // The record that is not known yet may begin before what was passed ends, and in another timeline's file.
                        let from = size.block_start(end).min(read);
                        let previous = walk.sink.last_start().filter(|_| from == end);
                        walk = walk.go_to(from, previous).read(reader, stretch.route.files(from, until)).await?;
                    } else {
                        walk = walk.read(reader, vec![WalRange { end: until, ..rest }]).await?;
                    }
                    (end, read) = (walk.walker.next_record_lsn(), walk.walker.position());
                }
            }
        }
    }
    Ok(walk.sink.finish(end, read, walk.unreadable))
}

/// So many blocks are read for the first transaction that a restore does not bring back.
const LOST_BLOCKS: usize = 4;

/// The first committed transaction behind `last`, a record, along `route`, as far as `until`. `None` if there is none, or none soon, or
/// what follows cannot be read: a restore has no need of it.
pub(super) async fn first_commit(reader: &WalReader, route: &Route, last: Span, until: Lsn) -> Option<Transaction> {
    let size = route.size;
    let mut position = size.block_start(last.start);
    let mut walk = WalWalk::new(size, position, FirstCommit { behind: last.end, found: None });
    for _ in 0..LOST_BLOCKS {
        let end = size.block_end(position).min(until);
        if walk.is_over() || position >= end {
            break;
        }
        walk = walk.read(reader, route.files(position, end)).await.ok()?;
        position = end;
    }
    walk.sink.found
}

/// Looks for a commit.
struct FirstCommit {
    behind: Lsn,
    found: Option<Transaction>,
}

impl RecordSink for FirstCommit {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        let is_lost = |transaction: &Transaction| {
            transaction.committed && transaction.xid != 0 && transaction.record.start >= self.behind
        };
        self.found = Transaction::ended_by(record).filter(is_lost);
        if self.found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// What is next on the way.
enum Step {
    /// A block of which the outline is enough.
    Pass(Box<Outline>),
    /// Up to here the records have to be read.
    Walk(Lsn),
}

/// The outlines in one index.
#[derive(Default)]
struct Outlines {
    range: Option<WalRange>,
    /// Those that are still ahead.
    ahead: VecDeque<Outline>,
    /// Where the next index begins, if none speaks of this place.
    next_index: Option<Lsn>,
}

impl Outlines {
    /// Makes sure that what is known of the beginning of `rest` is here.
    async fn load(&mut self, reader: &WalReader, indexes: &Indexes, rest: WalRange) {
        if self.range.is_some_and(|range| range.timeline == rest.timeline && rest.start < range.end) {
            return;
        }
        self.next_index = indexes.next(rest.timeline, rest.start);
        (self.range, self.ahead) = match indexes.best_at(reader, rest.timeline, rest.start).await {
            Some((range, outlines)) => (Some(range), outlines.into()),
            None => (None, VecDeque::new()),
        };
    }

    /// What to do at the beginning of `rest`.
    fn next(&mut self, rest: WalRange, may_pass: impl Fn(&Outline) -> bool) -> Step {
        while self.ahead.front().is_some_and(|outline| outline.end <= rest.start) {
            self.ahead.pop_front();
        }
        let may_pass = |outline: &Outline| outline.start >= rest.start && outline.end <= rest.end && may_pass(outline);
        match self.ahead.pop_front_if(|outline| may_pass(outline) && outline.start == rest.start) {
            Some(outline) => Step::Pass(Box::new(outline)),
            None => {
                let passed = self.ahead.iter().find(|outline| may_pass(outline)).map(|outline| outline.start);
                let behind = self.range.map(|range| range.end).or(self.next_index);
                Step::Walk(passed.or(behind).unwrap_or(rest.end).min(rest.end))
            }
        }
    }
}

impl RecordSink for Surveyor {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        Surveyor::see(self, record)
    }
}
