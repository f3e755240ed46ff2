//! `[s3]`: how a store that speaks S3 is used.

use super::{Key, Written, secret};
use crate::repository::is_permanent;
use crate::store::{Checksum, Conditional, LockMode, ObjectLock, ServerSideEncryption};

pub(super) const KEYS: &[Key] = &[
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
        name: "s3.access_key_id",
        flag: None,
        variable: Some("SEAWALL_S3_ACCESS_KEY_ID"),
        written: Written::Secret,
        default: None,
        example: "\"AKIAIOSFODNN7EXAMPLE\"",
        about: "The id of the key that the store knows us by. It comes with `secret_access_key`, and may be seen. Both are read again \
                when the store refuses them. Without them the AWS chain says: variables, profile, web identity, container, machine.",
        set: |settings, text| {
            settings.store.s3.access_key_id = Some(secret("s3.access_key_id", text)?);
            Ok(())
        },
    },
    Key {
        name: "s3.secret_access_key",
        flag: None,
        variable: Some("SEAWALL_S3_SECRET_ACCESS_KEY"),
        written: Written::Secret,
        default: None,
        example: "\"...\"",
        about: "The other half of that key.",
        set: |settings, text| {
            settings.store.s3.secret_access_key = Some(secret("s3.secret_access_key", text)?);
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
    Key {
        name: "s3.object_lock_mode",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"governance\"",
        about: "Object lock, asked for with every object that is stored for good: WAL blocks, base backups, the index, reports; not \
                with what is below `open/`. `governance`: who has the right to go round it may delete; `compliance`: nobody, the \
                account's owner included. The bucket must have object lock; [the bucket](bucket.md#object-lock) says what it costs. \
                `prune` lets locked objects stay, and `keep` puts a legal hold on what it keeps. Without it nothing is locked.",
        set: |settings, text| {
            settings.store.s3.lock.mode = match text {
                "governance" => Some(LockMode::Governance),
                "compliance" => Some(LockMode::Compliance),
                _ => return Err(format!("cannot be {text:?}: it is governance or compliance")),
            };
            settings.store.s3.lock.is_permanent = is_permanent;
            Ok(())
        },
    },
    Key {
        name: "s3.object_lock_days",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("30"),
        example: "\"30\"",
        about: "For how many days an object is locked, from when it is stored: longer than it takes you to notice that somebody \
                deletes.",
        set: |settings, text| {
            let days = text.parse().ok().filter(|days| (1..=ObjectLock::DAYS_MAX).contains(days));
            settings.store.s3.lock.days = days.ok_or_else(|| {
                format!("cannot be {text:?}: it is a number of days, from 1 to {}", ObjectLock::DAYS_MAX)
            })?;
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
