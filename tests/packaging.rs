//! What `docker/` has to install Seawall with: the package is built, looked into, and followed to a first base backup by the README's
//! lines; what needs a machine of its own goes through the tool that knows its rules. `docs/install.md` says which of it has never run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "support/s3/mod.rs"]
mod s3;
mod support;

use s3::S3Server;
use seawall::scratch::{ServerOptions, Unprivileged};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::postgres::{DEBIAN, Postgres, programs, scratch_directory};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};

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

/// Builds the package, and unpacks it.
fn unpacked(place: &Path) -> PathBuf {
    let (built, tree) = (place.join("built"), place.join("tree"));
    run(Command::new("bash").arg(root().join("docker/debian/build.sh")).arg(env!("CARGO_BIN_EXE_seawall")).arg(&built));
    let package = fs::read_dir(&built).unwrap().next().expect("a package").unwrap().path();
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
    tree
}

/// The blocks of a section of the README, by their language, in order.
fn blocks(heading: &str) -> Vec<(String, String)> {
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the README has that section");
    let section = section.split("\n## ").next().unwrap();
    let fenced = section.split("\n```").skip(1).step_by(2);
    let parted = fenced.map(|block| block.split_once('\n').expect("a block has lines"));
    parted.map(|(language, text)| (language.to_owned(), format!("{text}\n"))).collect()
}

/// A machine on which nothing but the package is, and a server and a bucket elsewhere.
struct NewUser {
    server: Postgres,
    bucket: S3Server,
    root: PathBuf,
    port: String,
}

impl NewUser {
    /// What the README says, with this machine's names.
    fn told(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let root = self.root.to_str().unwrap();
        let there_and_here = [
            // No TLS, and over loopback.
            ("hostssl replication seawall 192.0.2.10/32", "host replication seawall 127.0.0.1/32"),
            ("port=5432 user=seawall sslmode=verify-full", &format!("port={} user=seawall sslmode=disable", self.port)),
            ("db.example.org:5432", &format!("127.0.0.1:{}", self.port)),
            ("db.example.org", "127.0.0.1"),
            ("s3://backups/", &format!("s3://{}/", S3Server::BUCKET)),
            ("region = ", &format!("endpoint = \"{}\"\npath_style = true\nregion = ", self.bucket.endpoint())),
            ("aws_access_key_id = AKIA...", &format!("aws_access_key_id = {}", S3Server::ACCESS_KEY)),
            ("aws_secret_access_key = ...", &format!("aws_secret_access_key = {}", S3Server::SECRET_KEY)),
            // The user is one that this machine has.
            ("-o seawall -g seawall ", ""),
            ("runuser seawall -s /bin/sh -c", "sh -c"),
            ("/etc/seawall/", &format!("{root}/etc/seawall/")),
            ("/var/lib/seawall/", &format!("{root}/var/lib/seawall/")),
        ];
        for (there, here) in there_and_here {
            text = text.replace(there, here);
        }
        text
    }

    /// Types it. Gives what it printed, or what went wrong.
    fn types(&self, script: &str) -> Result<String, String> {
        let mut command: Command = Unprivileged::find().unwrap().command(Path::new("/bin/sh"));
        let path = format!("{}/usr/bin:{}:/usr/bin:/bin", self.root.display(), programs(DEBIAN).bin.display());
        command.arg("-euc").arg(script).current_dir(&self.root).env_clear().env("PATH", path).stdin(Stdio::null());
        command
            .env("HOME", self.root.join("var/lib/seawall"))
            .env("LC_ALL", "C")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("PGHOST", self.server.socket_directory()).env("PGPORT", &self.port).env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        if output.status.success() { Ok(text) } else { Err(format!("{}: {script}\n{text}", output.status)) }
    }

