//! Base backups: what `BASE_BACKUP` sends, verified as it passes, into the repository. May use `postgres`, `repository`
//! and all that those may.
//!
//! ```text
//! BackupStream ─► PartCutter ─► frames: CRC-32C per file, LZ4 ─► parts: SHA-256 ─► store        (several in flight)
//! (decompress.rs) (parts.rs)    (on blocking threads, all cores)  (collect.rs)
//!                                pages: checksums (pages.rs)
//!            └──► manifest: every file's length and CRC-32C are what the server read             (verify.rs)
//! ```
//!
//! [`take`] is the whole workflow; where the data directory can be read from here, [`take_local`], with another beginning of the
//! picture (local/); of an incremental one, [`take_incremental`]: what it builds on (reference.rs), what of
//! that the server must not see (cut_relations.rs), and what it is shown (shown_manifest.rs). `begin.json` is stored first: from then on prune keeps the WAL that the backup will
//! need. `backup.json` is stored last, and its presence means that the backup exists. Where the connection is lost, all of that is done again
//! under the same name, but for parts that are stored already; [`Unfinished`] (resume.rs) does so for another process.

mod collect;
mod cut_relations;
mod decompress;
mod incremental;
mod local;
mod manifest_writer;
mod names;
mod pages;
mod parts;
mod receive;
mod reference;
mod resume;
mod run;
mod shown_manifest;
mod verify;
mod wal_wait;

pub use incremental::{NotIncremental, take_incremental};
pub use local::take_local;
pub use names::{NamesRead, read_names};
pub use resume::Unfinished;
pub use run::{BackupOptions, BackupPhase, BackupProgress, take};
pub use wal_wait::{RepositoryWaiter, WalWaiter};
