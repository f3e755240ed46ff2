//! The index of the archive's records: what each block of WAL says, in a few words, so that nobody has to read the block to
//! find out that it does not matter.
//!
//! ```text
//! archive: full blocks ─► indexer: records ─► outlines ─► keeper: sixteen blocks, and sixteen of those ─► store
//! restore, history: catalogue ─► index, where there is one ─► WAL, where there is none and where it matters
//! ```
//!
//! An index is never needed: what it says, the WAL says as well. Uses `repository` and what that uses.

mod indexer;
mod outline;
mod records;
mod stored;

pub use indexer::{BlockWalk, Indexer};
pub use outline::{Event, Fact, Outline, Outliner, Span, Transaction, time_of};
pub use records::{Level, Records};
pub use stored::{Filled, IndexWriter, Indexes};
