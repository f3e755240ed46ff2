//! What integration tests share: real servers of every major version, the built program, and waiting.
//!
//! Each file in `tests/` is a program of its own that says `mod support;` and uses a part of this.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods
)]

pub mod archiver;
pub mod metrics;
pub mod oracle;
pub mod pages;
pub mod postgres;
pub mod printed;
pub mod program;
pub mod proxy;
pub mod waiting;
