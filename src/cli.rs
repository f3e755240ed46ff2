//! The command line, and nothing but it: what can be typed, and its help. Uses `wal`, `repository` and `commands::exit`.
//!
//! Environment and file are not read here but in `config`, so that one place decides what beats what.

mod extract;
mod prune;
mod target;

pub use extract::{ExtractArgs, ExtractFormat};
pub use prune::{KeepArgs, PruneArgs};
pub use target::{Target, TargetArgs};

use crate::codec::Compression;
use crate::commands::exit;
use crate::repository::BackupId;
use crate::wal::Lsn;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "seawall",
    version,
    about = "Continuous archiver for PostgreSQL: streams WAL into object storage, restores to any moment",
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes. `None` means: not given here.
#[derive(Args, Debug, Clone, Default)]
pub struct Common {
    /// Configuration file (TOML); docs/configuration.md lists its keys [env: SEAWALL_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub config: Option<PathBuf>,
    /// Name of the cluster: its folder in the repository [env: SEAWALL_CLUSTER] [default: main]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Everywhere")]
    pub cluster: Option<String>,
    /// PostgreSQL server: key=value pairs or a URI, as psql takes it; PG* variables fill in what is missing. Keep
    /// passwords out of it, since other users see the arguments: ~/.pgpass and PGPASSFILE work [env: SEAWALL_PG]
    #[arg(long, global = true, value_name = "CONNINFO", help_heading = "Everywhere")]
    pub pg: Option<String>,
    /// Repository: s3://bucket/prefix or file:///path [env: SEAWALL_REPO]
    #[arg(long, global = true, value_name = "URL", help_heading = "Everywhere")]
    pub repo: Option<String>,
    /// Say more on standard error; twice: everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    pub verbose: u8,
    /// How standard error is written [default: text]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Everywhere")]
    pub log_format: Option<LogFormat>,
}

/// How log lines are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Stream WAL into the repository until told to stop, and serve metrics
    Run(RunArgs),
    /// Take one base backup now
    Backup(BackupArgs),
    /// Restore a cluster to a moment
    Restore(RestoreArgs),
    /// Take tables, a schema, a database or a query's rows as they were at a moment: into a file, or into another database
    Extract(ExtractArgs),
    /// List backups, WAL ranges, holes and recovery windows
    List(ReportArgs),
    /// Say what was committed between two moments, and how to restore to just before it
    History(HistoryArgs),
    /// Say where archiving stands and what a disaster would cost now
    Status(ReportArgs),
    /// Check server, role, slot, repository and clock before they are needed
    Check(CheckArgs),
    /// Verify what is stored: nothing missing, no hole, every base backup restorable; with --deep every object's contents
    Verify(VerifyArgs),
    /// Restore for real onto a throwaway server, check what came back, and measure what a disaster would take
    Drill(DrillArgs),
    /// Delete what retention no longer asks for: old base backups, WAL that none of the others needs, and garbage
    Prune(PruneArgs),
    /// Keep a base backup whatever retention says, with a reason; or no longer
    Keep(KeepArgs),
    /// Show who did what with the repository, and what became of it
    Audit(AuditArgs),
    /// Index the records of WAL that was stored without it, such as by an older Seawall
    Index(IndexArgs),
    /// Fetch one WAL file: PostgreSQL's restore_command
    WalFetch(WalFetchArgs),
    /// Store one WAL file: PostgreSQL's archive_command, where streaming is not wanted
    WalPush(WalPushArgs),
    /// Show it all on a throwaway server: archive, back up, lose a table, restore it
    Demo(DemoArgs),
    /// Check the configuration, show what holds and why, or print an example of everything
    Config(ConfigArgs),
    /// Make a private key for encrypted repositories, and print the public one
    Keygen(KeygenArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the manual pages: one of the program, and one of each command
    Manpages(ManpagesArgs),
}

