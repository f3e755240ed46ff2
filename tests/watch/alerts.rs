//! `grafana/rules/seawall.yaml`: each alert is tested, explained, and about metrics that exist.

use crate::prometheus::promtool;
use crate::{assert_metrics_exist, read};
use std::collections::{BTreeMap, BTreeSet};

const RULES: &str = "grafana/rules/seawall.yaml";
const TESTS: &str = "tests/alerts/seawall.yaml";

/// The lines of each alert, by its name.
fn alerts() -> BTreeMap<String, Vec<String>> {
    let rules = read(RULES);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut open = None;
    for line in rules.lines() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            assert!(found.insert(name.to_owned(), Vec::new()).is_none(), "two alerts are called {name}");
            open = Some(name.to_owned());
        } else if let Some(name) = &open {
            found.get_mut(name).unwrap().push(line.trim().to_owned());
        }
    }
    assert!(found.len() > 20, "only {} alerts were found", found.len());
    found
}

/// What stands behind `field: ` in the lines of an alert.
fn field<'a>(name: &str, lines: &'a [String], field: &str) -> &'a str {
    let found = lines.iter().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("{name} has no {field}"))
}

#[test]
fn the_rules_are_rules_and_every_case_of_theirs_holds() {
    promtool(&["check", "rules", RULES], "").unwrap_or_else(|said| panic!("{said}"));
    promtool(&["test", "rules", TESTS], "").unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let cases = read(TESTS);
    let (mut firing, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for case in cases.split("- expr: ALERTS{alertname=\"").skip(1) {
        let name = case.split('"').next().unwrap().to_owned();
        let expected = case.lines().find_map(|line| line.trim().strip_prefix("exp_samples:")).unwrap();
        if expected.trim() == "[]" {
            quiet.insert(name)
        } else {
            firing.insert(name)
        };
    }
    let alerts: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!(firing, alerts, "those that fire in a case");
    assert_eq!(quiet, alerts, "those that do not in another");
}

#[test]
fn every_alert_says_what_is_the_matter_and_leads_to_a_section_that_says_what_to_do() {
    let page = read("docs/alerts.md");
    let sections: BTreeMap<String, &str> = page
        .split("\n## ")
        .skip(1)
        .map(|section| (section.lines().next().unwrap().to_lowercase().replace(' ', "-"), section))
        .collect();
    let mut named = BTreeSet::new();
    for (name, lines) in alerts() {
        assert!(["warning", "critical"].contains(&field(&name, &lines, "severity")), "{name}");
        for text in ["summary", "description"] {
            assert!(field(&name, &lines, text).len() > 20, "{name} hardly has a {text}");
        }
        let runbook = field(&name, &lines, "runbook");
        let anchor = runbook.strip_prefix("docs/alerts.md#").unwrap_or_else(|| panic!("{name}: {runbook}"));
        let section = sections.get(anchor).unwrap_or_else(|| panic!("{name}: docs/alerts.md has no #{anchor}"));
        assert!(section.contains(&format!("`{name}`")), "docs/alerts.md#{anchor} does not name {name}");
        named.insert(anchor.to_owned());
    }
    assert_eq!(named, sections.keys().cloned().collect(), "sections of docs/alerts.md that an alert leads to");
    for (anchor, section) in sections {
        for part in ["**It means**", "**Look**", "**Do**", "```sh\n"] {
            assert!(section.contains(part), "docs/alerts.md#{anchor} has no {part}");
        }
    }
}

#[test]
fn every_rule_is_about_metrics_that_there_are() {
    assert_metrics_exist(RULES, &read(RULES));
    assert_metrics_exist(TESTS, &read(TESTS));
}
