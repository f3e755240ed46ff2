//! PostgreSQL to repository, and the acknowledgement back.
//!
//! ```text
//! source (server) ──► stream ──► line: cut, compare ──► writer ──► store
//!        ▲               │            │
//!        └── flushed ◄───┴─ progress ◄┴── confirmed
//! ```

mod ahead;
mod ancestry;
mod archiver;
mod backup_end;
mod budget;
mod claims;
#[cfg(test)]
mod cut_tests;
mod dead_branch;
mod divergence;
mod echo;
mod gap;
mod garbage;
mod indexing;
mod latency;
mod line;
mod link;
mod lookout;
mod open_block;
mod pace;
mod perform;
mod progress;
mod resume;
mod rpo;
mod server;
mod share;
mod slot;
mod source;
mod state;
mod stream;
mod unused;

pub use archiver::{ArchiveOptions, Archiver, ensure_cluster};
pub use claims::{Claim, Claims};
pub use indexing::{IndexKeeper, keep_index};
pub use line::{Garbage, Job, Line};
pub use progress::Progress;
pub use rpo::Rpo;
pub use server::PostgresSource;
pub use share::CommonMemory;
pub use source::{
    CommitWaits, Feed, FeedMessage, Observer, ServerIdentity, Session, SlotPosition, Source, SourceError,
    SourceErrorKind, Standing, Started, Synchronous, TimelineEnd,
};
pub use state::{ArchiveState, Counts, Phase};
