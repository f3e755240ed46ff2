//! `verify` over an invented cluster in memory: whatever is done to what is stored is found, named and counted, and nothing else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../restore/invented.rs"]
#[allow(dead_code, reason = "one of two that use it")]
mod invented;
mod looking;
mod reading;
mod sealed;
mod stage;
