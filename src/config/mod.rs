//! The settings: flags over environment over file over defaults. Nobody but `commands` and `main` imports this; it fills
//! the option structs that the modules define. Uses `cli`, `error` and those structs.

mod keys;
mod reload;

pub use keys::{Key, Written, document, example, keys, parse_duration};
pub use reload::Reloaded;

use crate::cli::{Cli, Command, LogFormat};
use crate::codec::{Compression, Recipients};
use crate::drill::SqlCheck;
use crate::error::{Error, Kind, Result};
use crate::notify::Form;
use crate::retention::Policy;
use crate::schedule::Schedule;
use crate::store::{Checksum, ServerSideEncryption, StoreOptions};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// No configuration file is longer than this, in bytes: a wrong path to something large is an error, not a wait.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who said what a setting is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Variable(&'static str),
    /// This flag.
    Flag(&'static str),
}

/// A setting, as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// As its key reads it; may hold a password.
    pub text: String,
    /// Who said so.
    pub origin: Origin,
}

/// What a command works with.
#[derive(Clone)]
pub struct Settings {
    /// Every setting that has a value, by its name.
    pub given: BTreeMap<&'static str, Given>,
    /// The file that was read, as it was named: a `restore_command` needs it again.
    pub file: Option<PathBuf>,
    /// The cluster's name, checked: `[A-Za-z0-9_-]{1,64}`.
    pub cluster: String,
    /// Connection parameters; may hold a password. Empty: the PG* variables say everything.
    pub pg: String,
    /// The repository's URL, if one was given.
    pub repo: Option<String>,
    /// The replication slot's name, checked.
    pub slot: String,
    /// How what is stored is compressed.
    pub compression: Compression,
    /// For whom it is encrypted, and what opens it.
    pub encryption: EncryptionSettings,
    /// How standard error is written.
    pub log_format: LogFormat,
    /// For `run` alone.
    pub run: RunSettings,
    /// For `drill` alone.
    pub drill: DrillSettings,
    /// What `run` does by itself, and when.
    pub schedule: Schedule,
    /// Whom `run` tells what is wrong.
    pub notify: NotifySettings,
    /// What `prune` keeps.
    pub retention: Policy,
    /// How the repository's store is used.
    pub store: StoreOptions,
}

/// For whom what is stored is encrypted, and what opens it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EncryptionSettings {
    /// Public keys; without any, nothing is encrypted.
    pub recipients: Recipients,
    /// The file with the private keys.
    pub identity_file: Option<PathBuf>,
}

/// For `run` alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunSettings {
    /// How old the oldest byte that is not stored may get.
    pub flush_interval: Duration,
    /// Whether what is stored is reported as applied.
    pub treat_archived_as_applied: bool,
    /// Where the HTTP endpoint listens; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// A hole in the archive is answered with a base backup.
    pub backup_after_gap: bool,
}

/// Whom `run` tells what is wrong.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct NotifySettings {
    /// Addresses and keys, which are secrets.
    pub hooks: BTreeMap<Form, String>,
    /// So long the stream may be interrupted.
    pub stream_after: Duration,
}

/// For `drill` alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrillSettings {
    /// Where its directory is made; by default where temporary files are.
    pub scratch: Option<PathBuf>,
    /// How long a restore may take.
    pub rto: Option<Duration>,
    /// How old what is stored may be.
    pub rpo: Option<Duration>,
    /// Settings of its server, name and value.
    pub settings: Vec<(String, String)>,
    /// The operator's own checks.
    pub checks: Vec<SqlCheck>,
}

