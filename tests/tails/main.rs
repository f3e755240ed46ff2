//! Tails: how many there are, what they cost, when they go, and that nobody notices. Design rules 2 to 8, 11 and 12.
//!
//! Whole days pass here on a paused clock, in seconds: an archiver of production code between a server that writes what
//! a test says and a store that counts what is asked of it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/s3_store.rs"]
mod s3_store;
#[path = "../support/mod.rs"]
mod support;

mod costs;
mod deleting;
mod flushes;
mod idle;
mod program;
mod reader;
mod server;
mod store;
mod trickle;
mod world;
