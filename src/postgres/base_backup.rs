//! `BASE_BACKUP`: one stream of events from both of its wire forms.
//!
//! 13 and 14 send one copy per tablespace and one for the manifest; 15 and later send a single copy in which a type byte
//! says what each message is (`src/backend/backup/basebackup_copy.c`).

use super::auth::unexpected;
use super::client::{Client, Rows, parse_timeline, quote_literal};
use super::error::{PgError, ServerMessage};
use super::message::{self, Message};
use crate::wal::{Lsn, TimelineId};
use bytes::{Buf, Bytes};

/// How a base backup is to be taken. Always: sizes estimated, the server's archiver not waited for, a tablespace map, a
/// manifest with CRC32C.
#[derive(Clone, Debug)]
pub struct BaseBackupOptions {
    /// The label in `backup_label`.
    pub label: String,
    /// A checkpoint at once instead of one spread over minutes.
    pub fast_checkpoint: bool,
    /// The server sends no faster than this, KiB per second (32 to 1048576).
    pub max_rate_kib: Option<u32>,
    /// The server checks its data checksums while it reads, and says at the end of the backup if some are wrong.
    pub verify_checksums: bool,
    /// The server compresses the archives with Zstandard at this level; the manifest comes as it is (15 and later, if the server was
    /// built with it).
    pub zstd_level: Option<i32>,
    /// Only what has changed since the backup whose manifest was sent with [`Client::upload_manifest`] (17 and later).
    pub incremental: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        BaseBackupOptions {
            label: "seawall".into(),
            fast_checkpoint: true,
            max_rate_kib: None,
            verify_checksums: true,
            zstd_level: None,
            incremental: false,
        }
    }
}

/// A tablespace other than the data directory's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tablespace {
    /// Its OID, which names its directory in `pg_tblspc` and its archive.
    pub oid: u32,
    /// Its directory on the server.
    pub location: String,
    /// About how large it is, KiB.
    pub size_kib: Option<u64>,
}

/// What the server says before the first byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupStart {
    /// Where recovery from this backup begins to read WAL.
    pub start_lsn: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// The tablespaces, in the order in which their archives come; the data directory itself comes last.
    pub tablespaces: Vec<Tablespace>,
    /// About how much will come in all, KiB.
    pub total_kib: Option<u64>,
}

/// A piece of a base backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupEvent {
    /// A tar archive begins; the data that follows is its bytes. Up to 14 it lacks the two zero blocks at its end.
    Archive {
        /// The tablespace's OID; `None`: the data directory.
        tablespace: Option<u32>,
        /// The tablespace's directory on the server.
        location: Option<String>,
    },
    /// Bytes of the archive or of the manifest: a slice of the read buffer (512 KiB), to be kept for long only with its
    /// neighbours, or copied.
    Data(Bytes),
    /// The manifest begins; the data that follows is its bytes.
    Manifest,
    /// How much of the total is done, bytes; from 15 on.
    Progress(u64),
    /// What the server says meanwhile; a WARNING may name a page with a wrong checksum.
    Notice(ServerMessage),
    /// Everything was sent. Comes only after the server's last word, which may be that pages are damaged; any other error
    /// behind the manifest means that there is no backup.
    End {
        /// Recovery must reach this position.
        end_lsn: Lsn,
        /// The timeline of that position.
        timeline: TimelineId,
        /// The server has sent all of it, and then said that pages on its disk are damaged.
        damage: Option<Box<ServerMessage>>,
    },
}

/// A base backup on its way. Dropping it closes the connection, and the server ends the backup.
#[derive(Debug)]
pub struct BackupStream {
    client: Client,
    state: State,
    tablespaces: Vec<Tablespace>,
    /// How the archives' names end.
    suffix: &'static str,
    /// 15 and later: one copy with type bytes.
    typed: bool,
    /// Up to 14: copies begun.
    copies: usize,
    end: Vec<Rows>,
    completed: bool,
    damage: Option<Box<ServerMessage>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before, between and behind copies.
    Between,
    /// In a copy. Typed copies have data only behind a name.
    Copy {
        named: bool,
        manifest: bool,
    },
    /// All copies are through.
    Behind,
    Ended,
}

pub(super) async fn start(
    mut client: Client,
    options: &BaseBackupOptions,
) -> Result<(BackupStart, BackupStream), PgError> {
    let typed = client.server_version() >= 150_000;
    let suffix = if options.zstd_level.is_some() { ".tar.zst" } else { ".tar" };
    client.ask(&command(options, typed)).await?;
    let position = read_result(&mut client).await?;
    let list = read_result(&mut client).await?;
    let mut tablespaces = Vec::new();
    let mut total_kib = Some(0u64);
    for row in 0..list.len() {
        let size_kib = list.get(row, "size").and_then(|text| text.parse().ok());
        total_kib = total_kib.zip(size_kib).map(|(total, size): (u64, u64)| total.saturating_add(size));
        let Some(oid) = list.get(row, "spcoid") else {
            continue;
        };
        let oid = oid.parse().map_err(|_| PgError::protocol(format!("a tablespace with OID {oid:?}")))?;
        let location = list.get(row, "spclocation");
        let location = location.ok_or_else(|| PgError::protocol("a tablespace without a location"))?.to_owned();
        tablespaces.push(Tablespace { oid, location, size_kib });
    }
    if tablespaces.len() + 1 != list.len() {
        return Err(PgError::protocol("a base backup without the data directory"));
    }
    let start = BackupStart {
        start_lsn: position.read("recptr", |text| text.parse().ok())?,
        timeline: position.read("tli", parse_timeline)?,
        tablespaces: tablespaces.clone(),
        total_kib,
    };
    client.connection().set_streaming(true);
    let state = State::Between;
    Ok((
        start,
        BackupStream {
            client,
            state,
            tablespaces,
            suffix,
            typed,
            copies: 0,
            end: Vec::new(),
            completed: false,
            damage: None,
        },
    ))
}

