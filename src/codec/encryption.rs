//! Encrypted objects: age files, which the `age` program reads. An object is written for recipients, public keys, and opened with an
//! identity, the private key to one of them: the machine that writes need not be able to read.
//!
//! ```text
//! age-encryption.org/v1
//! -> seawall-identity            what the object is, in clear, as the first frame inside says: no secret, and what an
//! <base64>                       archiver that cannot read compares by
//! -> seawall-cuts                of WAL, if it is known: which relations it cuts, in clear as well
//! <base64>
//! -> X25519 ...                  the file's key, once for each recipient
//! --- <MAC of all that>
//! <the object, in chunks of 64 KiB, each authenticated>
//! ```
//!
//! Format: <https://age-encryption.org/v1>. Programs pass over recipients of a kind that they do not know.

use super::{Buffer, Buffers, CodecError};
use age::secrecy::{ExposeSecret, SecretString};
use age::x25519;
use age::{DecryptError, EncryptError};
use age_core::format::{FileKey, Stanza};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{Buf, Bytes};
use std::collections::HashSet;
use std::fmt;
use std::io::{Read, Write};
use std::iter::once;
use std::sync::Arc;

/// The first line of every age file.
const FIRST_LINE: &[u8] = b"age-encryption.org/v1\n";
/// The tag of what the object says of itself.
const NOTE_TAG: &str = "seawall-identity";
/// The tag of what its WAL cuts.
const CUTS_TAG: &str = "seawall-cuts";
/// Columns of a stanza's body; its last line has fewer.
const BODY_COLUMNS: usize = 64;
/// Plain bytes of a chunk, and what its authentication adds.
const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
/// The longest header: room for hundreds of recipients. Reading one takes time by the square of its lines.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How the header's last line begins.
const HEADER_END: &[u8] = b"\n--- ";
/// An object is decrypted in pieces of so many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Who can read what is stored: X25519 public keys. Without any, nothing is encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recipients(Arc<[x25519::Recipient]>);

impl Recipients {
    /// Reads recipients as `age-keygen` prints them (`age1...`).
    ///
    /// # Errors
    /// The word that is none.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Recipients, String> {
        let parsed = words.into_iter().map(|word| word.parse().map_err(|_| word.to_owned()));
        Ok(Recipients(parsed.collect::<Result<_, _>>()?))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// As `age-keygen` prints them, in an order of their own.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        words.sort();
        words
    }

    /// True if nothing is encrypted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What opens encrypted objects. Never printed.
#[derive(Clone, Default)]
pub struct Identities(Arc<[x25519::Identity]>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// A file is no identity file.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// It has no line with a key.
    #[error("has no line that begins with AGE-SECRET-KEY-1")]
    NoKey,
    /// A line with a key has something else in it.
    #[error("has a key in line {0} that cannot be read")]
    Key(usize),
    /// It is encrypted, and not with a passphrase or not with this one.
    #[error("cannot be opened with this passphrase")]
    Passphrase(#[source] DecryptError),
    /// It is not text.
    #[error("is not a text file")]
    NotText,
}

impl Identities {
    /// True if none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads an identity file as `age-keygen` writes it.
    ///
    /// # Errors
    /// If it is none. No error has a key in it.
    pub fn parse(file: &[u8]) -> Result<Identities, IdentityFileError> {
        let text = std::str::from_utf8(file).map_err(|_| IdentityFileError::NotText)?;
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys = keys.map(|(number, line)| line.parse().map_err(|_| IdentityFileError::Key(number)));
        let keys: Vec<x25519::Identity> = keys.collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Err(IdentityFileError::NoKey),
            false => Ok(Identities(keys.into())),
        }
    }

    /// True if an identity file is itself encrypted, with a passphrase, as `age -p` does.
    pub fn needs_passphrase(file: &[u8]) -> bool {
        is_encrypted(file)
    }

    /// Reads an identity file that is protected by `passphrase`. Takes about a second, by intention.
    ///
    /// # Errors
    /// As [`Identities::parse`], and if the passphrase is another one.
    pub fn parse_protected(file: &[u8], passphrase: String) -> Result<Identities, IdentityFileError> {
        let identity = age::scrypt::Identity::new(SecretString::from(passphrase));
        let opened = age::decrypt(&identity, file).map_err(IdentityFileError::Passphrase)?;
        Identities::parse(&opened)
    }

    /// The public keys to them.
    pub fn recipients(&self) -> Recipients {
        Recipients(self.0.iter().map(x25519::Identity::to_public).collect())
    }
}

