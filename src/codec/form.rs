//! How objects are compressed and encrypted, and what that makes of the end of their names.

use super::encryption::{Identities, Recipients};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an object is compressed, as the end of its name says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub enum Codec {
    /// LZ4 frames, as the `lz4` program reads and writes them.
    #[default]
    Lz4,
    /// Zstandard frames, as the `zstd` program does.
    Zstd,
}

impl Codec {
    /// Every one.
    pub const ALL: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

    /// The end of an object's name, without the dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zst",
        }
    }

    /// Reads [`Codec::suffix`] back.
    pub fn from_suffix(suffix: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.suffix() == suffix)
    }
}

/// How an object is stored, as the end of its name says: `lz4`, `zst`, `lz4.age`, `zst.age`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ending {
    /// How it is compressed.
    pub codec: Codec,
    /// True if it is an age file.
    pub is_encrypted: bool,
}

/// Behind the codec of an encrypted object.
const ENCRYPTED_SUFFIX: &str = ".age";

impl Ending {
    /// Every one.
    pub const ALL: [Ending; 4] = [
        Ending { codec: Codec::Lz4, is_encrypted: false },
        Ending { codec: Codec::Zstd, is_encrypted: false },
        Ending { codec: Codec::Lz4, is_encrypted: true },
        Ending { codec: Codec::Zstd, is_encrypted: true },
    ];

    /// Splits a name into what is before the ending's dot, and the ending; `None` if it has none.
    pub fn split(name: &str) -> Option<(&str, Ending)> {
        let (rest, is_encrypted) = match name.strip_suffix(ENCRYPTED_SUFFIX) {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let (stem, codec) = rest.rsplit_once('.')?;
        Some((stem, Ending { codec: Codec::from_suffix(codec)?, is_encrypted }))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encrypted = if self.is_encrypted { ENCRYPTED_SUFFIX } else { "" };
        write!(f, "{}{encrypted}", self.codec.suffix())
    }
}

impl From<Ending> for String {
    fn from(ending: Ending) -> String {
        ending.to_string()
    }
}

impl TryFrom<String> for Ending {
    type Error = String;

    fn try_from(text: String) -> Result<Ending, String> {
        let known = Ending::ALL.into_iter().find(|ending| ending.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is no way in which this version stores objects"))
    }
}

/// How new objects are stored, and what opens those that are there.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// How new objects are compressed.
    pub compression: Compression,
    /// For whom they are encrypted; if for nobody, they are not.
    pub recipients: Recipients,
    /// What opens encrypted ones.
    pub identities: Identities,
}

impl Form {
    /// The end of new objects' names.
    pub fn ending(&self) -> Ending {
        Ending { codec: self.compression.codec(), is_encrypted: !self.recipients.is_empty() }
    }
}

impl From<Compression> for Form {
    fn from(compression: Compression) -> Form {
        Form { compression, ..Form::default() }
    }
}

/// How new objects are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// LZ4: next to no work.
    #[default]
    Lz4,
    /// Zstandard at this level: a half to a third smaller, for several times the work.
    Zstd(i32),
    /// Not at all, for rows that no compressor makes smaller. It is an LZ4 frame still, whose blocks are stored as they are: so
    /// an object says what it is, and the `lz4` program prints it.
    None,
}

/// The levels of Zstandard that are taken. Those above need hundreds of megabytes for each thread.
pub const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// The level of Zstandard that `zstd` alone means (`ZSTD_CLEVEL_DEFAULT`).
const ZSTD_DEFAULT_LEVEL: i32 = 3;

impl Compression {
    /// The codec of what is compressed so.
    pub fn codec(self) -> Codec {
        match self {
            Compression::Lz4 | Compression::None => Codec::Lz4,
            Compression::Zstd(_) => Codec::Zstd,
        }
    }

    /// Reads `lz4`, `zstd`, `zstd:9` or `none`, as PostgreSQL's programs write it; `None` if it is nothing of that.
    pub fn parse(text: &str) -> Option<Compression> {
        let (method, level) = match text.split_once(':') {
            Some((method, level)) => (method, Some(level)),
            None => (text, None),
        };
        match (method, level) {
            ("lz4", None) => Some(Compression::Lz4),
            ("none", None) => Some(Compression::None),
            ("zstd", None) => Some(Compression::Zstd(ZSTD_DEFAULT_LEVEL)),
            // Level 0 means the default to the library: nobody would expect that.
            ("zstd", Some(level)) => {
                let level = level.parse().ok().filter(|level| ZSTD_LEVELS.contains(level) && *level != 0)?;
                Some(Compression::Zstd(level))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
            Compression::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_read_as_it_is_written() {
        for ending in Ending::ALL {
            assert_eq!(Ending::split(&format!("a.b.{ending}")), Some(("a.b", ending)));
            assert_eq!(Ending::try_from(ending.to_string()), Ok(ending));
        }
        assert_eq!(Ending::split("a.lz4.age.age"), None);
        assert_eq!(Ending::split("a.age"), None);
        assert!(Ending::try_from("gz".to_owned()).is_err());
    }

    #[test]
    fn a_compression_is_read_as_it_is_written() {
        for text in ["lz4", "zstd:1", "zstd:19", "zstd:-7", "none"] {
            assert_eq!(Compression::parse(text).map(|it| it.to_string()).as_deref(), Some(text));
        }
        assert_eq!(Compression::parse("zstd"), Some(Compression::Zstd(3)));
        for text in
            ["", "gzip", "LZ4", "lz4:1", "none:0", "zstd:", "zstd:0", "zstd:20", "zstd:-8", "zstd:x", "zstd:1:2"]
        {
            assert_eq!(Compression::parse(text), None, "{text:?}");
        }
    }
}
