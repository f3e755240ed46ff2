//! The S3 server of the tests in a process of its own, so that what it costs is not taken for anybody else's.

use crate::process::cpu_seconds;
use crate::s3::{Fault, Op, S3Server};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// The first argument with which this program is the server.
pub const SERVE: &str = "--serve-s3";

/// What the server does with objects.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    /// Stores them, as fast as it can.
    AtOnce,
    /// Takes them as a server on another machine does: verifies them, and they take nothing of this machine's disk. They
    /// cannot be read again.
    Elsewhere,
    /// Syncs each to disk, and answers so much later.
    Synced(Duration),
    /// Never answers when WAL is stored; all else works.
    Hang,
}

/// A server. Dropping it ends it, and what it stored is gone.
pub struct S3Process {
    child: Child,
    /// The server ends when this does.
    stdin: Option<ChildStdin>,
    endpoint: String,
}

impl S3Process {
    /// Bodies are files in `directory`.
    pub fn start(directory: &Path, behaviour: Behaviour) -> S3Process {
        let mut command = Command::new(std::env::current_exe().expect("a name of our own"));
        command.arg(SERVE).arg(directory);
        match behaviour {
            Behaviour::AtOnce => command.arg("at-once"),
            Behaviour::Elsewhere => command.arg("elsewhere"),
            Behaviour::Synced(delay) => command.arg(delay.as_micros().to_string()),
            Behaviour::Hang => command.arg("hang"),
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the S3 server");
        let mut endpoint = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut endpoint).expect("where the S3 server listens");
        let stdin = child.stdin.take();
        S3Process { child, stdin, endpoint: endpoint.trim().to_owned() }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// CPU that it has used so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.child.id()).expect("the S3 server is there").own
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Is the server, until standard input ends.
pub fn serve(arguments: &[String]) {
    let [directory, behaviour] = arguments else { panic!("a directory and a delay, not {arguments:?}") };
    let server = S3Server::on_disk(directory);
    match behaviour.as_str() {
        "hang" => server.always(Op::Put.at("repo/main/wal/"), Fault::Delay(Duration::from_secs(86_400))),
        "at-once" => {}
        "elsewhere" => server.forget_bodies(),
        micros => {
            server.sync_bodies();
            let delay = Duration::from_micros(micros.parse().expect("microseconds"));
            if !delay.is_zero() {
                server.always(Op::Put, Fault::Delay(delay));
            }
        }
    }
    println!("{}", server.endpoint());
    std::io::stdout().flush().expect("somebody listens");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
