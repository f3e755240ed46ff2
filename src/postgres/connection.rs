//! Bytes in and out of one connection: framing, buffers, and what the server may say at any moment.
//!
//! Reading and writing may be dropped at any await: what has arrived stays in the input buffer, what has not been
//! written stays in the output buffer and goes out with the next write or read.

use super::error::{PgError, ServerMessage};
use super::message::{self, Message};
use bytes::{Buf, BufMut, BytesMut};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A socket of any kind.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Duplex for T {}

/// How messages are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Question by question: little at a time.
    Answers,
    /// A flood of messages that are wanted whole.
    Bulk,
    /// As answers, but that of a long `CopyData` only the beginning is a message: its rest is for
    /// [`Connection::read_rest`], which puts it where it is wanted.
    InPlace,
}

/// Room for one read while questions are asked and answered.
const ANSWER_BYTES: usize = 8 << 10;
/// The least room for one read of bulk: as much as the server sends at a time (32 KiB, `SINK_BUFFER_LENGTH` in
/// `basebackup.c`), several times.
const BULK_READ_BYTES: usize = 128 << 10;
/// How much is allocated at once then. Payloads are slices of it, so a slice that is kept keeps this much at most.
const BULK_BUFFER_BYTES: usize = 512 << 10;
/// A message is long beyond this. WAL that waits comes in messages of 128 KiB (`MAX_SEND_SIZE` in `walsender.c`).
const LONG_BYTES: usize = 16 << 10;
/// So much of a long message is its beginning, at least.
const BEGINNING_BYTES: usize = 1 << 10;

/// The longest message before the server has let us in. Whoever answers then may be anybody.
const STRANGER_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// The longest message after that. The longest known is a WAL message of 1 MiB with the largest WAL block size.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// PostgreSQL reports about fifteen parameters; extensions may add some.
const PARAMETERS_MAX: usize = 256;

/// One connection after TLS, if any.
pub(super) struct Connection {
    socket: Box<dyn Duplex>,
    input: BytesMut,
    output: BytesMut,
    parameters: BTreeMap<String, String>,
    message_bytes_max: usize,
    reading: Reading,
    /// Of a long message, what was not handed out yet.
    rest_bytes: usize,
    /// Something was handed to the socket and may still be in a buffer of TLS.
    unflushed: bool,
    /// Why writing failed; told by reading, behind what the server said last.
    write_error: Option<io::Error>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("reading", &self.reading).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(socket: Box<dyn Duplex>) -> Connection {
        Connection {
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            parameters: BTreeMap::new(),
            message_bytes_max: STRANGER_MESSAGE_BYTES_MAX,
            reading: Reading::Answers,
            rest_bytes: 0,
            unflushed: false,
            write_error: None,
        }
    }

    /// The server has let us in: longer messages are in order.
    pub(super) fn trust(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    /// Reads in this way from now on.
    pub(super) fn set_reading(&mut self, reading: Reading) {
        self.reading = reading;
    }

    /// Bytes of the last message that [`Connection::read_rest`] is to read.
    pub(super) fn rest_bytes(&self) -> usize {
        self.rest_bytes
    }

    /// The last value that the server reported for a parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Appends to what will be sent; nothing is sent yet.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), PgError> {
        let before = self.output.len();
        let written = write(&mut self.output);
        written.map_err(|error| {
            self.output.truncate(before);
            PgError::Protocol(format!("this cannot be sent: {error}"))
        })
    }

    /// Sends all that was written. May be dropped: what is left goes out with the next call or the next read.
    ///
    /// A server that goes away says why before it closes, so the first failure to write is kept for the next read,
    /// which meets those words first; the second is returned.
    pub(super) async fn flush(&mut self) -> Result<(), PgError> {
        if let Some(error) = &self.write_error {
            return Err(PgError::Io(io::Error::new(error.kind(), error.to_string())));
        }
        if let Err(error) = self.push_output().await {
            self.output.clear();
            self.unflushed = false;
            self.write_error = Some(error);
        }
        Ok(())
    }

