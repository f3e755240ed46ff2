//! A base backup that the server compresses, for a thin network: each archive is one Zstandard frame, and is decompressed as it
//! comes. Memory: the frame's window, and one piece of the output.

use super::receive::{Broken, EventSource};
use crate::postgres::{BackupEvent, PgError};
use crate::runtime;
use bytes::Bytes;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

/// Plain bytes that are handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// The largest window that is given memory, as a power of two: 8 MiB, what level 19 asks for (`clevels.h` of Zstandard).
const WINDOW_LOG_MAX: u32 = 23;

/// The events of a base backup, with plain archives.
pub(crate) struct Decompressing<S> {
    source: S,
    /// The archive that comes, if the server compresses.
    archive: Option<Archive>,
    is_compressed: bool,
}

impl<S: EventSource> Decompressing<S> {
    /// Of what `source` gives, whose archives are compressed or not.
    pub(crate) fn new(source: S, is_compressed: bool) -> Decompressing<S> {
        Decompressing { source, archive: None, is_compressed }
    }

    /// The archive before must be whole.
    fn end_archive(&mut self) -> Result<(), PgError> {
        match self.archive.take() {
            Some(archive) if !archive.is_whole => Err(protocol("an archive that ends within its Zstandard frame")),
            _ => Ok(()),
        }
    }
}

impl<S: EventSource> EventSource for Decompressing<S> {
    async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
        loop {
            if let Some(archive) = self.archive.take_if(|archive| archive.has_more()) {
                let broken = |error| protocol(format!("an archive could not be decompressed: {error}"));
                let (archive, plain) = runtime::blocking(move || archive.step()).await.map_err(broken)??;
                self.archive = Some(archive);
                if plain.is_empty() {
                    continue;
                }
                return Ok(BackupEvent::Data(plain));
            }
            let event = self.source.next_event().await?;
            match (event, &mut self.archive) {
                (BackupEvent::Data(bytes), Some(archive)) => archive.input = bytes,
                (event @ BackupEvent::Archive { .. }, _) => {
                    self.end_archive()?;
                    self.archive = self.is_compressed.then(Archive::new).transpose()?;
                    return Ok(event);
                }
                (event @ (BackupEvent::Manifest | BackupEvent::End { .. }), _) => {
                    self.end_archive()?;
                    return Ok(event);
                }
                (event, _) => return Ok(event),
            }
        }
    }
}

/// One archive.
struct Archive {
    context: DCtx<'static>,
    /// What has come and was not looked at.
    input: Bytes,
    /// The last step filled its piece: the decoder may hold more.
    was_filled: bool,
    is_whole: bool,
}

impl Archive {
    fn new() -> Result<Archive, PgError> {
        let context = DCtx::try_create();
        let mut context =
            context.ok_or_else(|| protocol("a compressed archive, and there is no memory to decompress it"))?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(unreadable)?;
        Ok(Archive { context, input: Bytes::new(), was_filled: false, is_whole: false })
    }

    fn has_more(&self) -> bool {
        !self.input.is_empty() || self.was_filled
    }

    /// Decompresses a piece. CPU work.
    fn step(mut self) -> Result<(Archive, Bytes), PgError> {
        if self.is_whole {
            return Err(protocol("data behind the Zstandard frame of an archive"));
        }
        let mut plain = Vec::with_capacity(PIECE_BYTES);
        let mut input = InBuffer::around(&self.input);
        let mut output = OutBuffer::around(&mut plain);
        let hint = self.context.decompress_stream(&mut output, &mut input).map_err(unreadable)?;
        let read = input.pos();
        self.input = self.input.slice(read..);
        self.is_whole = hint == 0;
        self.was_filled = plain.len() == plain.capacity() && !self.is_whole;
        Ok((self, plain.into()))
    }
}

fn unreadable(code: usize) -> PgError {
    protocol(format!("an archive that is no Zstandard frame: {}", get_error_name(code)))
}