impl fmt::Debug for Settings {
    /// Without `pg`, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("file", &self.file)
            .field("cluster", &self.cluster)
            .field("repo", &self.repo)
            .field("slot", &self.slot)
            .field("compression", &self.compression)
            .field("encryption", &self.encryption)
            .field("log_format", &self.log_format)
            .field("run", &self.run)
            .field("drill", &self.drill)
            .field("schedule", &self.schedule)
            .field("retention", &self.retention)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Puts together what the command line, the environment and the file say. `variable` looks up the environment.
    ///
    /// # Errors
    /// Of kind `Usage` for a flag, of kind `Config` for a variable or the file, `Local` if the file cannot be read.
    pub fn load(cli: &Cli, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let mut settings = Settings::defaults()?;
        let from_environment = || variable("SEAWALL_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        settings.file = cli.common.config.clone().or_else(from_environment);
        if let Some(path) = settings.file.clone() {
            settings.read_file(&path)?;
        }
        for key in keys() {
            let Some((name, value)) = key.variable.and_then(|name| Some((name, variable(name)?))) else {
                continue;
            };
            let value = value.into_string().map_err(|_| Error::new(Kind::Config, format!("{name} is not UTF-8")))?;
            if !value.is_empty() {
                settings
                    .set(key, &value, Origin::Variable(name))
                    .map_err(|problem| Error::new(Kind::Config, format!("{name} {problem}")))?;
            }
        }
        for (name, value) in flags(cli) {
            let key = keys().find(|key| key.flag == Some(name));
            let key = key.ok_or_else(|| Error::new(Kind::Internal, format!("{name} is no setting's flag")))?;
            settings
                .set(key, value, Origin::Flag(name))
                .map_err(|problem| Error::new(Kind::Usage, format!("{name} {problem}")))?;
        }
        settings.check_together()?;
        Ok(settings)
    }

    /// The repository's URL.
    ///
    /// # Errors
    /// Of kind `Config`, if none was given.
    pub fn repo(&self) -> Result<&str> {
        self.repo.as_deref().ok_or_else(|| {
            Error::new(Kind::Config, "no repository is given")
                .hint("Give --repo s3://bucket/prefix, SEAWALL_REPO, or repo in a file named by --config.")
        })
    }

    fn set(&mut self, key: &Key, text: &str, origin: Origin) -> Result<(), String> {
        (key.set)(self, text)?;
        self.given.insert(key.name, Given { text: text.to_owned(), origin });
        Ok(())
    }

    fn defaults() -> Result<Settings> {
        let mut settings = Settings {
            given: BTreeMap::new(),
            file: None,
            cluster: String::new(),
            pg: String::new(),
            repo: None,
            slot: String::new(),
            compression: Compression::default(),
            encryption: EncryptionSettings::default(),
            log_format: LogFormat::default(),
            run: RunSettings {
                flush_interval: Duration::ZERO,
                treat_archived_as_applied: false,
                listen: None,
                backup_after_gap: false,
            },
            drill: DrillSettings::default(),
            schedule: Schedule::default(),
            retention: Policy::default(),
            notify: NotifySettings::default(),
            store: StoreOptions::default(),
        };
        for key in keys() {
            if let Some(default) = key.default {
                settings
                    .set(key, default, Origin::Default)
                    .map_err(|problem| Error::new(Kind::Internal, format!("the default of {} {problem}", key.name)))?;
            }
        }
        Ok(settings)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let (text, metadata) = read(path)?;
        let at = |offset: usize| {
            let line = text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
            format!("{}, line {line}", path.display())
        };
        // toml's own message quotes the line, which may hold a password: its text and place are enough.
        let document = DeTable::parse(&text).map_err(|error| {
            let place = error.span().map_or_else(|| path.display().to_string(), |span| at(span.start));
            Error::new(Kind::Config, format!("{place}: {}", error.message()))
        })?;
        let mut given = Vec::new();
        flatten("", document.get_ref(), &mut given);
        for (name, offset, value) in given {
            let bad = |problem: String| Error::new(Kind::Config, format!("{}: {name} {problem}", at(offset)));
            let Some(key) = keys().find(|key| key.name == name) else {
                return Err(unknown(&name, &at(offset)));
            };
            let value = match (key.written, value) {
                (Written::Text, DeValue::String(text)) => text.to_string(),
                (Written::Boolean, DeValue::Boolean(value)) => value.to_string(),
                (Written::Words, DeValue::Array(words)) => {
                    let words: Option<Vec<&str>> = words.iter().map(|word| word.get_ref().as_str()).collect();
                    words.ok_or_else(|| bad("has the wrong type".to_owned()).hint(form(key)))?.join(" ")
                }
                (Written::Tables, DeValue::Array(tables)) => {
                    tables_as_json(tables).ok_or_else(|| bad("has the wrong type".to_owned()).hint(form(key)))?
                }
                _ => return Err(bad("has the wrong type".to_owned()).hint(form(key))),
            };
            self.set(key, &value, Origin::File).map_err(bad)?;
        }
        let secret = match (has_password(&self.pg), self.notify.hooks.is_empty()) {
            (true, _) => Some(("a password", "or move the password into ~/.pgpass")),
            (false, false) => {
                Some(("an address or a key for notifications", "or give it as a variable (SEAWALL_NOTIFY_…)"))
            }
            (false, true) => None,
        };
        if let Some((what, instead)) = secret.filter(|_| others_may_read(&metadata)) {
            return Err(Error::new(Kind::Config, format!("{} holds {what} and others may read it", path.display()))
                .hint(format!("chmod 600 {}, {instead}.", path.display())));
        }
        Ok(())
    }

    fn check_together(&self) -> Result<()> {
        if self.store.s3.kms_key.is_some() && self.store.s3.sse != Some(ServerSideEncryption::Kms) {
            return Err(Error::new(Kind::Config, "s3.kms_key is given but s3.sse is not \"aws:kms\"")
                .hint("Add sse = \"aws:kms\" to [s3], or take kms_key out."));
        }
        if self.store.s3.lock.mode.is_some() && self.store.s3.checksum == Checksum::Off {
            return Err(Error::new(Kind::Config, "s3.object_lock_mode is given and s3.checksum is \"off\"")
                .hint("A store locks only what comes with a checksum: take checksum = \"off\" out of [s3]."));
        }
        if self.retention.keeps_nothing() {
            return Err(Error::new(Kind::Config, "[retention] keeps no base backup: all that it asks for is 0")
                .hint("Say what to keep, such as full = \"4\" or age = \"30d\", or leave the rules out: then every backup stays."));
        }
        Ok(())
    }
}

/// The settings that were given as flags.
fn flags(cli: &Cli) -> Vec<(&'static str, &str)> {
    let slot = match &cli.command {
        Command::Run(args) => args.slot.name.as_deref(),
        Command::Backup(args) => args.slot.name.as_deref(),
        Command::Check(args) => args.slot.name.as_deref(),
        _ => None,
    };
    let identity = match &cli.command {
        Command::Restore(args) => args.identity.file.as_deref(),
        Command::Extract(args) => args.identity.file.as_deref(),
        Command::Verify(args) => args.identity.file.as_deref(),
        Command::History(args) => args.identity.file.as_deref(),
        Command::WalFetch(args) => args.identity.file.as_deref(),
        Command::Drill(args) => args.identity.file.as_deref(),
        _ => None,
    };
    let scratch = match &cli.command {
        Command::Drill(args) => args.scratch.as_deref(),
        _ => None,
    };
    let compression = match &cli.command {
        Command::Run(args) => args.compression.method.as_deref(),
        Command::Backup(args) => args.compression.method.as_deref(),
        _ => None,
    };
    let (flush_interval, as_applied, listen) = match &cli.command {
        Command::Run(args) => {
            let as_applied = args.treat_archived_as_applied.then_some("true");
            (args.flush_interval.as_deref(), as_applied, args.listen.as_deref())
        }
        _ => (None, None, None),
    };
    let all = [
        ("--cluster", cli.common.cluster.as_deref()),
        ("--pg", cli.common.pg.as_deref()),
        ("--repo", cli.common.repo.as_deref()),
        ("--slot", slot),
        ("--identity", identity),
        ("--compression", compression),
        ("--log-format", cli.common.log_format.map(LogFormat::name)),
        ("--flush-interval", flush_interval),
        ("--treat-archived-as-applied", as_applied),
        ("--listen", listen),
        ("--scratch", scratch),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn read(path: &Path) -> Result<(String, Metadata)> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::Config, format!("there is no {}", path.display()))
            .hint("Is the path in --config or SEAWALL_CONFIG right, seen from the working directory?"),
        _ => Error::local("read", path, error),
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let unfit = |why: &str| Error::new(Kind::Config, format!("{} {why}", path.display()));
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unfit("is over a mebibyte long: that is no configuration"));
    }
    Ok((String::from_utf8(bytes).map_err(|_| unfit("is not UTF-8"))?, metadata))
}

