//! The settings: flags over environment over file over defaults. Nobody but `commands` and `main` imports this; it fills
//! the option structs that the modules define. Uses `cli`, `error` and those structs.

mod file;
mod keys;
mod reload;

pub use keys::{Key, Way, Written, document, example, keys, parse_duration};
pub use reload::Reloaded;

use crate::cli::{Cli, Command, LogFormat};
use crate::codec::{Compression, Recipients};
use crate::drill::SqlCheck;
use crate::error::{Error, Kind, Result};
use crate::notify::Form;
use crate::postgres::ConnInfo;
use crate::retention::Policy;
use crate::schedule::Schedule;
use crate::secret::{Secret, Source};
use crate::store::{Checksum, ServerSideEncryption, StoreOptions};
use file::{Document, Entry, Section};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who said what a setting is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Variable(String),
    /// This flag.
    Flag(&'static str),
}

/// A setting, as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// As its key reads it; may hold a secret.
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
    /// The role's password, if it is not left to `pg`, the PG* variables and the password file.
    pub password: Option<Secret>,
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
    /// Of all clusters of a process so many are busy at once with what is heavy and can wait.
    pub jobs_at_once: usize,
}

/// Whom `run` tells what is wrong.
#[derive(Clone, Default)]
pub struct NotifySettings {
    /// Addresses and keys.
    pub hooks: BTreeMap<Form, Secret>,
    /// So long the stream may be interrupted.
    pub stream_after: Duration,
    /// So much may be lost while it is not.
    pub rpo_above: Duration,
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
    /// Puts together what the command line, the environment and the file say, for a command that is about one cluster.
    /// `variable` looks up the environment.
    ///
    /// # Errors
    /// As [`Settings::load_all`]; of kind `Usage`, if the file has several clusters and none was chosen.
    pub fn load(cli: &Cli, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings> {
        Settings::only(Settings::load_all(cli, variable)?)
    }

    /// The only one of what [`Settings::load_all`] has found.
    ///
    /// # Errors
    /// Of kind `Usage`, if there are several.
    pub fn only(mut all: Vec<Settings>) -> Result<Settings> {
        let names: Vec<String> = all.iter().map(|settings| settings.cluster.clone()).collect();
        match all.pop() {
            Some(only) if all.is_empty() => Ok(only),
            _ => Err(Error::new(Kind::Usage, format!("this is about one cluster, and there are {}", names.len()))
                .hint(format!("Choose one with --cluster: {}.", names.join(", ")))),
        }
    }

    /// Puts together what the command line, the environment and the file say: one, unless the file has sections for clusters and
    /// none of them was chosen. `variable` looks up the environment.
    ///
    /// # Errors
    /// Of kind `Usage` for a flag, of kind `Config` for a variable or the file, `Local` if the file cannot be read.
    pub fn load_all(cli: &Cli, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Vec<Settings>> {
        let mut shared = Settings::defaults()?;
        let from_environment = || variable("SEAWALL_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        shared.file = cli.common.config.clone().or_else(from_environment);
        let variables = variables(variable)?;
        let mut all = vec![shared];
        if let Some(path) = all[0].file.clone() {
            let from_variable =
                variables.iter().find(|(key, ..)| key.name == "cluster").map(|(.., text)| text.as_str());
            let chosen = cli.common.cluster.as_deref().or(from_variable);
            all = read_file(&path, all.remove(0), chosen)?;
        }
        let is_one_of_several = all.len() > 1;
        for settings in &mut all {
            for (key, name, text) in &variables {
                alone(key, name, Kind::Config, is_one_of_several)?;
                settings
                    .set(key, text, Origin::Variable(name.clone()))
                    .map_err(|problem| Error::new(Kind::Config, format!("{name} {problem}")))?;
            }
            for (name, value) in flags(cli) {
                let key = keys().find(|key| key.flag == Some(name));
                let key = key.ok_or_else(|| Error::new(Kind::Internal, format!("{name} is no setting's flag")))?;
                alone(key, name, Kind::Usage, is_one_of_several)?;
                settings
                    .set(key, value, Origin::Flag(name))
                    .map_err(|problem| Error::new(Kind::Usage, format!("{name} {problem}")))?;
            }
            let checked = settings.check_together();
            match is_one_of_several {
                true => checked.map_err(|error| error.context(format!("cluster {}", settings.cluster)))?,
                false => checked?,
            }
        }
        Ok(all)
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
            password: None,
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
                jobs_at_once: 1,
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

    fn take<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) -> Result<()> {
        for entry in entries {
            self.set(entry.key, &entry.text, Origin::File).map_err(|problem| entry.refused(&problem))?;
        }
        Ok(())
    }

    /// Every secret, wherever it is.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.secrets_beside_the_stores().chain(self.secrets_of_the_store())
    }

    /// The keys of the store.
    pub fn secrets_of_the_store(&self) -> impl Iterator<Item = &Secret> {
        [&self.store.s3.access_key_id, &self.store.s3.secret_access_key].into_iter().flatten()
    }

    /// Every secret but the keys of the store, which whoever opens that sees to.
    pub fn secrets_beside_the_stores(&self) -> impl Iterator<Item = &Secret> {
        self.password.iter().chain(self.notify.hooks.values())
    }

    /// What of it nobody else may read, and what to do instead of writing it into a file.
    fn written_secret(&self) -> Option<(&'static str, String)> {
        if has_password(&self.pg) {
            return Some((
                "a password",
                "or move the password into ~/.pgpass, or a file that password_file names".to_owned(),
            ));
        }
        let is_public = |name| keys().any(|key| key.name == name && key.may_be_seen());
        let is_here = |secret: &&Secret| matches!(secret.source(), Source::Given(_)) && !is_public(secret.setting());
        let name = self.secrets().find(is_here)?.setting();
        Some((name, format!("or move it into a file of its own, which {name}{} names", Way::File.suffix())))
    }

    fn check_together(&self) -> Result<()> {
        let in_pg = || ConnInfo::variables(&self.pg).is_ok_and(|all| all.iter().any(|(name, _)| *name == "PGPASSWORD"));
        if self.password.is_some() && in_pg() {
            return Err(Error::new(Kind::Config, "pg has a password in it, and password is given too")
                .hint("Take one of them out."));
        }
        if self.store.s3.access_key_id.is_some() != self.store.s3.secret_access_key.is_some() {
            return Err(Error::new(Kind::Config, "of s3.access_key_id and s3.secret_access_key only one is given")
                .hint("A key has two halves. Without both the AWS chain says who we are."));
        }
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

/// What the variables say: each with its name, as its key reads it.
fn variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Vec<(&'static Key, String, String)>> {
    let mut all: Vec<(&'static Key, String, String)> = Vec::new();
    for (key, stem) in keys().filter_map(|key| Some((key, key.variable?))) {
        let ways = if key.written == Written::Secret { &Way::ALL[..] } else { &[Way::Here] };
        for way in ways {
            let name = format!("{stem}{}", way.suffix().to_uppercase());
            let Some(value) = variable(&name).filter(|value| !value.is_empty()) else { continue };
            let value = value.into_string().map_err(|_| Error::new(Kind::Config, format!("{name} is not UTF-8")))?;
            let text = match key.written {
                Written::Secret => way.source(&value),
                _ => Ok(value),
            };
            let text = text.map_err(|problem| Error::new(Kind::Config, format!("{name} {problem}")))?;
            if let Some((_, other, _)) = all.last().filter(|(last, ..)| last.name == key.name) {
                return Err(Error::new(Kind::Config, format!("{other} and {name} say the same: keep one of them")));
            }
            all.push((key, name, text));
        }
    }
    Ok(all)
}

/// What the file says of each cluster that is `chosen`, which are all if none is; of the only one, where none has a section. What is
/// wrong in the section of another than the chosen one is its own matter.
fn read_file(path: &Path, base: Settings, chosen: Option<&str>) -> Result<Vec<Settings>> {
    let document = Document::read(path)?;
    let mut shared = base.clone();
    shared.take(&document.shared)?;
    let mut secret = shared.written_secret();
    let mut all = Vec::new();
    let (is_open, mut names) = (document.is_open_to_others(), Vec::new());
    for section in document.clusters {
        names.push(section.name.clone());
        let is_chosen = chosen.is_none_or(|chosen| chosen == section.name);
        match of_section(section, &base, &shared, &document.shared) {
            Ok(settings) => {
                secret = secret.or_else(|| settings.written_secret());
                all.extend(is_chosen.then_some(settings));
            }
            Err(error) if is_chosen => return Err(error),
            Err(_) => {}
        }
    }
    if let Some((what, instead)) = secret.filter(|_| is_open) {
        return Err(Error::new(Kind::Config, format!("{} holds {what} and others may read it", path.display()))
            .hint(format!("chmod 600 {}, {instead}.", path.display())));
    }
    match chosen {
        _ if names.is_empty() => Ok(vec![shared]),
        Some(chosen) if all.is_empty() => {
            Err(Error::new(Kind::Config, format!("{} has no cluster {chosen:?}", path.display()))
                .hint(format!("It has {}.", names.join(", "))))
        }
        _ => Ok(all),
    }
}

/// The settings of a cluster with a section. `shared` are the ones of all, which `entries` have made of `base`.
fn of_section(section: Section, base: &Settings, shared: &Settings, entries: &[Entry]) -> Result<Settings> {
    let said = section.says?;
    let mut settings = shared.clone();
    if !said.unset.is_empty() {
        settings = base.clone();
        settings.take(entries.iter().filter(|entry| !said.unset.iter().any(|key| key.name == entry.key.name)))?;
    }
    let name = keys().find(|key| key.name == "cluster");
    let name = name.ok_or_else(|| Error::new(Kind::Internal, "clusters have no names"))?;
    settings
        .set(name, &section.name, Origin::File)
        .map_err(|problem| Error::new(Kind::Config, format!("{}: the name of a cluster {problem}", section.place)))?;
    settings.take(&said.entries)?;
    Ok(settings)
}

/// Refuses a variable or flag that would give several clusters the same server.
fn alone(key: &Key, said: &str, kind: Kind, is_one_of_several: bool) -> Result<()> {
    if key.name != "pg" || !is_one_of_several {
        return Ok(());
    }
    Err(Error::new(kind, format!("{said} would give several clusters the same server"))
        .hint("Choose one of them with --cluster, or say in the file which has which server."))
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

/// True if connection parameters have a password in them, and sometimes if they only look like it.
pub(crate) fn has_password(conninfo: &str) -> bool {
    let is_uri = conninfo.starts_with("postgres://") || conninfo.starts_with("postgresql://");
    let authority = conninfo.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next());
    let in_authority = authority.and_then(|text| text.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'));
    let mut behind = conninfo.split("password").skip(1);
    (is_uri && in_authority) || behind.any(|rest| rest.trim_start().starts_with('='))
}

#[cfg(test)]
mod tests;
