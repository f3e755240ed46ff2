//! What the service manager is told while `run` runs, as systemd wants it (`man 3 sd_notify`): that it is up, how it is
//! doing, that the archiver makes turns, that it stops. Uses `archive`, `http` and `runtime`.

use crate::archive::{ArchiveState, Phase};
use crate::http::Health;
use crate::runtime::Shutdown;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often it is told how things are, where it watches us less closely.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The service manager that started this process.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: UnixDatagram,
    /// It ends a process that is silent for longer.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// From `NOTIFY_SOCKET`, and `WATCHDOG_USEC` if that is meant for this process; `None` where nobody wants to be told.
    pub(super) fn find(environment: &dyn Fn(&str) -> Option<OsString>) -> Option<ServiceManager> {
        let address = environment("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        let socket = match connect(&address) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, socket = %address.display(), "the service manager cannot be told anything");
                return None;
            }
        };
        let number = |name: &str| environment(name)?.to_str()?.parse::<u64>().ok();
        let is_ours =
            environment("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&micros| is_ours && micros > 0).map(Duration::from_micros);
        Some(ServiceManager { socket, watchdog })
    }

    /// Says that it is up, then how it is doing, until `state` ends. An archiver that streams and makes no turn for as long
    /// as the watchdog is patient is no longer vouched for. While it waits for a server or as a spare it has no turns
    /// to make, and that this task runs is all that can be said.
    pub(super) async fn follow(
        self,
        mut state: watch::Receiver<ArchiveState>,
        health: fn(&ArchiveState) -> Health,
        shutdown: Shutdown,
    ) {
        let beat = self.watchdog.map_or(STATUS_INTERVAL, |watchdog| (watchdog / 3).min(STATUS_INTERVAL));
        let mut beats = interval(beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last_turn, mut is_stopping, mut told) = (Instant::now(), false, None);
        self.tell("READY=1");
        loop {
            let is_beat = tokio::select! {
                _ = beats.tick() => true,
                changed = state.changed() => match changed {
                    Ok(()) => { last_turn = Instant::now(); false }
                    Err(_) => return,
                },
                () = shutdown.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.tell("STOPPING=1");
                    false
                }
            };
            let (now, is_streaming) = {
                let state = state.borrow_and_update();
                (health(&state), state.phase == Phase::Streaming)
            };
            // Positions change all the time: they are told with the next beat.
            if is_beat || told != Some(now.ready) {
                told = Some(now.ready);
                self.tell(&format!("STATUS={}", now.reason.replace('\n', " ")));
            }
            let makes_turns = !is_streaming || self.watchdog.is_none_or(|watchdog| last_turn.elapsed() < watchdog);
            if is_beat && self.watchdog.is_some() && makes_turns {
                self.tell("WATCHDOG=1");
            }
        }
    }

    /// A manager that does not read now is told the next time.
    fn tell(&self, what: &str) {
        if let Err(error) = self.socket.send(what.as_bytes()) {
            tracing::debug!(%error, what, "the service manager was not told");
        }
    }
}

/// A path, or with `@` in front a name of Linux' own.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.as_bytes().strip_prefix(b"@") {
        None => socket.connect(address)?,
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => return Err(io::ErrorKind::Unsupported.into()),
    }
    Ok(socket)
}