    /// What `systemctl enable --now seawall` makes of the unit.
    fn starts_the_unit(&self) -> Running {
        let unit = fs::read_to_string(self.root.join("lib/systemd/system/seawall.service")).unwrap();
        let settings = |name: &str| {
            let name = format!("{name}=");
            unit.lines().filter_map(|line| Some(line.strip_prefix(&name)?.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(settings("User"), ["seawall"]);
        let [command] = &settings("ExecStart")[..] else { panic!("one ExecStart") };
        let mut words = command.split_whitespace();
        let program = self.root.join(words.next().unwrap().trim_start_matches('/'));
        let arguments: Vec<String> = words.map(|word| self.told(word)).collect();
        let mut seawall =
            Seawall::new(arguments).program(&program).by_server_user().env("AWS_EC2_METADATA_DISABLED", "true");
        for variable in settings("Environment") {
            let (name, value) = variable.split_once('=').unwrap();
            seawall = seawall.env(name, self.told(&format!("{value}/")));
        }
        seawall.start()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_package_to_a_green_status_with_the_lines_of_the_readme_alone() {
    // Given a server that lets nobody in over the network, an empty bucket, and the package, unpacked
    let place = scratch_directory();
    let user = Unprivileged::find().unwrap();
    let root = unpacked(place.path());
    fs::create_dir_all(root.join("var/lib/seawall")).unwrap();
    user.give_all(place.path()).unwrap();
    let server = Postgres::create(DEBIAN, ServerOptions { listen_tcp: true, ..ServerOptions::default() }).await;
    fs::write(server.value("SHOW hba_file").await, "local all all trust\nlocal replication all trust\n").unwrap();
    let port = server.value("SHOW port").await;
    let new_user = NewUser { server, bucket: S3Server::start(), root, port };
    // When somebody types what the README says
    let blocks: BTreeMap<usize, (String, String)> = blocks("First run").into_iter().enumerate().collect();
    let languages: Vec<&str> = blocks.values().map(|(language, _)| language.as_str()).collect();
    assert_eq!(languages, ["sh", "toml", "sh"], "on the server, the file, where Seawall runs");
    new_user.types(&new_user.told(&blocks[&0].1)).unwrap();
    let config = new_user.root.join("etc/seawall/seawall.toml");
    // Metrics have no port of their own on a machine with other tests.
    fs::write(&config, format!("{}[run]\nlisten = \"off\"\n", new_user.told(&blocks[&1].1))).unwrap();
    let lines = new_user.told(&blocks[&2].1);
    let (before, behind) = lines.split_once("systemctl enable --now seawall\n").expect("it is started");
    let checked = new_user.types(before).unwrap();
    assert!(checked.contains("the configuration can be used"), "{checked}");
    let mut running = new_user.starts_the_unit();
    // Then in a moment there is a base backup, and nothing to be done
    let status = wait_for("a green status", PATIENCE * 3, async || {
        assert!(running.is_running(), "the unit's program has ended");
        // At first not even the cluster's folder is there.
        new_user.types(behind).ok().filter(|status| status.contains("nothing wrong was found"))
    })
    .await;
    println!("{checked}{status}");
    assert!(running.terminate().await.success());
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_lets_it_do_no_more_than_it_must() {
    let place = tempfile::tempdir().unwrap();
    let unit = place.path().join("seawall.service");
    let text = fs::read_to_string(root().join("docker/systemd/seawall.service")).unwrap();
    // A drill that was killed is known by the number of the machine's start, which is below /proc/sys.
    assert!(!text.contains("ProcSubset"), "{text}");
    // systemd looks whether the program and the page are there
    let text =
        text.replace("/usr/bin/seawall", env!("CARGO_BIN_EXE_seawall")).replace("Documentation=man:seawall(1)", "");
    fs::write(&unit, text).unwrap();
    run(Command::new("systemd-analyze").arg("verify").arg(&unit));
    // 0 is nothing that it could do, 100 everything
    run(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]).arg(&unit));
}

#[test]
fn the_image_is_made_as_images_should_be() {
    run(Command::new(linters().join("bin/hadolint")).arg(root().join("docker/Dockerfile")));
}

/// Applied as it is, this takes base backups, and does not keep them for ever. `pg` and `repo` may come from the environment.
fn assert_backs_up_by_itself(configuration: &str, whose: &str) {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("seawall.toml");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
    command.args(["config", "check", "--config"]).arg(&file);
    command.env("SEAWALL_PG", "host=postgres").env("SEAWALL_REPO", "s3://backups/x");
    let checked = run(&mut command);
    for job in ["full: ", "prune: "] {
        assert!(checked.lines().any(|line| line.starts_with(job)), "{whose} has no {job}in its schedule:\n{checked}");
    }
    for note in ["takes no base backup", "the repository grows"] {
        assert!(!checked.contains(note), "{whose}:\n{checked}");
    }
}

#[test]
fn kubernetes_takes_the_manifests_and_runs_them_without_rights() {
    let directory = root().join("docker/kubernetes");
    let (mut containers, mut configurations) = (0, 0);
    // The secrets, as they are mounted.
    let (mounted, path) = (tempfile::tempdir().unwrap(), "/run/secrets/seawall");
    let secret = yaml(&directory.join("secret.yaml")).remove(0);
    for (name, text) in secret["stringData"].as_object().unwrap() {
        let file = mounted.path().join(name);
        fs::write(&file, text.as_str().unwrap()).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).unwrap();
    }
    for file in ["secret.yaml", "deployment.yaml", "sidecar.yaml"].map(|name| directory.join(name)) {
        let mut validate = Command::new("python3");
        validate.env("PYTHONPATH", linters()).args(["-m", "kubernetes_validate", "--strict"]);
        run(validate.arg(&file));
        for document in yaml(&file) {
            if document["kind"] == "ConfigMap" {
                let configuration = document["data"]["seawall.toml"].as_str().unwrap();
                let configuration = configuration.replace(path, mounted.path().to_str().unwrap());
                assert_backs_up_by_itself(&configuration, &file.display().to_string());
                configurations += 1;
            }
            let found = document["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
            for container in found.iter().filter(|container| container["name"] == "seawall") {
                let rights = &container["securityContext"];
                assert_eq!(rights["readOnlyRootFilesystem"], true, "{}", file.display());
                assert_eq!(rights["allowPrivilegeEscalation"], false, "{}", file.display());
                assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz", "{}", file.display());
                let mounts = container["volumeMounts"].as_array().unwrap();
                let mount = mounts.iter().find(|mount| mount["mountPath"] == path).expect("the secrets are mounted");
                let volumes = document["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
                let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("and from a volume");
                assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"], "{}", file.display());
                assert_eq!(volume["secret"]["defaultMode"], 0o440, "others may read them, or nobody");
                assert_eq!(container["args"], serde_json::json!(["run", "--config", "/etc/seawall/seawall.toml"]));
                containers += 1;
            }
        }
    }
    assert_eq!(containers, 2, "one beside the server, and one of its own");
    assert_eq!(configurations, 2, "each with what it does by itself");
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
                directory.join(from).exists()
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
    assert_backs_up_by_itself(compose["configs"]["seawall"]["content"].as_str().unwrap(), "compose.yaml");
    assert!(directory.join("Dockerfile").exists() && services["seawall"]["build"]["dockerfile"] == "docker/Dockerfile");
}
