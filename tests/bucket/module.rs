//! The Terraform module under `docs/terraform`: it is read as HCL, and everything that it refers to must be there; where terraform
//! and its provider can be had, `terraform validate` sees it, too.

use crate::page::{ROLES, docs};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn module() -> PathBuf {
    docs().join("terraform")
}

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(module()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "tf")).collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    files
}

/// All files as JSON, as a parser of HCL reads them. See `tests/run.sh`.
fn parsed() -> Vec<Value> {
    let linters = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("lint");
    let script = "import hcl2, json, sys; print(json.dumps([hcl2.load(open(path)) for path in sys.argv[1:]]))";
    let mut python = Command::new("python3");
    let output = python.env("PYTHONPATH", linters).args(["-c", script]).args(files()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}; see tests/run.sh");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names as the parser gives them, with their quotes or without.
fn bare(name: &str) -> String {
    name.trim_matches('"').to_owned()
}

/// The blocks of a kind in all files, such as `resource`.
fn blocks(files: &[Value], kind: &str) -> Vec<Map<String, Value>> {
    let found = files.iter().filter_map(|file| file.get(kind)).flat_map(|list| list.as_array().unwrap());
    found.map(|block| block.as_object().unwrap().clone()).collect()
}

/// `aws_s3_bucket.backups` and so on: blocks with two labels.
fn labelled(files: &[Value], kind: &str) -> BTreeSet<String> {
    let blocks = blocks(files, kind);
    let of_block = blocks.iter().flat_map(|block| block.iter().filter(|(label, _)| !label.starts_with("__")));
    of_block
        .flat_map(|(kind, named)| {
            let names = named.as_object().unwrap().keys().filter(|name| !name.starts_with("__"));
            names.map(|name| format!("{}.{}", bare(kind), bare(name))).collect::<Vec<_>>()
        })
        .collect()
}

/// The text of all files without comments.
fn text() -> String {
    let lines = files().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect::<String>();
    lines.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// Every dotted name in a text that begins so, its first `parts` parts.
fn references(text: &str, begins: &str, parts: usize) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with(begins) && word.contains('.'));
    words.map(|word| word.split('.').take(parts).collect::<Vec<_>>().join(".")).collect()
}

#[test]
fn the_module_has_all_that_it_refers_to_and_that_the_page_asks_for() {
    let parsed = parsed();
    let text = text();
    let variables: BTreeSet<String> =
        blocks(&parsed, "variable").iter().flat_map(|block| block.keys().map(|name| bare(name))).collect();
    let used = references(&text, "var.", 2);
    assert_eq!(used, variables.iter().map(|name| format!("var.{name}")).collect(), "variables");
    let locals: BTreeSet<String> = blocks(&parsed, "locals")
        .iter()
        .flat_map(|block| block.keys().filter(|name| !name.starts_with("__")).map(|name| format!("local.{name}")))
        .collect();
    assert_eq!(references(&text, "local.", 2), locals, "locals");
    let data = labelled(&parsed, "data").into_iter().map(|name| format!("data.{name}")).collect();
    assert_eq!(references(&text, "data.", 3), data, "data");
    let resources = labelled(&parsed, "resource");
    let used = references(&text, "aws_", 2);
    let missing: Vec<_> = used.difference(&resources).collect();
    assert!(missing.is_empty(), "there is no {missing:?}");
    // And what the page asks for is among them
    for kind in [
        "aws_s3_bucket_versioning.backups",
        "aws_s3_bucket_public_access_block.backups",
        "aws_s3_bucket_server_side_encryption_configuration.backups",
        "aws_s3_bucket_lifecycle_configuration.backups",
        "aws_s3_bucket_replication_configuration.backups",
        "aws_kms_key.backups",
        "aws_iam_role_policy.seawall",
    ] {
        assert!(resources.contains(kind), "no {kind}");
    }
    for line in ["object_lock_enabled = true", "enable_key_rotation     = true", "policies/${each.key}.json"] {
        assert!(text.contains(line), "no {line}");
    }
    for role in ROLES {
        assert!(module().join(format!("policies/{role}.json")).exists());
    }
}

#[test]
fn the_files_are_laid_out_as_terraform_does_it() {
    // Where there is the program; it needs nothing else for this.
    let Ok(output) = Command::new("terraform").args(["fmt", "-check", "-diff"]).arg(module()).output() else {
        eprintln!("terraform is not installed here");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn terraform_takes_the_module_where_it_and_its_provider_can_be_had() {
    // In a copy: what is fetched for it is none of the module's.
    let place = tempfile::tempdir().unwrap();
    let policies = place.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    for file in files() {
        std::fs::copy(&file, place.path().join(file.file_name().unwrap())).unwrap();
    }
    for role in ROLES {
        let name = format!("{role}.json");
        std::fs::copy(module().join("policies").join(&name), policies.join(&name)).unwrap();
    }
    // A provider is hundreds of megabytes.
    let fetched = Path::new(env!("CARGO_TARGET_TMPDIR")).join("terraform");
    std::fs::create_dir_all(&fetched).unwrap();
    let terraform = |arguments: &[&str]| {
        let mut command = Command::new("terraform");
        command.arg(format!("-chdir={}", place.path().display())).args(arguments).arg("-no-color");
        command.env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1").env("TF_PLUGIN_CACHE_DIR", &fetched);
        let output = command.output()?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        std::io::Result::Ok((output.status.success(), said))
    };
    let Ok((is_ready, said)) = terraform(&["init", "-backend=false", "-input=false"]) else {
        eprintln!("terraform is not installed here");
        return;
    };
    // What is wrong with the module itself it says before it asks for providers.
    if !is_ready && ["query available provider packages", "install provider"].iter().any(|it| said.contains(it)) {
        eprintln!("the provider cannot be fetched here, so the module was not validated:\n{said}");
        return;
    }
    assert!(is_ready, "{said}");
    let (is_valid, said) = terraform(&["validate"]).unwrap();
    assert!(is_valid, "{said}");
}
