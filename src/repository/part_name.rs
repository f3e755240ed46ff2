//! What parts of base backups are called: by their content. So a name has no reason to ever mean other bytes, and whoever goes on
//! with an unfinished backup sees in a listing what is there already. Pure.

use super::layout::Archive;
use super::writer::hex;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first half of a SHA-256, in names as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ContentDigest([u8; ContentDigest::BYTES]);

impl ContentDigest {
    const BYTES: usize = 16;

    /// The first half of this one.
    pub fn of_sha256(sha256: [u8; 32]) -> ContentDigest {
        let mut digest = [0; ContentDigest::BYTES];
        digest.copy_from_slice(&sha256[..ContentDigest::BYTES]);
        ContentDigest(digest)
    }

    /// The first half of one in hexadecimal; `None` if it is none.
    pub fn of_hex(sha256: &str) -> Option<ContentDigest> {
        ContentDigest::parse(sha256.get(..2 * ContentDigest::BYTES)?)
    }

    /// Reads exactly 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<ContentDigest> {
        let digits = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 2 * ContentDigest::BYTES || !text.as_bytes().iter().all(digits) {
            return None;
        }
        let mut digest = [0; ContentDigest::BYTES];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(ContentDigest(digest))
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A part's name, without the end that says how it is stored: `base.00001.<digest>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PartName {
    /// The tar stream that it is a stretch of.
    pub archive: Archive,
    /// Its place in that stream, from 1, when it was stored. One that an earlier attempt stored keeps the number that it had then, so
    /// that the order of a backup's parts is that of the list in `backup.json`, and not this.
    pub number: u32,
    /// Of the object before it was encrypted, and of those for whom it was.
    pub digest: ContentDigest,
}

impl PartName {
    /// Reads a name back; `None` if it is none.
    pub fn parse(text: &str) -> Option<PartName> {
        let (archive, rest) = text.split_once('.')?;
        let (number, digest) = rest.split_once('.')?;
        let digits = number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit());
        let value: u32 = digits.then(|| number.parse().ok()).flatten()?;
        (value > 0 && format!("{value:05}") == number).then_some(())?;
        Some(PartName { archive: Archive::parse(archive)?, number: value, digest: ContentDigest::parse(digest)? })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:05}.{}", self.archive, self.number, self.digest)
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for PartName {
    type Error = String;

    fn try_from(text: String) -> Result<PartName, String> {
        PartName::parse(&text).ok_or_else(|| format!("{text:?} is not the name of a part"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for name in ["base.00001", "16384.00012", "base.123456"] {
            let name = format!("{name}.{DIGEST}");
            assert_eq!(PartName::parse(&name).map(|parsed| parsed.to_string()).as_deref(), Some(name.as_str()));
        }
        let cut = &DIGEST[1..];
        for name in ["base.1", "base.00000", "base.000001", "0.00001", "../x.00001", "base", "base.00001.00001"] {
            assert_eq!(PartName::parse(&format!("{name}.{DIGEST}")), None, "{name}");
        }
        for digest in [cut.to_owned(), format!("0{DIGEST}"), DIGEST.to_uppercase(), format!("../{}", &DIGEST[3..])] {
            assert_eq!(PartName::parse(&format!("base.00001.{digest}")), None, "{digest}");
        }
    }

    #[test]
    fn a_digest_is_the_first_half_of_the_hash() {
        let sha256: [u8; 32] = std::array::from_fn(|at| at as u8 * 7);
        assert_eq!(ContentDigest::of_hex(&hex(&sha256)), Some(ContentDigest::of_sha256(sha256)));
        assert_eq!(ContentDigest::of_hex("ab"), None);
        assert_eq!(ContentDigest::of_hex(&"é".repeat(32)), None);
    }
}
