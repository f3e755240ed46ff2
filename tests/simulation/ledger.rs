//! The judge: sees every object the moment it is stored or deleted, and every position the moment it is acknowledged.

use crate::wal::Wal;
use seawall::codec::{Codec, decode_object};
use seawall::repository::{Key, Layout};
use seawall::wal::{BLOCK_BYTES_MAX, Lsn, TimelineId, WalRange};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// The cluster's name in the repository.
pub const CLUSTER: &str = "main";

#[derive(Debug)]
pub struct Ledger {
    pub wal: Arc<Wal>,
    pub layout: Layout,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Live WAL objects: true for a block.
    objects: BTreeMap<TimelineId, BTreeSet<(Lsn, Lsn, bool)>>,
    gaps: BTreeMap<TimelineId, BTreeSet<(Lsn, Lsn, bool)>>,
    /// Everything that was ever stored, also what was deleted since.
    ever: BTreeMap<String, Vec<u8>>,
    /// From here on a timeline must be complete.
    bases: BTreeMap<TimelineId, Lsn>,
    /// The last position told, by server and timeline: it must not fall.
    told: BTreeMap<(u32, TimelineId), Lsn>,
    violations: Vec<String>,
}

impl Ledger {
    pub fn new(wal: Arc<Wal>) -> Ledger {
        let layout = Layout::new(CLUSTER, crate::wal::segment_size(), Codec::Lz4);
        Ledger { wal, layout, inner: Mutex::default() }
    }

    pub fn violate(&self, what: String) {
        self.inner.lock().unwrap().violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner.lock().unwrap().violations.clone()
    }

    /// The archiver asked for a timeline from here on.
    pub fn began(&self, timeline: TimelineId, start: Lsn) {
        let mut inner = self.inner.lock().unwrap();
        let stored = inner.objects.get(&timeline).is_some_and(|objects| !objects.is_empty());
        let noted = inner.gaps.contains_key(&timeline);
        if !stored && !noted {
            inner.bases.insert(timeline, start);
        }
    }

    /// An object appeared. `removed_before` is where the server's WAL begins, `kept_from` what its slot protects.
    pub fn stored(&self, name: &str, body: &[u8], (removed_before, kept_from): (Lsn, Lsn)) {
        let key = self.layout.parse(name);
        let mut inner = self.inner.lock().unwrap();
        if let Some(before) = inner.ever.get(name)
            && before != body
        {
            inner.violations.push(format!("{name} got second bytes"));
        }
        inner.ever.insert(name.to_owned(), body.to_vec());
        match key {
            Ok(key @ (Key::Block(range) | Key::Tail(range))) => {
                let is_block = matches!(key, Key::Block(_));
                let plain = decode_object(body, BLOCK_BYTES_MAX as usize).map(|object| object.plain);
                let expected = self.wal.bytes(range.timeline, range.start, range.end);
                if !plain.is_ok_and(|plain| plain == expected) {
                    inner.violations.push(format!("{name} does not hold the server's bytes"));
                }
                inner.objects.entry(range.timeline).or_default().insert((range.start, range.end, is_block));
            }
            Ok(Key::Gap(range)) => {
                // Behind a real hole, what the slot does not keep may go at any time.
                if range.start >= removed_before || range.end > removed_before.max(kept_from) {
                    inner.violations.push(format!(
                        "{range} was recorded as lost; the server has everything from {removed_before} on, its slot keeps \
                         it from {kept_from} on"
                    ));
                }
                inner.gaps.entry(range.timeline).or_default().insert((range.start, range.end, true));
            }
            Ok(_) => {}
            Err(error) => inner.violations.push(format!("a strange name: {error}")),
        }
    }

    pub fn deleted(&self, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        let Ok(Key::Tail(range)) = self.layout.parse(name) else {
            inner.violations.push(format!("{name} was deleted, which is no tail"));
            return;
        };
        inner.objects.entry(range.timeline).or_default().remove(&(range.start, range.end, false));
        // What was acknowledged must stay complete.
        let timeline = range.timeline;
        if let Some(told) = inner.highest_told(timeline)
            && let Err(why) = inner.complete_to(timeline, told)
        {
            inner.violations.push(format!("deleting {name} made a hole below {told}, which was acknowledged: {why}"));
        }
    }

