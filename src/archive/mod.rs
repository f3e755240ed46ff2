//! PostgreSQL to repository, and the acknowledgement back.

mod line;
mod progress;

pub use line::{Job, Line};
pub use progress::Progress;
