//! An object's contents against what it must hold: its identity, its frames, its hashes; of WAL also whether its records are whole.
//! CPU work.

use super::report::{Finding, FindingKind};
use crate::codec::{
    Buffers, CodecError, FRAME_BYTES, FRAME_STORED_BYTES_MAX, FrameDecoder, FrameSplitter, Identities, RawFrame,
    encryption,
};
use crate::repository::{Archive, BackupId, Identity, Subject, hex};
use crate::wal::{Lsn, PAGE_BYTES, RecordWalker, SegmentSize, TimelineId, WalRange, WalkError};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// What an object must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    pub(super) system_identifier: u64,
    pub(super) subject: Subject,
    /// Of its contents, as far as that is known from elsewhere.
    pub(super) plain_bytes: Option<u64>,
    /// SHA-256 of its contents, if that is known from elsewhere.
    pub(super) plain_sha256: Option<String>,
    /// It must say its contents' BLAKE3 hash.
    pub(super) has_blake3: bool,
}

impl Expected {
    /// What walks over the records of WAL; of what begins in the middle of a page nobody knows where one begins.
    fn records(&self, size: SegmentSize) -> Option<Records> {
        match self.subject {
            Subject::Wal { start, .. } if start.0.is_multiple_of(PAGE_BYTES) => {
                Some(Records { walker: RecordWalker::new(size, start), position: start, wrong: None })
            }
            _ => None,
        }
    }
}

/// Walks over the records of an object of WAL.
struct Records {
    walker: RecordWalker,
    position: Lsn,
    wrong: Option<WalkError>,
}

impl Records {
    fn push(&mut self, bytes: &[u8]) {
        if self.wrong.is_none() {
            self.wrong = self.walker.push(self.position, bytes, &mut |_| {}).err();
        }
        self.position = self.position + bytes.len() as u64;
    }

    /// Why recovery ends in it, if it does. Nothing is said of what does not begin as WAL of a version that we know.
    fn wrong(self) -> Option<WalkError> {
        self.wrong.filter(|_| self.walker.has_met_wal())
    }
}

/// What may lie here under a wrong name: an identity of anything else is itself damaged.
#[derive(Clone, Debug)]
pub(super) struct Others {
    pub(super) size: SegmentSize,
    pub(super) backups: BTreeSet<BackupId>,
    /// Where the finished ones begin.
    pub(super) beginnings: Vec<(TimelineId, Lsn)>,
    pub(super) dead_branches: Vec<WalRange>,
}

impl Others {
    /// True if somebody may want to recover beyond `lsn` and has to come from in front of it: no base backup begins behind it, and the
    /// timeline went on from there.
    fn must_pass(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let is_dead = |branch: &WalRange| branch.timeline == timeline && branch.start <= lsn && lsn < branch.end;
        let is_behind = |(on, start): &(TimelineId, Lsn)| *on >= timeline && *start > lsn;
        !self.dead_branches.iter().any(is_dead) && !self.beginnings.iter().any(is_behind)
    }

