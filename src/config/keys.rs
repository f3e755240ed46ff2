//! Every setting, defined once: name, flag, variable, default, meaning and how it is read. The parser, its messages and
//! `docs/configuration.md` come from this table. Uses `cli`, `codec` and `store`.

use super::Settings;
use crate::cli::LogFormat;
use crate::codec::{Compression, Recipients, ZSTD_LEVELS};
use crate::drill::SqlCheck;
use crate::recovery;
use crate::store::{Checksum, Conditional, ServerSideEncryption};
use jiff::fmt::friendly::SpanParser;
use std::fmt::Write as _;
use std::net::SocketAddr;
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

/// All of them, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "cluster",
        flag: Some("--cluster"),
        variable: Some("SEAWALL_CLUSTER"),
        written: Written::Text,
        default: Some("main"),
        example: "\"shop\"",
        about: "The cluster's folder in the repository: 1 to 64 letters, digits, `_` or `-`.",
        set: |settings, text| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            if !(1..=64).contains(&text.len()) || !text.bytes().all(allowed) {
                return Err(format!("cannot be {text:?}: 1 to 64 letters, digits, _ or - are allowed"));
            }
            settings.cluster = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "pg",
        flag: Some("--pg"),
        variable: Some("SEAWALL_PG"),
        written: Written::Text,
        default: Some(""),
        example: "\"host=db.example.org user=seawall sslmode=verify-full\"",
        about: "The PostgreSQL server, as `psql` takes it: `key=value` pairs or a URI. What it leaves out comes from \
                the PG* variables, and a password from `~/.pgpass`. Arguments are seen by every user of the machine: \
                never put a password into `--pg`; a file or `~/.pgpass` with rights 0600 is the place.",
        set: |settings, text| {
            settings.pg = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "repo",
        flag: Some("--repo"),
        variable: Some("SEAWALL_REPO"),
        written: Written::Text,
        default: None,
        example: "\"s3://backups/postgres\"",
        about: "The repository: `s3://bucket/prefix` or `file:///path`. It may hold many clusters. Credentials are \
                never part of it: the usual AWS chain finds them (variables, profile, role).",
        set: |settings, text| {
            if text.is_empty() {
                return Err("is empty: give s3://bucket/prefix or file:///path".to_owned());
            }
            settings.repo = Some(text.to_owned());
            Ok(())
        },
    },
    Key {
        name: "slot",
        flag: Some("--slot"),
        variable: None,
        written: Written::Text,
        default: Some("seawall"),
        example: "\"seawall\"",
        about: "The physical replication slot of `run`, made if it is not there. `backup` borrows it while `run` does \
                not stream. 1 to 63 lower-case letters, digits or `_`, as PostgreSQL has it.",
        set: |settings, text| {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if !(1..=63).contains(&text.len()) || !text.bytes().all(allowed) {
                return Err(format!("cannot be {text:?}: 1 to 63 lower-case letters, digits or _ are allowed"));
            }
            settings.slot = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "compression",
        flag: Some("--compression"),
        variable: None,
        written: Written::Text,
        default: Some("lz4"),
        example: "\"zstd:3\"",
        about: "How what is stored is compressed: `lz4`; `zstd` or `zstd:LEVEL` (-7 to 19, 3 if left out), which makes it \
                smaller and takes several times the CPU; `none` for data that does not get smaller. It may change at any \
                time: every object says how it is compressed, and a restore needs no setting.",
        set: |settings, text| {
            settings.compression = Compression::parse(text).ok_or_else(|| {
                let (least, most) = (ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
                format!("cannot be {text:?}: it is lz4, zstd, zstd:LEVEL ({least} to {most}, not 0) or none")
            })?;
            Ok(())
        },
    },
    Key {
        name: "log_format",
        flag: Some("--log-format"),
        variable: None,
        written: Written::Text,
        default: Some("text"),
        example: "\"json\"",
        about: "How standard error is written: `text` for people, `json` for a log collector.",
        set: |settings, text| {
            settings.log_format =
                LogFormat::parse(text).ok_or_else(|| format!("cannot be {text:?}: it is text or json"))?;
            Ok(())
        },
    },
    Key {
        name: "run.flush_interval",
        flag: Some("--flush-interval"),
        variable: None,
        written: Written::Text,
        default: Some("500ms"),
        example: "\"500ms\"",
        about: "`run` stores what it received after at most this time, so that a disaster costs about as much. Shorter \
                costs more requests while the server is busy, and none while it is idle. `0` stores at once. At most \
                `1h`.",
        set: |settings, text| {
            let length = parse_duration(text)?;
            if length > Duration::from_secs(3600) {
                return Err(format!("cannot be {text:?}: an hour is the most"));
            }
            settings.run.flush_interval = length;
            Ok(())
        },
    },
    Key {
        name: "run.treat_archived_as_applied",
        flag: Some("--treat-archived-as-applied"),
        variable: None,
        written: Written::Boolean,
        default: Some("false"),
        example: "true",
        about: "Reports to PostgreSQL as applied what is stored. An archiver applies nothing, so without this a commit with \
                `synchronous_commit = remote_apply` that waits for it waits for ever; with this it returns when its WAL is \
                stored, and says nothing of what can be read where. For those who cannot change the setting of a role, \
                database or application.",
        set: |settings, text| {
            settings.run.treat_archived_as_applied =
                text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?;
            Ok(())
        },
    },
    Key {
        name: "run.listen",
        flag: Some("--listen"),
        variable: None,
        written: Written::Text,
        default: Some("127.0.0.1:8432"),
        example: "\"0.0.0.0:8432\"",
        about: "Where `run` serves `/metrics`, `/healthz` and `/readyz`: an IP address with a port (0: any free one, \
                named in the log), or `off`. There is no password: listen beyond loopback only where the network is \
                trusted.",
        set: |settings, text| {
            settings.run.listen = match text {
                "off" => None,
                _ => {
                    let bad = |_| {
                        format!("cannot be {text:?}: it is an IP address with a port, such as 127.0.0.1:8432, or off")
                    };
                    Some(text.parse::<SocketAddr>().map_err(bad)?)
                }
            };
            Ok(())
        },
    },
    Key {
        name: "run.backup_after_gap",
        flag: None,
        variable: None,
        written: Written::Boolean,
        default: Some("true"),
        example: "false",
        about: "When WAL was lost (the server removed it before it was stored), nothing behind the gap can be restored \
                until a base backup is taken. `run` then takes one by itself, one at a time, again and again until one \
                is finished. `false` leaves that to you: `seawall_backup_needed` is 1 until it is done.",
        set: |settings, text| {
            settings.run.backup_after_gap =
                text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?;
            Ok(())
        },
    },
    Key {
        name: "drill.scratch",
        flag: Some("--scratch"),
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"/var/lib/seawall\"",
        about: "Where `drill` makes the directory that it restores into, which needs room for the whole cluster, and which \
                the user `postgres` must be able to reach if root drills. Without it: where temporary files go (`TMPDIR`, \
                or `/tmp`).",
        set: |settings, text| {
            if text.is_empty() {
                return Err("is empty: give the path of a directory".to_owned());
            }
            settings.drill.scratch = Some(text.into());
            Ok(())
        },
    },
    Key {
        name: "drill.rto",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"30m\"",
        about: "How long a restore may take, from the decision to a server that takes writes. A drill that takes longer fails.",
        set: |settings, text| {
            settings.drill.rto = Some(parse_duration(text)?);
            Ok(())
        },
    },
    Key {
        name: "drill.rpo",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"20m\"",
        about: "How old the newest moment that can be restored may be when a drill begins; it fails if that is older. On a server \
                that writes nothing, what is stored says so every 15 minutes: a shorter time is for servers that are busy. \
                While `run` is up, `seawall_rpo_seconds` tells this all the time.",
        set: |settings, text| {
            settings.drill.rpo = Some(parse_duration(text)?);
            Ok(())
        },
    },
    Key {
        name: "drill.settings",
        flag: None,
        variable: None,
        written: Written::Words,
        default: None,
        example: "[\"shared_buffers=1GB\", \"shared_preload_libraries=timescaledb\"]",
        about: "Settings of the drill's server, each `name=value`. It does not read the cluster's `postgresql.conf`, takes \
                128 MB of `shared_buffers`, and loads no library unless it is named here: an extension that needs to be \
                loaded at the start, for its tables or for the replay of its own WAL, must be. The drill's server neither \
                listens on TCP nor archives, whatever is said here. What says where its files are, such as \
                `data_directory` and `unix_socket_directories`, and what its recovery does, `restore_command` and \
                `recovery_target_…`, is the drill's own and refused here.",
        set: |settings, text| {
            let pair = |word: &str| {
                let (name, value) =
                    word.split_once('=').ok_or_else(|| format!("has {word:?} in it, which is not name=value"))?;
                if recovery::is_ours(name) {
                    return Err(format!("has {name} in it, which is the drill's own to set: take it out"));
                }
                Ok((name.to_owned(), value.to_owned()))
            };
            settings.drill.settings = text.split_whitespace().map(pair).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        name: "drill.check",
        flag: None,
        variable: None,
        written: Written::Tables,
        default: None,
        example: "[[drill.check]]\nname = \"orders are recent\"\ndatabase = \"shop\"\n\
                  sql = \"SELECT max(placed) > now() - interval '1 day' FROM orders\"",
        about: "What a drill asks the restored cluster, beside its own checks; as many as you like. `sql` gives one row with one \
                value, which is true if all is well; anything else, an error too, fails the drill by the check's `name`, and \
                the others go on. `database` is where it is asked: `postgres` if it is left out.",
        set: |settings, text| {
            settings.drill.checks = parse_checks(text)?;
            Ok(())
        },
    },
    Key {
        name: "encryption.recipients",
        flag: None,
        variable: Some("SEAWALL_RECIPIENTS"),
        written: Written::Words,
        default: None,
        example: "[\"age1hz2zjnnjqmnqjdsp3c22t0p5s49saa3prvylr0a6q0m0m4j59q0srvrmc6\"]",
        about: "Public keys of those who shall be able to read what is stored, as `seawall keygen` and `age-keygen` print them. WAL, \
                base backups and manifests are then encrypted, each object for all of them; documents are not. It may change \
                at any time: a new key opens what is stored from then on. In a variable, with blanks between them.",
        set: |settings, text| {
            if text.trim().is_empty() {
                return Err("is empty: name at least one public key (age1...), or leave it out".to_owned());
            }
            let recipients = Recipients::parse(text.split_whitespace());
            settings.encryption.recipients =
                recipients.map_err(|word| format!("has {word:?} in it, which is no public key (age1...)"))?;
            Ok(())
        },
    },
    Key {
        name: "encryption.identity_file",
        flag: Some("--identity"),
        variable: Some("SEAWALL_IDENTITY"),
        written: Written::Text,
        default: None,
        example: "\"/etc/seawall/identity.txt\"",
        about: "The file with the private key, or several: needed where a restore happens, and nowhere else. If a passphrase protects \
                it, it is asked for at a terminal, or taken from `SEAWALL_IDENTITY_PASSPHRASE`.",
        set: |settings, text| {
            if text.is_empty() {
                return Err("is empty: give the path of a file".to_owned());
            }
            settings.encryption.identity_file = Some(text.into());
            Ok(())
        },
    },
    Key {
        name: "s3.region",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"eu-central-1\"",
        about: "The bucket's region. Without it the AWS chain says: `AWS_REGION`, then the profile.",
        set: |settings, text| set_name(&mut settings.store.s3.region, text),
    },
    Key {
        name: "s3.endpoint",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"https://minio.example.org:9000\"",
        about: "Another S3 server than Amazon's. Without it the AWS chain says: `AWS_ENDPOINT_URL_S3`, then \
                `AWS_ENDPOINT_URL`.",
        set: |settings, text| {
            let (scheme, rest) = text.split_once("://").unwrap_or_default();
            if !matches!(scheme, "http" | "https") || rest.is_empty() || rest.contains('@') {
                return Err("is not an address such as https://minio.example.org:9000, without credentials".to_owned());
            }
            settings.store.s3.endpoint = Some(text.to_owned());
            Ok(())
        },
    },
    Key {
        name: "s3.path_style",
        flag: None,
        variable: None,
        written: Written::Boolean,
        default: None,
        example: "true",
        about: "Put the bucket into the path (`https://server/bucket/key`) instead of the host name. Without it: `true` \
                where an endpoint is given, `false` on Amazon's.",
        set: |settings, text| {
            settings.store.s3.path_style =
                Some(text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?);
            Ok(())
        },
    },
    Key {
        name: "s3.sse",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"aws:kms\"",
        about: "Encryption by the store, asked for with every object: `AES256` (SSE-S3) or `aws:kms` (SSE-KMS). Without \
                it the bucket's own default holds.",
        set: |settings, text| {
            settings.store.s3.sse = match text {
                "AES256" => Some(ServerSideEncryption::S3),
                "aws:kms" => Some(ServerSideEncryption::Kms),
                _ => return Err(format!("cannot be {text:?}: it is AES256 or aws:kms")),
            };
            Ok(())
        },
    },
    Key {
        name: "s3.kms_key",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab\"",
        about: "The key for `sse = \"aws:kms\"`. Without it the account's own key for S3.",
        set: |settings, text| set_name(&mut settings.store.s3.kms_key, text),
    },
    Key {
        name: "s3.storage_class",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"STANDARD_IA\"",
        about: "The storage class of every object. Classes that must be thawed before reading make a restore wait.",
        set: |settings, text| set_name(&mut settings.store.s3.storage_class, text),
    },
    Key {
        name: "s3.checksum",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("crc32c"),
        example: "\"off\"",
        about: "The checksum that is sent with every object, for the store to verify: `crc32c`, or `off` for an old \
                server that refuses the header. What Seawall reads it checks in either case.",
        set: |settings, text| {
            settings.store.s3.checksum = match text {
                "crc32c" => Checksum::Crc32c,
                "off" => Checksum::Off,
                _ => return Err(format!("cannot be {text:?}: it is crc32c or off")),
            };
            Ok(())
        },
    },
    Key {
        name: "s3.conditional_writes",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("if-none-match"),
        example: "\"head\"",
        about: "How \"never overwrite\" is asked of the store. `if-none-match`: by the header, which the store must \
                honour; it is tried at every start. `head`: for a store that ignores the header, look first, store, look \
                again; two archivers at one instant are then found, not prevented, and every command says so.",
        set: |settings, text| {
            settings.store.s3.conditional_writes = match text {
                "if-none-match" => Conditional::Header,
                "head" => Conditional::Head,
                _ => return Err(format!("cannot be {text:?}: it is if-none-match or head")),
            };
            Ok(())
        },
    },
];

/// Sets a name that goes into a request header.
fn set_name(field: &mut Option<String>, text: &str) -> Result<(), String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("cannot be {text:?}: it is one word of ASCII letters, digits and signs"));
    }
    *field = Some(text.to_owned());
    Ok(())
}

