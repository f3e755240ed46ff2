//! What the records between a backup and a target say: where recovery must stop, and what it will need. Pure.

use crate::history::index::{Fact, Outline, Span, Transaction, time_of};
use crate::wal::{Lsn, ParameterChange, Record, RecordKind};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goal {
    /// The last record.
    End,
    /// The last end of a transaction before the first one that is later than `time` (or, `exclusive`, not earlier).
    Time {
        /// The moment asked for.
        time: Timestamp,
        /// What happened exactly then is left out.
        exclusive: bool,
    },
    /// The first record that begins at `lsn` or later; `exclusive`: the one before.
    Lsn {
        /// The position asked for.
        lsn: Lsn,
        /// Leave that record out.
        exclusive: bool,
    },
    /// The end of a transaction; `exclusive`: the record before.
    Xid {
        /// The transaction.
        xid: u32,
        /// Leave its end out: its changes are rolled back.
        exclusive: bool,
    },
    /// The first restore point of this name once the backup is consistent; `exclusive`: the record before.
    Name {
        /// The name.
        name: String,
        /// Leave the restore point's record out.
        exclusive: bool,
    },
}

/// The goal, found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The last record to be replayed; `None` if none is needed: as soon as the backup is consistent.
    pub last: Option<Span>,
    /// The first position that must not be replayed; `None` if everything known may be.
    pub next: Option<Lsn>,
}

/// A tablespace that replay creates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTablespace {
    /// Its record's first byte.
    pub lsn: Lsn,
    /// Its OID.
    pub oid: u32,
    /// Its directory, absolute.
    pub path: String,
}

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// The goal, if it was met.
    pub found: Option<Found>,
    /// Behind the last whole record.
    pub end: Lsn,
    /// The last whole record.
    pub last: Option<Span>,
    /// When the checkpoint that the backup begins with was made, by the server's clock, to the second before.
    pub began: Option<Timestamp>,
    /// The last record before the backup is consistent: with it replayed, it is.
    pub consistent: Option<Span>,
    /// The last end of a transaction before the goal.
    pub last_transaction: Option<Transaction>,
    /// The latest moment that any record is dated: the server had no other WAL up to then.
    pub latest: Option<Timestamp>,
    /// The least values, by setting, that a server needs to replay what was seen.
    pub requirements: BTreeMap<&'static str, i32>,
    /// Where the server said that from now on it writes too little WAL for recovery.
    pub minimal: Option<Lsn>,
    /// Tablespaces that replay creates.
    pub tablespaces: Vec<NewTablespace>,
    /// Why the records could not be read further.
    pub unreadable: Option<String>,
}

/// Looks at records in order.
#[derive(Debug)]
pub(super) struct Surveyor {
    goal: Goal,
    from: Lsn,
    consistent: Lsn,
    /// Records that begin before it are known from an outline.
    known_to: Lsn,
    survey: Survey,
}

impl Surveyor {
    /// Looks for `goal` in the records from `from` on, with a backup that is consistent at `consistent`.
    pub(super) fn new(goal: Goal, from: Lsn, consistent: Lsn) -> Surveyor {
        Surveyor { goal, from, consistent, known_to: from, survey: Survey { end: from, ..Survey::default() } }
    }

