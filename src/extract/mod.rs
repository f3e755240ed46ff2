//! One table, schema or database as it was at a moment: a cluster is recovered on a throwaway server, and what is wanted of
//! it goes into a file, a directory, a ZIP, or another database. May use `recovery` and all that it may, and `postgres`.
//!
//! ```text
//! plan ─► recovery: scratch server ─► relations: what there is ─┬─► dump (pg_dump) or csv (COPY) ─► package: file, directory, ZIP
//!                                                               └─► transplant: renamed, pg_dump ─► pg_restore, one transaction
//! ```

mod csv;
mod dump;
mod estimate;
mod package;
mod program;
mod relations;
mod request;
mod run;
mod ties;
mod transplant;

pub use estimate::{Estimate, estimate};
pub use package::Written;
pub use request::{Destination, ExtractOptions, Format, Place, Wanted};
pub use run::{Extracted, Loaded, Progress, Stage, extract, interrupted};
