//! What the service manager is told while `run` runs, as systemd wants it (`man 3 sd_notify`): that it is up, how it is
//! doing, that its archivers make turns, that it stops. Uses `runtime`.

use super::view::{Look, summary};
use crate::runtime::Shutdown;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often it is told how things are, where it watches us less closely.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How often it is looked whether somebody is ready now, or no longer.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A cluster that has not begun for so long, because its store does not answer, does not keep the others from being up.
const BEGINNING_MAX: Duration = Duration::from_secs(45);

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

    /// Says that it is up, once all have begun, then how they are doing, for ever; may be dropped at any time. `look` says what
    /// is seen of each cluster. An archiver that streams and makes no turn for as long as the watchdog is patient hangs. One among
    /// others that make theirs is named in the log, for ending the process would end those; where all that stream hang, the process
    /// is no longer vouched for. While one waits for a server or as a spare it has no turns to make, and that this task runs is all
    /// that can be said.
    pub(super) async fn follow(self, look: impl Fn() -> Vec<(String, Look)>, shutdown: Shutdown) {
        let beat = self.watchdog.map_or(STATUS_INTERVAL, |watchdog| (watchdog / 3).min(STATUS_INTERVAL));
        let mut looks = interval(beat.min(LOOK_INTERVAL));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        let (mut next_beat, mut is_up, mut is_stopping, mut told) = (begun, false, false, None);
        // Of each: when it made its last turn, how many it had made then, and whether it was said that it hangs.
        let mut turns: Vec<(Instant, u64, bool)> = Vec::new();
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = shutdown.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.tell("STOPPING=1");
                }
            }
            let (seen, now) = (look(), Instant::now());
            turns.resize(seen.len(), (now, 0, false));
            for (turns, (_, look)) in turns.iter_mut().zip(&seen) {
                if look.turns != Some(turns.1) {
                    *turns = (now, look.turns.unwrap_or_default(), false);
                }
            }
            let have_begun = match &seen[..] {
                // One that is alone and fails at its start is never up.
                [(_, only)] => only.has_run,
                all => all.iter().all(|(_, look)| look.has_started) || begun.elapsed() > BEGINNING_MAX,
            };
            if have_begun && !std::mem::replace(&mut is_up, true) {
                self.tell("READY=1");
            }
            let (health, is_beat) = (summary(&seen), now >= next_beat);
            // Positions change all the time: they are told with the next beat.
            if is_beat || told != Some(health.ready) {
                told = Some(health.ready);
                self.tell(&format!("STATUS={}", health.reason.replace('\n', " ")));
            }
            if is_beat {
                next_beat = now + beat;
                if self.watchdog.is_some_and(|watchdog| is_alive(&seen, &mut turns, watchdog)) {
                    self.tell("WATCHDOG=1");
                }
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

/// True if nobody streams, or one that does makes turns. Says of each that hangs, once.
fn is_alive(seen: &[(String, Look)], turns: &mut [(Instant, u64, bool)], watchdog: Duration) -> bool {
    let (mut streaming, mut hanging) = (0, 0);
    for ((last, _, is_told), (cluster, _)) in turns.iter_mut().zip(seen).filter(|(_, (_, look))| look.turns.is_some()) {
        let hangs = last.elapsed() >= watchdog;
        (streaming, hanging) = (streaming + 1, hanging + usize::from(hangs));
        if hangs && !std::mem::replace(is_told, true) {
            let seconds = last.elapsed().as_secs();
            tracing::error!(%cluster, seconds, "the archiver hangs: it streams, and has done nothing for so long");
        }
    }
    streaming == 0 || hanging < streaming
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Health;
    use std::collections::BTreeMap;
    use tokio::sync::watch;

    /// How often systemd was told that it lives, since the last look.
    fn signs_of_life(socket: &UnixDatagram) -> usize {
        let mut buffer = [0; 4096];
        let told = std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
        told.filter(|what| what == b"WATCHDOG=1").count()
    }

    #[tokio::test(start_paused = true)]
    async fn an_archiver_that_streams_is_vouched_for_as_long_as_it_makes_turns() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let variables = BTreeMap::from([
            ("NOTIFY_SOCKET", path.into_os_string()),
            ("WATCHDOG_USEC", OsString::from("30000000")),
            ("WATCHDOG_PID", OsString::from(std::process::id().to_string())),
        ]);
        let manager = ServiceManager::find(&|name| variables.get(name).cloned()).unwrap();
        // Given three, of which one waits for its server all the time
        let (turns, watched) = watch::channel(None);
        let (others, other) = watch::channel(None);
        let look = move || {
            let one = |turns| {
                let health = Health { ready: true, reason: "well".to_owned() };
                ("main".to_owned(), Look { health, has_started: true, has_run: true, turns })
            };
            vec![one(None), one(*watched.borrow()), one(*other.borrow())]
        };
        let mut tasks = crate::runtime::Tasks::default();
        tasks.start(manager.follow(look, Shutdown::default()));
        // The socket holds a few datagrams only.
        let lives = async |seconds: u32, makes_turns: bool| {
            let mut signs = 0;
            for _ in 0..seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if makes_turns {
                    turns.send_modify(|turns| *turns = turns.map(|turns: u64| turns + 1));
                }
                others.send_modify(|turns| *turns = turns.map(|turns: u64| turns + 1));
                signs += signs_of_life(&socket);
            }
            signs
        };
        // Given that the other waits for its server for minutes too: it lives
        assert!(lives(300, false).await >= 29);
        // and one that streams
        turns.send_replace(Some(0));
        assert!(lives(60, true).await >= 5);
        // When it makes no turn any more, then nobody says that it lives
        lives(31, false).await;
        assert_eq!(lives(300, false).await, 0);
        // until it does again
        assert!(lives(15, true).await > 0);
        // And where it hangs beside one that makes its turns, that one is not ended with it
        others.send_replace(Some(0));
        lives(31, false).await;
        assert!(lives(300, false).await >= 29);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_at_its_start_was_never_up_but_where_there_are_others() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        for (clusters, is_up) in [(1, false), (2, true)] {
            let path = path.clone().into_os_string();
            let manager = ServiceManager::find(&|name| (name == "NOTIFY_SOCKET").then(|| path.clone())).unwrap();
            let look = move || {
                let health = Health { ready: false, reason: "has ended".to_owned() };
                let failed = Look { health, has_started: true, has_run: false, turns: None };
                (0..clusters).map(|_| ("main".to_owned(), failed.clone())).collect()
            };
            let _ = tokio::time::timeout(Duration::from_secs(5), manager.follow(look, Shutdown::default())).await;
            let mut buffer = [0; 4096];
            let told: Vec<_> =
                std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect();
            assert_eq!(told.iter().any(|what| what == b"READY=1"), is_up, "of {clusters}");
        }
    }

    #[tokio::test]
    async fn a_watchdog_of_another_process_is_none_of_ours() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let find = |pid: &str| {
            let variables = BTreeMap::from([
                ("NOTIFY_SOCKET", path.clone().into_os_string()),
                ("WATCHDOG_USEC", OsString::from("30000000")),
                ("WATCHDOG_PID", OsString::from(pid)),
            ]);
            ServiceManager::find(&|name| variables.get(name).cloned()).unwrap().watchdog
        };
        assert_eq!(find("1"), None);
        assert_eq!(find(&std::process::id().to_string()), Some(Duration::from_secs(30)));
        assert!(ServiceManager::find(&|_| None).is_none(), "nobody asked");
    }
}