/// `seawall run`
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The slot that this uses.
    #[command(flatten)]
    pub slot: SlotArg,
    /// Store what was received after at most this time; 0 stores every byte at once [default: 500ms]
    #[arg(long, value_name = "DURATION")]
    pub flush_interval: Option<String>,
    /// How what is stored is compressed.
    #[command(flatten)]
    pub compression: CompressionArg,
    /// Report what is stored as applied, too: for synchronous_commit = remote_apply
    #[arg(long)]
    pub treat_archived_as_applied: bool,
    /// Address of /metrics, /healthz and /readyz, or "off" [default: 127.0.0.1:8432]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

/// `--slot`, where it is taken.
#[derive(Args, Debug)]
pub struct SlotArg {
    /// Replication slot, made if it is not there [default: seawall]
    #[arg(long = "slot", value_name = "NAME")]
    pub name: Option<String>,
}

/// `--compression`, where it is taken.
#[derive(Args, Debug)]
pub struct CompressionArg {
    /// How what is stored is compressed: lz4, zstd, zstd:LEVEL or none [default: lz4]
    #[arg(long = "compression", value_name = "METHOD")]
    pub method: Option<String>,
}

/// `--identity`, where it is taken.
#[derive(Args, Debug, Default)]
pub struct IdentityArg {
    /// Private key that opens an encrypted repository: a file of `seawall keygen` or age-keygen [env: SEAWALL_IDENTITY]
    #[arg(long = "identity", value_name = "FILE")]
    pub file: Option<String>,
}

/// `--json`, where it is taken.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct JsonArg {
    /// Print JSON, errors too
    #[arg(long)]
    pub json: bool,
}

/// `seawall backup`
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// The slot that this uses while `run` does not.
    #[command(flatten)]
    pub slot: SlotArg,
    /// What is taken: everything, or what has changed since the newest backup (PostgreSQL 17 and later, with
    /// summarize_wal = on)
    #[arg(long = "type", value_name = "TYPE", default_value = "full")]
    pub backup_type: BackupType,
    /// Go on with this unfinished backup (`seawall list` names them): the server sends everything again, and what is stored
    /// of it already, and equal, is not stored again
    #[arg(long, value_name = "ID", value_parser = parse_backup_id, conflicts_with = "backup_type")]
    pub resume: Option<BackupId>,
    /// How what is stored is compressed.
    #[command(flatten)]
    pub compression: CompressionArg,
    /// Read the files here instead of having the server send them: this is the server's data directory, on its own machine. Takes a
    /// full backup, of a primary, with a role that may call pg_backup_start and pg_backup_stop
    #[arg(long, value_name = "DIR", conflicts_with_all = ["max_rate", "server_compression"])]
    pub data_directory: Option<PathBuf>,
    /// A name for people, kept with the backup and in the server's log
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Ask the server for an immediate checkpoint instead of a spread one: starts at once, costs it I/O
    #[arg(long)]
    pub fast: bool,
    /// Ask the server to send no faster than this, in KiB per second, or with k or M behind it: 32k to 1024M
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub max_rate: Option<u32>,
    /// Ask the server to compress what it sends: zstd or zstd:LEVEL (PostgreSQL 15 and later). For a thin network, at the cost of the
    /// server's processors; how backups are stored is another matter (--compression)
    #[arg(long, value_name = "METHOD", value_parser = parse_server_compression)]
    pub server_compression: Option<i32>,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// What a base backup holds.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupType {
    /// Everything.
    Full,
    /// What has changed since the newest backup, or an error that says why that cannot be.
    Incremental,
    /// Incremental if that can be, else full, with the reason.
    Auto,
}

