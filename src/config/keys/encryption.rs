//! `[encryption]`: for whom what is stored is encrypted, and what opens it.

use super::{Key, Written};
use crate::codec::Recipients;

pub(super) const KEYS: &[Key] = &[
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
];
