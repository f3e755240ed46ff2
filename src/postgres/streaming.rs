//! `START_REPLICATION`: WAL as it is written, status back, and the two ways a stream ends well: ours and a timeline's.

use super::auth::unexpected;
use super::client::{Client, Rows, parse_timeline, quote_name};
use super::error::PgError;
use super::message::Message;
use crate::wal::{Lsn, TimelineId};
use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::message::frontend;

/// What `START_REPLICATION` leads to.
#[derive(Debug)]
pub enum Streaming {
    /// WAL flows.
    Wal(WalStream),
    /// The timeline ended exactly where we asked to start: there is nothing to stream on it.
    TimelineEnded {
        /// The connection, ready for the next question.
        client: Client,
        /// The timeline that follows.
        next: TimelineId,
        /// Where it begins.
        switch: Lsn,
    },
}

/// A connection on which WAL flows.
///
/// [`WalStream::next`] and [`WalStream::send_status`] may be dropped at any time without losing anything, so both can be
/// arms of one `select!`. While nobody calls `next`, the server is held back; it still reads status messages and does not
/// give up as long as they come.
#[derive(Debug)]
pub struct WalStream {
    client: Client,
    /// The server has ended its half.
    server_done: bool,
}

/// A message of the stream. Times are microseconds since 2000-01-01 UTC by the server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalMessage {
    /// WAL. May cross a segment's border; may begin and end anywhere.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// How far the server would send now: not the end of this message.
        server_end: Lsn,
        /// When it was sent.
        server_time_micros: i64,
        /// The bytes, a slice of the read buffer (512 KiB): keep it for long only with its neighbours, or copy it.
        bytes: Bytes,
    },
    /// The server is there.
    Keepalive {
        /// How far it has sent.
        server_end: Lsn,
        /// When it was sent.
        server_time_micros: i64,
        /// It wants a status message now. During its shutdown it repeats this until all it sent is flushed.
        reply_requested: bool,
    },
    /// All of this timeline has been sent, and another follows: call [`WalStream::finish_timeline`].
    EndOfTimeline,
    /// The server shuts down and has everything that it sent acknowledged. Give it some seconds before connecting again.
    ServerShutdown,
}

/// What a standby tells the server. The server takes `flushed` as it is, back or ahead: whoever fills it in answers for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatusUpdate {
    /// Received.
    pub written: Lsn,
    /// Durable; moves the slot and releases synchronous commits. `0/0`: nothing to report.
    pub flushed: Lsn,
    /// Applied.
    pub applied: Lsn,
    /// The server is to answer with a keepalive.
    pub reply_requested: bool,
}

pub(super) async fn start(
    client: Client,
    slot: Option<&str>,
    start: Lsn,
    timeline: TimelineId,
) -> Result<Streaming, PgError> {
    Client::in_time(client.patience(), begin(client, slot, start, timeline)).await
}

