//! What nobody may see: a password, a key, an address that is as good as one. It is given, or a file holds it (file.rs), or a command
//! prints it (command.rs, words.rs). It is read when it is first needed, and remembered until somebody refuses it or wants it anew; no
//! message has it in it. While it is read anew, and where that is in vain, what was read before is used. Uses `error` and `runtime`.

mod command;
mod file;
mod words;

pub use command::end_all;
pub use file::others_may_read;

use crate::error::{Error, Kind, Result};
use crate::runtime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// No secret is longer than this, in bytes: a wrong path to something large is an error, and no wait.
const BYTES_MAX: u64 = 64 << 10;

/// What could not be read, or is of no use, is not read again sooner than that, unless somebody says that it has changed.
const PAUSE: Duration = Duration::from_secs(5);

/// Who has what was read before waits no longer than that for what it is now.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Here.
    Given(String),
    /// What this file holds, without the end of its line.
    File(PathBuf),
    /// What this program prints, called with these arguments and without a shell.
    Command(Vec<String>),
}

impl Source {
    /// A command, from one line.
    ///
    /// # Errors
    /// The words that complete "`name` …", if it needs a shell, or has no end.
    pub fn command(line: &str) -> Result<Source, String> {
        words::split(line).map(Source::Command)
    }

    async fn read(&self) -> Result<String> {
        let (read, is) = match self {
            Source::Given(text) => return Ok(text.clone()),
            Source::File(path) => (file::read(path.clone()).await?, format!("what {} holds", path.display())),
            Source::Command(words) => (command::output(words).await?, format!("what {self} prints")),
        };
        one_line(read).map_err(|problem| Error::new(Kind::Config, format!("{is} {problem}")))
    }
}

impl fmt::Display for Source {
    /// Without any secret: one may be among the arguments of a command.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Given(_) => f.write_str("a secret"),
            Source::File(path) => write!(f, "the file {}", path.display()),
            Source::Command(words) => {
                write!(f, "the command {}", words.first().map(String::as_str).unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({self})")
    }
}

/// A secret that a setting names. Clones share what was read. `Debug` says where it is, and no more.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    setting: &'static str,
    source: Source,
    known: Mutex<Known>,
    /// Locked while it is read, so that many who want it read it once.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// How often it was wanted anew.
    wanted: AtomicU64,
}

#[derive(Default)]
struct Known {
    held: Option<Held>,
    /// The last attempt to read it, if that was in vain.
    in_vain: Option<InVain>,
}

struct Held {
    text: String,
    at: Instant,
    /// How often it had been wanted anew when it was read.
    wanted: u64,
}

struct InVain {
    at: Instant,
    /// How often it had been wanted anew by then.
    wanted: u64,
    kind: Kind,
    why: String,
    hint: Option<String>,
}

impl InVain {
    fn error(&self) -> Error {
        let error = Error::new(self.kind, &self.why);
        match &self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl Secret {
    /// The one of this setting.
    pub fn new(setting: &'static str, source: Source) -> Secret {
        Secret(Arc::new(Inner {
            setting,
            source,
            known: Mutex::default(),
            reading: Arc::default(),
            wanted: AtomicU64::new(0),
        }))
    }

    /// The name of the setting that names it.
    pub fn setting(&self) -> &'static str {
        self.0.setting
    }

    /// Where it is.
    pub fn source(&self) -> &Source {
        &self.0.source
    }

    /// The secret itself. What was read once is good until somebody says otherwise, and also while it is read anew then, and where that
    /// is in vain: whoever has that waits 5 s at most. May be dropped at any time: the next one reads.
    ///
    /// # Errors
    /// If it was never read and cannot be.
    pub async fn text(&self) -> Result<String> {
        if let Some(known) = self.known().answer(self.wanted()) {
            return known;
        }
        let reading = match (self.0.reading.clone().try_lock_owned(), self.held()) {
            (Ok(reading), _) => reading,
            // Somebody is reading it, and may take his time.
            (Err(_), Some(held)) => return Ok(held),
            (Err(_), None) => self.0.reading.clone().lock_owned().await,
        };
        if let Some(known) = self.known().answer(self.wanted()) {
            return known;
        }
        let Some(before) = self.held() else { return self.read().await };
        let read = tokio::time::timeout(PATIENCE, self.read_beside(reading, "what was read before is used")).await;
        Ok(read.ok().flatten().unwrap_or(before))
    }

    /// The secret itself, as it is now, whatever was read before.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn read_anew(&self) -> Result<String> {
        let _reading = self.0.reading.lock().await;
        self.read().await
    }