/// The command in the grammar of the version (`repl_gram.y`): bare words up to 14, a list in parentheses since 15.
fn command(options: &BaseBackupOptions, parenthesised: bool) -> String {
    let mut words = vec![format!("LABEL {}", quote_literal(&options.label)), "PROGRESS".to_owned()];
    let mut add = |old: &str, new: &str| words.push(if parenthesised { new } else { old }.to_owned());
    if options.fast_checkpoint {
        add("FAST", "CHECKPOINT 'fast'");
    }
    add("NOWAIT", "WAIT false");
    if let Some(rate) = options.max_rate_kib {
        let rate = format!("MAX_RATE {rate}");
        add(&rate, &rate);
    }
    add("TABLESPACE_MAP", "TABLESPACE_MAP");
    if !options.verify_checksums {
        add("NOVERIFY_CHECKSUMS", "VERIFY_CHECKSUMS false");
    }
    add("MANIFEST 'yes'", "MANIFEST 'yes'");
    add("MANIFEST_CHECKSUMS 'CRC32C'", "MANIFEST_CHECKSUMS 'CRC32C'");
    if let Some(level) = options.zstd_level {
        // Only in the new grammar; `start` refuses it elsewhere.
        let detail = format!("COMPRESSION 'zstd', COMPRESSION_DETAIL 'level={level}'");
        add(&detail, &detail);
    }
    if options.incremental {
        add("INCREMENTAL", "INCREMENTAL");
    }
    match parenthesised {
        true => format!("BASE_BACKUP ({})", words.join(", ")),
        false => format!("BASE_BACKUP {}", words.join(" ")),
    }
}

/// One result set, up to its CommandComplete.
async fn read_result(client: &mut Client) -> Result<Rows, PgError> {
    /// Tablespaces: nobody has a hundredth of this.
    const ROWS_MAX: usize = 100_000;
    let (mut refusal, mut columns, mut rows) = (None, Vec::new(), Vec::new());
    loop {
        match client.answer(&mut refusal).await? {
            Message::RowDescription(names) => columns = names,
            Message::DataRow(row) if rows.len() < ROWS_MAX => rows.push(row),
            Message::CommandComplete(_) => return Ok(Rows::new(columns, rows)),
            Message::ReadyForQuery if refusal.is_some() => {
                return Err(refusal.map_or(PgError::Closed, PgError::Server));
            }
            other => return Err(unexpected("the start of a base backup", &other)),
        }
    }
}