    async fn push_output(&mut self) -> io::Result<()> {
        while self.output.has_remaining() {
            self.unflushed = true;
            self.socket.write_buf(&mut self.output).await?;
        }
        if self.unflushed {
            self.socket.flush().await?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Closes the sending side; best effort.
    pub(super) async fn shut_down(mut self) {
        let _ = self.flush().await;
        let _ = self.socket.shutdown().await;
    }

    /// The next message, parameters noted and passed over. May be dropped without losing anything. The rest of a message
    /// that nobody has read is passed over, too.
    pub(super) async fn read(&mut self) -> Result<Message, PgError> {
        loop {
            let passed_over = self.rest_bytes.min(self.input.len());
            self.input.advance(passed_over);
            self.rest_bytes -= passed_over;
            while let Some(message) = self.take_message()? {
                match message {
                    Message::ParameterStatus(name, value) => self.note_parameter(name, value),
                    Message::Other => {}
                    message => return Ok(message),
                }
            }
            if self.output.has_remaining() || self.unflushed {
                self.flush().await?;
            }
            self.fill().await?;
        }
    }

    /// Like [`Connection::read`], with notices logged and passed over.
    pub(super) async fn read_past_notices(&mut self) -> Result<Message, PgError> {
        loop {
            match self.read().await? {
                Message::Notice(notice) => log_notice(&notice),
                message => return Ok(message),
            }
        }
    }

    fn note_parameter(&mut self, name: String, value: String) {
        if self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(&name) {
            self.parameters.insert(name, value);
        }
    }

    /// Puts some of a long message's rest into `room`: as much as has come and finds place, straight from the socket where
    /// that is possible. Says how many bytes. May be dropped without losing any.
    pub(super) async fn read_rest(&mut self, room: &mut (dyn BufMut + Send)) -> Result<usize, PgError> {
        if self.output.has_remaining() || self.unflushed {
            self.flush().await?;
        }
        let wanted = self.rest_bytes.min(room.remaining_mut());
        let buffered = wanted.min(self.input.len());
        let bytes = match buffered {
            0 => match self.socket.read_buf(&mut room.limit(wanted)).await {
                Ok(0) if wanted > 0 => return Err(self.write_error.take().map_or(PgError::Closed, PgError::Io)),
                Ok(bytes) => bytes,
                Err(error) => return Err(PgError::Io(error)),
            },
            _ => {
                room.put_slice(&self.input[..buffered]);
                self.input.advance(buffered);
                buffered
            }
        };
        self.rest_bytes -= bytes;
        Ok(bytes)
    }

    async fn fill(&mut self) -> Result<(), PgError> {
        let (least, most) = match self.reading {
            Reading::Bulk => (BULK_READ_BYTES, BULK_BUFFER_BYTES),
            Reading::Answers | Reading::InPlace => (ANSWER_BYTES / 2, ANSWER_BYTES),
        };
        if self.input.capacity() - self.input.len() < least {
            self.input.reserve(most);
        }
        match self.socket.read_buf(&mut self.input).await {
            Ok(0) => Err(self.write_error.take().map_or(PgError::Closed, PgError::Io)),
            Ok(_) => Ok(()),
            Err(error) => Err(PgError::Io(error)),
        }
    }

    /// Cuts one message off the input, if there is one. Its payload shares the buffer.
    fn take_message(&mut self) -> Result<Option<Message>, PgError> {
        const HEADER_BYTES: usize = 5;
        if self.rest_bytes > 0 {
            return Ok(None);
        }
        let Some((&[tag, a, b, c, d], _)) = self.input.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        // The length counts itself and not the type byte.
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length < 4 || length > self.message_bytes_max {
            return Err(PgError::protocol(format!("a message of type {:?} and {length} bytes", char::from(tag))));
        }
        let whole = length + 1;
        let is_begun = self.input.len() < whole && self.input.len() >= HEADER_BYTES + BEGINNING_BYTES;
        if self.reading == Reading::InPlace && tag == b'd' && whole > LONG_BYTES && is_begun {
            let mut beginning = self.input.split();
            self.rest_bytes = whole - beginning.len();
            beginning.advance(HEADER_BYTES);
            return message::decode(tag, beginning.freeze()).map(Some);
        }
        if self.input.len() < whole {
            self.input.reserve(whole - self.input.len());
            return Ok(None);
        }
        let mut frame = self.input.split_to(whole);
        frame.advance(HEADER_BYTES);
        message::decode(tag, frame.freeze()).map(Some)
    }
}

/// Notices that nobody asked for: warnings are for the operator.
fn log_notice(notice: &ServerMessage) {
    match notice.severity.as_str() {
        "WARNING" => tracing::warn!("PostgreSQL says: {notice}"),
        _ => tracing::debug!("PostgreSQL says: {notice}"),
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