/// A new private key, and the public key to it.
pub fn generate_identity() -> (SecretString, String) {
    let identity = x25519::Identity::generate();
    let public = identity.to_public().to_string();
    (SecretString::from(identity.to_string().expose_secret().to_owned()), public)
}

/// The file, encrypted with a passphrase: for identity files alone, never for objects.
///
/// # Errors
/// None that the world can cause.
pub fn protect(file: &[u8], passphrase: String) -> Result<Vec<u8>, CodecError> {
    let encryptor = age::Encryptor::with_user_passphrase(SecretString::from(passphrase));
    let mut protected = Vec::new();
    let mut writer = encryptor.wrap_output(&mut protected).map_err(CodecError::Encryption)?;
    writer.write_all(file).and_then(|()| writer.finish()).map_err(CodecError::Encryption)?;
    Ok(protected)
}

/// What an object says in clear, as the first of its recipients. They get nothing of the key.
struct Note<'a> {
    tag: &'static str,
    body: &'a [u8],
}

impl age::Recipient for Note<'_> {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let stanza = Stanza { tag: self.tag.to_owned(), args: Vec::new(), body: self.body.to_vec() };
        Ok((vec![stanza], HashSet::new()))
    }
}

/// Encrypts `pieces`, an object, for `recipients`, and puts `note` and, if there are any, `cuts` in front, for everybody to read. Lets
/// go of each piece as soon as it can, and what comes out lies in pieces as well, in memory of `buffers`: there is never much
/// more than one of the two. CPU work.
///
/// # Errors
/// None that the world can cause.
pub fn encrypt(
    recipients: &Recipients,
    note: &[u8],
    cuts: Option<&[u8]>,
    pieces: impl IntoIterator<Item = Bytes>,
    buffers: &Buffers,
) -> Result<Vec<Bytes>, CodecError> {
    let (note, cuts) = (Note { tag: NOTE_TAG, body: note }, cuts.map(|body| Note { tag: CUTS_TAG, body }));
    let notes = once(&note).chain(&cuts).map(|note| note as &dyn age::Recipient);
    let readers = recipients.0.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(notes.chain(readers))
        .map_err(|error| CodecError::Encryption(std::io::Error::other(error)))?;
    let mut encrypted = Pieces { full: Vec::new(), last: buffers.take(), buffers };
    let mut writer = encryptor.wrap_output(&mut encrypted).map_err(CodecError::Encryption)?;
    for piece in pieces {
        writer.write_all(&piece).map_err(CodecError::Encryption)?;
    }
    writer.finish().map_err(CodecError::Encryption)?;
    Ok(encrypted.finish())
}

/// Takes what is written, in pieces of [`PIECE_BYTES`], or of what a buffer has where that is more.
struct Pieces<'a> {
    full: Vec<Bytes>,
    last: Buffer,
    buffers: &'a Buffers,
}

