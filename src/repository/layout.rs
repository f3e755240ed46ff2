//! Every object's name, built and parsed here and nowhere else.
//!
//! ```text
//! <cluster>/cluster.json
//! <cluster>/wal/00000001/0000000100000000/000000010000000000000003.lz4                        a segment of one block
//! <cluster>/wal/00000001/0000000100000000/000000010000000000000003.00000000-00002578.lz4      a block, whole or sealed
//! <cluster>/wal/00000002.history
//! <cluster>/open/00000001/000000010000000000000003.00002578-00003A00.lz4                      a tail
//! <cluster>/index/00000001/heartbeat-20261120T140300Z-00000000030025C0.json
//! <cluster>/index/00000001/gap-0000000003000000-0000000005000000.json
//! <cluster>/index/00000001/dead-0000000003002578-0000000003005000.json
//! <cluster>/index/00000001/pruned-0000000003000000-0000000005000000.json
//! <cluster>/index/00000001/records/0000000010000000-0000000020000000.lz4                      what the records say
//! <cluster>/base/20261120T140300Z/begin.json
//! <cluster>/base/20261120T140300Z/base.00001.<32 digits>.tar.lz4                              or 16384.00001.…
//! <cluster>/base/20261120T140300Z/backup_manifest.<32 digits>.lz4
//! <cluster>/base/20261120T140300Z/backup.json
//! <cluster>/base/20261120T140300Z/names.json.lz4
//! <cluster>/drills/20261120T140300Z.json
//! <cluster>/audit/2026/20261120T140300Z-full-good.json
//! <cluster>/open/lease-0000000000000001
//! <cluster>/keep/20261120T140300Z.00001.json
//! <cluster>/keep/20261120T140300Z.going-000644B5E3DF9900.json                                 or releasing-…
//! <cluster>/prunes/20261120T140300Z.json
//! <cluster>/open/probe-<id>
//! ```
//!
//! Names that differ only in codec endings are one object, so a [`Key`] does not say which codec it has. Encrypted objects have `.age`
//! behind it; those below `index/` never are.

use super::audit::{Action, ActionResult, AuditKey, year_of};
use super::part_name::{ContentDigest, PartName};
use crate::codec::{Ending, Form};
use crate::wal::{Lsn, Segment, SegmentSize, TimelineId, WalRange};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;

/// The folder of a timeline's indexes of records, in that of its index.
const RECORDS_FOLDER: &str = "records/";
/// The folder beside it, of the names of relations.
const NAMES_FOLDER: &str = "names/";

/// A base backup's name: the UTC second at which it began, and a number where two began in one second.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup that begins at `time`; `attempt` is 0 unless that name is taken.
    pub fn at(time: Timestamp, attempt: u32) -> BackupId {
        let stamp = compact(time);
        BackupId(if attempt == 0 { stamp } else { format!("{stamp}-{attempt}") })
    }

    /// Reads an id back; `None` if it is none.
    pub fn parse(text: &str) -> Option<BackupId> {
        let (stamp, attempt) = match text.split_once('-') {
            Some((stamp, attempt)) => (stamp, Some(attempt)),
            None => (text, None),
        };
        let number = |text: &str| text.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == text);
        let known = parse_compact(stamp).is_some() && attempt.is_none_or(number);
        known.then(|| BackupId(text.to_owned()))
    }

    /// When the backup began, to the second.
    pub fn time(&self) -> Option<Timestamp> {
        parse_compact(self.0.split('-').next()?)
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tar stream that a part of a base backup belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Archive {
    /// The data directory.
    Base,
    /// The tablespace with this OID.
    Tablespace(u32),
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Archive::Base => f.write_str("base"),
            Archive::Tablespace(oid) => write!(f, "{oid}"),
        }
    }
}

impl Archive {
    /// Reads `base` or an OID back.
    pub fn parse(text: &str) -> Option<Archive> {
        if text == "base" {
            return Some(Archive::Base);
        }
        let oid: u32 = text.parse().ok()?;
        (oid > 0 && oid.to_string() == text).then_some(Archive::Tablespace(oid))
    }
}

/// When names were read, to the second, and where the server was then. In the order of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamesAt {
    /// The server's position.
    pub lsn: Lsn,
    /// When, to the second.
    pub time: Timestamp,
    /// The server's timeline.
    pub timeline: TimelineId,
}