/// Tables of texts, as JSON.
fn tables_as_json(tables: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let table = |table: &Spanned<DeValue<'_>>| {
        let entries = table.get_ref().as_table()?.iter();
        let entry = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            Some((format!("{}", name.get_ref()), value.get_ref().as_str()?.to_owned()))
        };
        entries.map(entry).collect::<Option<BTreeMap<String, String>>>()
    };
    serde_json::to_string(&tables.iter().map(table).collect::<Option<Vec<_>>>()?).ok()
}

/// Every value with its dotted name and place, in the order of the file.
fn flatten<'a>(prefix: &str, table: &'a DeTable<'a>, into: &mut Vec<(String, usize, &'a DeValue<'a>)>) {
    let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in entries {
        let full = format!("{prefix}{}", name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() && !keys().any(|key| key.name == full) => {
                flatten(&format!("{full}."), inner, into);
            }
            DeValue::Table(_) if is_section(&full) => {}
            value => into.push((full, name.span().start, value)),
        }
    }
}

fn is_section(name: &str) -> bool {
    keys().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

fn unknown(name: &str, place: &str) -> Error {
    let error = Error::new(Kind::Config, format!("{place}: there is no setting {name}"));
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let distance = |key: &str| {
        let whole = strsim::damerau_levenshtein(name, key);
        whole.min(strsim::damerau_levenshtein(&last(name), &last(key)))
    };
    let nearest = keys().min_by_key(|key| distance(key.name)).filter(|key| distance(key.name) <= 3);
    match nearest {
        Some(key) => error.hint(format!("Is {} meant? {}", key.name, form(key))),
        None => error.hint("docs/configuration.md lists all of them."),
    }
}

/// How a key is written, in a sentence.
fn form(key: &Key) -> String {
    match key.name.split_once('.') {
        Some(_) if key.written == Written::Tables => format!("It is written:\n{}", key.example),
        Some((section, name)) => format!("It is written {name} = {} under [{section}].", key.example),
        None => format!("It is written {} = {} before the first section.", key.name, key.example),
    }
}

/// True if connection parameters have a password in them, and sometimes if they only look like it.
pub(crate) fn has_password(conninfo: &str) -> bool {
    let is_uri = conninfo.starts_with("postgres://") || conninfo.starts_with("postgresql://");
    let authority = conninfo.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next());
    let in_authority = authority.and_then(|text| text.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'));
    let mut behind = conninfo.split("password").skip(1);
    (is_uri && in_authority) || behind.any(|rest| rest.trim_start().starts_with('='))
}

/// Others are everybody, and the group too unless root owns the file (libpq's rule for private keys).
pub(crate) fn others_may_read(metadata: &Metadata) -> bool {
    let forbidden = if metadata.uid() == 0 { 0o007 } else { 0o077 };
    metadata.mode() & forbidden != 0
}

#[cfg(test)]
mod tests;
