//! Timelines and the history files that say where each one left its parent.

use super::{Lsn, SegmentSize, WalRange};
use std::fmt;

/// A timeline's number. PostgreSQL starts at 1 and takes a new one at every promotion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// `00000002.history`, the name of this timeline's history file.
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// Reads `00000002.history` back.
    pub fn parse_history_name(name: &str) -> Option<TimelineId> {
        TimelineId::parse_hex(name.strip_suffix(".history")?)
    }

    /// Reads eight upper-case hexadecimal digits.
    pub fn parse_hex(text: &str) -> Option<TimelineId> {
        let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        let number = digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()?;
        (number > 0).then_some(TimelineId(number))
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One line of a history file: `parent` was followed up to `switch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub parent: TimelineId,
    /// The switch point: the first byte that belongs to the next timeline.
    pub switch: Lsn,
}

/// The history file's text cannot be what PostgreSQL wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the history of timeline {timeline} {problem}")]
pub struct ParseHistoryError {
    timeline: TimelineId,
    line: usize,
    problem: &'static str,
}

/// A timeline with all its ancestors, oldest first: the path that recovery to it follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// The timeline itself.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first, with ascending numbers and switch points that do not fall.
    pub ancestors: Vec<HistoryEntry>,
}

impl History {
    /// The history of a timeline without ancestors: the first.
    pub fn root(timeline: TimelineId) -> History {
        History { timeline, ancestors: Vec::new() }
    }

    /// Reads a history file as PostgreSQL does (`src/backend/access/transam/timeline.c`, `readTimeLineHistory`):
    /// a line is parent, switch point, reason; `#` starts a comment.
    pub fn parse(timeline: TimelineId, text: &[u8]) -> Result<History, ParseHistoryError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let bad = |problem| ParseHistoryError { timeline, line: index + 1, problem };
            let line = String::from_utf8_lossy(line);
            let mut words = line.split_whitespace();
            let Some(first) = words.next().filter(|word| !word.starts_with('#')) else {
                continue;
            };
            let parent = first.parse().map_err(|_| bad("does not begin with a timeline"))?;
            let switch = words.next().and_then(|word| word.parse().ok());
            let entry =
                HistoryEntry { parent: TimelineId(parent), switch: switch.ok_or_else(|| bad("has no switch point"))? };
            let in_order = match ancestors.last() {
                Some(last) => last.parent < entry.parent && last.switch <= entry.switch,
                None => entry.parent.0 > 0,
            };
            if !in_order || entry.parent >= timeline {
                return Err(bad("is out of order"));
            }
            ancestors.push(entry);
        }
        Ok(History { timeline, ancestors })
    }

    /// Where this path leaves `timeline`; `None` for the last timeline and for one that is not on the path.
    pub fn switch_from(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors.iter().find(|entry| entry.parent == timeline).map(|entry| entry.switch)
    }

    /// True if recovery along this path passes through `timeline`.
    pub fn passes(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.switch_from(timeline).is_some()
    }

    /// The timeline that the path is on at `lsn`.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let ancestor = self.ancestors.iter().find(|entry| lsn < entry.switch);
        ancestor.map_or(self.timeline, |entry| entry.parent)
    }

    /// The timeline that the path enters when it leaves `timeline`.
    pub fn successor(&self, timeline: TimelineId) -> Option<TimelineId> {
        let index = self.ancestors.iter().position(|entry| entry.parent == timeline)?;
        Some(self.ancestors.get(index + 1).map_or(self.timeline, |entry| entry.parent))
    }

    /// The path in order: each timeline with the range of positions it is followed on; the last one has no end.
    pub fn path(&self) -> Vec<(TimelineId, Lsn, Option<Lsn>)> {
        let mut start = Lsn::INVALID;
        let mut path = Vec::with_capacity(self.ancestors.len() + 1);
        for entry in &self.ancestors {
            path.push((entry.parent, start, Some(entry.switch)));
            start = entry.switch;
        }
        path.push((self.timeline, start, None));
        path
    }

    /// The files that recovery reads for the bytes from `start` to `end`, as one range for each timeline: the segment that
    /// holds a switch point is read from the child's copy of it (`XLogFileReadAnyTLI` in `xlogrecovery.c` tries the
    /// newest timeline first), so each timeline is read from the first byte of the segment in which it begins up to that of
    /// its successor.
    pub fn files(&self, start: Lsn, end: Lsn, size: SegmentSize) -> Vec<WalRange> {
        let steps = self.path().into_iter().map(|(timeline, from, to)| WalRange {
            timeline,
            start: size.segment_start(from).max(start),
            end: to.map_or(end, |to| size.segment_start(to).min(end)),
        });
        steps.filter(|range| range.start < range.end).collect()
    }

    /// The first position whose segment file carries `timeline`'s number on this path: the segment that holds the
    /// switch point is copied to the new timeline from its first byte (`xlog.c`, `XLogInitNewTimeline`).
    pub fn first_file_byte(&self, timeline: TimelineId, size: SegmentSize) -> Option<Lsn> {
        let (_, start, _) = self.path().into_iter().find(|(id, ..)| *id == timeline)?;
        Some(size.segment_start(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_from_a_history_file() {
        let text = b"1\t0/3000110\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore transaction 7\n";
        let history = History::parse(TimelineId(3), text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(history.switch_from(TimelineId(2)), Some(Lsn(0x500_0000)));
        assert_eq!(history.timeline_at(Lsn(0x300_010F)), TimelineId(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0110)), TimelineId(2));
        assert_eq!(history.timeline_at(Lsn(0x500_0000)), TimelineId(3));
        assert_eq!(history.successor(TimelineId(1)), Some(TimelineId(2)));
        assert_eq!(history.successor(TimelineId(3)), None);
        assert_eq!(history.first_file_byte(TimelineId(2), SegmentSize::DEFAULT), Some(Lsn(0x300_0000)));
    }

    #[test]
    fn a_history_that_cannot_be_is_refused() {
        for text in ["x\t0/1\n", "1\n", "1\tnothing\n", "2\t0/2\n1\t0/3\n", "1\t0/5\n2\t0/4\n", "3\t0/1\n", "0\t0/1\n"]
        {
            assert!(History::parse(TimelineId(3), text.as_bytes()).is_err(), "{text:?} was read as a history");
        }
    }
}
