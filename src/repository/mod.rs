//! Names, documents, what is there: a repository of format 1 (`docs/repository-format.md`) on top of a store.

mod audit;
mod backup_files;
mod backups;
mod catalog;
mod chain;
mod cut_index;
mod cut_walk;
mod documents;
mod drills;
mod file_path;
mod identity;
pub mod incremental;
mod intents;
mod keeps;
mod layout;
mod loss;
pub mod manifest;
mod names;
mod part_name;
mod paths;
mod piece;
mod prunes;
mod reader;
mod relation_file;
mod sizes;
mod stored_manifest;
mod stored_parts;
pub mod tar;
mod walk;
mod writer;

pub use audit::{Action, ActionResult, Actor, AuditEntry, AuditKey};
pub use backup_files::{BackupFile, BackupFileRef, BackupFiles};
pub use catalog::{BackupEntry, Catalog, Coverage, CoverageRun, Gap, Stored};
pub use chain::{BrokenChain, chain};
pub use cut_index::{Cut, CutIndex, lead_start};
pub use cut_walk::{CutWalk, NoIndex};
pub(crate) use documents::WithoutFiles;
pub use documents::{
    BackupBegin, BackupDocument, BackupPart, BackupTablespace, BackupVerdict, Cluster, Continuation, DeadBranchNote,
    FORMAT_VERSION, Findings, GapNote, Heartbeat, PART_BYTES_MAX, RejectedPage, WalNeed,
};
pub use drills::{DrillCheck, DrillDocument, OWN_CHECKS, Objective, Outcome};
pub use file_path::{FilePath, FilePathError, FilePathRef};
pub use identity::{Identity, Subject};
pub use intents::{ACTS_WITHIN, IntentNote, Said};
pub use keeps::KeepMark;
pub use layout::{Archive, BackupId, Intent, Key, Layout, NamesAt, ParseKeyError, is_permanent};
pub use loss::Loss;
pub use names::{DatabaseNames, NAMED_RELATIONS_MAX, Names, RelationName, Snapshot};
pub use part_name::{ContentDigest, PartName};
pub(crate) use paths::{PathOrder, Paths, make_room};
pub use piece::Piece;
pub use prunes::{PruneDocument, PrunedNote};
pub use reader::{WalReader, Window};
pub(crate) use relation_file::SEGMENT_BLOCKS;
pub use relation_file::{Fork, RelationFile, incremental_path, whole_path};
pub use sizes::{PartSize, RepositoryPart};
pub use stored_parts::{EarlierParts, StoredPart};
pub use walk::{RecordSink, WalWalk};
pub use writer::{EncodedWal, Encoders, Stamp, StoredFrames, WAL_FRAME_BYTES, WalEncoding, Writer, wal_held_bytes_max};
pub(crate) use writer::{hex, same};

use crate::store::Store;
use std::sync::Arc;

/// One cluster's folder in a repository: the store and the names in it.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Where the objects are.
    pub store: Arc<dyn Store>,
    /// What they are called.
    pub layout: Layout,
}
