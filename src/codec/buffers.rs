//! Memory that is used again. What the system has taken back it clears page by page before it gives it out once more, and
//! for megabytes many times a second that is a tenth of all work.

use bytes::Bytes;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers for one purpose, which all become about as large.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spares_max: usize,
    spares: Mutex<Vec<Vec<u8>>>,
}

/// A buffer on loan.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Shared>,
}

impl Buffers {
    /// None so far; up to `spares_max` will be kept while nobody needs them.
    pub fn new(spares_max: usize) -> Buffers {
        Buffers(Arc::new(Shared { spares_max, spares: Mutex::default() }))
    }

    /// An empty buffer: the one that was given back last, for most of it may be in the processor's cache.
    pub fn take(&self) -> Buffer {
        let mut buffer = self.take_written();
        buffer.clear();
        buffer
    }

    /// As [`Buffers::take`], with whatever was in it: memory to write over, which nobody has to clear first.
    pub fn take_written(&self) -> Buffer {
        let spare = self.0.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: spare.unwrap_or_default(), home: self.0.clone() }
    }
}

impl Buffer {
    /// Its bytes, for any number of owners. The buffer is given back by the last of them.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // Whole after each step: a panic elsewhere changes nothing.
        let mut spares = self.home.spares.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.len() < self.home.spares_max {
            spares.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_its_last_owner_has_let_go() {
        // Given bytes in a buffer, with two owners
        let buffers = Buffers::new(8);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"first");
        let bytes = buffer.freeze();
        let (place, slice) = (bytes.as_ptr(), bytes.slice(1..3));
        drop(bytes);
        // When the next one is taken, then it lies elsewhere
        let second = buffers.take();
        assert_ne!(second.as_ptr(), place);
        assert_eq!(slice, "ir");
        // And when the last owner has let go, in its place, and empty
        drop(slice);
        let third = buffers.take();
        assert_eq!((third.as_ptr(), third.len()), (place, 0));
    }

    #[test]
    fn what_was_written_is_there_for_whoever_writes_over_it() {
        let buffers = Buffers::new(1);
        buffers.take().extend_from_slice(b"before");
        assert_eq!(**buffers.take_written(), *b"before");
        assert_eq!(**buffers.take(), *b"");
    }

    #[test]
    fn no_more_are_kept_than_wanted() {
        let buffers = Buffers::new(2);
        let taken: Vec<Buffer> = (0..5).map(|_| buffers.take()).collect();
        drop(taken);
        assert_eq!(buffers.0.spares.lock().unwrap().len(), 2);
    }
}