impl Pieces<'_> {
    fn finish(mut self) -> Vec<Bytes> {
        // A small object is most of them, and would keep a whole buffer.
        self.full.push(match self.last.len() < self.last.capacity() / 2 {
            true => Bytes::copy_from_slice(&self.last),
            false => self.last.freeze(),
        });
        self.full
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.last.len() >= self.last.capacity().max(PIECE_BYTES) {
            self.full.push(std::mem::replace(&mut self.last, self.buffers.take()).freeze());
        }
        let capacity = self.last.capacity();
        let length = bytes.len().min(capacity.max(PIECE_BYTES) - self.last.len());
        let needed = self.last.len() + length;
        if needed > capacity {
            let wanted = (2 * capacity).clamp(needed, PIECE_BYTES) - self.last.len();
            self.last.reserve_exact(wanted);
        }
        self.last.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// True if an object of `plain` bytes may have this length when it is encrypted.
pub fn may_have_length(plain: u64, encrypted: u64) -> bool {
    let chunks = plain.div_ceil(CHUNK_BYTES as u64).max(1);
    let Some(header) = encrypted.checked_sub(plain + chunks * TAG_BYTES as u64) else { return false };
    header > 0 && header <= HEADER_BYTES_MAX as u64
}

/// True if this is the beginning of an age file.
pub fn is_encrypted(prefix: &[u8]) -> bool {
    prefix.starts_with(FIRST_LINE)
}

/// What an encrypted object says of itself, from its first bytes; `None` if it says nothing.
///
/// # Errors
/// [`CodecError::Cut`] if more bytes of the object are needed.
pub fn read_note(prefix: &[u8]) -> Result<Option<Bytes>, CodecError> {
    let rest = prefix.strip_prefix(FIRST_LINE).unwrap_or_default();
    Ok(read_stanza(prefix, rest, NOTE_TAG)?.map(|(note, _)| note))
}

/// What an encrypted object says of the cuts in its WAL, from its first bytes; `None` if it says nothing.
///
/// # Errors
/// As [`read_note`].
pub fn read_cuts(prefix: &[u8]) -> Result<Option<Bytes>, CodecError> {
    let rest = prefix.strip_prefix(FIRST_LINE).unwrap_or_default();
    let Some((_, rest)) = read_stanza(prefix, rest, NOTE_TAG)? else { return Ok(None) };
    Ok(read_stanza(prefix, rest, CUTS_TAG)?.map(|(cuts, _)| cuts))
}

/// The body of the stanza that `rest`, the end of `prefix`, begins with, and what follows; `None` if it has another tag.
fn read_stanza<'a>(prefix: &[u8], rest: &'a [u8], tag: &str) -> Result<Option<(Bytes, &'a [u8])>, CodecError> {
    let cut = || CodecError::Cut { needed_bytes: prefix.len() + 1 };
    let line = format!("-> {tag}\n");
    let Some(mut rest) = rest.strip_prefix(line.as_bytes()) else {
        let may_become_it = is_encrypted(prefix) && line.as_bytes().starts_with(rest);
        return if may_become_it { Err(cut()) } else { Ok(None) };
    };
    let mut encoded = Vec::new();
    loop {
        let columns = rest.iter().position(|byte| *byte == b'\n').ok_or_else(cut)?;
        encoded.extend_from_slice(&rest[..columns]);
        rest = &rest[columns + 1..];
        if columns < BODY_COLUMNS {
            let body = STANDARD_NO_PAD.decode(&encoded).map_err(|_| CodecError::Note)?;
            return Ok(Some((Bytes::from(body), rest)));
        }
    }
}

/// An object's bytes, opened if they are encrypted, in pieces. CPU work.
pub struct Opened(Inner);

enum Inner {
    Plain(Option<Bytes>),
    Encrypted(Box<age::stream::StreamReader<bytes::buf::Reader<Bytes>>>),
    Ended,
}

/// Opens an object if it is encrypted.
///
/// # Errors
/// [`CodecError::NoIdentity`], [`CodecError::OtherRecipients`], or what is wrong with the file's header.
pub fn open(identities: &Identities, stored: Bytes) -> Result<Opened, CodecError> {
    if !is_encrypted(&stored) {
        return Ok(Opened(Inner::Plain(Some(stored))));
    }
    if identities.is_empty() {
        return Err(CodecError::NoIdentity);
    }
    let header = stored.get(..HEADER_BYTES_MAX).unwrap_or(&stored);
    if !header.windows(HEADER_END.len()).any(|bytes| bytes == HEADER_END) {
        return Err(CodecError::Decryption(DecryptError::InvalidHeader));
    }
    let keys = identities.0.iter().map(|identity| identity as &dyn age::Identity);
    let decryptor = age::Decryptor::new_buffered(stored.reader()).map_err(CodecError::Decryption)?;
    match decryptor.decrypt(keys) {
        Ok(reader) => Ok(Opened(Inner::Encrypted(Box::new(reader)))),
        Err(DecryptError::NoMatchingKeys) => Err(CodecError::OtherRecipients),
        Err(error) => Err(CodecError::Decryption(error)),
    }
}

/// A whole object that lies in memory, opened if it is encrypted. CPU work.
///
/// # Errors
/// As [`open`], or if any of it is damaged or missing.
pub fn open_whole(identities: &Identities, stored: Bytes) -> Result<Bytes, CodecError> {
    let bytes = stored.len();
    match open(identities, stored)? {
        Opened(Inner::Plain(plain)) => Ok(plain.unwrap_or_default()),
        pieces => {
            let mut whole = Vec::with_capacity(bytes);
            for piece in pieces {
                whole.extend_from_slice(&piece?);
            }
            Ok(Bytes::from(whole))
        }
    }
}

impl Iterator for Opened {
    type Item = Result<Bytes, CodecError>;

