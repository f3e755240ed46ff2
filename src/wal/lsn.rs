//! A position in the write-ahead log, and nothing else.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

/// A log sequence number: a byte position in a cluster's WAL, written `16/B374D848` as PostgreSQL does
/// (`src/include/access/xlogdefs.h`, `LSN_FORMAT_ARGS`).
///
/// Ranges of positions are half open: `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid position, `0/0`: PostgreSQL reads it as "nothing to report".
    pub const INVALID: Lsn = Lsn(0);

    /// True for every position but `0/0`.
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes from `earlier` up to here, or 0 if `earlier` is later.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    /// Positions near the end of the 64-bit space saturate: no server gets there.
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;

    fn sub(self, earlier: Lsn) -> u64 {
        self.bytes_since(earlier)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an LSN: two hexadecimal numbers of up to eight digits with a slash between them, such as 16/B374D848"
)]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let bad = || ParseLsnError(text.to_owned());
        let half = |part: &str| {
            let plain = (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let (high, low) = (half(high).ok_or_else(bad)?, half(low).ok_or_else(bad)?);
        Ok(Lsn(high << 32 | low))
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_position_survives_being_written_and_read(position: u64) {
            let lsn = Lsn(position);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
    }

    #[test]
    fn what_is_not_an_lsn_is_refused() {
        for text in ["", "/", "0", "1/", "/1", "1/2/3", "1/123456789", "+1/2", "1/ 2", "g/1", "0x1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was read as an LSN");
        }
    }
}