/// Reads the tables of `drill.check`.
fn parse_checks(json: &str) -> Result<Vec<SqlCheck>, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        name: String,
        #[serde(default = "postgres")]
        database: String,
        sql: String,
    }
    fn postgres() -> String {
        "postgres".to_owned()
    }
    let tables: Vec<Table> = serde_json::from_str(json).map_err(|error| {
        let text = error.to_string();
        format!("cannot be read: {}", text.split(" at line").next().unwrap_or_default())
    })?;
    let mut checks: Vec<SqlCheck> = Vec::new();
    for Table { name, database, sql } in tables {
        if ["recovery", "amcheck", "checksums", ""].contains(&name.as_str()) || checks.iter().any(|it| it.name == name)
        {
            return Err(format!("has the name {name:?}, which is empty, taken, or one of the drill's own"));
        }
        checks.push(SqlCheck { name, database, sql });
    }
    Ok(checks)
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

/// `docs/configuration.md`.
pub fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut section = "";
    for key in KEYS {
        let (place, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if place != section {
            section = place;
            let _ = write!(text, "\n## `[{place}]`\n");
        }
        let _ = write!(text, "\n### `{name}`\n\n{}\n\n", key.about);
        match key.written {
            Written::Tables => {
                let _ = writeln!(text, "In the file:\n\n```toml\n{}\n```\n", key.example);
            }
            _ => {
                let _ = writeln!(text, "* in the file: `{name} = {}`", key.example);
            }
        }
        if let Some(flag) = key.flag {
            let _ = writeln!(text, "* flag: `{flag}`");
        }
        if let Some(variable) = key.variable {
            let _ = writeln!(text, "* variable: `{variable}`");
        }
        match key.default {
            Some("") => text.push_str("* default: empty\n"),
            Some(default) => {
                let _ = writeln!(text, "* default: `{default}`");
            }
            None => text.push_str("* default: none\n"),
        }
    }
    text
}

const INTRODUCTION: &str = r#"# Configuration

Everything can be said on the command line, so a file is needed only for what has no flag. A flag beats the environment,
which beats the file, which beats the default. An empty variable counts as not set.

The file is TOML and is named by `--config` or `SEAWALL_CONFIG`; none is read unless it is named. A key that does not
exist is an error.

```toml
pg = "host=db.example.org user=seawall"
repo = "s3://backups/postgres"

[run]
flush_interval = "500ms"

[s3]
region = "eu-central-1"
```

Lengths of time have a unit: `500ms`, `2s`, `15m`, `1h 30m`.

**Secrets.** PostgreSQL's password belongs into `~/.pgpass` (or the file named by `PGPASSFILE`). A configuration file
with a password in `pg` is refused if others may read it: `chmod 600`; a group may read it if root owns it, which is how
secrets are mounted into containers. Credentials for S3 come from the AWS chain alone: variables, profile, web identity
or instance role.

Beside these, PostgreSQL's `PG*` variables and the `AWS_*` variables work as in their own tools.
"#;
