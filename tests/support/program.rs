//! The built program `seawall`, run as its users run it.

use super::waiting::{PATIENCE, wait_for};
use seawall::scratch::Unprivileged;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The program itself.
pub fn path() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seawall"))
}

/// A path of the program that a server can run as `restore_command` or `archive_command`: `directory`, which the servers'
/// user can enter, gets a copy if the build is out of its reach.
pub fn path_for_server(directory: &Path) -> PathBuf {
    Unprivileged::find().unwrap().runnable(path(), directory).unwrap()
}

/// A command line of the program, with nothing of the caller's environment that it would read.
pub struct Seawall {
    command: Command,
    shown: String,
}

impl Seawall {
    /// `seawall` with these arguments.
    pub fn new(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Seawall {
        let mut seawall = Seawall { command: Command::new(path()), shown: "seawall".into() };
        let read_by_us = ["SEAWALL_", "PG", "AWS_", "RUST_LOG", "XDG_"];
        for (name, _) in std::env::vars_os() {
            if read_by_us.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                seawall.command.env_remove(name);
            }
        }
        for argument in arguments {
            seawall = seawall.arg(argument);
        }
        seawall
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Seawall {
        self.shown += &format!(" {}", argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// One more variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Seawall {
        self.command.env(name, value);
        self
    }

    /// Another copy of the program, such as one that a server's user can run as well.
    pub fn program(self, program: &Path) -> Seawall {
        self.in_command(Command::new(program))
    }

    /// Run by the user that servers run as.
    pub fn by_server_user(self) -> Seawall {
        let command = Unprivileged::find().unwrap().command(Path::new(self.command.get_program()));
        self.in_command(command)
    }

    fn in_command(self, mut command: Command) -> Seawall {
        command.args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Seawall { command, shown: self.shown }
    }

    /// The working directory.
    pub fn current_dir(mut self, directory: &Path) -> Seawall {
        self.command.current_dir(directory);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let output = TempDir::new().unwrap();
        self.command.stdin(Stdio::null());
        self.command.stdout(File::create(output.path().join("stdout")).unwrap());
        self.command.stderr(File::create(output.path().join("stderr")).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, output, shown: self.shown }
    }

    /// Runs it to its end, which must be a good one.
    pub async fn run_ok(self) -> Finished {
        self.run_code(0).await
    }

    /// Runs it, which is `list --json`: one timeline is stored without a hole, and nothing is recorded as lost.
    pub async fn assert_lists_no_hole(self) {
        let listed = self.run_ok().await.stdout;
        let report: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(report["lost_wal"].as_array().unwrap().len(), 0, "{listed}");
        assert_eq!(report["wal"][0]["stored"].as_array().unwrap().len(), 1, "{listed}");
    }

    /// Runs it to its end, which must be this exit code, with one error on standard error.
    pub async fn run_err(self, code: i32) -> Finished {
        assert_ne!(code, 0, "zero is no failure");
        let finished = self.run_code(code).await;
        assert!(!finished.stderr.trim().is_empty(), "failed with {code} and did not say why");
        assert!(!finished.stderr.contains("panicked at"), "a panic:\n{}", finished.stderr);
        finished
    }

    async fn run_code(self, code: i32) -> Finished {
        let mut running = self.start();
        running.wait(PATIENCE * 5).await;
        let ended = running.child.wait().unwrap();
        assert_eq!(ended.code(), Some(code), "ended with {ended}:\n{}", running.everything());
        Finished { stdout: running.stdout(), stderr: running.stderr() }
    }
}

/// What a run wrote.
#[derive(Debug)]
pub struct Finished {
    pub stdout: String,
    pub stderr: String,
}

/// The program running; killed when dropped.
pub struct Running {
    child: Child,
    output: TempDir,
    shown: String,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.output.path().join(name)).unwrap()).into_owned()
    }

    fn everything(&self) -> String {
        format!("$ {}\n{}{}", self.shown, self.stdout(), self.stderr())
    }

    /// Waits until it has written `text` to either output.
    pub async fn wait_for_text(&mut self, text: &str) {
        let what = format!("`{}` to write {text:?}", self.shown);
        wait_for(&what, PATIENCE, async || {
            let written = self.stdout().contains(text) || self.stderr().contains(text);
            let ended = self.child.try_wait().unwrap();
            assert!(written || ended.is_none(), "ended without writing {text:?}:\n{}", self.everything());
            written.then_some(())
        })
        .await;
    }

    /// Waits for its end.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("`{}` to end", self.shown);
        wait_for(&what, deadline, async || self.child.try_wait().unwrap()).await
    }

    /// True as long as it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGTERM, then waits for its end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.wait(PATIENCE).await
    }

    /// SIGKILL: as if the machine had lost power.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.everything());
        }
    }
}
