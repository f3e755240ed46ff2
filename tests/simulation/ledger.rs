//! The judge: sees every object the moment it is stored or deleted, and every position the moment it is acknowledged.

use crate::invariant::{Invariant, Violation};
use crate::wal::{BranchId, Wal};
use age::secrecy::ExposeSecret;
use bytes::Bytes;
use seawall::codec::encryption::{generate_identity, open_whole};
use seawall::codec::{Compression, Form, Identities, Recipients, decode_object};
use seawall::repository::{Key, Layout};
use seawall::wal::{BLOCK_BYTES_MAX, Lsn, TimelineId, WalRange};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// The cluster's name in the repository.
pub const CLUSTER: &str = "main";

#[derive(Debug)]
pub struct Ledger {
    pub wal: Arc<Wal>,
    pub layout: Layout,
    inner: Mutex<Inner>,
}

/// What a server has and what it is, when something is stored.
#[derive(Clone, Copy, Default, Debug)]
pub struct Kept {
    /// WAL before this is gone.
    pub removed_before: Lsn,
    /// The slot keeps it from here on.
    pub kept_from: Lsn,
    /// A server that contradicts what was acknowledged before: nothing it wrote may be stored.
    pub stranger: Option<BranchId>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Live WAL objects by timeline and range, each with who wrote its bytes.
    objects: BTreeMap<TimelineId, BTreeMap<(Lsn, Lsn, bool), BranchId>>,
    gaps: BTreeMap<TimelineId, BTreeSet<(Lsn, Lsn)>>,
    histories: BTreeSet<TimelineId>,
    /// Everything that was ever stored, also what was deleted since: length and checksum.
    ever: HashMap<String, (usize, u32)>,
    /// From here on a branch must be complete.
    bases: BTreeMap<BranchId, Lsn>,
    /// The last position told, by server and branch: it must not fall.
    told: BTreeMap<(u32, BranchId), Lsn>,
    /// Up to here a branch was found complete.
    proven: BTreeMap<BranchId, Lsn>,
    /// Every position that was told of a branch.
    promises: BTreeMap<BranchId, BTreeSet<Lsn>>,
    /// The last connection that moved the slot, and those that did before it.
    movers: Vec<u64>,
    kept: Kept,
    violations: Vec<Violation>,
}

/// What reads everything: a key that no archiver has.
pub fn reading_form() -> Form {
    static IDENTITIES: OnceLock<Identities> = OnceLock::new();
    let new = || Identities::parse(generate_identity().0.expose_secret().as_bytes()).unwrap();
    Form { identities: IDENTITIES.get_or_init(new).clone(), ..Form::default() }
}

/// Of one seed in eight the archiver encrypts, and cannot read what it writes. Of half of them it does not compress.
pub fn writing_form(seed: u64) -> Form {
    let recipients = if seed % 8 == 5 { reading_form().identities.recipients() } else { Recipients::default() };
    // What does not get smaller fills the memory while the store is away.
    let compression = if (seed / 32).is_multiple_of(2) { Compression::None } else { Compression::Lz4 };
    Form { recipients, compression, ..Form::default() }
}

