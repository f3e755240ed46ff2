//! The bucket: what `check` says of its settings, and locks and holds on what is in it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod locks;
#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/s3_store.rs"]
mod s3_store;
mod settings;
#[path = "../support/mod.rs"]
mod support;