impl BackupStream {
    /// The next piece; the last is [`BackupEvent::End`]. May be dropped without losing anything.
    ///
    /// # Errors
    /// What the server says, at any point up to the end: nothing received so far is a backup then. No further event
    /// comes after an error.
    pub async fn next(&mut self) -> Result<BackupEvent, PgError> {
        loop {
            if self.state == State::Ended {
                return Err(PgError::protocol("the base backup has ended"));
            }
            let event = match self.client.connection().read().await {
                Ok(message) => self.take(message),
                Err(error) => Err(error),
            };
            match event {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.state = State::Ended;
                    return Err(error);
                }
            }
        }
    }

    /// The server found pages with wrong checksums, and says so behind the manifest and the end position
    /// (`perform_base_backup` in `basebackup.c`).
    fn is_about_damage(&self, error: &ServerMessage) -> bool {
        /// `ERRCODE_DATA_CORRUPTED` (`src/backend/utils/errcodes.txt`).
        const DATA_CORRUPTED: &str = "XX001";
        let has_end = self.end.first().is_some_and(|rows| !rows.is_empty());
        self.state == State::Behind && has_end && error.sqlstate == DATA_CORRUPTED
    }

    /// One step of the dialogue; `None` if there is nothing to tell.
    fn take(&mut self, message: Message) -> Result<Option<BackupEvent>, PgError> {
        match (self.state, message) {
            (_, Message::Notice(notice)) => return Ok(Some(BackupEvent::Notice(notice))),
            // All of it is there: what comes of it is for others to say.
            (_, Message::Error(error)) if self.is_about_damage(&error) => self.damage = Some(Box::new(error)),
            (_, Message::Error(error)) => return Err(PgError::Server(Box::new(error))),
            (State::Between, Message::CopyOut) if self.typed => {
                self.state = State::Copy { named: false, manifest: false };
            }
            (State::Between, Message::CopyOut) => return Ok(Some(self.begin_untyped_copy())),
            (State::Copy { .. }, Message::CopyData(body)) if self.typed => return self.take_typed(body),
            (State::Copy { .. }, Message::CopyData(body)) => return Ok(Some(BackupEvent::Data(body))),
            (State::Copy { manifest, .. }, Message::CopyDone) => {
                if self.typed && !manifest {
                    return Err(PgError::protocol("the base backup ended without a manifest"));
                }
                self.state = if manifest { State::Behind } else { State::Between };
            }
            (State::Behind, Message::RowDescription(columns)) if self.end.is_empty() => {
                self.end.push(Rows::new(columns, Vec::new()));
            }
            (State::Behind, Message::DataRow(row)) => {
                let rows = self.end.first_mut().filter(|rows| rows.is_empty());
                rows.ok_or_else(|| PgError::protocol("a second end of the base backup"))?.push(row);
            }
            (State::Behind, Message::CommandComplete(tag)) => self.completed |= tag == "BASE_BACKUP",
            (State::Behind, Message::ReadyForQuery) if self.completed || self.damage.is_some() => {
                self.state = State::Ended;
                let rows = self.end.pop().unwrap_or_default();
                let end_lsn = rows.read("recptr", |text| text.parse().ok())?;
                let (timeline, damage) = (rows.read("tli", parse_timeline)?, self.damage.take());
                return Ok(Some(BackupEvent::End { end_lsn, timeline, damage }));
            }
            (_, other) => return Err(unexpected("a base backup", &other)),
        }
        Ok(None)
    }

    /// Up to 14: the copies come in the order of the list, the data directory last, then the manifest.
    fn begin_untyped_copy(&mut self) -> BackupEvent {
        let index = self.copies;
        self.copies += 1;
        let manifest = index > self.tablespaces.len();
        self.state = State::Copy { named: true, manifest };
        match self.tablespaces.get(index) {
            _ if manifest => BackupEvent::Manifest,
            Some(tablespace) => {
                BackupEvent::Archive { tablespace: Some(tablespace.oid), location: Some(tablespace.location.clone()) }
            }
            None => BackupEvent::Archive { tablespace: None, location: None },
        }
    }

    /// Since 15: a type byte and what it calls for.
    fn take_typed(&mut self, mut body: Bytes) -> Result<Option<BackupEvent>, PgError> {
        let State::Copy { named, manifest } = self.state else {
            return Err(PgError::protocol("data outside of a copy"));
        };
        let kind = body.try_get_u8().map_err(|_| PgError::protocol("an empty message in a base backup"))?;
        match kind {
            b'd' if named => Ok(Some(BackupEvent::Data(body))),
            b'n' if !manifest => {
                let name = message::get_zero_terminated(&mut body)?;
                let event = self.archive(&name)?;
                self.state = State::Copy { named: true, manifest: false };
                Ok(Some(event))
            }
            b'm' if !manifest => {
                self.state = State::Copy { named: true, manifest: true };
                Ok(Some(BackupEvent::Manifest))
            }
            b'p' => {
                let done = body.try_get_u64().map_err(|_| PgError::protocol("a progress report without a number"))?;
                Ok(Some(BackupEvent::Progress(done)))
            }
            // The framing is PostgreSQL's point of extension: what we do not know may be part of the backup.
            other => Err(PgError::protocol(format!("a message of type {:?} in a base backup", char::from(other)))),
        }
    }

    /// `base.tar`, or the OID of a tablespace of the list and `.tar`; with `.zst` if the server compresses.
    fn archive(&self, name: &[u8]) -> Result<BackupEvent, PgError> {
        let bad = || PgError::protocol(format!("an archive named {:?}", String::from_utf8_lossy(name)));
        let stem = name.strip_suffix(self.suffix.as_bytes()).ok_or_else(bad)?;
        if stem == b"base" {
            return Ok(BackupEvent::Archive { tablespace: None, location: None });
        }
        let oid: u32 = std::str::from_utf8(stem).ok().and_then(|oid| oid.parse().ok()).ok_or_else(bad)?;
        let tablespace = self.tablespaces.iter().find(|tablespace| tablespace.oid == oid).ok_or_else(bad)?;
        Ok(BackupEvent::Archive { tablespace: Some(oid), location: Some(tablespace.location.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_grammar_gets_its_command() {
        let options = BaseBackupOptions {
            label: "it's".into(),
            fast_checkpoint: true,
            max_rate_kib: Some(1024),
            verify_checksums: false,
            zstd_level: Some(-3),
            incremental: false,
        };
        let older = BaseBackupOptions { zstd_level: None, ..options.clone() };
        assert_eq!(
            command(&older, false),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 1024 TABLESPACE_MAP NOVERIFY_CHECKSUMS \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            command(&options, true),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MAX_RATE 1024, TABLESPACE_MAP, \
             VERIFY_CHECKSUMS false, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', COMPRESSION 'zstd', \
             COMPRESSION_DETAIL 'level=-3')"
        );
    }
}
