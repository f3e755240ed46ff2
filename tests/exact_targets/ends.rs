//! The truth: how transactions ended, in the order of the WAL, as `pg_waldump` reads it from the server's own files where it is there.

use crate::support::postgres::tool;
use jiff::Timestamp;
use seawall::history::index::Transaction;
use seawall::repository::{RecordSink, WalReader, WalWalk};
use seawall::scratch::Server;
use seawall::wal::{Lsn, Record, TimelineId, WalRange};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The end of a transaction, or the rollback to a savepoint, which is a record of the same kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// Its record.
    pub(crate) lsn: Lsn,
    /// Its number; of a prepared transaction the one under which it was prepared.
    pub(crate) xid: u32,
    pub(crate) time: Timestamp,
    pub(crate) committed: bool,
}

/// All of them in a stretch of WAL.
pub(crate) struct Ends(pub(crate) Vec<End>);

impl Ends {
    /// Reads those in `server`'s WAL, which must still have it.
    pub(crate) fn by_pg_waldump(server: &Server, from: Lsn, to: Lsn) -> Ends {
        let mut command = tool("pg_waldump");
        command.env("TZ", "UTC").arg("-p").arg(server.data_directory().join("pg_wal"));
        command.args(["-r", "Transaction", "-s", &from.to_string(), "-e", &to.to_string()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ends(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
    }

    /// Reads those in the archive, with Seawall's own reader: for servers whose tools are not here. What their logs say of
    /// each moment shows whether it reads well.
    pub(crate) async fn by_seawall(reader: &WalReader, from: Lsn, end: Lsn) -> Ends {
        let size = reader.repository().layout.segment_size();
        let start = size.segment_start(from);
        let walk = WalWalk::new(size, start, Ends(Vec::new()));
        let file = WalRange { timeline: TimelineId(1), start, end };
        let mut ends = walk.read(reader, vec![file]).await.unwrap().sink;
        ends.0.retain(|end| end.lsn >= from);
        ends
    }

    /// Where a recovery ends that goes by `recovery_target_time`: the first from `from` on that is later than `time`
    /// (`recoveryStopsBefore` in `xlogrecovery.c`).
    pub(crate) fn first_later(&self, from: Lsn, time: Timestamp, exclusive: bool) -> Option<usize> {
        let too_late = |end: &End| end.time > time || (exclusive && end.time == time);
        self.0.iter().position(|end| end.lsn >= from && too_late(end))
    }

    /// The first that is lost when the record that begins at `last` is the last one.
    pub(crate) fn first_behind(&self, last: Lsn) -> Option<usize> {
        self.0.iter().position(|end| end.lsn > last)
    }

    /// The transactions that are committed when `lost` is the first that is not replayed.
    pub(crate) fn committed(&self, lost: Option<usize>) -> BTreeSet<u32> {
        let kept = &self.0[..lost.unwrap_or(self.0.len())];
        kept.iter().filter(|end| end.committed).map(|end| end.xid).collect()
    }
}

impl RecordSink for Ends {
    fn see(&mut self, record: &Record) -> ControlFlow<()> {
        let end = |it: Transaction| End { lsn: it.record.start, xid: it.xid, time: it.time, committed: it.committed };
        self.0.extend(Transaction::ended_by(record).map(end));
        ControlFlow::Continue(())
    }
}

/// One line, such as
/// `rmgr: Transaction len (rec/tot): 34/34, tx: 7, lsn: 0/0150, prev 0/0100, desc: COMMIT 2026-11-20 14:03:00.000001 UTC; …`.
fn parse(line: &str) -> Option<End> {
    let (head, description) = line.split_once(", desc: ")?;
    let field = |name: &str| head.split_once(name).map(|(_, rest)| rest.split(',').next().unwrap_or_default().trim());
    let (what, rest) = description.split_once(' ')?;
    let (committed, prepared) = match what {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    let (xid, rest) = if prepared { rest.split_once(": ").unwrap() } else { (field("tx:").unwrap(), rest) };
    let time = rest.split(" UTC").next().unwrap().replace(' ', "T") + "Z";
    Some(End {
        lsn: field("lsn:").unwrap().parse().unwrap(),
        xid: xid.parse().unwrap(),
        time: time.parse().unwrap_or_else(|error| panic!("{line}: {error}")),
        committed,
    })
}
