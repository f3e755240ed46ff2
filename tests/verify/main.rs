//! `verify`: whatever is done to what is stored is found, named and counted, and nothing else. Over an invented cluster in memory, and
//! over what real servers left.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../restore/invented.rs"]
#[allow(dead_code, reason = "one of two that use it")]
mod invented;
mod looking;
mod program;
mod reading;
#[path = "../support/s3/mod.rs"]
mod s3;
#[path = "../support/scene.rs"]
mod scene;
mod sealed;
mod stage;
#[path = "../support/mod.rs"]
mod support;
