//! What SQL tells of a slot beyond its position: how much WAL it may still keep, and whether it keeps any at all.

use super::client::{Client, Mode, Rows, quote_literal};
use super::conninfo::ConnInfo;
use super::error::PgError;
use crate::wal::Lsn;

/// Whether the WAL that a slot wants is there (`pg_replication_slots.wal_status`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Kept beyond it, for the slot's sake.
    Extended,
    /// More than `max_slot_wal_keep_size`: the next checkpoint may remove it.
    Unreserved,
    /// Some of it is removed: the slot keeps nothing any more.
    Lost,
}

impl WalStatus {
    /// All of them, from good to bad.
    pub const ALL: [WalStatus; 4] = [WalStatus::Reserved, WalStatus::Extended, WalStatus::Unreserved, WalStatus::Lost];

    /// PostgreSQL's word.
    pub fn name(self) -> &'static str {
        match self {
            WalStatus::Reserved => "reserved",
            WalStatus::Extended => "extended",
            WalStatus::Unreserved => "unreserved",
            WalStatus::Lost => "lost",
        }
    }

    fn parse(text: &str) -> Option<WalStatus> {
        WalStatus::ALL.into_iter().find(|status| status.name() == text)
    }
}

/// A physical slot as `pg_replication_slots` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotHealth {
    /// The oldest WAL that it wants; `None`: none, or lost.
    pub restart_lsn: Option<Lsn>,
    /// Whether that WAL is there; `None`: it wants none.
    pub status: Option<WalStatus>,
    /// Bytes that may still be written before the slot is in danger; `None`: it is lost, or there is no limit.
    pub safe_wal_bytes: Option<i64>,
    /// Why it was invalidated (17 and later); such a slot never keeps WAL again.
    pub invalidation: Option<String>,
    /// Somebody holds it.
    pub is_active: bool,
}

impl SlotHealth {
    /// True if the slot keeps nothing and never will: 16 and later, or 13 to 15 before somebody streams through it.
    pub fn is_lost(&self) -> bool {
        self.invalidation.is_some() || self.status == Some(WalStatus::Lost)
    }
}

impl Client {
    /// Connects where SQL can be asked: to the database of the connection string, or to `postgres` if that one is not
    /// there, as is usual where nobody had to name one for replication. May be dropped.
    ///
    /// # Errors
    /// As [`Client::connect`]; most often that `pg_hba.conf` lets the role replicate and nothing else.
    pub async fn connect_for_sql(info: &ConnInfo, mode: Mode) -> Result<Client, PgError> {
        /// `invalid_catalog_name`
        const NO_SUCH_DATABASE: &str = "3D000";
        match Client::connect(info, mode, &[]).await {
            Err(error) if error.sqlstate() == Some(NO_SUCH_DATABASE) => {
                Client::connect(&info.with_database("postgres"), mode, &[]).await
            }
            connected => connected,
        }
    }

    /// What `pg_replication_slots` shows of a slot; `None` if there is no such physical slot. Every role may look. Takes
    /// a connection in mode [`Mode::Sql`] or [`Mode::Database`]. May be dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn slot_health(&mut self, name: &str) -> Result<Option<SlotHealth>, PgError> {
        // The columns differ from version to version.
        let query = format!(
            "SELECT * FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND slot_name = {}",
            quote_literal(name)
        );
        let rows = self.simple_query(&query).await?;
        Ok((!rows.is_empty()).then(|| health(&rows)))
    }
}

fn health(rows: &Rows) -> SlotHealth {
    SlotHealth {
        restart_lsn: rows.get(0, "restart_lsn").and_then(|text| text.parse().ok()),
        status: rows.get(0, "wal_status").and_then(WalStatus::parse),
        safe_wal_bytes: rows.get(0, "safe_wal_size").and_then(|text| text.parse().ok()),
        invalidation: rows.get(0, "invalidation_reason").map(str::to_owned),
        is_active: rows.get(0, "active") == Some("t"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn shown(columns: &[(&str, Option<&str>)]) -> SlotHealth {
        let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let row = columns.iter().map(|(_, value)| value.map(|text| Bytes::copy_from_slice(text.as_bytes()))).collect();
        health(&Rows::new(names, vec![row]))
    }

    #[test]
    fn a_slot_is_lost_by_its_status_or_by_its_invalidation() {
        let healthy = shown(&[
            ("restart_lsn", Some("0/3000000")),
            ("wal_status", Some("extended")),
            ("safe_wal_size", Some("-17")),
            ("active", Some("t")),
        ]);
        assert_eq!(healthy.restart_lsn, Some(Lsn(0x300_0000)));
        assert_eq!((healthy.safe_wal_bytes, healthy.is_active, healthy.is_lost()), (Some(-17), true, false));
        assert!(shown(&[("restart_lsn", None), ("wal_status", Some("lost"))]).is_lost());
        // A zombie of 17: it streams, its position moves, and it keeps nothing.
        let zombie = [("wal_status", Some("unreserved")), ("invalidation_reason", Some("wal_removed"))];
        assert!(shown(&zombie).is_lost());
        // One that never reserved anything.
        assert!(!shown(&[("restart_lsn", None), ("wal_status", None)]).is_lost());
    }
}
