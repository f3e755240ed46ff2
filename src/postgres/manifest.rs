//! `UPLOAD_MANIFEST`: tells a walsender of 17 or later what an earlier backup holds, so that the next one on the same
//! connection can be incremental (`UploadManifest` in `walsender.c`).

use super::auth::unexpected;
use super::client::Client;
use super::error::PgError;
use super::message::Message;
use postgres_protocol::message::frontend;

/// Bytes in each message, at most.
const PIECE_BYTES: usize = 128 << 10;

impl Client {
    /// Sends the manifest of the backup that the next one shall build on, piece by piece. The server reads all of it before it says a word.
    ///
    /// # Errors
    /// What the server says: it is damaged, or another cluster's. The connection can be used further unless the error is
    /// about the connection itself; it is of no use if this is dropped.
    pub async fn upload_manifest<P: AsRef<[u8]> + Send>(
        &mut self,
        manifest: impl Iterator<Item = P> + Send,
    ) -> Result<(), PgError> {
        Client::in_time(self.patience(), self.send_and_hear(manifest)).await
    }

    async fn send_and_hear<P: AsRef<[u8]> + Send>(
        &mut self,
        manifest: impl Iterator<Item = P> + Send,
    ) -> Result<(), PgError> {
        self.ask("UPLOAD_MANIFEST").await?;
        let mut refusal = None;
        match self.answer(&mut refusal).await? {
            Message::CopyIn => {}
            Message::ReadyForQuery => return Err(refusal.map_or(PgError::Closed, PgError::Server)),
            other => return Err(unexpected("the upload of a manifest", &other)),
        }
        for piece in manifest {
            for piece in piece.as_ref().chunks(PIECE_BYTES) {
                self.connection().write(|out| {
                    frontend::CopyData::new(piece)?.write(out);
                    Ok(())
                })?;
                self.connection().flush().await?;
            }
        }
        self.connection().write(|out| {
            frontend::copy_done(out);
            Ok(())
        })?;
        self.connection().flush().await?;
        loop {
            match self.answer(&mut refusal).await? {
                Message::CommandComplete(_) => {}
                Message::ReadyForQuery => return refusal.map_or(Ok(()), |error| Err(PgError::Server(error))),
                other => return Err(unexpected("the upload of a manifest", &other)),
            }
        }
    }
}
