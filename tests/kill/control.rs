//! How late this machine is: a control that does next to nothing and should never wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(40);

/// What a look takes of the processor.
const WORK: Duration = Duration::from_millis(1);

/// Looks that are remembered: about ten seconds.
const LOOKS: usize = 250;

/// A thread that sleeps and works a little, and measures how much longer than that it took.
pub(crate) struct Control {
    late: Arc<Mutex<VecDeque<Duration>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    pub(crate) fn start() -> Control {
        let (late, stop) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(AtomicBool::new(false)));
        let (writing, stopped) = (Arc::clone(&late), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let rounds = rounds_of_work();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(PAUSE);
                work(rounds);
                let mut late = writing.lock().unwrap();
                late.push_back(begun.elapsed().saturating_sub(PAUSE + WORK));
                if late.len() > LOOKS {
                    late.pop_front();
                }
            }
        });
        Control { late, stop, thread: Some(thread) }
    }

    /// The worst of the last ten seconds.
    pub(crate) fn worst(&self) -> Duration {
        self.late.lock().unwrap().iter().max().copied().unwrap_or_default()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// How often the loop goes round in [`WORK`], by the best of some trials.
fn rounds_of_work() -> u64 {
    const TRIAL: u64 = 20_000;
    let trial = || {
        let begun = Instant::now();
        work(TRIAL);
        begun.elapsed()
    };
    let best = (0..20).map(|_| trial()).min().unwrap().max(Duration::from_nanos(1));
    (TRIAL as f64 * WORK.as_secs_f64() / best.as_secs_f64()) as u64
}

fn work(rounds: u64) {
    let mut state = 1u64;
    for round in 0..rounds {
        state = std::hint::black_box(state.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ round);
    }
}
