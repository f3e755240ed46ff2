//! How far a long command is: a bar on a terminal, elsewhere a log line now and then. Uses `print`.

use super::print;
use indicatif::{ProgressBar, ProgressStyle};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the lines are logged as: they are shown also where other news is not.
pub const TARGET: &str = "seawall::progress";

/// Between two looks of the bar.
const BAR_PAUSE: Duration = Duration::from_millis(100);

/// Between two lines: a backup of a night has a few thousand.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// What is being done.
    pub(super) what: &'static str,
    pub(super) done_bytes: u64,
    /// As far as that is known.
    pub(super) total_bytes: u64,
}

/// Shows it until it is dropped.
pub(super) async fn show<P>(progress: watch::Receiver<P>, step: impl Fn(&P) -> Step) -> Infallible {
    match std::io::stderr().is_terminal() {
        true => bar(progress, step).await,
        false => lines(progress, step).await,
    }
    // What it watched has ended, and says so itself.
    std::future::pending().await
}

async fn bar<P>(mut progress: watch::Receiver<P>, step: impl Fn(&P) -> Step) {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    while progress.changed().await.is_ok() {
        let now = step(&progress.borrow_and_update());
        bar.set_message(now.what);
        bar.set_length(now.total_bytes.max(now.done_bytes));
        bar.set_position(now.done_bytes);
        tokio::time::sleep(BAR_PAUSE).await;
    }
    bar.finish_and_clear();
}

async fn lines<P>(progress: watch::Receiver<P>, step: impl Fn(&P) -> Step) {
    let (mut before, mut looked) = (step(&progress.borrow()), Instant::now());
    while progress.has_changed().is_ok() {
        tokio::time::sleep(LINE_PAUSE).await;
        let now = step(&progress.borrow());
        let pace = Pace::of(before, now, looked.elapsed());
        tracing::info!(
            target: TARGET,
            done = print::size(now.done_bytes),
            of = print::size(now.total_bytes.max(now.done_bytes)),
            per_second = print::size(pace.bytes_per_second),
            remaining = pace.remaining.map_or_else(|| "unknown".to_owned(), print::duration),
            "{}",
            now.what
        );
        (before, looked) = (now, Instant::now());
    }
}

/// Since the line before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pace {
    bytes_per_second: u64,
    /// At this pace; `None` while nothing moves.
    remaining: Option<Duration>,
}

impl Pace {
    fn of(before: Step, now: Step, took: Duration) -> Pace {
        let bytes = now.done_bytes.saturating_sub(before.done_bytes);
        let bytes_per_second = (bytes as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)) as u64;
        let left = now.total_bytes.saturating_sub(now.done_bytes);
        Pace { bytes_per_second, remaining: left.checked_div(bytes_per_second).map(Duration::from_secs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_remains_is_what_is_left_at_the_last_pace() {
        let step = |done_bytes| Step { what: "copying", done_bytes, total_bytes: 1000 };
        let ten = Duration::from_secs(10);
        let expected = Pace { bytes_per_second: 20, remaining: Some(Duration::from_secs(35)) };
        assert_eq!(Pace::of(step(100), step(300), ten), expected);
        assert_eq!(Pace::of(step(300), step(300), ten), Pace { bytes_per_second: 0, remaining: None }, "it stands");
        assert_eq!(Pace::of(step(900), step(1100), ten).remaining, Some(Duration::ZERO), "more than was expected");
    }
}
