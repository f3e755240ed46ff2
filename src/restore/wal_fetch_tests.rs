//! What a pinned restore decides, segment by segment.

use super::*;
use crate::restore::testing::MIB;
use crate::wal::SegmentSize;

/// Timeline 2 leaves 1 at 4.5 MiB, 3 leaves 2 at 4.75 MiB; the restore ends at `end`.
fn pin(end: u64) -> Pin {
    let json = serde_json::json!({
        "version": 1, "system_identifier": "7", "segment_bytes": MIB, "backup": "20261120T000140Z", "timeline": 3,
        "switches": [{"timeline": 1, "lsn": "0/480000"}, {"timeline": 2, "lsn": "0/4C0000"}],
        "end_lsn": Lsn(end).to_string(),
    });
    serde_json::from_value(json).unwrap()
}

fn segment(timeline: u32, start: u64) -> Segment {
    Segment::holding(TimelineId(timeline), Lsn(start), SegmentSize::new(MIB).unwrap())
}

#[test]
fn each_segment_is_given_from_the_timeline_whose_file_it_is() {
    let pin = pin(9 * MIB + 100);
    let decided = |timeline, start| decide(&pin, segment(timeline, start));
    assert_eq!(decided(1, 3 * MIB), Decision::Serve(Lsn(4 * MIB)));
    assert_eq!(decided(3, 4 * MIB), Decision::Serve(Lsn(5 * MIB)), "both switches lie in this one");
    for timeline in [1, 2] {
        assert_eq!(decided(timeline, 4 * MIB), Decision::Forked(TimelineId(3)), "the switch segment of {timeline}");
        assert_eq!(decided(timeline, 6 * MIB), Decision::Forked(TimelineId(3)), "the dead branch of {timeline}");
    }
    assert_eq!(decided(3, 3 * MIB), Decision::Absent, "before its timeline begins");
    assert_eq!(decided(3, 9 * MIB), Decision::Serve(Lsn(9 * MIB + 100)), "zeros behind the end");
    for timeline in 1..=3 {
        assert_eq!(decided(timeline, 10 * MIB), Decision::Absent, "behind the end");
    }
}

#[test]
fn an_end_at_a_border_leaves_nothing_of_the_next_segment() {
    assert_eq!(decide(&pin(9 * MIB), segment(3, 9 * MIB)), Decision::Absent);
    assert_eq!(decide(&pin(9 * MIB), segment(3, 8 * MIB)), Decision::Serve(Lsn(9 * MIB)));
}

#[test]
fn only_whole_segments_of_the_path_are_fetched_ahead() {
    let names = |spool_bytes| -> Vec<String> {
        let ahead = segments_ahead(&pin(6 * MIB + 100), segment(1, 3 * MIB), spool_bytes);
        ahead.iter().map(|segment| segment.name()).collect()
    };
    assert_eq!(names(100 * MIB), ["000000030000000000000004", "000000030000000000000005"]);
    assert_eq!(names(MIB), ["000000030000000000000004"]);
    assert!(names(MIB / 2).is_empty());
}
