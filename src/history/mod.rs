//! What the archive's records say. Uses `repository` and what that uses.

pub mod index;
