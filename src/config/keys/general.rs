//! What stands before the first section: the cluster, its server, its repository and how things are stored and said.

use super::{Key, Written, secret};
use crate::cli::LogFormat;
use crate::codec::{Compression, ZSTD_LEVELS};

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "cluster",
        flag: Some("--cluster"),
        variable: Some("SEAWALL_CLUSTER"),
        written: Written::Text,
        default: Some("main"),
        example: "\"shop\"",
        about: "The cluster's folder in the repository: 1 to 64 letters, digits, `_` or `-`. In a file with sections for many clusters \
                `[cluster.NAME]` says it, and the flag or the variable chooses one of them.",
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
                never put a password into `--pg`; `password_file` or `~/.pgpass` is the place.",
        set: |settings, text| {
            settings.pg = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "password",
        flag: None,
        variable: Some("SEAWALL_PASSWORD"),
        written: Written::Secret,
        default: None,
        example: "\"...\"",
        about: "The password of the role, for a server that asks for one; then `pg` has none. It beats `PGPASSWORD` and `~/.pgpass`. \
                If the server refuses it, it is read again, and tried if it has changed: a password that is changed in the file and \
                in the server interrupts nothing.",
        set: |settings, text| {
            settings.password = Some(secret("password", text)?);
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
                never part of it: `[s3]` has them, or the usual AWS chain finds them (variables, profile, role).",
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
];
