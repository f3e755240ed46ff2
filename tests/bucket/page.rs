//! `docs/bucket.md` and the policies on it, which are those of the Terraform module.

use crate::s3::Policy;
use std::path::{Path, PathBuf};

pub(crate) const ROLES: [&str; 3] = ["archive", "restore", "prune"];

pub(crate) fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// A role's policy on the page, as it stands there.
fn block(role: &str) -> String {
    let page = std::fs::read_to_string(docs().join("bucket.md")).unwrap();
    let (_, behind) = page.split_once(&format!("\n### {role}\n")).unwrap_or_else(|| panic!("no heading for {role}"));
    let (_, block) = behind.split_once("```json\n").expect("a policy behind the heading");
    block.split_once("```").expect("its end").0.to_owned()
}

/// A role's policy on the page, for another repository than the page's.
pub(crate) fn policy(role: &str, bucket: &str, prefix: &str) -> Policy {
    let text = block(role).replace(":::backups/postgres/", &format!(":::{bucket}/{prefix}/"));
    Policy::parse(&text.replace(":::backups\"", &format!(":::{bucket}\"")))
}

#[test]
fn the_policies_on_the_page_are_those_of_the_module() {
    for role in ROLES {
        let template = std::fs::read_to_string(docs().join(format!("terraform/policies/{role}.json"))).unwrap();
        let filled =
            [("bucket", "backups"), ("prefix", "postgres"), ("lock_days", "31"), ("refused_mode", "COMPLIANCE")]
                .iter()
                .fold(template, |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
        assert_eq!(block(role), filled, "{role}");
    }
}
