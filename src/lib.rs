//! Seawall: a continuous archiver for PostgreSQL.
//!
//! The modules in the order in which data flows through them; `docs/architecture.md` is the map, and
//! `tests/architecture.rs` fails on an import against it.

pub mod archive;
pub mod backup;
pub mod cli;
pub mod codec;
pub mod commands;
pub mod config;
pub mod drill;
pub mod error;
pub mod extract;
pub mod history;
pub mod http;
pub mod metrics;
pub mod notify;
pub mod postgres;
pub mod recovery;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod runtime;
pub mod schedule;
pub mod scratch;
pub mod secret;
pub mod store;
pub mod verify;
pub mod wal;
