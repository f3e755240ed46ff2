//! Every setting, defined once: name, flag, variable, default, meaning and how it is read. The parser, its messages and
//! `docs/configuration.md` come from these tables, one file a section. Uses what defines the settings' types.

mod document;
mod drill;
mod encryption;
mod general;
mod notify;
mod retention;
mod run;
mod s3;
mod schedule;

pub use document::{document, example};

use super::Settings;
use crate::secret::{Secret, Source};
use jiff::fmt::friendly::SpanParser;
use jiff::{SignedDuration, SpanRelativeTo};
use std::path::Path;
use std::time::Duration;

/// How a key is written in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// In quotes.
    Text,
    /// `true` or `false`.
    Boolean,
    /// A list of words in quotes, which a variable has with blanks between them.
    Words,
    /// Tables with texts, each under its own heading. What sets them gets them as JSON.
    Tables,
    /// In quotes, and not to be seen; or, with something behind the key's name, where it is ([`Way`]). What sets it gets a [`Source`] as
    /// JSON.
    Secret,
}

/// How a secret is said. A variable's name has the same behind it, in capitals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As it is.
    Here,
    /// By the name of a file that holds it.
    File,
    /// By a command that prints it.
    Command,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 3] = [Way::Here, Way::File, Way::Command];

    /// What stands behind the key's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Way::Here => "",
            Way::File => "_file",
            Way::Command => "_command",
        }
    }

    /// Where the secret is, if this says so in one line; as JSON. An error completes "`name` …".
    pub(super) fn source(self, text: &str) -> Result<String, String> {
        let source = match self {
            Way::Here | Way::File if text.is_empty() => return Err("is empty".to_owned()),
            Way::Here if text.contains(char::is_control) => return Err("has control characters in it".to_owned()),
            Way::Here => Source::Given(text.to_owned()),
            Way::File => Source::File(text.into()),
            Way::Command => Source::command(text)?,
        };
        as_json(&source)
    }
}

/// As what sets a secret takes it.
pub(super) fn as_json(source: &Source) -> Result<String, String> {
    serde_json::to_string(source).map_err(|_| "is no text".to_owned())
}

/// The secret of this key, from what is set. Its place is the same from everywhere: a restored server reads it too, and is elsewhere.
fn secret(key: &'static str, text: &str) -> Result<Secret, String> {
    let source = serde_json::from_str(text).map_err(|_| "is no secret".to_owned())?;
    let relative = |path: &Path| path.components().nth(1).is_some() && path.is_relative();
    match &source {
        Source::File(path) if path.is_relative() => Err("is a path that does not begin with a slash".to_owned()),
        Source::Command(words) if words.first().is_some_and(|program| relative(Path::new(program))) => {
            Err("names a program by a path that does not begin with a slash".to_owned())
        }
        _ => Ok(Secret::new(key, source)),
    }
}

/// One setting.
pub struct Key {
    /// Its place in the file: `section.key`, or `key` before the first section.
    pub name: &'static str,
    /// The flag that beats it.
    pub flag: Option<&'static str>,
    /// The variable that beats it.
    pub variable: Option<&'static str>,
    /// Its form in the file.
    pub written: Written,
    /// What it is when nobody says anything.
    pub default: Option<&'static str>,
    /// A value, as it stands in the file.
    pub example: &'static str,
    /// What it means: whole sentences, Markdown.
    pub about: &'static str,
    /// Checks the text and sets the field; an error completes "`name` …".
    pub set: fn(&mut Settings, &str) -> Result<(), String>,
}

impl Key {
    /// True if it is the same for all clusters of a process, so that none of them has its own.
    pub fn is_of_process(&self) -> bool {
        ["cluster", "log_format", "run.listen", "schedule.at_once"].contains(&self.name)
    }

    /// True if it is found as secrets are, and is none by itself.
    pub fn may_be_seen(&self) -> bool {
        self.name == "s3.access_key_id"
    }
}

/// The sections, in the order of the documentation.
const SECTIONS: &[&[Key]] =
    &[general::KEYS, run::KEYS, schedule::KEYS, retention::KEYS, drill::KEYS, notify::KEYS, encryption::KEYS, s3::KEYS];

/// All settings, in the order of the documentation.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().copied().flatten()
}

/// Reads `500ms`, `2s`, `15m`, `1h 30m`; a bare number has no unit and is refused, but for `0`.
///
/// # Errors
/// The words that complete "`name` …".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    SpanParser::new()
        .parse_unsigned_duration(text)
        .map_err(|_| format!("cannot be {text:?}: it is a length of time such as 500ms, 2s or 15m"))
}

/// Reads `30d`, `13 weeks`, `36h`: days have 24 hours here.
///
/// # Errors
/// The words that complete "`name` …".
fn parse_days(text: &str) -> Result<SignedDuration, String> {
    let span = SpanParser::new().parse_span(text).ok().filter(|span| !span.is_negative());
    let length = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    length.ok_or_else(|| format!("cannot be {text:?}: it is a length of time such as 36h, 30d or 13w"))
}
