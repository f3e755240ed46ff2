//! The path of a file in a base backup: bytes, since a data directory may hold names that are not UTF-8, and safe to
//! join to a directory, since it comes from a server or from a repository that somebody else may have written to.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A relative path with `/` between its parts, none of which is empty, `.` or `..`. Clones share it: a backup has
/// half a million of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilePath(Arc<[u8]>);

/// The path is not one that may be written below a directory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the path {path:?} {problem}")]
pub struct FilePathError {
    path: String,
    problem: &'static str,
}

impl FilePath {
    /// Reads a path, without what says nothing: `./`, `//`, a `/` at the end.
    ///
    /// # Errors
    /// If it is absolute, names nothing, has `..` in it or a zero byte.
    pub fn parse(path: &[u8]) -> Result<FilePath, FilePathError> {
        let bad = |problem| FilePathError { path: String::from_utf8_lossy(path).into_owned(), problem };
        if path.first() == Some(&b'/') {
            return Err(bad("is absolute"));
        }
        if path.contains(&0) {
            return Err(bad("has a zero byte in it"));
        }
        let mut clean = Vec::with_capacity(path.len());
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(bad("leads out of its directory")),
                part => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                }
            }
        }
        if clean.is_empty() {
            return Err(bad("names nothing"));
        }
        Ok(FilePath(clean.into()))
    }

    /// The bytes of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same, without a share in it.
    pub fn view(&self) -> FilePathRef<'_> {
        FilePathRef(&self.0)
    }

    /// Where the file of a tablespace is below the data directory: `pg_tblspc/<oid>/…`.
    #[must_use]
    pub fn in_tablespace(&self, oid: u32) -> FilePath {
        FilePath([format!("pg_tblspc/{oid}/").as_bytes(), &self.0].concat().into())
    }

    /// True if this is `directory` or something in it.
    pub fn is_within(&self, directory: &str) -> bool {
        self.view().is_within(directory)
    }
}

/// A [`FilePath`] that somebody else holds: as safe to join to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilePathRef<'a>(&'a [u8]);

impl<'a> FilePathRef<'a> {
    /// Of bytes that were those of a [`FilePath`].
    pub(super) fn of_checked(bytes: &'a [u8]) -> FilePathRef<'a> {
        FilePathRef(bytes)
    }

    /// The bytes of it.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// A path of its own.
    pub fn to_path(self) -> FilePath {
        FilePath(self.0.into())
    }

    /// True if this is `directory` or something in it.
    pub fn is_within(self, directory: &str) -> bool {
        let rest = self.0.strip_prefix(directory.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    }
}

impl<'a> From<&'a FilePath> for FilePathRef<'a> {
    fn from(path: &'a FilePath) -> FilePathRef<'a> {
        path.view()
    }
}

impl PartialEq<FilePath> for FilePathRef<'_> {
    fn eq(&self, other: &FilePath) -> bool {
        *self == other.view()
    }
}

impl fmt::Display for FilePathRef<'_> {
    /// For messages: what is not UTF-8 is replaced.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

impl fmt::Debug for FilePathRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.0), f)
    }
}

impl fmt::Display for FilePath {
    /// For messages: what is not UTF-8 is replaced.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.view(), f)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.view(), f)
    }
}

/// How a path is written in JSON: as text, or, where it is not UTF-8, in hexadecimal, as PostgreSQL's manifest has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Hex {
        hex: String,
    },
}

impl Serialize for FilePathRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Written::Hex { hex: super::hex(self.0) }.serialize(serializer),
        }
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.view().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FilePath, D::Error> {
        use serde::de::Error;
        let path = match Written::deserialize(deserializer)? {
            Written::Text(text) => FilePath::parse(text.as_bytes()),
            Written::Hex { hex } => {
                let bytes = from_hex(&hex).ok_or_else(|| D::Error::custom(format!("{hex:?} is not hexadecimal")))?;
                FilePath::parse(&bytes)
            }
        };
        path.map_err(D::Error::custom)
    }
}

/// Reads pairs of hexadecimal digits of either case; `None` if there is anything else.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| (pair.len() == 2).then_some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_read_without_what_says_nothing() {
        for (written, meant) in
            [("base/1/2", "base/1/2"), ("./pg_wal/archive_status/", "pg_wal/archive_status"), ("a//b/./c", "a/b/c")]
        {
            assert_eq!(FilePath::parse(written.as_bytes()).unwrap().as_bytes(), meant.as_bytes());
        }
        for dangerous in ["", "/", "/etc/passwd", "..", "../x", "a/../../b", "a/..", ".", "./", "a\0b"] {
            assert!(FilePath::parse(dangerous.as_bytes()).is_err(), "{dangerous:?} was taken as a path");
        }
    }

    #[test]
    fn a_tablespace_is_below_pg_tblspc() {
        let path = FilePath::parse(b"PG_15_202209061/5/16385").unwrap();
        assert_eq!(path.in_tablespace(16384).to_string(), "pg_tblspc/16384/PG_15_202209061/5/16385");
        assert!(path.in_tablespace(16384).is_within("pg_tblspc"));
        assert!(!FilePath::parse(b"pg_walrus").unwrap().is_within("pg_wal"));
        assert!(FilePath::parse(b"pg_wal").unwrap().is_within("pg_wal"));
    }

    #[test]
    fn a_name_that_is_not_text_is_written_in_hexadecimal() {
        let path = FilePath::parse(b"base/caf\xe9").unwrap();
        let json = serde_json::to_string(&path).unwrap();
        assert_eq!(json, r#"{"hex":"626173652f636166e9"}"#);
        assert_eq!(serde_json::from_str::<FilePath>(&json).unwrap(), path);
        assert_eq!(serde_json::to_string(&FilePath::parse(b"base/1").unwrap()).unwrap(), r#""base/1""#);
        for dangerous in [r#""../x""#, r#"{"hex":"2e2e"}"#, r#"{"hex":"2"}"#, r#"{"hex":"zz"}"#] {
            assert!(serde_json::from_str::<FilePath>(dangerous).is_err(), "{dangerous} was taken as a path");
        }
    }

    proptest! {
        #[test]
        fn every_path_that_is_taken_stays_below_its_directory_and_survives_json(bytes: Vec<u8>) {
            if let Ok(path) = FilePath::parse(&bytes) {
                let mut parts = path.as_bytes().split(|&byte| byte == b'/');
                prop_assert!(parts.all(|part| !part.is_empty() && part != b"." && part != b".."));
                let json = serde_json::to_string(&path).unwrap();
                prop_assert_eq!(serde_json::from_str::<FilePath>(&json).unwrap(), path);
            }
        }
    }
}