/// What an object is, as its name tells.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Key {
    /// `cluster.json`.
    Cluster,
    /// Bytes of one block, permanent: a whole block, or a part of one that was sealed at a switch of timelines.
    Block(WalRange),
    /// Bytes of a block that was not full yet.
    Tail(WalRange),
    /// A timeline's history file.
    History(TimelineId),
    /// Proof that the server lived at a time and had no WAL beyond a position.
    Heartbeat {
        /// The timeline.
        timeline: TimelineId,
        /// When, to the second.
        time: Timestamp,
        /// The server's flush position.
        flush: Lsn,
    },
    /// WAL that is lost for good.
    Gap(WalRange),
    /// WAL that was stored of a timeline behind the point where it was left: no part of what came after.
    DeadBranch(WalRange),
    /// WAL that was deleted on purpose, with something kept in front of it.
    Pruned(WalRange),
    /// What the records in these blocks say.
    Records(WalRange),
    /// What databases and relations were called.
    Names(NamesAt),
    /// A base backup has begun.
    BackupBegin(BackupId),
    /// A base backup exists.
    BackupEnd(BackupId),
    /// PostgreSQL's own manifest, which has this SHA-256.
    BackupManifest(BackupId, ContentDigest),
    /// A part of one of a base backup's tar streams.
    BackupPart(BackupId, PartName),
    /// What a drill found that ended at this time, to the second.
    Drill(Timestamp),
    /// Who did what.
    Audit(AuditKey),
    /// Who may do what is scheduled, until the one with the next number is there.
    Lease(u64),
    /// Whether a base backup is kept whatever the policy says: of several the one with the highest number counts.
    Keep(BackupId, u32),
    /// Somebody is about to do this to a base backup, or was when he was cut off; a number for each.
    Intent(BackupId, Intent, u64),
    /// What a prune did that ended at this time, to the second.
    Prune(Timestamp),
    /// A name to try the store with.
    Probe(String),
}

/// What somebody is about to do to a base backup that a mark forbids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Intent {
    /// It is deleted.
    Going,
    /// Legal holds are taken off what restores it.
    Releasing,
}

impl Intent {
    /// Both.
    pub const ALL: [Intent; 2] = [Intent::Going, Intent::Releasing];

    fn name(self) -> &'static str {
        match self {
            Intent::Going => "going",
            Intent::Releasing => "releasing",
        }
    }
}

/// True for the name of an object that stays once it is stored, whichever cluster's: all but those below `open/`, where tails are
/// replaced, leases pass on and stores are tried.
pub fn is_permanent(name: &str) -> bool {
    name.split('/').nth(1) != Some("open")
}

/// The name is none of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not the name of an object of a repository")]
pub struct ParseKeyError(String);

/// Builds and parses names for one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    cluster: String,
    size: SegmentSize,
    form: Form,
}

