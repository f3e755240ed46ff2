//! What SQL says of the recovered server: how far it came, and what the operator wants to know.

use super::{Answer, SqlCheck, Verdict};
use crate::error::Result;
use crate::restore::{Plan, Stop};
use crate::scratch::Server;
use crate::wal::Lsn;
use jiff::Timestamp;

/// How far recovery came.
pub(super) struct State {
    pub(super) lsn: Lsn,
    pub(super) last_transaction: Option<Timestamp>,
    is_in_recovery: bool,
}

/// Asks how far recovery came.
pub(super) async fn state(server: &Server, plan: &Plan) -> Result<State, Vec<String>> {
    // Both keep what they were at the end of recovery until the server restarts (`xlogrecovery.c`, `GetXLogReplayRecPtr`,
    // `GetLatestXTime`).
    let question = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn(), \
                    (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint";
    let rows = server.sql(question).await.map_err(|error| vec![error.to_string()])?;
    let row = rows.into_iter().next().unwrap_or_default();
    let value = |column: usize| row.get(column).and_then(|value| value.as_deref());
    let lsn = value(1).and_then(|text| text.parse().ok());
    let lsn = lsn.ok_or_else(|| vec!["the server does not say how far it replayed".to_owned()])?;
    let replayed =
        value(2).and_then(|text| text.parse().ok()).and_then(|micros| Timestamp::from_microsecond(micros).ok());
    // The server does not count the transaction at whose record it was told to stop (`recoveryStopsAfter`).
    let planned = plan.last_transaction.map(|transaction| transaction.time);
    Ok(State { lsn, last_transaction: replayed.max(planned), is_in_recovery: value(0) == Some("t") })
}

impl State {
    /// Whether it is what was planned.
    pub(super) fn verdict(&self, plan: &Plan) -> Verdict {
        let mut wrong = Vec::new();
        if self.is_in_recovery {
            wrong.push("the server is still in recovery".to_owned());
        }
        if let Stop::After(span) = plan.stop
            && self.lsn < span.end
        {
            wrong.push(format!("the server replayed up to {}, and the target is behind {}", self.lsn, span.start));
        }
        match wrong.is_empty() {
            true => Ok(Answer::Passed(format!("replayed up to {}, then promoted", self.lsn))),
            false => Err(wrong),
        }
    }
}

/// Asks what the operator wants to know.
pub(super) async fn ask(server: &Server, check: &SqlCheck) -> Verdict {
    let asked = async {
        let session = server.connect(&check.database).await?;
        // One more than can be right: what is asked may give any number of rows.
        session.first_rows(&check.sql, 2).await
    };
    let rows = asked.await.map_err(|error| vec![error.to_string()])?;
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    match rows.as_slice() {
        [row] if matches!(row.as_slice(), [Some(value)] if value == "t") => {
            Ok(Answer::Passed(format!("true in database {}", check.database)))
        }
        [] => Err(vec!["gave no row, and not the one value true".to_owned()]),
        [row] => {
            let values: Vec<String> = row.iter().map(shown).collect();
            Err(vec![format!("gave {}, and not true", values.join(", "))])
        }
        _ => Err(vec!["gave several rows, and not the one value true".to_owned()]),
    }
}