    /// The secret itself, if it is another by now than this one, which somebody has refused; if it takes longer than 5 s to read, then
    /// there is none yet. That it cannot be read is logged.
    pub async fn instead_of(&self, refused: &str) -> Option<String> {
        tokio::time::timeout(PATIENCE, self.other_than(refused)).await.ok().flatten()
    }

    /// As [`Secret::instead_of`], for whoever keeps nobody waiting: as long as it takes to read, which is half a minute at most.
    pub async fn other_than(&self, refused: &str) -> Option<String> {
        let reading = self.0.reading.clone().lock_owned().await;
        // Another who was refused may have read it meanwhile.
        if let Some(held) = self.held().filter(|held| held != refused) {
            return Some(held);
        }
        if self.known().lately_in_vain(self.wanted()).is_some() {
            return None;
        }
        self.read_beside(reading, "what was refused cannot be read again").await.filter(|text| text != refused)
    }

    /// As [`Secret::read`]; but it goes on to its end, which it has in half a minute, where nobody waits for it any more: else what takes
    /// longer than somebody's patience would never be read. That it cannot be read is logged, and that `so`.
    async fn read_beside(&self, reading: OwnedMutexGuard<()>, so: &'static str) -> Option<String> {
        let secret = self.clone();
        let read = runtime::spawn(async move {
            let _reading = reading;
            let is_news = secret.known().would_be_news(secret.wanted());
            secret.read().await.inspect_err(|error| {
                if is_news {
                    tracing::warn!(%error, "{so}");
                }
            })
        });
        read.await.ok()?.ok()
    }

    /// Whoever wants it next has it read anew.
    pub fn expire(&self) {
        self.0.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// What was read is of no use: whoever wants it next, and not at once after that, has it read anew.
    pub fn is_of_no_use(&self) {
        let is_from_now = |at: Instant| at.elapsed() < PAUSE;
        let was_read = {
            let known = self.known();
            let attempts = [known.held.as_ref().map(|held| held.at), known.in_vain.as_ref().map(|in_vain| in_vain.at)];
            attempts.into_iter().flatten().any(is_from_now)
        };
        if !was_read {
            self.expire();
        }
    }

    fn wanted(&self) -> u64 {
        self.0.wanted.load(Ordering::Relaxed)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> Option<String> {
        self.known().held.as_ref().map(|held| held.text.clone())
    }

    /// For whoever has locked `reading`.
    async fn read(&self) -> Result<String> {
        let Inner { setting, source, .. } = self.0.as_ref();
        // Whoever wants it anew while it is being read wants what comes after that.
        let wanted = self.wanted();
        match source.read().await {
            Ok(text) => {
                *self.known() =
                    Known { held: Some(Held { text: text.clone(), at: Instant::now(), wanted }), in_vain: None };
                Ok(text)
            }
            Err(error) => {
                let way = match source {
                    Source::Given(_) => "",
                    Source::File(_) => "_file",
                    Source::Command(_) => "_command",
                };
                let error = error.context(format!("{setting}{way}"));
                let (kind, why, hint) = (error.kind(), error.to_string(), error.hint_text().map(str::to_owned));
                self.known().in_vain = Some(InVain { at: Instant::now(), wanted, kind, why, hint });
                Err(error)
            }
        }
    }
}

impl Known {
    /// What is said without a reading: what was read, if nobody has wanted it anew since, or if that was in vain, which is for whoever
    /// refuses it, or wants it anew again, to try once more; or that it could not be read just now.
    fn answer(&self, wanted: u64) -> Option<Result<String>> {
        match &self.held {
            Some(held) => (held.wanted == wanted || !self.would_be_news(wanted)).then(|| Ok(held.text.clone())),
            None => self.lately_in_vain(wanted).map(|in_vain| Err(in_vain.error())),
        }
    }

    /// That it could not be read, if it need not be tried again yet.
    fn lately_in_vain(&self, wanted: u64) -> Option<&InVain> {
        self.in_vain.as_ref().filter(|in_vain| in_vain.wanted == wanted && in_vain.at.elapsed() < PAUSE)
    }

    /// Nobody has been told yet that it cannot be read.
    fn would_be_news(&self, wanted: u64) -> bool {
        self.in_vain.as_ref().is_none_or(|in_vain| in_vain.wanted != wanted)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.0.setting, self.0.source)
    }
}

/// One line of text, without its end. An error completes "what … holds …".
fn one_line(bytes: Vec<u8>) -> Result<String, &'static str> {
    let mut text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    if text.len() as u64 > BYTES_MAX {
        return Err("is over 64 KiB long: that is no secret");
    }
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    match text.as_str() {
        "" => Err("is empty"),
        text if text.contains('\n') => Err("has several lines: a secret has one"),
        text if text.contains(char::is_control) => Err("has control characters in it"),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests;
