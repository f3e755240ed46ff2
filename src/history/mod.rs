//! What was committed when: entries from the records of stored WAL. May use `repository` and all that it may.
//!
//! ```text
//! moments ─► span, search: which stored WAL to walk ─► chronicle: records of a transaction become one entry ─► whoever asked
//! ```

mod before_drop;
mod chronicle;
mod entry;
pub mod index;
mod names;
mod search;
mod span;

pub use before_drop::{Drops, find_drops};
pub use chronicle::Chronicle;
pub use entry::{Entry, Event, Transaction};
pub use names::{NameBook, Relation, read_name_book};
pub use search::{Bound, DISORDER, Search};
pub use span::{Hole, Walked, walk};