async fn begin(mut client: Client, slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<Streaming, PgError> {
    let slot = slot.map(|name| format!("SLOT {} ", quote_name(name))).unwrap_or_default();
    client.ask(&format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")).await?;
    let mut refusal = None;
    match client.answer(&mut refusal).await? {
        Message::CopyBoth => {
            client.connection().set_streaming(true);
            Ok(Streaming::Wal(WalStream { client, server_done: false }))
        }
        Message::RowDescription(columns) => {
            let (client, next, switch) = read_next_timeline(client, Some(columns)).await?;
            Ok(Streaming::TimelineEnded { client, next, switch })
        }
        Message::ReadyForQuery if refusal.is_some() => Err(refusal.map_or(PgError::Closed, PgError::Server)),
        other => Err(unexpected("the start of replication", &other)),
    }
}

impl WalStream {
    /// The next message. May be dropped without losing anything.
    ///
    /// # Errors
    /// [`PgError::Server`] for what the server says: that the WAL asked for is gone ([`PgError::is_wal_removed`]) comes
    /// here. [`PgError::Closed`] without a word: also the server's way after `wal_sender_timeout`. No further message comes
    /// after an error.
    pub async fn next(&mut self) -> Result<WalMessage, PgError> {
        if self.server_done {
            return Ok(WalMessage::EndOfTimeline);
        }
        match self.client.connection().read_past_notices().await? {
            Message::CopyData(body) => decode(body),
            Message::CopyDone => {
                self.server_done = true;
                Ok(WalMessage::EndOfTimeline)
            }
            // In place of CopyDone: the last word of a walsender that has been told to go (`walsender.c`, `WalSndDone`).
            Message::CommandComplete(_) => Ok(WalMessage::ServerShutdown),
            Message::Error(error) => Err(PgError::Server(Box::new(error))),
            other => Err(unexpected("the stream", &other)),
        }
    }

    /// Sends a status message; `now_postgres_micros` is our clock. May be dropped: what is left goes out with the next
    /// status or `next`.
    ///
    /// # Errors
    /// [`PgError::Io`] if the connection is broken; a break noticed here first is told by `next`, behind what the
    /// server said last.
    pub async fn send_status(&mut self, status: StatusUpdate, now_postgres_micros: i64) -> Result<(), PgError> {
        let mut body = [0; 34];
        let mut fields = &mut body[..];
        fields.put_u8(b'r');
        fields.put_u64(status.written.0);
        fields.put_u64(status.flushed.0);
        fields.put_u64(status.applied.0);
        fields.put_i64(now_postgres_micros);
        fields.put_u8(status.reply_requested.into());
        let connection = self.client.connection();
        connection.write(|out| {
            frontend::CopyData::new(&body[..])?.write(out);
            Ok(())
        })?;
        connection.flush().await
    }

    /// Ends the stream from our side; WAL still on its way is discarded. The connection is gone if this fails or is
    /// dropped.
    ///
    /// # Errors
    /// What the server says; [`PgError::Closed`] if it shut down meanwhile.
    pub async fn end(self) -> Result<Client, PgError> {
        Client::in_time(self.client.patience(), self.say_and_hear_the_end()).await
    }

    async fn say_and_hear_the_end(self) -> Result<Client, PgError> {
        let mut client = self.send_copy_done().await?;
        let mut refusal = None;
        loop {
            // A timeline that ended at this very moment adds a result; then come two CommandCompletes.
            match client.answer(&mut refusal).await? {
                Message::ReadyForQuery => break,
                Message::CopyData(_) | Message::CopyDone | Message::CommandComplete(_) => {}
                Message::RowDescription(_) | Message::DataRow(_) => {}
                other => return Err(unexpected("the end of the stream", &other)),
            }
        }
        client.is_ready_again();
        refusal.map_or(Ok(client), |error| Err(PgError::Server(error)))
    }

    /// Follows [`WalMessage::EndOfTimeline`]: which timeline is next, and where it begins. That may lie before the last
    /// byte received: what was received past it is no part of the next timeline. The connection is gone if this fails
    /// or is dropped.
    ///
    /// # Errors
    /// What the server says.
    pub async fn finish_timeline(self) -> Result<(Client, TimelineId, Lsn), PgError> {
        if !self.server_done {
            return Err(PgError::protocol("the timeline has not ended"));
        }
        Client::in_time(self.client.patience(), async {
            let client = self.send_copy_done().await?;
            read_next_timeline(client, None).await
        })
        .await
    }

    async fn send_copy_done(self) -> Result<Client, PgError> {
        let mut client = self.client;
        client.connection().write(|out| {
            frontend::copy_done(out);
            Ok(())
        })?;
        client.connection().flush().await?;
        Ok(client)
    }
}

/// Reads the result set behind a timeline's end, up to ReadyForQuery.
async fn read_next_timeline(
    mut client: Client,
    columns: Option<Vec<String>>,
) -> Result<(Client, TimelineId, Lsn), PgError> {
    let (mut refusal, mut columns, mut rows) = (None, columns, Vec::new());
    loop {
        match client.answer(&mut refusal).await? {
            Message::RowDescription(names) if columns.is_none() => columns = Some(names),
            Message::DataRow(row) if rows.is_empty() => rows.push(row),
            // An answer to a status message that crossed the server's last word (`walsender.c`, `ProcessStandbyReplyMessage`).
            Message::CopyData(_) if columns.is_none() => {}
            Message::CommandComplete(_) => {}
            Message::ReadyForQuery => break,
            other => return Err(unexpected("the end of a timeline", &other)),
        }
    }
    client.is_ready_again();
    if let Some(error) = refusal {
        return Err(PgError::Server(error));
    }
    let rows = Rows::new(columns.unwrap_or_default(), rows);
    let next = rows.read("next_tli", parse_timeline)?;
    let switch = rows.read("next_tli_startpos", |text| text.parse().ok())?;
    Ok((client, next, switch))
}

/// `w` and `k` ("Streaming Replication Protocol" in the manual); the payload stays where it is.
fn decode(mut body: Bytes) -> Result<WalMessage, PgError> {
    /// Type, three 64-bit numbers.
    const DATA_HEADER_BYTES: usize = 25;
    /// Type, two 64-bit numbers, one flag.
    const KEEPALIVE_BYTES: usize = 18;
    match body.first() {
        Some(b'w') if body.len() >= DATA_HEADER_BYTES => {
            body.advance(1);
            Ok(WalMessage::Data {
                start: Lsn(body.get_u64()),
                server_end: Lsn(body.get_u64()),
                server_time_micros: body.get_i64(),
                bytes: body,
            })
        }
        Some(b'k') if body.len() == KEEPALIVE_BYTES => {
            body.advance(1);
            Ok(WalMessage::Keepalive {
                server_end: Lsn(body.get_u64()),
                server_time_micros: body.get_i64(),
                reply_requested: body.get_u8() != 0,
            })
        }
        Some(kind) => {
            Err(PgError::protocol(format!("{} bytes of type {:?} in the stream", body.len(), char::from(*kind))))
        }
        None => Err(PgError::protocol("an empty message in the stream")),
    }
}