impl Ledger {
    pub fn new(wal: Arc<Wal>) -> Ledger {
        let layout = Layout::new(CLUSTER, wal.size, reading_form());
        Ledger { wal, layout, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn violate(&self, invariant: Invariant, what: impl Into<String>) {
        self.lock().violations.push(Violation { invariant, what: what.into() });
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    pub fn is_clean(&self) -> bool {
        self.lock().violations.is_empty()
    }

    /// The archiver asked for a branch from here on.
    pub fn began(&self, branch: BranchId, start: Lsn) {
        let mut inner = self.lock();
        let timeline = self.wal.timeline(branch);
        let first = inner.objects.get(&timeline).and_then(|objects| objects.keys().map(|(start, ..)| *start).min());
        let noted = inner.gaps.contains_key(&timeline);
        // A server that was rolled back goes on with what is stored of its timeline.
        let before = self
            .wal
            .lineage(branch)
            .into_iter()
            .find_map(|(of, _)| inner.bases.get(&of).copied().filter(|_| self.wal.timeline(of) == timeline));
        // Nothing was acknowledged of what was begun, and the slot was made anew behind it: nobody was promised that.
        let is_forgotten = |base| inner.highest_told(branch).is_none() && inner.kept.kept_from > base && !noted;
        let base = match (before, first) {
            (Some(base), Some(first)) if is_forgotten(base) => base.max(first.min(start)),
            (Some(base), Some(_)) => base,
            (Some(base), None) if noted => base,
            _ => start,
        };
        inner.bases.insert(branch, base);
    }

    /// What the server has now: what it has not may be recorded as lost.
    pub fn server_keeps(&self, kept: Kept) {
        self.lock().kept = kept;
    }

    /// An object appeared.
    pub fn stored(&self, name: &str, body: &[u8]) {
        let key = self.layout.parse(name);
        let mut inner = self.lock();
        // Encryption is never the same twice: a tail that was deleted and comes again counts by what is in it.
        let opened = open_whole(&self.layout.form().identities, Bytes::copy_from_slice(body));
        let opened = opened.unwrap_or_default();
        let mark = (opened.len(), crc32c::crc32c(&opened));
        if inner.ever.insert(name.to_owned(), mark).is_some_and(|before| before != mark) {
            inner.violate(Invariant::NameKeepsItsBytes, format!("{name} got second bytes"));
        }
        match key {
            Ok(key @ (Key::Block(range) | Key::Tail(range))) => {
                self.judge_wal(&mut inner, name, range, matches!(key, Key::Block(_)), &opened);
            }
            Ok(Key::Gap(range)) => {
                let Kept { removed_before, kept_from, .. } = inner.kept;
                // Behind a real hole, what the slot does not keep may go at any time.
                if range.start >= removed_before || range.end > removed_before.max(kept_from) {
                    inner.violate(Invariant::HoleIsReal, format!(
                        "{range} was recorded as lost; the server has everything from {removed_before} on, its slot keeps \
                         it from {kept_from} on"
                    ));
                }
                inner.gaps.entry(range.timeline).or_default().insert((range.start, range.end));
            }
            Ok(Key::History(timeline)) => drop(inner.histories.insert(timeline)),
            Ok(_) => {}
            Err(error) => inner.violate(Invariant::StoredIsTheServers, format!("a strange name: {error}")),
        }
    }

    fn judge_wal(&self, inner: &mut Inner, name: &str, range: WalRange, is_block: bool, opened: &[u8]) {
        let decoded = decode_object(opened, BLOCK_BYTES_MAX as usize);
        let plain = decoded.map(|object| object.plain).unwrap_or_default();
        let (timeline, start, end) = (range.timeline, range.start, range.end);
        let of_timeline = self.wal.branches().into_iter().rev().filter(|branch| self.wal.timeline(*branch) == timeline);
        let Some(writer) = of_timeline.into_iter().find(|branch| self.wal.bytes(*branch, start, end) == plain) else {
            inner.violate(Invariant::StoredIsTheServers, format!("{name} does not hold what any server wrote"));
            return;
        };
        if let Some(stranger) = inner.kept.stranger
            && self.wal.pieces(writer, start, end).iter().any(|(owner, ..)| *owner == stranger)
        {
            inner.violate(
                Invariant::DivergenceIsFoundFirst,
                format!("{name} was stored of a server that was rolled back"),
            );
        }
        if timeline.0 > 1 && !inner.histories.contains(&timeline) {
            inner.violate(Invariant::HistoryComesFirst, format!("{name} was stored before its timeline's history"));
        }
        inner.objects.entry(timeline).or_default().insert((start, end, is_block), writer);
    }

    pub fn deleted(&self, name: &str) {
        let mut inner = self.lock();
        let Ok(Key::Tail(range)) = self.layout.parse(name) else {
            inner.violate(Invariant::OnlyGarbageIsDeleted, format!("{name} was deleted, which is no tail"));
            return;
        };
        let objects = inner.objects.entry(range.timeline).or_default();
        objects.remove(&(range.start, range.end, false));
        let holds = |(start, end, _): &&(Lsn, Lsn, bool)| *start <= range.start && range.end <= *end;
        if objects.keys().find(holds).is_none() {
            inner.violate(Invariant::OnlyGarbageIsDeleted, format!("{name} was deleted, and nothing holds its bytes"));
        }
    }

    /// A connection tells its server that everything up to `flushed` is safe.
    pub fn acknowledged(&self, incarnation: u32, connection: u64, branch: BranchId, flushed: Lsn) {
        if !flushed.is_valid() {
            return;
        }
        let mut inner = self.lock();
        if inner.movers.contains(&connection) && inner.movers.last() != Some(&connection) {
            let last = inner.movers.last().copied();
            inner.violate(
                Invariant::OneMovesTheSlot,
                format!("connection {connection} moved the slot after {last:?} had"),
            );
        } else if inner.movers.last() != Some(&connection) {
            inner.movers.push(connection);
        }
        let told = inner.told.entry((incarnation, branch)).or_insert(flushed);
        let before = *told;
        *told = flushed.max(before);
        let timeline = self.wal.timeline(branch);
        let of = format!("{flushed} of timeline {timeline} was acknowledged");
        if flushed < before {
            inner.violate(Invariant::AcknowledgementNeverFalls, format!("{of} after {before}"));
        }
        if !inner.promises.entry(branch).or_default().insert(flushed) {
            return;
        }
        self.judge_complete(&mut inner, branch, flushed, &of);
        // A timeline begins when its parent is sealed, where anything of the parent is ours.
        let lineage = self.wal.lineage(branch);
        for ((_, child), (parent, of_parent)) in lineage.iter().zip(&lineage[1..]) {
            if of_parent.timeline != child.timeline
                && inner.highest_told(*parent).is_some()
                && let Err(hole) = self.complete_to(&mut inner, *parent, child.begin)
            {
                let timeline = of_parent.timeline;
                let what = format!("{of}, and timeline {timeline} is stored to {hole} and not to {}", child.begin);
                inner.violate(Invariant::ParentIsFinished, what);
            }
        }
    }

    fn judge_complete(&self, inner: &mut Inner, branch: BranchId, flushed: Lsn, of: &str) {
        let Err(hole) = self.complete_to(inner, branch, flushed) else { return };
        let timeline = self.wal.timeline(branch);
        let objects = inner.objects.get(&timeline).into_iter().flatten();
        let holds = |at: Lsn| move |(start, end, _): &(Lsn, Lsn, bool)| *start <= at && at < *end;
        let contradicted =
            objects.clone().any(|(object, writer)| holds(hole)(object) && !self.agree(*writer, branch, *object));
        let last_is_stored = objects.clone().any(|(object, _)| holds(Lsn(flushed.0 - 1))(object));
        let invariant = match () {
            () if contradicted => Invariant::DivergenceIsFoundFirst,
            () if hole < inner.kept.removed_before => Invariant::HoleIsNotSilent,
            () if last_is_stored => Invariant::AcknowledgedIsGapFree,
            () => Invariant::AcknowledgedIsStored,
        };
        inner.violate(invariant, format!("{of}, and stored is only up to {hole}"));
    }

    /// Fails with the first position from the branch's base to `end` that no object with its bytes holds, and that is not
    /// noted as lost.
    fn complete_to(&self, inner: &mut Inner, branch: BranchId, end: Lsn) -> Result<(), Lsn> {
        let Some(&base) = inner.bases.get(&branch) else { return Err(Lsn::INVALID) };
        // What was complete stays so: what is deleted lies inside something else.
        let proven = inner.proven.get(&branch).copied().unwrap_or(base).max(base);
        match self.covered(inner, branch, proven.min(end), end, true) {
            position if position >= end => {
                inner.proven.insert(branch, proven.max(end));
                Ok(())
            }
            position => Err(position),
        }
    }

    /// How far from `start` on `branch`'s file bytes are stored, or where `with_gaps`, are noted as lost.
    fn covered(&self, inner: &Inner, branch: BranchId, start: Lsn, end: Lsn, with_gaps: bool) -> Lsn {
        let timeline = self.wal.timeline(branch);
        let gaps = inner.gaps.get(&timeline).into_iter().flatten().filter(|_| with_gaps);
        let mut ranges: Vec<(Lsn, Lsn, Option<(BranchId, bool)>)> =
            gaps.map(|(start, end)| (*start, *end, None)).collect();
        let objects = inner.objects.get(&timeline).into_iter().flatten();
        ranges.extend(objects.map(|((start, end, is_block), writer)| (*start, *end, Some((*writer, *is_block)))));
        ranges.retain(|(from, upto, _)| *upto > start && *from < end);
        ranges.sort_by_key(|(start, ..)| *start);
        let mut position = start;
        for (from, upto, object) in ranges {
            if from > position {
                break;
            }
            let is_right =
                object.is_none_or(|(writer, is_block)| self.agree(writer, branch, (from, upto.min(end), is_block)));
            if is_right {
                position = position.max(upto);
            }
        }
        position
    }

    /// True if two branches have the same bytes there.
    fn agree(&self, one: BranchId, other: BranchId, (start, end, _): (Lsn, Lsn, bool)) -> bool {
        one == other
            || self.wal.pieces(one, start, end) == self.wal.pieces(other, start, end)
            || self.wal.bytes(one, start, end) == self.wal.bytes(other, start, end)
    }

    /// How far from `start` on the files of a timeline are stored.
    pub fn stored_from(&self, branch: BranchId, start: Lsn, end: Lsn) -> Lsn {
        self.covered(&self.lock(), branch, start, end, false)
    }

    /// The first byte that is recorded as lost on a timeline from `start` to `end`.
    pub fn first_gap(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> Option<Lsn> {
        let inner = self.lock();
        let mut gaps = inner.gaps.get(&timeline).into_iter().flatten();
        gaps.find(|(from, upto)| *upto > start && *from < end).map(|(from, _)| (*from).max(start))
    }

    /// Each branch's base, its recorded holes, and every position of it that was acknowledged.
    pub fn promised(&self) -> Vec<(BranchId, Lsn, Vec<(Lsn, Lsn)>, Vec<Lsn>)> {
        let inner = self.lock();
        let of = |(branch, told): (&BranchId, &BTreeSet<Lsn>)| {
            let gaps = inner.gaps.get(&self.wal.timeline(*branch)).into_iter().flatten().copied().collect();
            (*branch, inner.bases[branch], gaps, told.iter().copied().collect())
        };
        inner.promises.iter().filter(|(branch, _)| inner.bases.contains_key(branch)).map(of).collect()
    }

    pub fn told(&self, incarnation: u32, branch: BranchId) -> Option<Lsn> {
        self.lock().told.get(&(incarnation, branch)).copied()
    }

    /// The most that was ever told of a branch, by whichever server.
    pub fn highest_told(&self, branch: BranchId) -> Option<Lsn> {
        self.lock().highest_told(branch)
    }

    pub fn has_history(&self, timeline: TimelineId) -> bool {
        self.lock().histories.contains(&timeline)
    }

    /// The most tails in one block right now.
    pub fn most_tails_in_a_block(&self) -> usize {
        let inner = self.lock();
        let mut counts = BTreeMap::new();
        for (timeline, objects) in &inner.objects {
            for (start, ..) in objects.keys().filter(|(.., is_block)| !is_block) {
                *counts.entry((timeline, self.layout.segment_size().block_start(*start))).or_insert(0) += 1;
            }
        }
        counts.into_values().max().unwrap_or(0)
    }
}

impl Inner {
    fn violate(&mut self, invariant: Invariant, what: String) {
        self.violations.push(Violation { invariant, what });
    }

    fn highest_told(&self, branch: BranchId) -> Option<Lsn> {
        self.told.iter().filter(|((_, of), _)| *of == branch).map(|(_, lsn)| *lsn).max()
    }
}
