//! What `docker/` has to install Seawall with: the package is built and looked into, and what needs a machine of its own goes
//! through the tool that knows its rules. `docs/install.md` says which of it has never run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `tests/run.sh` puts the linters.
fn linters() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("lint")
}

/// Runs a command that must end well; gives what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; see tests/run.sh"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{printed}{errors}", output.status);
    printed
}

/// A YAML file's documents, as JSON.
fn yaml(path: &Path) -> Vec<serde_json::Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let parsed = run(Command::new("python3").env("PYTHONPATH", linters()).args(["-c", script]).arg(path));
    serde_json::from_str(&parsed).unwrap()
}

#[test]
fn a_package_is_built_that_holds_the_program_its_pages_its_unit_and_a_configuration_that_is_one() {
    let place = tempfile::tempdir().unwrap();
    let (built, tree) = (place.path().join("built"), place.path().join("tree"));
    run(Command::new("bash").arg(root().join("docker/debian/build.sh")).arg(env!("CARGO_BIN_EXE_seawall")).arg(&built));
    let package = std::fs::read_dir(&built).unwrap().next().expect("a package").unwrap().path();
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(&package));
    for (mode, path) in [
        ("-rwxr-xr-x root/root", "./usr/bin/seawall"),
        ("-rw-r----- root/root", "./etc/seawall/seawall.toml"),
        ("-rw-r--r-- root/root", "./lib/systemd/system/seawall.service"),
        ("-rw-r--r-- root/root", "./usr/share/man/man1/seawall.1.gz"),
        ("-rw-r--r-- root/root", "./usr/share/man/man1/seawall-restore.1.gz"),
        ("-rw-r--r-- root/root", "./usr/share/bash-completion/completions/seawall"),
        ("-rw-r--r-- root/root", "./usr/share/doc/seawall/copyright"),
    ] {
        let is_it = |line: &str| line.starts_with(mode) && line.ends_with(path);
        assert!(listed.lines().any(is_it), "no {path} of {mode} in\n{listed}");
    }
    let says = run(Command::new("dpkg-deb").arg("--info").arg(&package));
    for line in ["Package: seawall", concat!("Version: ", env!("CARGO_PKG_VERSION")), "libc6 (>= 2.", "conffiles"] {
        assert!(says.contains(line), "no {line:?} in\n{says}");
    }
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&tree));
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(tree.join("DEBIAN").join(script)));
    }
    // The program that was packed takes the configuration that was packed with it
    let mut command = Command::new(tree.join("usr/bin/seawall"));
    let config = tree.join("etc/seawall/seawall.toml");
    run(command.args(["completions", "bash", "--config"]).arg(config).env_remove("SEAWALL_CONFIG"));
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_lets_it_do_no_more_than_it_must() {
    let place = tempfile::tempdir().unwrap();
    let unit = place.path().join("seawall.service");
    let text = std::fs::read_to_string(root().join("docker/systemd/seawall.service")).unwrap();
    // systemd looks whether the program and the page are there
    let text =
        text.replace("/usr/bin/seawall", env!("CARGO_BIN_EXE_seawall")).replace("Documentation=man:seawall(1)", "");
    std::fs::write(&unit, text).unwrap();
    run(Command::new("systemd-analyze").arg("verify").arg(&unit));
    // 0 is nothing that it could do, 100 everything
    run(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]).arg(&unit));
}

#[test]
fn the_image_is_made_as_images_should_be() {
    run(Command::new(linters().join("bin/hadolint")).arg(root().join("docker/Dockerfile")));
}

#[test]
fn kubernetes_takes_the_manifests_and_runs_them_without_rights() {
    let directory = root().join("docker/kubernetes");
    let mut containers = 0;
    for file in ["secret.yaml", "deployment.yaml", "sidecar.yaml"].map(|name| directory.join(name)) {
        let mut validate = Command::new("python3");
        validate.env("PYTHONPATH", linters()).args(["-m", "kubernetes_validate", "--strict"]);
        run(validate.arg(&file));
        for document in yaml(&file) {
            let found = document["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
            for container in found.iter().filter(|container| container["name"] == "seawall") {
                let rights = &container["securityContext"];
                assert_eq!(rights["readOnlyRootFilesystem"], true, "{}", file.display());
                assert_eq!(rights["allowPrivilegeEscalation"], false, "{}", file.display());
                assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz", "{}", file.display());
                containers += 1;
            }
        }
    }
    assert_eq!(containers, 2, "one beside the server, and one of its own");
}

#[test]
fn what_compose_names_is_there() {
    let directory = root().join("docker");
    let compose = yaml(&directory.join("compose.yaml")).remove(0);
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services {
        for volume in service["volumes"].as_array().unwrap_or(&Vec::new()) {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let is_there = if from.starts_with('.') {
                // Grafana's files may come with another change than this one
                from.starts_with("../grafana/")
            } else {
                compose["volumes"].as_object().unwrap().contains_key(from)
            };
            assert!(is_there, "{name} mounts {from}");
        }
        for config in service["configs"].as_array().unwrap_or(&Vec::new()) {
            let source = config["source"].as_str().unwrap();
            assert!(compose["configs"].as_object().unwrap().contains_key(source), "{name} takes {source}");
        }
    }
    assert_eq!(services["seawall"]["read_only"], true);
    assert!(directory.join("Dockerfile").exists() && services["seawall"]["build"]["dockerfile"] == "docker/Dockerfile");
}
