//! Which names are names: one rule for every store. Uses `store::error` only.

use super::{StoreError, StoreErrorKind};

/// Longest part between two slashes: file systems take 255 bytes.
const PART_BYTES_MAX: usize = 200;
/// Longest name: S3 takes 1,024 bytes, prefix included.
const KEY_BYTES_MAX: usize = 700;

/// True for a name that an object may have.
pub(super) fn is_legal(key: &str) -> bool {
    key.len() <= KEY_BYTES_MAX && key.split('/').all(is_legal_part)
}

/// True for one part of a name.
pub(super) fn is_legal_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= PART_BYTES_MAX
        && !part.starts_with('.')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-=".contains(&byte))
}

/// Refuses what is not the name of an object.
pub(super) fn check(action: &'static str, key: &str) -> Result<(), StoreError> {
    if is_legal(key) { Ok(()) } else { Err(illegal(action, key, "not a legal object name")) }
}

/// Refuses what is not a prefix to list: empty, or a legal name with `/` behind it.
pub(super) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.is_empty() || prefix.strip_suffix('/').is_some_and(is_legal) {
        Ok(())
    } else {
        Err(illegal("list", prefix, "not a legal prefix"))
    }
}

fn illegal(action: &'static str, key: &str, why: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Permanent, action, format!("{key:?}")).because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_root_or_meet_what_a_store_keeps_for_itself() {
        for legal in
            ["a", "cluster.json", "main/wal/00000001/0000000100000000/000000010000000000000001.lz4", "a=b/C_d-1"]
        {
            assert!(is_legal(legal), "{legal:?} must be a legal name");
        }
        let long = "a".repeat(PART_BYTES_MAX + 1);
        let deep = ["abcdefghi"; 71].join("/");
        for illegal in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".tmp/a", "a/.b", "a b", "ä", "a\\b", "a\0", &long, &deep,
        ] {
            assert!(!is_legal(illegal), "{illegal:?} must be refused");
        }
    }

    #[test]
    fn a_prefix_is_empty_or_ends_in_a_slash() {
        assert!(check_prefix("").is_ok() && check_prefix("a/b/").is_ok());
        for illegal in ["a", "/", "a//", "../", "/a/"] {
            assert!(check_prefix(illegal).is_err(), "{illegal:?} must be refused");
        }
    }
}