    fn may_be(&self, identity: &Identity) -> bool {
        match &identity.subject {
            Subject::Wal { timeline, start, end } => {
                let range = WalRange { timeline: *timeline, start: *start, end: *end };
                start < end && range.fits_one_block(self.size) && range.bytes() == identity.plain_bytes
            }
            Subject::Records { start, end, .. } => start < end,
            Subject::Part { backup, archive } => Archive::parse(archive).is_some() && self.backups.contains(backup),
            Subject::Manifest { backup } => self.backups.contains(backup),
            Subject::Names { .. } => true,
        }
    }
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Judged {
    /// It holds what it must.
    Sound,
    /// It is encrypted, and not for us: what it says in clear is right.
    Sealed,
    /// It does not.
    Wrong(Finding),
}

/// Reads the object called `name` to its end.
pub(super) fn judge(
    name: &str,
    stored: Bytes,
    expected: &Expected,
    others: &Others,
    (identities, buffers): (&Identities, &Buffers),
) -> Judged {
    let damaged = |what: String| Judged::Wrong(Finding::of_object(FindingKind::WrongContents, name, what));
    let prefix = stored.clone();
    match Contents::read(stored, expected.records(others.size), identities, buffers) {
        Ok(contents) => match contents.identity(name) {
            Ok(identity) => contents.judge(name, &identity, expected, others),
            Err(why) => damaged(why),
        },
        Err(error) if error.is_ours() => match note(name, &prefix) {
            Ok(identity) => other_subject(name, &identity, expected, others).map_or(Judged::Sealed, Judged::Wrong),
            Err(why) => damaged(why),
        },
        Err(error) => damaged(format!("is damaged: {}", crate::error::Error::from(error))),
    }
}

/// What an encrypted object says of itself in clear.
fn note(name: &str, stored: &[u8]) -> Result<Identity, String> {
    let note = encryption::read_note(stored).map_err(|error| format!("is damaged: {error}"))?;
    parse(name, note.as_deref())
}

fn parse(name: &str, identity: Option<&[u8]>) -> Result<Identity, String> {
    // The name is in front of the sentence already.
    let without_name = |error: crate::error::Error| {
        let text = error.to_string();
        text.strip_prefix(name).map_or_else(|| text.clone(), |rest| rest.trim_start().to_owned())
    };
    Identity::parse(name, identity).map_err(without_name)
}

/// The finding that it is another object.
fn other_subject(name: &str, identity: &Identity, expected: &Expected, others: &Others) -> Option<Finding> {
    let swapped = |what: String| {
        let finding = Finding::of_object(FindingKind::SwappedObject, name, what);
        finding.hint("Was it renamed, swapped with another, or copied from elsewhere?")
    };
    if identity.system_identifier != expected.system_identifier {
        let what = format!("is of the cluster {}, not of {}", identity.system_identifier, expected.system_identifier);
        return Some(swapped(what));
    }
    let what = || format!("says that it is {}", in_words(&identity.subject));
    match identity.subject == expected.subject {
        true => None,
        false if others.may_be(identity) => Some(swapped(what())),
        false => Some(Finding::of_object(FindingKind::WrongContents, name, format!("{}, which cannot be", what()))),
    }
}

fn in_words(subject: &Subject) -> String {
    match subject {
        Subject::Wal { timeline, start, end } => format!("WAL from {start} to {end} of timeline {timeline}"),
        Subject::Records { timeline, start, end } => format!("the index from {start} to {end} of timeline {timeline}"),
        Subject::Part { backup, archive } => format!("a part of {archive:?} of backup {backup}"),
        Subject::Manifest { backup } => format!("the manifest of backup {backup}"),
        Subject::Names { timeline, lsn, .. } => format!("names of relations at {lsn} of timeline {timeline}"),
    }
}

/// What an object holds.
struct Contents {
    identity: Option<Bytes>,
    bytes: u64,
    blake3: blake3::Hasher,
    sha256: Sha256,
    records: Option<Records>,
}

impl Contents {
    /// Frame by frame: no more than one is in memory beside what is stored.
    fn read(
        stored: Bytes,
        records: Option<Records>,
        identities: &Identities,
        buffers: &Buffers,
    ) -> Result<Contents, CodecError> {
        let (blake3, sha256) = (blake3::Hasher::new(), Sha256::new());
        let mut contents = Contents { identity: None, bytes: 0, blake3, sha256, records };
        let mut splitter = FrameSplitter::new(FRAME_STORED_BYTES_MAX);
        let mut decoder = FrameDecoder::new();
        let mut is_empty = true;
        for piece in encryption::open(identities, stored)? {
            splitter.push(piece?);
            while let Some(frame) = splitter.next()? {
                is_empty = false;
                match frame {
                    RawFrame::Identity(bytes) => contents.identity = Some(bytes),
                    RawFrame::Data(raw) => {
                        let mut plain = buffers.take();
                        decoder.decode(&raw, &mut plain, FRAME_BYTES)?;
                        contents.bytes += plain.len() as u64;
                        contents.blake3.update(&plain);
                        contents.sha256.update(plain.as_slice());
                        if let Some(records) = &mut contents.records {
                            records.push(&plain);
                        }
                    }
                }
            }
        }
        splitter.finish()?;
        if is_empty { Err(CodecError::Cut { needed_bytes: 1 }) } else { Ok(contents) }
    }

    fn identity(&self, name: &str) -> Result<Identity, String> {
        parse(name, self.identity.as_deref())
    }

    fn judge(self, name: &str, identity: &Identity, expected: &Expected, others: &Others) -> Judged {
        if let Some(finding) = other_subject(name, identity, expected, others) {
            return Judged::Wrong(finding);
        }
        let wrong = |kind, what: String| Judged::Wrong(Finding::of_object(kind, name, what));
        let plain_bytes = expected.plain_bytes.unwrap_or(identity.plain_bytes);
        if self.bytes != plain_bytes || identity.plain_bytes != plain_bytes {
            // Cut between two frames, it is shorter and otherwise whole.
            return wrong(FindingKind::WrongLength, format!("holds {} bytes instead of {plain_bytes}", self.bytes));
        }
        let differs = |hash: &str| wrong(FindingKind::WrongContents, format!("does not have the {hash}"));
        let blake3 = self.blake3.finalize().to_string();
        match &identity.blake3 {
            Some(stored) if *stored != blake3 => return differs("BLAKE3 hash that it was stored with"),
            None if expected.has_blake3 => {
                return wrong(FindingKind::WrongContents, "does not say its BLAKE3 hash".to_owned());
            }
            _ => {}
        }
        match &expected.plain_sha256 {
            Some(sha256) if *sha256 != hex(&self.sha256.finalize()) => {
                return differs("SHA-256 that backup.json says");
            }
            _ => {}
        }
        match self.records.and_then(Records::wrong) {
            None => Judged::Sound,
            Some(error) => {
                let what = format!("holds what the server sent, but recovery ends in it: {error}");
                let finding = Finding::of_object(FindingKind::WrongRecord, name, what);
                let is_in_the_way = match (&expected.subject, error) {
                    (Subject::Wal { timeline, .. }, WalkError::Record { start, .. }) => {
                        others.must_pass(*timeline, start)
                    }
                    (Subject::Wal { timeline, start, .. }, _) => others.must_pass(*timeline, *start),
                    _ => true,
                };
                Judged::Wrong(match is_in_the_way {
                    true => finding.hint(
                        "Take a base backup now (`seawall backup`): what comes behind it can be restored from there. Then look after the \
                         server's memory and disks.",
                    ),
                    false => finding.into_note().hint("No moment behind it needs it: a base backup begins there, or nothing went on."),
                })
            }
        }
    }
}