impl Layout {
    /// Names for the cluster called `cluster`, whose segments have `size`; objects are stored so.
    pub fn new(cluster: impl Into<String>, size: SegmentSize, form: impl Into<Form>) -> Layout {
        Layout { cluster: cluster.into(), size, form: form.into() }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The cluster's segment size.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// How new objects are stored, and what opens those that are there.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// The name of `cluster.json`, which must be read before the segment size is known.
    pub fn cluster_key(cluster: &str) -> String {
        format!("{cluster}/cluster.json")
    }

    /// The full name of a new object.
    pub fn name(&self, key: &Key) -> String {
        self.name_in(key, self.form.ending())
    }

    /// The full name of an object that is stored so.
    pub fn name_in(&self, key: &Key, suffix: Ending) -> String {
        let cluster = &self.cluster;
        match key {
            Key::Cluster => Layout::cluster_key(cluster),
            Key::Block(range) => {
                let segment = self.segment(*range);
                let file = segment.name();
                let whole_segment = range.start == segment.start && range.end == segment.end();
                if whole_segment {
                    format!("{}{file}.{suffix}", self.wal_directory(segment))
                } else {
                    format!("{}{file}.{}.{suffix}", self.wal_directory(segment), self.offsets(*range))
                }
            }
            Key::Tail(range) => {
                format!(
                    "{}{}.{}.{suffix}",
                    self.open_prefix(range.timeline),
                    self.segment(*range).name(),
                    self.offsets(*range)
                )
            }
            Key::History(timeline) => format!("{cluster}/wal/{}", timeline.history_name()),
            Key::Heartbeat { timeline, time, flush } => {
                format!("{}heartbeat-{}-{:016X}.json", self.index_prefix(*timeline), compact(*time), flush.0)
            }
            Key::Gap(range) => {
                format!("{}gap-{:016X}-{:016X}.json", self.index_prefix(range.timeline), range.start.0, range.end.0)
            }
            Key::DeadBranch(range) => {
                format!("{}dead-{:016X}-{:016X}.json", self.index_prefix(range.timeline), range.start.0, range.end.0)
            }
            Key::Pruned(range) => {
                format!("{}pruned-{:016X}-{:016X}.json", self.index_prefix(range.timeline), range.start.0, range.end.0)
            }
            Key::Records(range) => format!(
                "{}{:016X}-{:016X}.{}",
                self.records_prefix(range.timeline),
                range.start.0,
                range.end.0,
                suffix.codec.suffix()
            ),
            Key::Names(at) => {
                let (timeline, time) = (self.index_prefix(at.timeline), compact(at.time));
                format!("{timeline}{NAMES_FOLDER}{time}-{:016X}.json.{suffix}", at.lsn.0)
            }
            Key::BackupBegin(id) => format!("{}begin.json", self.backup_prefix(id)),
            Key::BackupEnd(id) => format!("{}backup.json", self.backup_prefix(id)),
            Key::BackupManifest(id, digest) => {
                format!("{}backup_manifest.{digest}.{suffix}", self.backup_prefix(id))
            }
            Key::BackupPart(id, name) => format!("{}{name}.tar.{suffix}", self.backup_prefix(id)),
            Key::Drill(time) => format!("{}{}.json", self.drills_prefix(), compact(*time)),
            Key::Audit(AuditKey { started_at, action, result }) => {
                let (folder, time) = (self.audit_prefix(year_of(*started_at)), compact(*started_at));
                format!("{folder}{time}-{}-{}.json", action.name(), result.name())
            }
            Key::Lease(number) => format!("{}lease-{number:016X}", self.open_root()),
            Key::Keep(id, number) => format!("{}{id}.{number:05}.json", self.keep_prefix()),
            Key::Intent(id, intent, number) => {
                format!("{}{id}.{}-{number:016X}.json", self.keep_prefix(), intent.name())
            }
            Key::Prune(time) => format!("{}{}.json", self.prunes_prefix(), compact(*time)),
            Key::Probe(id) => format!("{cluster}/open/probe-{id}"),
        }
    }

    /// Reads a full name back.
    ///
    /// # Errors
    /// If no key of this cluster has this name, in any codec.
    pub fn parse(&self, name: &str) -> Result<Key, ParseKeyError> {
        let key = name.strip_prefix(&self.cluster).and_then(|rest| rest.strip_prefix('/'));
        key.and_then(|rest| self.parse_relative(rest)).ok_or_else(|| ParseKeyError(name.to_owned()))
    }

    fn parse_relative(&self, name: &str) -> Option<Key> {
        let (folder, rest) = match name.split_once('/') {
            None => return (name == "cluster.json").then_some(Key::Cluster),
            Some(parts) => parts,
        };
        match folder {
            "wal" => match rest.rsplit_once('/') {
                None => TimelineId::parse_history_name(rest).map(Key::History),
                Some((directory, file)) => {
                    let range = self.parse_wal_file(file)?;
                    let segment = self.segment(range).name();
                    (directory == format!("{}/{}", &segment[..8], &segment[..16])).then_some(Key::Block(range))
                }
            },
            "open" => {
                if let Some(id) = rest.strip_prefix("probe-") {
                    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
                    return plain.then(|| Key::Probe(id.to_owned()));
                }
                if let Some(number) = rest.strip_prefix("lease-") {
                    return parse_hex(number, 16).map(Key::Lease);
                }
                let (directory, file) = rest.split_once('/')?;
                let range = self.parse_wal_file(file)?;
                let has_offsets = Ending::split(file)?.0.contains('.');
                (TimelineId::parse_hex(directory) == Some(range.timeline) && has_offsets).then_some(Key::Tail(range))
            }
            "index" => {
                let (directory, file) = rest.split_once('/')?;
                self.parse_index_file(TimelineId::parse_hex(directory)?, file)
            }
            "drills" => parse_compact(rest.strip_suffix(".json")?).map(Key::Drill),
            "audit" => {
                let (year, file) = rest.split_once('/')?;
                let (time, rest) = file.strip_suffix(".json")?.split_once('-')?;
                let (action, result) = rest.split_once('-')?;
                let started_at = parse_compact(time)?;
                let (action, result) = (Action::parse(action)?, ActionResult::parse(result)?);
                (year_of(started_at).to_string() == year).then_some(Key::Audit(AuditKey { started_at, action, result }))
            }
            "prunes" => parse_compact(rest.strip_suffix(".json")?).map(Key::Prune),
            "keep" => {
                let (id, rest) = rest.strip_suffix(".json")?.split_once('.')?;
                let id = BackupId::parse(id)?;
                if let Some((name, number)) = rest.split_once('-') {
                    let intent = Intent::ALL.into_iter().find(|intent| intent.name() == name)?;
                    return Some(Key::Intent(id, intent, parse_hex(number, 16)?));
                }
                let number: u32 = rest.parse().ok()?;
                (number > 0 && format!("{number:05}") == rest).then_some(Key::Keep(id, number))
            }
            "base" => {
                let (id, file) = rest.split_once('/')?;
                parse_backup_file(BackupId::parse(id)?, file)
            }
            _ => None,
        }
    }

    /// `<segment>.<codec>` or `<segment>.<start>-<end>.<codec>`.
    fn parse_wal_file(&self, file: &str) -> Option<WalRange> {
        let (stem, _) = Ending::split(file)?;
        let (name, offsets) = match stem.split_once('.') {
            Some((name, offsets)) => (name, Some(offsets)),
            None => (stem, None),
        };
        let segment = Segment::parse(name, self.size).ok()?;
        let (start, end) = match offsets {
            None => (0, self.size.bytes()),
            Some(offsets) => {
                let (start, end) = offsets.split_once('-')?;
                (parse_hex(start, 8)?, parse_hex(end, 8)?)
            }
        };
        let range = WalRange { timeline: segment.timeline, start: segment.start + start, end: segment.start + end };
        range.fits_one_block(self.size).then_some(range)
    }

    fn parse_index_file(&self, timeline: TimelineId, file: &str) -> Option<Key> {
        let range = |first, second| {
            let (start, end) = (Lsn(parse_hex(first, 16)?), Lsn(parse_hex(second, 16)?));
            (start < end).then_some(WalRange { timeline, start, end })
        };
        if let Some(file) = file.strip_prefix(RECORDS_FOLDER) {
            let (stem, ending) = Ending::split(file)?;
            let (first, second) = stem.split_once('-')?;
            return range(first, second).filter(|_| !ending.is_encrypted).map(Key::Records);
        }
        if let Some(file) = file.strip_prefix(NAMES_FOLDER) {
            let (first, second) = Ending::split(file)?.0.strip_suffix(".json")?.split_once('-')?;
            let (time, lsn) = (parse_compact(first)?, Lsn(parse_hex(second, 16)?));
            return Some(Key::Names(NamesAt { lsn, time, timeline }));
        }
        let (kind, rest) = file.strip_suffix(".json")?.split_once('-')?;
        let (first, second) = rest.split_once('-')?;
        match kind {
            "heartbeat" => {
                Some(Key::Heartbeat { timeline, time: parse_compact(first)?, flush: Lsn(parse_hex(second, 16)?) })
            }
            "gap" => range(first, second).map(Key::Gap),
            "dead" => range(first, second).map(Key::DeadBranch),
            "pruned" => range(first, second).map(Key::Pruned),
            _ => None,
        }
    }

    /// Where everything of the cluster is: `<cluster>/`.
    pub fn root(&self) -> String {
        format!("{}/", self.cluster)
    }

    /// Where timelines' folders and history files are.
    pub fn wal_prefix(&self) -> String {
        format!("{}/wal/", self.cluster)
    }

    /// Where a timeline's blocks are, in one folder for each 4 GiB.
    pub fn timeline_prefix(&self, timeline: TimelineId) -> String {
        format!("{}/wal/{:08X}/", self.cluster, timeline.0)
    }

    /// The folder that holds a segment's blocks.
    pub fn wal_directory(&self, segment: Segment) -> String {
        format!("{}{}/", self.timeline_prefix(segment.timeline), &segment.name()[..16])
    }

    /// Reads a folder of [`Layout::wal_directory`] back: the first position that it can hold.
    pub fn parse_wal_directory(&self, prefix: &str) -> Option<(TimelineId, Lsn)> {
        let (timeline, folder) = prefix.strip_prefix(&self.wal_prefix())?.strip_suffix('/')?.split_once('/')?;
        let (timeline, log_id) = (TimelineId::parse_hex(timeline)?, folder.get(8..)?);
        let consistent = folder.len() == 16 && TimelineId::parse_hex(&folder[..8]) == Some(timeline);
        let log_id = parse_hex(log_id, 8)?;
        consistent.then_some((timeline, Lsn(log_id << 32)))
    }

    /// Reads a timeline's folder back: of blocks, of tails, or of its index.
    pub fn parse_timeline_prefix(&self, prefix: &str) -> Option<TimelineId> {
        let roots = [self.wal_prefix(), self.open_root(), self.index_root()];
        let folder = roots.iter().find_map(|root| prefix.strip_prefix(root))?;
        TimelineId::parse_hex(folder.strip_suffix('/')?)
    }

    /// Where timelines' folders of heartbeats, gaps, dead branches and records are.
    pub fn index_root(&self) -> String {
        format!("{}/index/", self.cluster)
    }

    /// Where timelines' folders of tails are.
    pub fn open_root(&self) -> String {
        format!("{}/open/", self.cluster)
    }

    /// Where all that drills found is.
    pub fn drills_prefix(&self) -> String {
        format!("{}/drills/", self.cluster)
    }

    /// Where what was done in a year is written.
    pub fn audit_prefix(&self, year: i16) -> String {
        format!("{}{year}/", self.audit_root())
    }

    /// Where years' folders of what was done are.
    pub fn audit_root(&self) -> String {
        format!("{}/audit/", self.cluster)
    }

    /// Where the marks are by which base backups are kept.
    pub fn keep_prefix(&self) -> String {
        format!("{}/keep/", self.cluster)
    }

    /// Where all that prunes did is.
    pub fn prunes_prefix(&self) -> String {
        format!("{}/prunes/", self.cluster)
    }

    /// Where a timeline's tails are.
    pub fn open_prefix(&self, timeline: TimelineId) -> String {
        format!("{}/open/{:08X}/", self.cluster, timeline.0)
    }

    /// Where a timeline's heartbeats, gaps, dead branches and records are.
    pub fn index_prefix(&self, timeline: TimelineId) -> String {
        format!("{}/index/{:08X}/", self.cluster, timeline.0)
    }

    /// Where a timeline's indexes of records are.
    pub fn records_prefix(&self, timeline: TimelineId) -> String {
        format!("{}{RECORDS_FOLDER}", self.index_prefix(timeline))
    }

    /// Where all base backups are, one folder each.
    pub fn base_prefix(&self) -> String {
        format!("{}/base/", self.cluster)
    }

    /// A base backup's folder.
    pub fn backup_prefix(&self, id: &BackupId) -> String {
        format!("{}/base/{id}/", self.cluster)
    }

    /// Reads a base backup's folder back.
    pub fn parse_backup_prefix(&self, prefix: &str) -> Option<BackupId> {
        BackupId::parse(prefix.strip_prefix(&self.base_prefix())?.strip_suffix('/')?)
    }

    fn segment(&self, range: WalRange) -> Segment {
        Segment::holding(range.timeline, range.start, self.size)
    }

    /// The range as offsets in its segment. The end of the last block of a 1 GiB segment still has eight digits.
    fn offsets(&self, range: WalRange) -> String {
        let start = u64::from(self.size.offset(range.start));
        format!("{start:08X}-{:08X}", start + range.bytes())
    }
}

fn parse_backup_file(id: BackupId, file: &str) -> Option<Key> {
    match file {
        "begin.json" => return Some(Key::BackupBegin(id)),
        "backup.json" => return Some(Key::BackupEnd(id)),
        _ => {}
    }
    let (stem, _) = Ending::split(file)?;
    if let Some(digest) = stem.strip_prefix("backup_manifest.") {
        return Some(Key::BackupManifest(id, ContentDigest::parse(digest)?));
    }
    Some(Key::BackupPart(id, PartName::parse(stem.strip_suffix(".tar")?)?))
}

/// Exactly `digits` upper-case hexadecimal digits.
fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let known = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    known.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// `20261120T140300Z`: sorts as it reads and needs no escaping anywhere.
fn compact(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn parse_compact(text: &str) -> Option<Timestamp> {
    if text.len() != 16 {
        return None;
    }
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    let time = civil.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (compact(time) == text).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use proptest::prelude::*;

    fn layouts() -> impl Strategy<Value = Layout> {
        prop_oneof![Just(1u64 << 20), Just(16 << 20), Just(64 << 20), Just(1 << 30)].prop_map(|bytes| {
            let size = SegmentSize::new(bytes).unwrap();
            Layout::new("main", size, Compression::Lz4)
        })
    }

    /// A range within one block, from any numbers.
    fn within_a_block(size: SegmentSize, timeline: u32, at: u64, length: u64) -> WalRange {
        let start = Lsn(at);
        let room = size.block_end(start) - start;
        WalRange { timeline: TimelineId(timeline), start, end: start + 1 + length % room }
    }

    proptest! {
        #[test]
        fn every_name_survives_being_built_and_parsed(
            layout in layouts(), timeline in 1u32.., at in 0u64..u64::MAX / 4, length: u64,
            seconds in 0i64..4_000_000_000, number in 1u32.., oid in 1u32.., sha256: [u8; 32],
        ) {
            let size = layout.segment_size();
            let range = within_a_block(size, timeline, at, length);
            let whole = WalRange { start: size.block_start(range.start), end: size.block_end(range.start), ..range };
            let time = Timestamp::from_second(seconds).unwrap();
            let id = BackupId::at(time, number % 3);
            let digest = ContentDigest::of_sha256(sha256);
            let keys = [
                Key::Cluster,
                Key::Block(range),
                Key::Block(whole),
                Key::Tail(range),
                Key::Tail(whole),
                Key::History(TimelineId(timeline)),
                Key::Heartbeat { timeline: TimelineId(timeline), time, flush: Lsn(at) },
                Key::Gap(WalRange { end: range.start + 1 + (length >> 3), ..range }),
                Key::DeadBranch(WalRange { end: range.start + 1 + (length >> 3), ..range }),
                Key::Pruned(WalRange { end: range.start + 1 + (length >> 3), ..range }),
                Key::Records(WalRange { end: range.start + 1 + (length >> 3), ..range }),
                Key::Names(NamesAt { lsn: Lsn(at), time, timeline: TimelineId(timeline) }),
                Key::BackupBegin(id.clone()),
                Key::BackupEnd(id.clone()),
                Key::BackupManifest(id.clone(), digest),
                Key::BackupPart(id.clone(), PartName { archive: Archive::Base, number, digest }),
                Key::Keep(id.clone(), number),
                Key::Intent(id.clone(), Intent::ALL[number as usize % 2], length),
                Key::BackupPart(id, PartName { archive: Archive::Tablespace(oid), number, digest }),
                Key::Drill(time),
                Key::Audit(AuditKey {
                    started_at: time,
                    action: Action::ALL[number as usize % Action::ALL.len()],
                    result: ActionResult::ALL[oid as usize % ActionResult::ALL.len()],
                }),
                Key::Lease(length),
                Key::Prune(time),
                Key::Probe("0a1b".to_owned()),
            ];
            for key in keys {
                let name = layout.name(&key);
                prop_assert_eq!(layout.parse(&name), Ok(key.clone()), "{}", name);
                let passes = matches!(key, Key::Tail(_) | Key::Lease(_) | Key::Probe(_));
                prop_assert_eq!(is_permanent(&name), !passes, "{}", name);
                for ending in Ending::ALL {
                    let name = layout.name_in(&key, ending);
                    prop_assert_eq!(layout.parse(&name), Ok(key.clone()), "{}", name);
                }
            }
        }

        #[test]
        fn any_other_name_is_refused_or_built_back_to_itself(layout in layouts(), rest in "(wal|open|index|base|drills|keep|prunes|audit)/[0-9A-F./a-z-]{0,60}") {
            let name = format!("main/{rest}");
            if let Ok(key) = layout.parse(&name) {
                prop_assert_eq!(layout.name(&key), name);
            }
        }

        #[test]
        fn a_wal_folder_is_read_back(layout in layouts(), timeline in 1u32.., at in 0u64..u64::MAX / 4) {
            let segment = Segment::holding(TimelineId(timeline), Lsn(at), layout.segment_size());
            let folder = layout.wal_directory(segment);
            prop_assert_eq!(layout.parse_wal_directory(&folder), Some((segment.timeline, Lsn(at >> 32 << 32))));
        }
    }

    #[test]
    fn names_are_the_documented_ones() {
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let range = |start, end| WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) };
        let expected = [
            (
                Key::Block(range(0x300_0000, 0x400_0000)),
                "main/wal/00000001/0000000100000000/000000010000000000000003.lz4",
            ),
            (
                Key::Block(range(0x300_0000, 0x300_2578)),
                "main/wal/00000001/0000000100000000/000000010000000000000003.00000000-00002578.lz4",
            ),
            (
                Key::Tail(range(0x300_2578, 0x300_3A00)),
                "main/open/00000001/000000010000000000000003.00002578-00003A00.lz4",
            ),
        ];
        for (key, name) in expected {
            assert_eq!(layout.name(&key), name);
        }
    }
}
