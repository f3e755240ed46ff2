//! Bytes in and out of one connection: framing, buffers, and what the server may say at any moment.
//!
//! Reading and writing may be dropped at any await: what has arrived stays in the input buffer, what has not been
//! written stays in the output buffer and goes out with the next write or read.

use super::error::{PgError, ServerMessage};
use super::message::{self, Message};
use bytes::{Buf, BytesMut};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A socket of any kind.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Duplex for T {}

/// Room for one read while questions are asked and answered.
const ANSWER_BYTES: usize = 8 << 10;
/// The least room for one read while a stream flows: a full WAL message (128 KiB, `MAX_SEND_SIZE` in `walsender.c`).
const STREAM_READ_BYTES: usize = 128 << 10;
/// How much is allocated at once then. Payloads are slices of it, so a slice that is kept keeps this much at most.
const STREAM_BUFFER_BYTES: usize = 512 << 10;

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
    backend: Option<u32>,
    message_bytes_max: usize,
    streaming: bool,
    /// Something was handed to the socket and may still be in a buffer of TLS.
    unflushed: bool,
    /// Why writing failed; told by reading, behind what the server said last.
    write_error: Option<io::Error>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("streaming", &self.streaming).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(socket: Box<dyn Duplex>) -> Connection {
        Connection {
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            parameters: BTreeMap::new(),
            backend: None,
            message_bytes_max: STRANGER_MESSAGE_BYTES_MAX,
            streaming: false,
            unflushed: false,
            write_error: None,
        }
    }

    /// The server has let us in: longer messages are in order.
    pub(super) fn trust(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    /// Reads in large pieces from now on, or no longer.
    pub(super) fn set_streaming(&mut self, streaming: bool) {
        self.streaming = streaming;
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

    /// The number of the server's process for this connection, if it has told.
    pub(super) fn backend(&self) -> Option<u32> {
        self.backend
    }

    /// Closes the sending side; best effort.
    pub(super) async fn shut_down(mut self) {
        let _ = self.flush().await;
        let _ = self.socket.shutdown().await;
    }

    /// The next message, parameters noted and passed over. May be dropped without losing anything.
    pub(super) async fn read(&mut self) -> Result<Message, PgError> {
        loop {
            while let Some(message) = self.take_message()? {
                match message {
                    Message::ParameterStatus(name, value) => self.note_parameter(name, value),
                    Message::BackendKeyData(pid) => self.backend = Some(pid),
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

    async fn fill(&mut self) -> Result<(), PgError> {
        let (least, most) = match self.streaming {
            true => (STREAM_READ_BYTES, STREAM_BUFFER_BYTES),
            false => (ANSWER_BYTES / 2, ANSWER_BYTES),
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

    /// Cuts one whole message off the input, if there is one. Its payload shares the buffer.
    fn take_message(&mut self) -> Result<Option<Message>, PgError> {
        const HEADER_BYTES: usize = 5;
        let Some((&[tag, a, b, c, d], _)) = self.input.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        // The length counts itself and not the type byte.
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length < 4 || length > self.message_bytes_max {
            return Err(PgError::protocol(format!("a message of type {:?} and {length} bytes", char::from(tag))));
        }
        let whole = length + 1;
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
