//! One page of a listing, as ListObjectsV2 cuts them.

use super::storage::Object;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use s3s::{S3Result, s3_error};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Where a listing goes on: behind a key, or behind everything with a prefix.
pub(super) enum Position {
    Key(String),
    Prefix(String),
}

impl Position {
    pub(super) fn token(&self) -> String {
        let (kind, name) = match self {
            Position::Key(key) => ('k', key),
            Position::Prefix(prefix) => ('p', prefix),
        };
        BASE64_STANDARD.encode(format!("{kind}{name}"))
    }

    pub(super) fn parse(token: &str) -> S3Result<Position> {
        let text =
            BASE64_STANDARD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        match text.split_at_checked(1) {
            Some(("k", key)) => Ok(Position::Key(key.to_owned())),
            Some(("p", prefix)) => Ok(Position::Prefix(prefix.to_owned())),
            _ => Err(s3_error!(InvalidArgument, "the continuation token is not one of ours")),
        }
    }

    /// Where in the order of keys that is. No key holds the highest character, so none with the prefix is behind it.
    fn bound(self) -> Bound<String> {
        Bound::Excluded(match self {
            Position::Key(key) => key,
            Position::Prefix(prefix) => prefix + "\u{10FFFF}",
        })
    }
}

pub(super) struct Page {
    pub(super) objects: Vec<(String, Arc<Object>)>,
    pub(super) prefixes: Vec<String>,
    pub(super) next: Option<Position>,
}

/// One page of a listing.
pub(super) fn list(
    objects: &BTreeMap<String, Arc<Object>>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Position,
    page_keys: usize,
) -> Page {
    let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next: None };
    let mut from = after.bound();
    if matches!(&from, Bound::Excluded(after) if after.as_str() < prefix) {
        from = Bound::Included(prefix.to_owned());
    }
    let mut last = None;
    while let Some((key, object)) = objects.range((from, Bound::Unbounded)).next() {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        if page.objects.len() + page.prefixes.len() >= page_keys {
            page.next = last;
            break;
        }
        let position = match delimiter.and_then(|delimiter| Some((rest.find(delimiter)?, delimiter))) {
            Some((end, delimiter)) => {
                let common = &key[..prefix.len() + end + delimiter.len()];
                page.prefixes.push(common.to_owned());
                Position::Prefix(common.to_owned())
            }
            None => {
                page.objects.push((key.clone(), object.clone()));
                Position::Key(key.clone())
            }
        };
        from = match &position {
            Position::Key(key) => Bound::Excluded(key.clone()),
            Position::Prefix(prefix) => Position::Prefix(prefix.clone()).bound(),
        };
        last = Some(position);
    }
    page
}
