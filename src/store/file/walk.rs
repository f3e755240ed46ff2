//! Listings of a directory tree, in an order that stands still while objects come and go.

use super::super::{Level, ListPage, ObjectInfo, key};
use super::info_of;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Objects on a page, as S3 has it.
const PAGE_OBJECTS: usize = 1_000;

/// The objects below `prefix` behind the one named `after`: directory by directory, names in order.
pub(super) fn page(root: &Path, prefix: &str, after: Option<&str>) -> io::Result<ListPage> {
    let after = after.and_then(|after| after.strip_prefix(prefix));
    let mut found = Found { objects: Vec::new(), limit: PAGE_OBJECTS };
    let complete = found.walk(root, prefix, after)?;
    let next = if complete { None } else { found.objects.last().map(|info| info.key.clone()) };
    Ok(ListPage { objects: found.objects, next })
}

/// What is directly below `prefix`. A directory without objects is no prefix.
pub(super) fn level(root: &Path, prefix: &str) -> io::Result<Level> {
    let mut level = Level::default();
    for name in names(root, prefix)? {
        let key = format!("{prefix}{name}");
        match entry(root, key)? {
            Some(Entry::Object(info)) => level.objects.push(info),
            Some(Entry::Directory(below)) => {
                let mut found = Found { objects: Vec::new(), limit: 1 };
                found.walk(root, &below, None)?;
                if !found.objects.is_empty() {
                    level.prefixes.push(below);
                }
            }
            None => {}
        }
    }
    Ok(level)
}

struct Found {
    objects: Vec<ObjectInfo>,
    limit: usize,
}

impl Found {
    /// Adds the objects below `prefix` behind `after` (a name relative to it); false if the limit came first.
    fn walk(&mut self, root: &Path, prefix: &str, after: Option<&str>) -> io::Result<bool> {
        let (first, rest) = match after.map(|after| after.split_once('/').unwrap_or((after, ""))) {
            Some((first, rest)) => (first, Some(rest)),
            None => ("", None),
        };
        for name in names(root, prefix)? {
            if name.as_str() < first {
                continue;
            }
            let rest = rest.filter(|_| name == first);
            match entry(root, format!("{prefix}{name}"))? {
                // The one that the last page ended with.
                Some(Entry::Object(_)) if rest.is_some() => {}
                Some(Entry::Object(_)) if self.objects.len() == self.limit => return Ok(false),
                Some(Entry::Object(info)) => self.objects.push(info),
                Some(Entry::Directory(below)) if !self.walk(root, &below, rest)? => return Ok(false),
                Some(Entry::Directory(_)) | None => {}
            }
        }
        Ok(true)
    }
}

enum Entry {
    Object(ObjectInfo),
    /// Its prefix, ending in `/`.
    Directory(String),
}

fn entry(root: &Path, key: String) -> io::Result<Option<Entry>> {
    let metadata = match fs::metadata(root.join(&key)) {
        Ok(metadata) => metadata,
        // Deleted since the directory was read.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        return Ok(Some(Entry::Directory(format!("{key}/"))));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(Entry::Object(info_of(key, &metadata)?)))
}

/// The legal names in a directory, in order. What has another name (`.tmp`, `lost+found`) is not ours.
fn names(root: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root.join(prefix)) {
        Ok(entries) => entries,
        // No object has that prefix; but a root that is missing is no empty store.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && root.is_dir() => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && key::is_legal_part(&name)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
