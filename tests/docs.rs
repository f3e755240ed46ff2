//! The pages in `docs/` against what they describe.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

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
