//! What can be wrong, and what was told of it. Pure.

use crate::metrics::Job;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// No WAL comes, for longer than was to be borne.
    Stream,
    /// It comes, and is not stored: more would be lost than was to be borne.
    Rpo,
    /// The slot has lost WAL, or is about to.
    Slot,
    /// WAL is lost for good, and no base backup was taken behind it.
    Gap,
    /// The archiver has ended because of an error.
    Stopped,
    /// What was done cannot be looked up, so that nothing is done on schedule.
    Schedule,
    /// What is done on schedule failed, or found something wrong.
    Job(Job),
}

impl Trouble {
    /// For machines.
    pub fn name(self) -> String {
        match self {
            Trouble::Stream => "stream".to_owned(),
            Trouble::Rpo => "rpo".to_owned(),
            Trouble::Slot => "slot".to_owned(),
            Trouble::Gap => "gap".to_owned(),
            Trouble::Stopped => "stopped".to_owned(),
            Trouble::Schedule => "schedule".to_owned(),
            Trouble::Job(job) => format!("job_{}", job.name()),
        }
    }

    /// True if committed data may be lost by it soon.
    pub fn is_critical(self) -> bool {
        !matches!(self, Trouble::Schedule | Trouble::Job(_))
    }
}

/// That something is wrong, or right again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Whose.
    pub cluster: String,
    /// What.
    pub trouble: Trouble,
    /// It is right again.
    pub is_resolved: bool,
    /// Whether it was wrong this process does not know: one before it may have told so.
    pub is_of_before: bool,
    /// What it is, in words.
    pub summary: String,
    /// Since when.
    pub since: Timestamp,
    /// When this was noticed.
    pub at: Timestamp,
}

/// What is wrong now, and what was spoken of before.
#[derive(Debug, Default)]
pub(super) struct Board {
    wrong: BTreeMap<Trouble, (Timestamp, String)>,
    /// Of these it is known what was told.
    known: BTreeSet<Trouble>,
}

impl Board {
    /// What there is to tell of it: nothing, if it was told before.
    pub(super) fn raise(&mut self, trouble: Trouble, summary: String, now: Timestamp) -> Option<Event> {
        if self.wrong.contains_key(&trouble) {
            return None;
        }
        self.known.insert(trouble);
        self.wrong.insert(trouble, (now, summary.clone()));
        Some(Event {
            cluster: String::new(),
            trouble,
            is_resolved: false,
            is_of_before: false,
            summary,
            since: now,
            at: now,
        })
    }

    /// Somebody else sees to it from now on, and tells of it: nothing is known of it any more.
    pub(super) fn forget(&mut self, trouble: Trouble) {
        self.wrong.remove(&trouble);
        self.known.remove(&trouble);
    }

    /// The same, where that one tells in its own time: what there is to tell of its end here.
    pub(super) fn hand_over(&mut self, trouble: Trouble, now: Timestamp) -> Option<Event> {
        let event = self.wrong.contains_key(&trouble).then(|| self.clear(trouble, now)).flatten();
        self.forget(trouble);
        event
    }

    /// What there is to tell of its end. Nothing, if it was not told, but for the first time: a process before this one may have told.
    pub(super) fn clear(&mut self, trouble: Trouble, now: Timestamp) -> Option<Event> {
        let is_new = self.known.insert(trouble);
        let (since, summary) = match self.wrong.remove(&trouble) {
            Some(told) => told,
            None if is_new => (now, "nothing is wrong with it since the archiver was started".to_owned()),
            None => return None,
        };
        Some(Event {
            cluster: String::new(),
            trouble,
            is_resolved: true,
            is_of_before: is_new,
            summary,
            since,
            at: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_wrong_is_told_once_and_that_it_is_right_again_too() {
        let mut board = Board::default();
        let raised = board.raise(Trouble::Stream, "no WAL comes".to_owned(), at(1)).unwrap();
        assert!(!raised.is_resolved);
        assert_eq!(board.raise(Trouble::Stream, "still".to_owned(), at(2)), None);
        assert!(board.raise(Trouble::Job(Job::Full), "failed".to_owned(), at(3)).is_some(), "another trouble");
        let cleared = board.clear(Trouble::Stream, at(4)).unwrap();
        assert!(cleared.is_resolved && !cleared.is_of_before);
        assert_eq!((cleared.since, cleared.at, cleared.summary.as_str()), (at(1), at(4), "no WAL comes"));
        assert_eq!(board.clear(Trouble::Stream, at(5)), None, "it is right already");
        assert!(board.raise(Trouble::Stream, "again".to_owned(), at(6)).is_some());
    }

    #[test]
    fn what_a_process_before_may_have_told_is_taken_back_once() {
        // Given a process that has just begun: it does not know what was told
        let mut board = Board::default();
        // When it finds things as they should be, then that is worth a word, once for each
        let first = board.clear(Trouble::Stopped, at(0)).unwrap();
        assert!(first.is_resolved && first.is_of_before);
        assert_eq!(board.clear(Trouble::Stopped, at(1)), None);
        assert!(board.clear(Trouble::Gap, at(1)).is_some_and(|first| first.is_of_before));
        // And what goes wrong in its own time is no longer of before
        assert!(board.raise(Trouble::Stopped, "ended".to_owned(), at(2)).is_some());
        assert!(board.clear(Trouble::Stopped, at(3)).is_some_and(|end| !end.is_of_before));
    }
}
