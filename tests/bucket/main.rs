//! The bucket: what `check` says of its settings, locks and holds on what is in it, and the three roles of `docs/bucket.md`, which
//! the S3 test server enforces as they stand there.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod locks;
mod module;
mod page;
mod roles;
#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/s3_store.rs"]
mod s3_store;
#[path = "../support/scene.rs"]
mod scene;
mod settings;
#[path = "../support/mod.rs"]
mod support;
