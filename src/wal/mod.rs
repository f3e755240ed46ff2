//! PostgreSQL's write-ahead log as arithmetic: positions, segments, timelines, records.
//!
//! Pure: no tokio, no I/O, nothing of ours but itself.

mod lsn;
mod record;
mod segment;
mod timeline;

pub use lsn::{Lsn, ParseLsnError};
#[cfg(test)]
pub(crate) use record::testing;
pub use record::{
    LISTED_RELATIONS_MAX, LISTED_SUBTRANSACTIONS_MAX, PAGE_BYTES, ParameterChange, PartialRecord, Record, RecordKind,
    RecordWalker, RelationId, WalkError, begins_anew, end_of_records_before,
};
pub use segment::{BLOCK_BYTES_MAX, ParseSegmentError, Segment, SegmentSize, WalRange};
pub use timeline::{History, HistoryEntry, ParseHistoryError, TimelineId};