    fn next(&mut self) -> Option<Result<Bytes, CodecError>> {
        let reader = match &mut self.0 {
            Inner::Plain(plain) => return plain.take().map(Ok),
            Inner::Encrypted(reader) => reader,
            Inner::Ended => return None,
        };
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = reader.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece);
        match read {
            Ok(0) => {
                self.0 = Inner::Ended;
                None
            }
            Ok(_) => Some(Ok(Bytes::from(piece))),
            Err(error) => {
                self.0 = Inner::Ended;
                Some(Err(CodecError::Decryption(DecryptError::Io(error))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> (Identities, Recipients) {
        let (secret, public) = generate_identity();
        let file = format!("# a comment\n\n{}\n", secret.expose_secret());
        (Identities::parse(file.as_bytes()).unwrap(), Recipients::parse([public.as_str()]).unwrap())
    }

    /// An object as it is stored.
    fn stored_for(to: &Recipients, note: &[u8], cuts: Option<&[u8]>, pieces: impl IntoIterator<Item = Bytes>) -> Bytes {
        encrypt(to, note, cuts, pieces, &Buffers::new(0)).unwrap().concat().into()
    }

    fn sample(bytes: usize) -> Bytes {
        (0..bytes).map(|at| (at / 7) as u8).collect()
    }

    #[test]
    fn an_encrypted_object_has_a_length_that_its_content_may_have() {
        let (_, public) = key();
        for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * PIECE_BYTES + 5] {
            let stored = stored_for(&public, b"a note", None, [sample(bytes)]).len() as u64;
            assert!(may_have_length(bytes as u64, stored), "{bytes} bytes are stored as {stored}");
            assert!(!may_have_length(bytes as u64 + HEADER_BYTES_MAX as u64, stored), "{stored} is too short");
            assert!(!may_have_length(bytes as u64, stored + HEADER_BYTES_MAX as u64), "{stored} is too long");
        }
    }

    #[test]
    fn what_was_encrypted_is_opened_by_each_of_its_recipients_and_by_nobody_else() {
        let ((one, one_public), (two, two_public), (other, _)) = (key(), key(), key());
        let both = Recipients([&one_public.0[..], &two_public.0[..]].concat().into());
        for bytes in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * PIECE_BYTES + 5] {
            let plain = sample(bytes);
            let pieces = vec![plain.slice(..bytes / 3), plain.slice(bytes / 3..)];
            let stored = stored_for(&both, b"a note", None, pieces);
            for identity in [&one, &two] {
                assert!(open_whole(identity, stored.clone()).unwrap() == plain, "{bytes} bytes");
            }
            assert!(matches!(open(&other, stored.clone()), Err(CodecError::OtherRecipients)));
            assert!(matches!(open(&Identities::default(), stored.clone()), Err(CodecError::NoIdentity)));
            assert_eq!(read_note(&stored).unwrap().as_deref(), Some(&b"a note"[..]));
        }
        assert_eq!(open_whole(&one, Bytes::from_static(b"not encrypted")).unwrap(), "not encrypted");
    }

    #[test]
    fn what_is_cut_or_altered_is_an_error_and_never_data() {
        let (identity, public) = key();
        let plain = sample(2 * CHUNK_BYTES + 100);
        let stored = stored_for(&public, b"note", Some(b"cuts"), vec![plain]);
        let body = stored.len() - (2 * CHUNK_BYTES + 100 + 3 * TAG_BYTES);
        // A bit anywhere in the header, and here and there in the rest
        for at in (0..body).chain((body..stored.len()).step_by(997)) {
            let mut damaged = stored.to_vec();
            damaged[at] ^= 1;
            let opened = open_whole(&identity, Bytes::from(damaged));
            // With its first line gone it is no age file, and what it is then nobody takes for a frame.
            let is_none = at < FIRST_LINE.len() && opened.as_ref().is_ok_and(|bytes| !bytes.is_empty());
            assert!(opened.is_err() || is_none, "bit 0 of byte {at} of {} was not missed", stored.len());
        }
        // A cut, also exactly between two chunks
        for end in [0, 10, body, body + 1, body + CHUNK_BYTES + TAG_BYTES, stored.len() - 1] {
            let opened = open_whole(&identity, stored.slice(..end));
            assert!(opened.is_err() || end < FIRST_LINE.len(), "a cut at {end} of {} was not missed", stored.len());
        }
    }

    #[test]
    fn an_object_is_encrypted_into_the_memory_of_what_it_was() {
        // Given an object in buffers
        let (identity, public) = key();
        let buffers = Buffers::new(16);
        let pieces: Vec<Bytes> = (0..9u8)
            .map(|number| {
                let mut buffer = buffers.take();
                buffer.resize(PIECE_BYTES + 100, number);
                buffer.freeze()
            })
            .collect();
        let (plain, places) = (pieces.concat(), pieces.iter().map(|piece| piece.as_ptr()).collect::<Vec<_>>());
        // When it is encrypted
        let encrypted = encrypt(&public, b"note", None, pieces, &buffers).unwrap();
        // Then it lies where that lay, but for what was needed beside the first piece, and a short end
        let moved = encrypted.iter().filter(|piece| !places.contains(&piece.as_ptr())).count();
        assert!(moved <= 3, "{moved} of {} pieces are fresh memory", encrypted.len());
        assert!(open_whole(&identity, encrypted.concat().into()).unwrap() == plain);
    }

    #[test]
    fn a_header_without_an_end_is_refused_before_it_is_read() {
        // Each line of it would be read again for the next one: minutes, for sixteen megabytes.
        let (identity, _) = key();
        let mut endless = b"age-encryption.org/v1\n-> X25519 a\n".to_vec();
        (0..1 << 18).for_each(|_| endless.extend_from_slice(&[&[b'A'; BODY_COLUMNS][..], b"\n"].concat()));
        let refused = open(&identity, Bytes::from(endless));
        assert!(matches!(refused, Err(CodecError::Decryption(DecryptError::InvalidHeader))));
    }

    #[test]
    fn what_stands_in_clear_is_read_back_from_as_much_as_there_is_whatever_its_length() {
        let (identity, public) = key();
        for (length, cuts_length) in [(0, 0), (1, 47), (47, 48), (48, 49), (49, 1), (500, 2_000)] {
            let (note, cuts) = (sample(length), sample(cuts_length));
            let stored = stored_for(&public, &note, Some(&cuts), vec![sample(10)]);
            let mut is_read = [false; 2];
            // From as soon as it can be one, and until it is whole, it says that more is needed.
            for prefix in (FIRST_LINE.len()..stored.len()).map(|end| &stored[..end]) {
                let read = [(read_note(prefix), &note), (read_cuts(prefix), &cuts)];
                for ((read, expected), is_read) in read.into_iter().zip(&mut is_read) {
                    match read {
                        Ok(Some(read)) => *is_read = read == expected,
                        Ok(None) => panic!("nothing in {} bytes", prefix.len()),
                        Err(error) => assert!(!*is_read && matches!(error, CodecError::Cut { .. }), "{error}"),
                    }
                }
            }
            assert_eq!(is_read, [true; 2]);
            assert_eq!(open_whole(&identity, stored).unwrap(), sample(10));
            // Without cuts nothing is taken for them.
            let stored = stored_for(&public, &note, None, vec![sample(10)]);
            assert_eq!((read_note(&stored).unwrap(), read_cuts(&stored).unwrap()), (Some(note), None));
        }
        for other in [&b"age-encryption.org/v1\n-> X25519 abc\n"[..], b"nothing of ours", b""] {
            assert_eq!((read_note(other).unwrap(), read_cuts(other).unwrap()), (None, None));
        }
    }

    #[test]
    fn identity_files_are_read_with_and_without_a_passphrase() {
        let (secret, public) = generate_identity();
        let file = format!("# created: now\n# public key: {public}\n{}\n", secret.expose_secret());
        assert_eq!(Identities::parse(file.as_bytes()).unwrap().recipients(), Recipients::parse([&*public]).unwrap());
        assert!(matches!(Identities::parse(b"# nothing\n"), Err(IdentityFileError::NoKey)));
        let wrong = Identities::parse(b"\nAGE-SECRET-KEY-1HUSH\n").unwrap_err();
        assert_eq!(wrong.to_string(), "has a key in line 2 that cannot be read");
        assert!(matches!(Identities::parse(&[0xFF]), Err(IdentityFileError::NotText)));

        let protected = protect(file.as_bytes(), "open sesame".to_owned()).unwrap();
        assert!(Identities::needs_passphrase(&protected) && !Identities::needs_passphrase(file.as_bytes()));
        let opened = Identities::parse_protected(&protected, "open sesame".to_owned()).unwrap();
        assert_eq!(opened.recipients(), Recipients::parse([&*public]).unwrap());
        let refused = Identities::parse_protected(&protected, "guess".to_owned()).unwrap_err();
        assert_eq!(refused.to_string(), "cannot be opened with this passphrase");
        assert_eq!(format!("{opened:?}"), "Identities(1)");
    }
}