    /// The server is told that everything up to `flushed` is safe.
    pub fn acknowledged(&self, incarnation: u32, timeline: TimelineId, flushed: Lsn) {
        if !flushed.is_valid() {
            return;
        }
        let mut inner = self.inner.lock().unwrap();
        let told = inner.told.entry((incarnation, timeline)).or_insert(flushed);
        let before = *told;
        *told = flushed.max(before);
        if flushed < before {
            inner.violations.push(format!("timeline {timeline}: {flushed} was acknowledged after {before}"));
        }
        if let Err(why) = inner.complete_to(timeline, flushed) {
            inner.violations.push(format!("timeline {timeline}: {flushed} was acknowledged, and {why}"));
        }
        // A timeline begins when its parent is sealed, where anything of the parent is ours.
        let mut lineage = self.wal.lineage(timeline).into_iter().peekable();
        while let (Some((_, branch)), Some((parent, _))) = (lineage.next(), lineage.peek()) {
            if inner.highest_told(*parent).is_some()
                && let Err(why) = inner.complete_to(*parent, branch.begin)
            {
                inner
                    .violations
                    .push(format!("{flushed} of timeline {timeline} was acknowledged, and of {parent} {why}"));
            }
        }
    }

    /// Each timeline's ranges that must be readable for ever: what was acknowledged without what is noted as lost.
    pub fn promised(&self) -> Vec<WalRange> {
        let inner = self.inner.lock().unwrap();
        let mut promised = Vec::new();
        for (&timeline, &base) in &inner.bases {
            let Some(told) = inner.highest_told(timeline) else { continue };
            let mut start = base;
            for &(gap_start, gap_end, _) in inner.gaps.get(&timeline).into_iter().flatten() {
                if gap_start.min(told) > start {
                    promised.push(WalRange { timeline, start, end: gap_start.min(told) });
                }
                start = start.max(gap_end);
            }
            if start < told {
                promised.push(WalRange { timeline, start, end: told });
            }
        }
        promised
    }

    pub fn told(&self, incarnation: u32, timeline: TimelineId) -> Option<Lsn> {
        self.inner.lock().unwrap().told.get(&(incarnation, timeline)).copied()
    }

    /// The most tails in one block right now.
    pub fn most_tails_in_a_block(&self) -> usize {
        let inner = self.inner.lock().unwrap();
        let mut counts = BTreeMap::new();
        for (timeline, objects) in &inner.objects {
            for (start, _, _) in objects.iter().filter(|(.., is_block)| !is_block) {
                *counts.entry((timeline, self.layout.segment_size().block_start(*start))).or_insert(0) += 1;
            }
        }
        counts.into_values().max().unwrap_or(0)
    }
}

impl Inner {
    fn highest_told(&self, timeline: TimelineId) -> Option<Lsn> {
        self.told.iter().filter(|((_, of), _)| *of == timeline).map(|(_, lsn)| *lsn).max()
    }

    /// Everything from the timeline's base to `end` is stored, or noted as lost.
    fn complete_to(&self, timeline: TimelineId, end: Lsn) -> Result<(), String> {
        let base = self.bases.get(&timeline).ok_or("nobody asked for that timeline")?;
        let mut ranges: Vec<(Lsn, Lsn)> = [&self.objects, &self.gaps]
            .into_iter()
            .filter_map(|of| of.get(&timeline))
            .flatten()
            .map(|(start, end, _)| (*start, *end))
            .collect();
        ranges.sort();
        let mut position = *base;
        for (start, upto) in ranges {
            if start > position {
                break;
            }
            position = position.max(upto);
        }
        if position >= end { Ok(()) } else { Err(format!("stored is only {base} to {position}")) }
    }
}