fn protocol(what: impl Into<String>) -> PgError {
    PgError::Protocol(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    struct Script(VecDeque<BackupEvent>);

    impl EventSource for Script {
        async fn next_event(&mut self) -> Result<BackupEvent, Broken> {
            Ok(self.0.pop_front().expect("nobody asks behind the end"))
        }
    }

    fn plain(bytes: usize) -> Vec<u8> {
        (0..bytes as u32).map(|at| ((at / 5).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn archive() -> BackupEvent {
        BackupEvent::Archive { tablespace: None, location: None }
    }

    /// What is left of two archives and a manifest that come in pieces of so many bytes.
    async fn read(archives: &[Vec<u8>], piece_bytes: usize, is_compressed: bool) -> Result<Vec<Vec<u8>>, Broken> {
        let mut events = VecDeque::new();
        for bytes in archives {
            events.push_back(archive());
            let pieces = bytes.chunks(piece_bytes).map(|piece| BackupEvent::Data(Bytes::copy_from_slice(piece)));
            pieces.for_each(|piece| events.extend([piece, BackupEvent::Progress(1)]));
        }
        events.extend([BackupEvent::Manifest, BackupEvent::Data(Bytes::from_static(b"manifest"))]);
        let mut source = Decompressing::new(Script(events), is_compressed);
        let mut found: Vec<Vec<u8>> = Vec::new();
        loop {
            match source.next_event().await? {
                BackupEvent::Data(bytes) => {
                    assert!(bytes.len() <= PIECE_BYTES.max(piece_bytes), "a piece of {} bytes", bytes.len());
                    let last = found.last_mut().unwrap();
                    last.extend_from_slice(&bytes);
                    if last == b"manifest" {
                        return Ok(found);
                    }
                }
                BackupEvent::Archive { .. } | BackupEvent::Manifest => found.push(Vec::new()),
                _ => {}
            }
        }
    }

    fn compressed(plain: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
        zstd::zstd_safe::compress(&mut frame, plain, 3).unwrap();
        frame
    }

    #[tokio::test]
    async fn archives_are_what_they_were_however_they_come() {
        let zeros = vec![0; 5 * PIECE_BYTES + 3];
        let plains = [plain(3 * PIECE_BYTES), zeros, plain(7)];
        let frames: Vec<_> = plains.iter().map(|plain| compressed(plain)).collect();
        for piece_bytes in [1, 999, 32 << 10, 64 << 20] {
            let pieces = if piece_bytes == 1 { &frames[1..] } else { &frames[..] };
            let found = read(pieces, piece_bytes, true).await.unwrap();
            let expected = &plains[plains.len() - pieces.len()..];
            assert!(found[..pieces.len()] == *expected, "in pieces of {piece_bytes}");
            assert_eq!(found[pieces.len()], b"manifest");
        }
        // What the server does not compress passes as it is.
        assert!(read(&plains, 32 << 10, false).await.unwrap()[..3] == plains);
    }

    #[tokio::test]
    async fn an_archive_that_is_cut_damaged_or_followed_by_something_is_an_error() {
        let whole = compressed(&plain(100_000));
        let mut flipped = whole.clone();
        flipped[2] ^= 1;
        for (bad, says) in [
            (whole[..whole.len() - 1].to_vec(), "ends within its Zstandard frame"),
            (Vec::new(), "ends within its Zstandard frame"),
            ([whole.as_slice(), b"x"].concat(), "data behind the Zstandard frame"),
            ([whole.as_slice(), whole.as_slice()].concat(), "data behind the Zstandard frame"),
            (flipped, "no Zstandard frame"),
        ] {
            for archives in [vec![bad.clone()], vec![bad.clone(), whole.clone()]] {
                let error = format!("{:?}", read(&archives, 1000, true).await.unwrap_err());
                assert!(error.starts_with("Failed") && error.contains(says), "{error}, and not: {says}");
            }
        }
    }
}
