//! Threads for CPU work for which nobody waits yet. They have a lower priority than those that serve sockets: on a machine
//! with few processors a reader that has to wait for a time slice keeps the server that it reads from waiting too, and
//! then a processor has nothing to do.

use super::supervisor::is_in_place;
use crate::error::{Error, Kind, Result};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use tokio::sync::oneshot;
use tracing::Span;

/// How much lower their priority is than the process's (`man 7 sched`, "The nice value"): about a tenth of the time where
/// others want all of it, and not next to nothing, for WAL has to be compressed on a busy machine as well.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

type Work = Box<dyn FnOnce() + Send>;

/// Work that was handed over.
#[derive(Debug)]
pub struct Background(oneshot::Receiver<()>);

impl Background {
    /// Has `work` done soon, or does it at once where the system has no threads for it. Nobody needs to wait for it; it is
    /// done to its end in any case. CPU work only.
    pub fn start(work: impl FnOnce() + Send + 'static) -> Background {
        let (sender, done) = oneshot::channel();
        let span = Span::current();
        let work = move || {
            span.in_scope(work);
            // Nobody needs to wait.
            let _ = sender.send(());
        };
        match if is_in_place() { None } else { threads() } {
            Some(threads) => {
                // Threads end with the process.
                let _ = threads.send(Box::new(work));
            }
            None => work(),
        }
        Background(done)
    }

    /// Waits until it is done.
    ///
    /// # Errors
    /// If it panicked; the panic's text is on standard error.
    pub async fn done(self) -> Result<()> {
        self.0.await.map_err(|error| Error::new(Kind::Internal, "work in the background did not finish").because(error))
    }
}

/// How many processors there are for us; one if the system does not say.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Where work is handed over; `None` if the system has no thread for us.
fn threads() -> Option<&'static mpsc::Sender<Work>> {
    static THREADS: OnceLock<Option<mpsc::Sender<Work>>> = OnceLock::new();
    THREADS.get_or_init(start_threads).as_ref()
}

fn start_threads() -> Option<mpsc::Sender<Work>> {
    let (sender, work) = mpsc::channel::<Work>();
    let work = Arc::new(Mutex::new(work));
    let started = (0..processors()).filter(|_| {
        let work = work.clone();
        let thread = std::thread::Builder::new().name("seawall-cpu".to_owned());
        thread.spawn(move || work_for_ever(&work)).is_ok()
    });
    (started.count() > 0).then_some(sender)
}

fn work_for_ever(work: &Mutex<mpsc::Receiver<Work>>) {
    #[cfg(target_os = "linux")]
    {
        // Of this thread alone, on Linux; the system cuts it at 19. One that may not have it goes on as it is.
        let process = rustix::process::getpriority_process(None).unwrap_or(0);
        let _ = rustix::process::setpriority_process(None, process + NICENESS);
    }
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(next) = next else { return };
        // Whoever waits hears of the panic; the thread goes on.
        let _ = catch_unwind(AssertUnwindSafe(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_handed_over_is_done_and_a_panic_is_told_to_whoever_waits() {
        // Given more panics than there are threads
        for _ in 0..2 * processors() {
            let error = Background::start(|| panic!("on purpose")).done().await.unwrap_err();
            assert_eq!(error.kind(), Kind::Internal, "{error}");
        }
        // When more work comes, then it is done nevertheless
        let (sender, done) = oneshot::channel();
        Background::start(move || sender.send(7).unwrap()).done().await.unwrap();
        assert_eq!(done.await, Ok(7));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn it_gives_way_to_what_serves_sockets() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let ours = niceness();
        let (sender, theirs) = oneshot::channel();
        Background::start(move || sender.send(niceness()).unwrap()).done().await.unwrap();
        let theirs = theirs.await.unwrap();
        assert!(theirs > ours || theirs == 19, "its niceness is {theirs}, ours {ours}");
        assert_eq!(niceness(), ours, "ours has changed");
    }
}