/// `seawall restore`
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Data directory to write: new, or empty, or what an interrupted restore left, which is gone on with
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Write over a stopped server of the same cluster: files that equal the backup's by content stay, everything else in
    /// its directory and tablespaces goes. See with --dry-run what that means
    #[arg(long)]
    pub delta: bool,
    /// To which moment, and from what.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What the server does once it has reached the target
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    pub target_action: TargetAction,
    /// Restore a standby: it follows the archive as it grows, onto newer timelines too, until it is promoted
    #[arg(long, conflicts_with_all = ["target", "before_drop", "timeline", "target_action"])]
    pub standby: bool,
    /// Restore this database alone, by name or OID, with what every cluster needs; once for each. The others get files of
    /// zeros that take no room, and the statements that drop them are printed
    #[arg(long = "database", value_name = "NAME", conflicts_with = "standby")]
    pub databases: Vec<String>,
    /// Fetch WAL along with the files: what recovery begins with (256 MiB at most), or all that it needs, so that it needs
    /// no store
    #[arg(long, value_name = "HOW", conflicts_with = "standby")]
    pub wal: Option<WalWithFiles>,
    /// Restore the tablespace that was at OLD to NEW; once for each
    #[arg(long = "tablespace-map", value_name = "OLD=NEW", value_parser = parse_tablespace_map)]
    pub tablespace_maps: Vec<TablespaceMap>,
    /// Give the files to this user; needed when root restores
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// Print the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// How much WAL a restore fetches itself.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalWithFiles {
    /// What recovery begins with.
    Prefetch,
    /// All that it needs.
    Now,
}

/// PostgreSQL's `recovery_target_action`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetAction {
    /// Stop replaying and answer queries, until told to go on.
    Pause,
    /// Become a server of its own.
    Promote,
    /// Shut down.
    Shutdown,
}

/// A tablespace's way from the source's path to one here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceMap {
    /// Its absolute path on the source.
    pub old: PathBuf,
    /// Its absolute path here.
    pub new: PathBuf,
}

/// Reads `OLD=NEW`; an equals sign that belongs to a path is written `\=`, as `pg_basebackup` has it.
fn parse_tablespace_map(text: &str) -> Result<TablespaceMap, String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.peek() == Some(&'=') => {
                letters.next();
                parts.iter_mut().last().into_iter().for_each(|part| part.push('='));
            }
            '=' => parts.push(String::new()),
            _ => parts.iter_mut().last().into_iter().for_each(|part| part.push(letter)),
        }
    }
    let [old, new] = <[String; 2]>::try_from(parts)
        .map_err(|_| "give two paths with one equals sign between them; one inside a path is written \\=".to_owned())?;
    if let Some(path) = [&old, &new].into_iter().find(|path| !path.starts_with('/')) {
        return Err(format!("{path:?} is not an absolute path"));
    }
    Ok(TablespaceMap { old: PathBuf::from(old), new: PathBuf::from(new) })
}

fn parse_backup_id(text: &str) -> Result<BackupId, String> {
    BackupId::parse(text).ok_or_else(|| "a backup is called as in `seawall list`: 20261120T140300Z".to_owned())
}

/// Reads a rate in KiB per second as `pg_basebackup --max-rate` does (`parse_max_rate` in `pg_basebackup.c`), within the
/// server's own limits.
fn parse_rate(text: &str) -> Result<u32, String> {
    let (number, unit_kib) = match (text.strip_suffix('k'), text.strip_suffix('M')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 1024),
        _ => (text, 1),
    };
    let kib = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit_kib));
    kib.filter(|kib| (32..=1_048_576).contains(kib)).ok_or_else(|| "give 32k to 1024M, such as 800k or 50M".to_owned())
}

/// Reads `zstd` or `zstd:LEVEL`.
fn parse_server_compression(text: &str) -> Result<i32, String> {
    match Compression::parse(text) {
        Some(Compression::Zstd(level)) => Ok(level),
        _ => Err("give zstd or zstd:LEVEL, up to 19".to_owned()),
    }
}

