//! The shape of the sources: imports go one way (`docs/architecture.md`), files stay readable, each says what it is for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The most lines a file of sources or tests may have.
const MOST_LINES: usize = 800;

/// The first of the layers: each may import those before it.
const BASE: [&str; 5] = ["wal", "error", "runtime", "metrics", "secret"];

/// What each module above the base may import besides the base and itself. A star is everything.
const ABOVE: [(&str, &[&str]); 21] = [
    ("codec", &[]),
    ("postgres", &[]),
    ("store", &[]),
    ("repository", &["codec", "store"]),
    ("history", &["codec", "store", "repository"]),
    ("archive", &["codec", "store", "repository", "history", "postgres"]),
    ("backup", &["codec", "store", "repository", "history", "postgres"]),
    ("restore", &["codec", "store", "repository", "history"]),
    ("verify", &["codec", "store", "repository", "history", "restore"]),
    ("schedule", &["codec", "store", "repository"]),
    ("retention", &["codec", "store", "repository", "history", "restore"]),
    ("scratch", &[]),
    ("recovery", &["codec", "store", "repository", "history", "restore", "scratch"]),
    ("extract", &["codec", "postgres", "store", "repository", "history", "restore", "scratch", "recovery"]),
    ("drill", &["codec", "store", "repository", "history", "restore", "scratch", "recovery"]),
    ("http", &[]),
    ("notify", &[]),
    ("commands", &["*"]),
    ("config", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
];

/// The only ones that may import the configuration and the command line: everybody else has option structs of its own.
const READ_THE_CONFIGURATION: [&str; 4] = ["config", "cli", "commands", "main"];

fn may_import(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    if to == "config" || to == "cli" {
        return READ_THE_CONFIGURATION.contains(&from);
    }
    if let Some(position) = BASE.iter().position(|name| *name == from) {
        return BASE[..position].contains(&to);
    }
    let Some((_, allowed)) = ABOVE.iter().find(|(name, _)| *name == from) else { return false };
    allowed.contains(&"*") || allowed.contains(&to) || BASE.contains(&to)
}

/// A word or a sign of Rust, and its line. Comments, strings and characters are left out.
type Token = (usize, String);

fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < text.len() {
        let start = i;
        let c = text[i];
        if c == '/' && at(i + 1) == '/' {
            while i < text.len() && text[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if c.is_alphabetic() || c == '_' {
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let word: String = text[start..i].iter().collect();
            let hashes = (i..).take_while(|j| at(*j) == '#').count();
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                // A raw string ends at a quote with as many hashes as it began with.
                i += hashes + 1;
                while i < text.len() && !(text[i] == '"' && (1..=hashes).all(|j| at(i + j) == '#')) {
                    i += 1;
                }
                i += 1 + hashes;
            } else {
                found.push((line, word));
            }
        } else if c == '"' {
            i += 1;
            while i < text.len() && text[i] != '"' {
                i += if text[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < text.len() && text[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else {
            if c == ':' && at(i + 1) == ':' {
                found.push((line, "::".into()));
                i += 1;
            } else if !c.is_whitespace() {
                found.push((line, c.into()));
            }
            i += 1;
        }
        line += text[start..i.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// The names that a path's next step may have: one, or those of a group in braces.
fn next_names(tokens: &[Token]) -> Vec<Token> {
    let Some((_, first)) = tokens.first() else { return Vec::new() };
    if first != "{" {
        return vec![tokens[0].clone()];
    }
    let (mut names, mut depth) = (Vec::new(), 0);
    for (i, (_, text)) in tokens.iter().enumerate() {
        match text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (text == "{" || text == ",") {
            names.extend(tokens.get(i + 1).cloned());
        }
    }
    names
}

/// The modules of ours that a source imports, with the line of each. `path` is relative to `src/`.
fn imports(path: &Path, source: &str) -> Vec<(usize, String)> {
    let tokens = tokens(source);
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let is_root = path.parent() == Some(Path::new("")) && matches!(stem, "main" | "lib");
    // How many `super` lead to the root from here.
    let mut depth = if is_root { 0 } else { path.components().count() - usize::from(stem == "mod") };
    let (mut braces, mut inline) = (0_usize, Vec::new());
    let mut found = Vec::new();
    let text = |i: usize| tokens.get(i).map_or("", |(_, text): &Token| text.as_str());
    let mut i = 0;
    while i < tokens.len() {
        let begins = i == 0 || text(i - 1) != "::";
        match text(i) {
            "mod" if text(i + 2) == "{" => {
                inline.push(braces);
                depth += 1;
            }
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                if inline.last() == Some(&braces) {
                    inline.pop();
                    depth -= 1;
                }
            }
            "crate" if text(i + 1) == "::" => found.extend(next_names(&tokens[i + 2..])),
            "seawall" if begins && text(i + 1) == "::" => found.extend(next_names(&tokens[i + 2..])),
            "super" if begins => {
                let (mut steps, mut end) = (1, i + 1);
                while text(end) == "::" && text(end + 1) == "super" {
                    (steps, end) = (steps + 1, end + 2);
                }
                if steps == depth && text(end) == "::" {
                    found.extend(next_names(&tokens[end + 1..]));
                }
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// The top module that a file belongs to; nothing for `lib.rs`, which only lists them.
fn module(path: &Path) -> Option<String> {
    let first = Path::new(path.components().next()?.as_os_str()).file_stem()?.to_str()?.to_owned();
    (first != "lib").then_some(first)
}

/// Every import of these sources that goes against the fence, one line each.
fn offences(sources: &[(PathBuf, String)]) -> Vec<String> {
    let modules: Vec<String> = sources.iter().filter_map(|(path, _)| module(path)).collect();
    let mut offences = Vec::new();
    for (path, source) in sources {
        let Some(from) = module(path) else { continue };
        if !BASE.contains(&from.as_str()) && !ABOVE.iter().any(|(name, _)| *name == from) {
            offences.push(format!("src/{}: module `{from}` has no place in tests/architecture.rs", path.display()));
        }
        for (line, to) in imports(path, source) {
            if modules.contains(&to) && !may_import(&from, &to) {
                offences.push(format!("src/{}:{line}: `{from}` may not import `{to}`", path.display()));
            }
        }
    }
    offences
}

/// The Rust files below a directory of the package, by their paths from there.
fn files(below: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(below);
    let (mut found, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&root).unwrap().to_owned(), source));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn imports_go_one_way() {
    let sources = files("src");
    assert!(sources.len() > 10, "the sources were not found");
    let offences = offences(&sources);
    assert!(offences.is_empty(), "imports against the fence:\n{}", offences.join("\n"));
}

#[test]
fn a_file_is_short_enough_to_read() {
    let mut long = String::new();
    for below in ["src", "tests"] {
        for (path, source) in files(below) {
            let lines = source.lines().count();
            if lines > MOST_LINES {
                writeln!(long, "{below}/{}: {lines} lines", path.display()).unwrap();
            }
        }
    }
    assert!(long.is_empty(), "more than {MOST_LINES} lines:\n{long}");
}

#[test]
fn a_file_begins_with_what_it_is_for() {
    let silent: Vec<String> = files("src")
        .into_iter()
        .filter(|(_, source)| !source.starts_with("//! "))
        .map(|(path, _)| format!("src/{}", path.display()))
        .collect();
    assert!(silent.is_empty(), "files that do not begin with `//! ` and what they are for: {silent:?}");
}

/// Fabricated sources beside one file each of the modules that they import.
fn fabricated(path: &str, source: &str) -> Vec<String> {
    let others =
        ["wal/mod.rs", "error.rs", "metrics/mod.rs", "store/mod.rs", "postgres/mod.rs", "config.rs", "codec/mod.rs"];
    let mut sources: Vec<(PathBuf, String)> = others.map(|other| (PathBuf::from(other), String::new())).into();
    sources.push((PathBuf::from(path), source.to_owned()));
    offences(&sources)
}

#[test]
fn the_fence_holds_against_every_way_to_write_an_import() {
    let bad = [
        ("restore/plan.rs", "use crate::postgres::Connection;"),
        ("restore/plan.rs", "use crate::{\n    error::{Error, Kind},\n    postgres::Connection,\n};"),
        ("restore/plan.rs", "fn f() -> crate::postgres::Connection { panic!() }"),
        ("restore/plan.rs", "use super::super::postgres::Connection;"),
        ("restore/mod.rs", "use super::{error::Error, postgres};"),
        ("restore/plan.rs", "mod tests { mod deep { use super::super::super::super::postgres; } }"),
        ("restore/plan.rs", "const A: char = '\"'; use crate::postgres; const B: &str = \"\";"),
        ("restore/plan.rs", "fn f<'a>(x: &'a str) {} use crate::postgres;"),
        ("restore/plan.rs", "const A: &str = r#\"a \" b\"#; use crate::postgres;"),
        ("restore/plan.rs", "/* a /* nested */ comment */ use seawall::postgres::X;"),
        ("wal/lsn.rs", "use crate::error::Error;"),
        ("error.rs", "use crate::metrics::Metrics;"),
        ("store/s3.rs", "use crate::codec::Frame;"),
        ("codec/frame.rs", "use crate::postgres::X;"),
        ("archive/receiver.rs", "use crate::config::Config;"),
        ("utils.rs", ""),
    ];
    for (path, source) in bad {
        let found = fabricated(path, source);
        assert_eq!(found.len(), 1, "src/{path} with `{source}` gave {found:?}");
    }
    let found = fabricated("restore/plan.rs", "//! Plans.\n\nuse crate::{\n    error::Error,\n    postgres::X,\n};\n");
    assert_eq!(found, ["src/restore/plan.rs:5: `restore` may not import `postgres`"]);
}

#[test]
fn what_is_no_import_against_the_fence_passes() {
    let good = [
        ("restore/plan.rs", "//! Never [`crate::postgres`].\nuse crate::{error::Error, store::{self, postgres}};"),
        ("restore/plan.rs", "const A: &str = \"use crate::postgres\"; const B: &str = r#\"crate::postgres\"#;"),
        ("restore/plan.rs", "use super::postgres; mod tests { use super::super::postgres; }"),
        ("restore/plan.rs", "use tokio_postgres::Client; use other::seawall::postgres;"),
        ("archive/receiver.rs", "use crate::{postgres::X, store::Y, wal::Lsn};"),
        ("error.rs", "use crate::wal::Lsn;"),
        ("commands/run.rs", "use crate::config::Config;"),
        ("main.rs", "use seawall::{config, postgres};"),
        ("config.rs", "use crate::store::Options;"),
    ];
    for (path, source) in good {
        assert_eq!(fabricated(path, source), Vec::<String>::new(), "src/{path} with `{source}`");
    }
}
