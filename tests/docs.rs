//! The pages in `docs/` against what they describe.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use seawall::cli;
use seawall::config::Settings;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The crates in the tables under a heading of `docs/dependencies.md`, in their order; each has a reason.
fn crates_on_the_page(page: &str, heading: &str) -> Vec<String> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "));
    rows.map(|(name, reason)| {
        assert!(reason.len() > 10, "`{name}` has no reason in docs/dependencies.md");
        name.to_owned()
    })
    .collect()
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let page = read("docs/dependencies.md");
    for (section, heading) in [("dependencies", "Of the program"), ("dev-dependencies", "Of the tests")] {
        let mut used: Vec<&str> = manifest[section].as_table().unwrap().keys().map(String::as_str).collect();
        used.sort_unstable();
        assert_eq!(
            crates_on_the_page(&page, heading),
            used,
            "docs/dependencies.md, under `{heading}`, against Cargo.toml"
        );
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page for people: those in the root and those below `docs/`.
fn pages() -> Vec<PathBuf> {
    fn below(directory: &Path, deep: bool, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && deep {
                below(&path, true, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    below(root(), false, &mut found);
    below(&root().join("docs"), true, &mut found);
    found.sort();
    assert!(found.len() > 8, "{found:?}");
    found
}

/// The fenced blocks of a page with their language, and what is outside of them.
fn blocks_and_prose(page: &str) -> (Vec<(String, String)>, String) {
    let (mut blocks, mut prose) = (Vec::new(), String::new());
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text)), None) => *text += &format!("{line}\n"),
            (None, Some(language)) => open = Some((language.to_owned(), String::new())),
            (None, None) => prose += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a block has no end");
    (blocks, prose)
}

/// A line's words as a shell reads them: quotes, and nothing from a redirection, a pipe or a comment on.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '>' | '|' | ';' | '&') => break,
            (None, '#') if word.is_none() => break,
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert_eq!(quote, None, "a quote has no end: {line}");
    words.extend(word);
    words
}

/// The command lines of the program on a page: in its `sh` blocks, and what a service starts.
fn command_lines(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (language, text) in blocks_and_prose(page).0 {
        // A line that goes on is one line.
        for line in text.replace("\\\n", " ").lines() {
            let line = match (language.as_str(), line.split_once("ExecStart=/usr/local/bin/")) {
                ("sh", _) => line.trim_start(),
                ("ini", Some((_, line))) => line,
                _ => continue,
            };
            if line.starts_with("seawall ") {
                found.push(line.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_command_line_on_the_pages_is_one_that_the_program_takes() {
    let mut seen = 0;
    for path in pages() {
        for line in command_lines(&std::fs::read_to_string(&path).unwrap()) {
            let parsed = cli::parse(words(&line).into_iter().map(OsString::from));
            assert!(parsed.is_ok(), "{}: `{line}`: {}", path.display(), parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} command lines were found");
}

#[test]
fn a_command_line_is_read_as_a_shell_does() {
    assert_eq!(words("seawall run --pg 'host=a user=b' # c"), ["seawall", "run", "--pg", "host=a user=b"]);
    assert_eq!(words(r#"seawall x "" y > /tmp/z"#), ["seawall", "x", "", "y"]);
    let page = "text\n```sh\nseawall a \\\n  --b\n```\n```text\nseawall c\n```\n";
    assert_eq!(command_lines(page), ["seawall a    --b"]);
    assert!(cli::parse(["seawall", "no-such-command"].map(OsString::from)).is_err());
}

/// The part of a link behind `#` that leads to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut seen = 0;
    for path in pages() {
        let (_, prose) = blocks_and_prose(&std::fs::read_to_string(&path).unwrap());
        for target in prose.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target)) {
            if target.contains("://") {
                continue;
            }
            let (file, fragment) = target.split_once('#').map_or((target, None), |(file, at)| (file, Some(at)));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(to.exists(), "{}: the link {target} leads nowhere", path.display());
            if let Some(fragment) = fragment {
                let (_, prose) = blocks_and_prose(&std::fs::read_to_string(&to).unwrap());
                let mut headings = prose.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#')) == fragment);
                assert!(found, "{}: {} has no heading #{fragment}", path.display(), to.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "only {seen} links were found");
}

#[test]
fn every_design_rule_has_its_number_on_the_page() {
    let page = read("docs/architecture.md");
    let (_, rules) = page.split_once("\n## The design rules\n").unwrap();
    let numbers: Vec<u32> = rules.lines().filter_map(|line| line.split_once(". ")?.0.parse().ok()).collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<u32>>());
}

#[test]
fn every_clause_of_the_contract_names_tests_that_exist() {
    let page = read("docs/durability.md");
    let clauses: Vec<&str> = page.split("\n## ").skip(1).filter(|part| part.starts_with(char::is_numeric)).collect();
    for clause in &clauses {
        let heading = clause.lines().next().unwrap();
        let named = clause.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')?.0.split_once("::"));
        let mut count = 0;
        for (file, test) in named {
            let source = read(file);
            assert!(source.contains(&format!("fn {test}(")), "docs/durability.md, {heading}: {file} has no {test}");
            count += 1;
        }
        assert!(count >= 2, "docs/durability.md, {heading}: only {count} tests are named");
    }
    assert!(clauses.len() >= 5, "{clauses:?}");
}

/// The blocks of a page in a language.
fn fenced(page: &str, language: &str) -> Vec<String> {
    let opening = format!("\n```{language}\n");
    let blocks = page.split(&opening).skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

#[test]
fn what_pages_show_of_the_configuration_is_one_that_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("seawall.toml");
    let mut blocks = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in fenced(&text, "toml") {
            // A key that somebody could take for his own would close what he stores for ever.
            let (_, recipient) = seawall::codec::encryption::generate_identity();
            let keys = ["age1… of a second key, which lies in a safe", "age1…"];
            let block = keys.iter().fold(block, |block, key| block.replace(key, &recipient));
            std::fs::write(&file, &block).unwrap();
            let arguments = ["seawall", "run", "--config", file.to_str().unwrap()].map(OsString::from);
            let read = Settings::load_all(&cli::parse(arguments).unwrap(), &|_| None);
            read.unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()));
            blocks += 1;
        }
    }
    assert!(blocks > 8, "only {blocks} blocks were found");
}
