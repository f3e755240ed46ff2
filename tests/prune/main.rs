//! `prune`: whatever is stored and whatever the policy, nothing that is kept loses anything, wherever it is cut off; and what is not
//! kept goes. Invented repositories of months in memory, and one of a real server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod cutting;
mod planning;
mod program;
mod promises;
mod racing;
#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod world;