    /// Looks at the next record; breaks when nothing further on can matter.
    pub(super) fn see(&mut self, record: &Record) -> ControlFlow<()> {
        if record.start < self.known_to {
            return ControlFlow::Continue(());
        }
        let span = Span { start: record.start, end: record.end };
        let before = Found { last: self.survey.last, next: Some(span.start) };
        let with = Found { last: Some(span), next: Some(span.end) };
        let pick = |exclusive: bool| if exclusive { before } else { with };
        let transaction = Transaction::ended_by(record);
        let met = match (&self.goal, transaction, &record.kind) {
            (Goal::Time { time, exclusive }, Some(end), _) => {
                let too_late = end.time > *time || (*exclusive && end.time == *time);
                let last = self.survey.last_transaction.map(|last| last.record);
                too_late.then_some(Found { last, next: Some(span.start) })
            }
            (Goal::Lsn { lsn, exclusive }, ..) if span.start >= *lsn => Some(pick(*exclusive)),
            (Goal::Xid { xid, exclusive }, Some(end), _) if end.xid == *xid => Some(pick(*exclusive)),
            (Goal::Name { name, exclusive }, _, RecordKind::RestorePoint { name: found, .. })
                if found == name && span.start >= self.consistent =>
            {
                Some(pick(*exclusive))
            }
            _ => None,
        };
        if met.is_none_or(|found| found.last == Some(span)) {
            self.remember(record, span, transaction);
        }
        self.survey.found = met;
        match met {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    fn remember(&mut self, record: &Record, span: Span, transaction: Option<Transaction>) {
        let survey = &mut self.survey;
        survey.last = Some(span);
        if span.start < self.consistent {
            survey.consistent = Some(span);
        }
        survey.end = span.end;
        if let Some(transaction) = transaction {
            survey.last_transaction = Some(transaction);
        }
        survey.latest = survey.latest.max(time_of(&record.kind));
        match &record.kind {
            RecordKind::Checkpoint { redo, .. } if *redo == self.from => survey.began = time_of(&record.kind),
            RecordKind::ParameterChange(change) => survey.require(span, change),
            RecordKind::TablespaceCreate { oid, path } => survey.create_tablespace(span, *oid, path),
            _ => {}
        }
    }

    /// True if the records in an outline's stretch need not be looked at: what it says of them is enough. Not before the backup
    /// is consistent: which record makes it so has to be seen.
    pub(super) fn may_pass(&self, outline: &Outline) -> bool {
        let has_goal = match &self.goal {
            Goal::End => false,
            Goal::Time { time, exclusive } => outline.times.is_some_and(|(_, latest)| match exclusive {
                true => latest >= *time,
                false => latest > *time,
            }),
            Goal::Lsn { lsn, .. } => outline.last.is_some_and(|last| last.start >= *lsn),
            Goal::Xid { xid, .. } => outline.xids.is_some_and(|(least, greatest)| (least..=greatest).contains(xid)),
            Goal::Name { name, .. } => outline.events.iter().any(
                |event| matches!(&event.fact, Fact::RestorePoint { name: found, .. } if found.as_ref() == Some(name)),
            ),
        };
        !has_goal && outline.start >= self.consistent && outline.is_complete()
    }

    /// Where the last record begins that is known.
    pub(super) fn last_start(&self) -> Option<Lsn> {
        self.survey.last.map(|last| last.start)
    }

    /// Takes in all records of an outline's stretch, of which those before it are known.
    pub(super) fn pass(&mut self, outline: &Outline) {
        self.known_to = outline.next_record;
        let survey = &mut self.survey;
        if let Some(last) = outline.last {
            survey.last = Some(last);
            survey.end = last.end;
        }
        survey.last_transaction = outline.last_transaction.or(survey.last_transaction);
        survey.latest = survey.latest.max(outline.dated);
        for event in &outline.events {
            match &event.fact {
                Fact::TablespaceCreated { oid, path: Some(path) } => survey.create_tablespace(event.at, *oid, path),
                Fact::Parameters(change) => survey.require(event.at, change),
                _ => {}
            }
        }
    }

    /// Ends the survey: what is stored was read up to `read`, the records in it are complete up to `end`, or were
    /// `unreadable` from there on.
    pub(super) fn finish(self, end: Lsn, read: Lsn, unreadable: Option<String>) -> Survey {
        let mut survey = self.survey;
        survey.end = survey.end.max(end);
        survey.unreadable = unreadable;
        let everything = Found { last: survey.last, next: None };
        match self.goal {
            Goal::End => survey.found = Some(everything),
            // No record begins there, and all that begin before, and are whole, are known.
            Goal::Lsn { lsn, exclusive: true } if survey.found.is_none() && read >= lsn => {
                survey.found = Some(everything);
            }
            _ => {}
        }
        survey
    }
}

impl Survey {
    fn require(&mut self, record: Span, change: &ParameterChange) {
        for (name, value) in settings(change) {
            let least = self.requirements.entry(name).or_insert(value);
            *least = value.max(*least);
        }
        if change.wal_level == 0 {
            self.minimal.get_or_insert(record.start);
        }
    }

    /// One inside the data directory has no path.
    fn create_tablespace(&mut self, record: Span, oid: u32, path: &str) {
        if path.starts_with('/') {
            self.tablespaces.push(NewTablespace { lsn: record.start, oid, path: path.to_owned() });
        }
    }
}

/// The settings that `CheckRequiredParameterValues` (`xlogrecovery.c`) compares.
fn settings(change: &ParameterChange) -> [(&'static str, i32); 5] {
    [
        ("max_connections", change.max_connections),
        ("max_worker_processes", change.max_worker_processes),
        ("max_wal_senders", change.max_wal_senders),
        ("max_prepared_transactions", change.max_prepared_xacts),
        ("max_locks_per_transaction", change.max_locks_per_xact),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, commit, other, record};
    use super::*;

    fn survey(goal: Goal, records: &[Record]) -> Survey {
        let mut surveyor = Surveyor::new(goal, Lsn(100), Lsn(200));
        let mut end = Lsn(100);
        for record in records {
            end = record.end;
            if surveyor.see(record).is_break() {
                break;
            }
        }
        surveyor.finish(end, end, None)
    }

    fn found(goal: Goal, records: &[Record]) -> Option<(Option<u64>, Option<u64>)> {
        let found = survey(goal, records).found?;
        Some((found.last.map(|span| span.start.0), found.next.map(|lsn| lsn.0)))
    }

    /// Commits at 10, 30, 20, 40 seconds: sessions' clocks and the order of their records need not agree.
    fn records() -> Vec<Record> {
        vec![
            commit(50, 1, 500),
            other(100),
            commit(200, 7, 10),
            other(210),
            commit(300, 8, 30),
            commit(400, 9, 20),
            other(410),
            commit(500, 10, 40),
        ]
    }

    #[test]
    fn a_time_ends_before_the_first_later_transaction_even_if_an_earlier_one_follows() {
        let time = |seconds, exclusive| Goal::Time { time: at(seconds), exclusive };
        assert_eq!(found(time(10, false), &records()), Some((Some(200), Some(300))));
        assert_eq!(found(time(25, false), &records()), Some((Some(200), Some(300))));
        assert_eq!(found(time(30, false), &records()), Some((Some(400), Some(500))));
        assert_eq!(found(time(30, true), &records()), Some((Some(200), Some(300))));
        assert_eq!(found(time(5, false), &records()), Some((None, Some(200))), "nothing happened before");
        assert_eq!(found(time(40, false), &records()), None, "nothing later shows that this was all");
        assert_eq!(survey(time(40, false), &records()).latest, Some(at(40)));
    }

    #[test]
    fn an_lsn_means_the_first_record_that_begins_there_or_later() {
        let lsn = |lsn, exclusive| Goal::Lsn { lsn: Lsn(lsn), exclusive };
        assert_eq!(found(lsn(205, false), &records()), Some((Some(210), Some(211))));
        assert_eq!(found(lsn(210, false), &records()), Some((Some(210), Some(211))));
        assert_eq!(found(lsn(210, true), &records()), Some((Some(200), Some(210))));
        assert_eq!(found(lsn(501, false), &records()), None, "no record begins there yet");
        assert_eq!(found(lsn(501, true), &records()), Some((Some(500), None)), "all before it are known");
        assert_eq!(found(lsn(502, true), &records()), None);
    }

    #[test]
    fn transactions_and_names_are_found_once_consistent() {
        let point = |lsn, name: &str| {
            let time_micros = crate::restore::testing::micros(1);
            record(lsn, 0, RecordKind::RestorePoint { time_micros, name: name.into() })
        };
        let mut records = records();
        records.insert(2, point(150, "before"));
        records.push(point(600, "before"));
        let xid = |xid, exclusive| Goal::Xid { xid, exclusive };
        assert_eq!(found(xid(9, false), &records), Some((Some(400), Some(401))));
        assert_eq!(found(xid(9, true), &records), Some((Some(300), Some(400))));
        assert_eq!(found(xid(1, false), &records), None, "it lies before the backup");
        let name = |name: &str, exclusive| Goal::Name { name: name.into(), exclusive };
        assert_eq!(found(name("before", false), &records), Some((Some(600), Some(601))));
        assert_eq!(found(name("after", false), &records), None);
    }

    #[test]
    fn a_prepared_transaction_goes_by_its_own_number() {
        let time_micros = crate::restore::testing::micros(1);
        let commit = RecordKind::plain_commit(time_micros, Some(77));
        let records = [record(300, 80, commit)];
        assert_eq!(found(Goal::Xid { xid: 77, exclusive: false }, &records), Some((Some(300), Some(301))));
        assert_eq!(found(Goal::Xid { xid: 80, exclusive: false }, &records), None);
    }

    #[test]
    fn requirements_are_the_highest_on_the_way_and_stop_at_the_goal() {
        let change = |connections, wal_level| {
            RecordKind::ParameterChange(ParameterChange {
                max_connections: connections,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_xacts: 0,
                max_locks_per_xact: 64,
                wal_level,
            })
        };
        let records = [
            record(300, 0, change(300, 1)),
            record(400, 0, change(100, 1)),
            commit(500, 5, 10),
            record(600, 0, change(900, 0)),
        ];
        let seen = survey(Goal::Xid { xid: 5, exclusive: false }, &records);
        assert_eq!((seen.requirements["max_connections"], seen.minimal), (300, None));
        let seen = survey(Goal::End, &records);
        assert_eq!((seen.requirements["max_connections"], seen.minimal), (900, Some(Lsn(600))));
    }
}