/// `seawall list` and `seawall status`
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall history`
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// From this time on, written as for `restore --to`, or from this position in the WAL on [default: 1 hour ago]
    #[arg(long, value_name = "WHEN")]
    pub from: Option<String>,
    /// Up to this time, or position [default: the end of what is stored]
    #[arg(long, value_name = "WHEN")]
    pub to: Option<String>,
    /// On the way to this timeline instead of the line that was archived last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeline: Option<u32>,
    /// Only what removed something: databases, tablespaces, and relations that were dropped, truncated or rewritten
    #[arg(long)]
    pub drops: bool,
    /// Only transactions in this database, by its name, where that is known, or its OID
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Only transactions with at least this much WAL, in bytes, or with kB, MB or GB behind it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub min_bytes: Option<u64>,
    /// The last N lines of what would be shown
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: Option<u32>,
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Reads bytes, KiB, MiB or GiB; `1MB` is `1M`, as in PostgreSQL's settings.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("k", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)];
    let unit = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| "give bytes, such as 8192, 100k or 50M".to_owned())
}

/// `seawall check`
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The slot that `run` uses.
    #[command(flatten)]
    pub slot: SlotArg,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall verify`
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Read every object to its last byte, against hashes and what it says of itself; without it, names, lengths and documents are
    /// compared
    #[arg(long)]
    pub deep: bool,
    /// Read no faster than this, in KiB per second, or with k or M behind it: 32k to 1024M
    #[arg(long, value_name = "RATE", value_parser = parse_rate, requires = "deep")]
    pub max_rate: Option<u32>,
    /// Write into this file what was read and is sound. If the verification is interrupted, the same command goes on behind that; the
    /// file is removed at the end
    #[arg(long, value_name = "FILE", requires = "deep")]
    pub resume: Option<PathBuf>,
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall drill`
#[derive(Args, Debug, Default)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("target").multiple(false))]
pub struct DrillArgs {
    /// To this time: "2026-11-20 14:03:00+01:00", "2026-11-20 14:03 Europe/Berlin", "10 minutes ago"; without a target to the end
    /// of what is stored
    #[arg(long, value_name = "TIME", group = "target")]
    pub to: Option<String>,
    /// To this position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN", group = "target")]
    pub to_lsn: Option<Lsn>,
    /// Start from this backup instead of the best one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Follow this timeline instead of the line that was archived last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeline: Option<u32>,
    /// Fetch WAL along with the files, as `restore --wal` does
    #[arg(long, value_name = "HOW")]
    pub wal: Option<WalWithFiles>,
    /// Make the drill's directory here: it needs room for the whole cluster [default: where temporary files go]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<String>,
    /// Leave the restored cluster and its server for a look around, and say where they are
    #[arg(long, conflicts_with = "json")]
    pub keep: bool,
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall index`
#[derive(Args, Debug)]
pub struct IndexArgs {
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall wal-fetch`
#[derive(Args, Debug)]
pub struct WalFetchArgs {
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// Name of the WAL or history file: %f
    pub name: String,
    /// Where to put it: %p
    pub path: PathBuf,
    /// Fetch what follows it instead: the program calls itself so, and nobody waits for it
    #[arg(long, hide = true)]
    pub ahead: bool,
}

/// `seawall wal-push`
#[derive(Args, Debug)]
pub struct WalPushArgs {
    /// The file to store: %p
    pub path: PathBuf,
}

/// `seawall audit`
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// From this time on, written as for `restore --to` [default: 30 days ago]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only the newest so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub most: usize,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// `seawall config`
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub what: ConfigCommand,
}

/// What `seawall config` does.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Say what is wrong with it, what it lacks, and what happens when; asks no server and no store
    Check,
    /// Print every setting that holds, and who said so: flag, variable, file or default
    Show(ReportArgs),
    /// Print a file with every setting, its meaning and its default
    Example,
}

/// `seawall demo`
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Leave servers and repository for a look around, and say where they are
    #[arg(long)]
    pub keep: bool,
}

/// `seawall keygen`
#[derive(Args, Debug)]
pub struct KeygenArgs {
    /// File to write, which must not be there [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Protect the file with a passphrase, as `age -p` does; it is asked for
    #[arg(long, requires = "out")]
    pub passphrase: bool,
}

/// `seawall completions`
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `seawall manpages`
#[derive(Args, Debug)]
pub struct ManpagesArgs {
    /// Where they are written; made if it is not there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

impl Command {
    /// True if the result, and an error, are wanted as JSON.
    pub fn json(&self) -> bool {
        match self {
            Command::Backup(args) => args.json.json,
            Command::Restore(args) => args.json.json,
            Command::Extract(args) => args.json.json,
            Command::List(args) | Command::Status(args) => args.json.json,
            Command::Check(args) => args.json.json,
            Command::History(args) => args.json.json,
            Command::Verify(args) => args.json.json,
            Command::Drill(args) => args.json.json,
            Command::Prune(args) => args.json.json,
            Command::Keep(args) => args.json.json,
            Command::Index(args) => args.json.json,
            Command::Audit(args) => args.json.json,
            Command::Config(ConfigArgs { what: ConfigCommand::Show(args) }) => args.json.json,
            Command::Run(_)
            | Command::WalFetch(_)
            | Command::WalPush(_)
            | Command::Demo(_)
            | Command::Config(_)
            | Command::Keygen(_)
            | Command::Completions(_)
            | Command::Manpages(_) => false,
        }
    }
}

/// Examples of each command, for its `--help`.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "run",
        "  seawall run --pg 'host=db user=seawall' --repo s3://backups/shop
  seawall run --config /etc/seawall.toml --listen 0.0.0.0:8432

SIGTERM or SIGINT stores what was received and leaves; a second one leaves at once.",
    ),
    (
        "backup",
        "  seawall backup --pg 'host=db user=seawall' --repo s3://backups/shop --fast
  seawall backup --config /etc/seawall.toml --label before-upgrade --json
  seawall backup --config /etc/seawall.toml --max-rate 50M
  seawall backup --config /etc/seawall.toml --type auto
  seawall backup --config /etc/seawall.toml --data-directory /var/lib/postgresql/15/main
  seawall backup --config /etc/seawall.toml --resume 20261120T140300Z",
    ),
    (
        "restore",
        "  export SEAWALL_REPO=s3://backups/shop
  seawall restore --into /var/lib/postgresql/15/new --owner postgres
  seawall restore --into /srv/pg --to '2026-11-20 14:03 Europe/Berlin' --dry-run
  seawall restore --into /srv/pg --to '10 minutes ago' --target-action pause
  seawall restore --into /srv/pg --to-xid 48151623 --to-exclusive
  seawall restore --into /srv/pg --before-drop public.accounts
  seawall restore --into /srv/pg --standby
  seawall restore --into /srv/pg --wal now
  seawall restore --into /srv/pg --to '1 hour ago' --database shop
  seawall restore --into /var/lib/postgresql/15/main --delta --owner postgres --dry-run",
    ),
    (
        "extract",
        "  export SEAWALL_REPO=s3://backups/shop
  seawall extract --database shop --before-drop public.orders --table public.orders --out a.dump
  seawall extract --database shop --to '2 hours ago' --schema sales --out sales.sql
  seawall extract --database shop --to '1 day ago' --out shop/ --estimate
  seawall extract --database shop --to-xid 48151623 --table a.orders --table a.items --out a.zip
  seawall extract --database shop --query 'SELECT * FROM orders WHERE id = 7' --out - --format csv
  seawall extract --database shop --to '1 hour ago' --schema public --as-schema before \\
      --into 'host=db dbname=shop'

How it is written follows from --out: .dump is pg_dump's custom format, .sql plain SQL, a / at the
end its directory format, .csv CSV; .zip holds CSV, and manifest.json with SHA-256 sums.",
    ),
    ("list", "  seawall list --repo s3://backups/shop\n  seawall list --config /etc/seawall.toml --json"),
    (
        "history",
        "  export SEAWALL_REPO=s3://backups/shop
  seawall history
  seawall history --from '2 days ago' --drops
  seawall history --from '2026-11-20 13:00 Europe/Berlin' --to '2026-11-20 14:00 Europe/Berlin'
  seawall history --from 16/B374D848 --min-bytes 100M --json

The list is in the order of the WAL. To restore to just before a line: seawall restore --into DIR
--to-lsn LSN --to-exclusive, with the LSN of the line; what removed something has the command.",
    ),
    (
        "status",
        "  seawall status --pg 'host=db user=seawall' --repo s3://backups/shop
  seawall status --config /etc/seawall.toml --json",
    ),
    (
        "check",
        "  seawall check --pg 'host=db user=seawall' --repo s3://backups/shop
  seawall check --config /etc/seawall.toml --json",
    ),
    (
        "verify",
        "  seawall verify --repo s3://backups/shop
  seawall verify --config /etc/seawall.toml --deep --max-rate 50M --resume /var/tmp/seawall-verify
  seawall verify --config /etc/seawall.toml --json

Ends with 7 if there is a problem, and with 0 if there is none, or nothing but notes.",
    ),
    (
        "drill",
        "  seawall drill --repo s3://backups/shop
  seawall drill --config /etc/seawall.toml --scratch /srv/scratch --json
  seawall drill --config /etc/seawall.toml --to '1 hour ago' --keep

Needs PostgreSQL of the cluster's version on this machine. Touches nothing outside of its own
directory, called seawall-drill-XXXXXX, and of /tmp/seawall-XXXXXX with the server's socket; both go
at the end. What a drill that was killed has left goes with the next one with this --scratch, and
seawall-drill-kept-XXXXXX, of --keep, is removed by hand. Ends with 11 if anything failed;
the report is in the repository either way.",
    ),
    ("prune", prune::PRUNE_EXAMPLES),
    ("keep", prune::KEEP_EXAMPLES),
    (
        "audit",
        "  seawall audit --repo s3://backups/shop\n  seawall audit --config /etc/seawall.toml --since '1 week ago' --json",
    ),
    ("index", "  seawall index --repo s3://backups/shop\n  seawall index --config /etc/seawall.toml --json"),
    (
        "wal-fetch",
        "  restore_command = 'seawall --config /etc/seawall.toml wal-fetch %f %p'

Exit codes, of its own since PostgreSQL takes 1 to 125 for the end of the archive:
   0  the file is in place
   1  it is proven not to be in the archive
 255  everything else",
    ),
    ("wal-push", "  archive_command = 'seawall --config /etc/seawall.toml wal-push %p'"),
    ("demo", "  seawall demo\n  seawall demo --keep"),
    (
        "config",
        "  seawall config example > /etc/seawall.toml
  seawall config check --config /etc/seawall.toml
  seawall config show --config /etc/seawall.toml --json",
    ),
    (
        "keygen",
        "  seawall keygen --out identity.txt
  seawall keygen --out identity.txt --passphrase",
    ),
    (
        "completions",
        "  seawall completions bash > /etc/bash_completion.d/seawall
  seawall completions zsh > ~/.zfunc/_seawall",
    ),
    ("manpages", "  seawall manpages /usr/local/share/man/man1"),
];

const FIRST_STEPS: &str = "First steps:
  seawall demo                                                          see it work, touches nothing
  seawall check --pg 'host=db user=seawall' --repo s3://bucket/prefix   is everything in place?
  seawall run --pg 'host=db user=seawall' --repo s3://bucket/prefix     protect it from now on

A flag beats the environment, which beats the configuration file, which beats the default.";

/// The parser with its help.
pub fn command() -> clap::Command {
    let codes = exit::help_paragraph();
    let mut command = Cli::command().after_long_help(format!("{FIRST_STEPS}\n\n{codes}"));
    for (name, examples) in EXAMPLES {
        let help = match *name {
            "wal-fetch" => format!("Examples:\n{examples}"),
            _ => format!("Examples:\n{examples}\n\n{codes}"),
        };
        command = command.mut_subcommand(name, |sub| sub.after_long_help(help));
    }
    command
}

/// Reads a command line; its first word is the program's name.
///
/// # Errors
/// clap's own: a mistake, or a request for help or version, which `use_stderr` tells apart.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

impl LogFormat {
    /// Reads the name that the command line takes too.
    pub fn parse(text: &str) -> Option<LogFormat> {
        <LogFormat as ValueEnum>::from_str(text, false).ok()
    }

    /// The name, as both take it.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

#[cfg(test)]
mod tests;
