//! What one process costs: seconds on the clock, CPU seconds, memory at its highest. From `/proc`, so Linux only.

use crate::s3_process::S3Process;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// `USER_HZ`, the unit of times in `/proc/PID/stat`: 100 on every Linux of today (`man 5 proc`).
const TICKS_PER_SECOND: f64 = 100.0;
/// How often the memory of a process is looked at. The system keeps the high-water mark; only the last moments are lost.
const LOOK: Duration = Duration::from_millis(20);

/// What a process cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// On the clock: from its start to the end of the work that was asked for.
    pub seconds: f64,
    /// CPU of the process, user and system, over its whole life.
    pub cpu_seconds: f64,
    /// Highest resident memory.
    pub rss_bytes: u64,
    /// CPU of the S3 server meanwhile, if there is one.
    pub store_cpu_seconds: f64,
}

/// A process that is being measured. Killed when dropped.
pub struct Measured {
    child: Child,
    started: Instant,
    children_before: f64,
    ended: Arc<AtomicBool>,
    watcher: Option<JoinHandle<u64>>,
}

impl Measured {
    /// Starts `command`; no other child may be started or end before this one has.
    pub fn start(mut command: Command) -> Measured {
        let children_before = children_cpu_seconds();
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).spawn().expect("start the program that is measured");
        let ended = Arc::new(AtomicBool::new(false));
        let watcher = std::thread::spawn({
            let (pid, ended) = (child.id(), ended.clone());
            move || {
                let mut highest = 0;
                while !ended.load(Ordering::Relaxed) {
                    highest = resident_high_water(pid).unwrap_or(0).max(highest);
                    std::thread::sleep(LOOK);
                }
                highest
            }
        });
        Measured { child, started, children_before, ended, watcher: Some(watcher) }
    }

    /// Seconds since its start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("look after a child")
    }

    /// Waits for its good end.
    pub fn wait(mut self) -> Cost {
        let status = self.child.wait().expect("wait for a child");
        let seconds = self.seconds();
        assert!(status.success(), "the measured program ended with {status}");
        self.cost(seconds)
    }

    /// As [`Measured::wait`], for a program that stores in `store`.
    pub fn wait_with(self, store: &S3Process) -> Cost {
        let before = store.cpu_seconds();
        let cost = self.wait();
        Cost { store_cpu_seconds: store.cpu_seconds() - before, ..cost }
    }

    /// Tells it to stop, and waits for its good end. The work was done `seconds` after the start.
    pub fn terminate(mut self, seconds: f64) -> Cost {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("stop a child");
        let status = self.child.wait().expect("wait for a child");
        assert!(status.success(), "the measured program ended with {status}");
        self.cost(seconds)
    }

    /// Kills it.
    pub fn kill(mut self) -> Cost {
        let seconds = self.seconds();
        self.child.kill().expect("kill a child");
        self.child.wait().expect("wait for a child");
        self.cost(seconds)
    }

    fn cost(&mut self, seconds: f64) -> Cost {
        self.ended.store(true, Ordering::Relaxed);
        let rss_bytes = self.watcher.take().map_or(0, |watcher| watcher.join().expect("the watcher"));
        let cpu_seconds = children_cpu_seconds() - self.children_before;
        Cost { seconds, cpu_seconds, rss_bytes, store_cpu_seconds: 0.0 }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // There is nothing to kill or wait for once it was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds of a process.
pub struct CpuSeconds {
    /// Of itself.
    pub own: f64,
    /// Of its children that it has waited for.
    pub children: f64,
}

/// What `/proc` says of a process; `None` if there is none.
pub fn cpu_seconds(pid: u32) -> Option<CpuSeconds> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, behind) = stat.rsplit_once(')')?;
    let fields: Vec<f64> = behind.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    // Fields 14 to 17 of `man 5 proc`; the first here is the third there.
    let sum = |first: usize| (fields[first] + fields[first + 1]) / TICKS_PER_SECOND;
    Some(CpuSeconds { own: sum(11), children: sum(13) })
}

fn children_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id()).expect("Linux").children
}

fn resident_high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
