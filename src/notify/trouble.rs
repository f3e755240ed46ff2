//! What can be wrong, and what was told of it. Pure.

use crate::metrics::Job;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// No WAL comes, for longer than was to be borne.
    Stream,
    /// The slot has lost WAL, or is about to.
    Slot,
    /// WAL is lost for good, and no base backup was taken behind it.
    Gap,
    /// The archiver has ended because of an error.
    Stopped,
    /// What is done on schedule failed, or found something wrong.
    Job(Job),
}

impl Trouble {
    /// For machines.
    pub fn name(self) -> String {
        match self {
            Trouble::Stream => "stream".to_owned(),
            Trouble::Slot => "slot".to_owned(),
            Trouble::Gap => "gap".to_owned(),
            Trouble::Stopped => "stopped".to_owned(),
            Trouble::Job(job) => format!("job_{}", job.name()),
        }
    }

    /// True if committed data may be lost by it soon.
    pub fn is_critical(self) -> bool {
        !matches!(self, Trouble::Job(_))
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
    /// What it is, in words.
    pub summary: String,
    /// Since when.
    pub since: Timestamp,
    /// When this was noticed.
    pub at: Timestamp,
}

/// What is wrong now.
#[derive(Debug, Default)]
pub(super) struct Board(BTreeMap<Trouble, (Timestamp, String)>);

impl Board {
    /// What there is to tell of it: nothing, if it was told before.
    pub(super) fn raise(&mut self, trouble: Trouble, summary: String, now: Timestamp) -> Option<Event> {
        if self.0.contains_key(&trouble) {
            return None;
        }
        self.0.insert(trouble, (now, summary.clone()));
        Some(Event { cluster: String::new(), trouble, is_resolved: false, summary, since: now, at: now })
    }

    /// What there is to tell of its end: nothing, if it was not told.
    pub(super) fn clear(&mut self, trouble: Trouble, now: Timestamp) -> Option<Event> {
        let (since, summary) = self.0.remove(&trouble)?;
        Some(Event { cluster: String::new(), trouble, is_resolved: true, summary, since, at: now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_once_and_that_it_is_right_again_too() {
        let (mut board, at) = (Board::default(), |second| Timestamp::from_second(second).unwrap());
        assert_eq!(board.clear(Trouble::Stream, at(0)), None, "nothing was wrong");
        let raised = board.raise(Trouble::Stream, "no WAL comes".to_owned(), at(1)).unwrap();
        assert!(!raised.is_resolved);
        assert_eq!(board.raise(Trouble::Stream, "still".to_owned(), at(2)), None);
        assert!(board.raise(Trouble::Job(Job::Full), "failed".to_owned(), at(3)).is_some(), "another trouble");
        let cleared = board.clear(Trouble::Stream, at(4)).unwrap();
        assert!(cleared.is_resolved);
        assert_eq!((cleared.since, cleared.at, cleared.summary.as_str()), (at(1), at(4), "no WAL comes"));
        assert!(board.raise(Trouble::Stream, "again".to_owned(), at(5)).is_some());
    }
}
