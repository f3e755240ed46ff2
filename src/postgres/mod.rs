//! The wire to PostgreSQL: connecting, asking, streaming WAL, taking base backups. Knows nothing of repositories.
//!
//! Of ours it uses `wal`, `error` and `runtime`. From the text to the bytes:
//! [`ConnInfo`] reads what libpq would read, [`Client`] is one connection, [`WalStream`] and [`BackupStream`] are what a
//! connection turns into. Failures are [`PgError`], by which a caller decides, and which turns into
//! [`crate::error::Error`] for a person.

mod auth;
mod base_backup;
mod client;
mod connect;
mod connection;
mod conninfo;
mod conninfo_text;
mod error;
mod low_level_backup;
mod manifest;
mod message;
mod passfile;
mod slot;
mod streaming;
mod tls;
mod tls_verify;

pub use base_backup::{BackupEvent, BackupStart, BackupStream, BaseBackupOptions, Tablespace};
pub use client::{Client, Mode, Rows, SlotState, SystemIdentity};
pub use conninfo::{ChannelBinding, ConnInfo, SslMode, TargetSessionAttrs};
pub use error::{HostFailure, PgError, ServerMessage};
pub use low_level_backup::{BackupSession, RunningBackup, StoppedBackup, Witness};
pub use slot::{SlotHealth, WalStatus};
pub use streaming::{StatusUpdate, Streaming, WalMessage, WalStream};
