//! Two signals: the first begins a stop, the second ends everything. In a process of its own, which watches for both.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use nix::sys::signal::{Signal, raise};
use seawall::commands::signals;
use seawall::runtime::Shutdown;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_first_signal_stops_and_the_second_kills() {
    let shutdown = Shutdown::default();
    let _watch = signals::watch(shutdown.clone()).expect("watch for signals");

    raise(Signal::SIGTERM).expect("send it to ourselves");
    tokio::time::timeout(DEADLINE, shutdown.stop.cancelled()).await.expect("SIGTERM begins a stop");
    assert!(!shutdown.kill.is_cancelled(), "one signal must let it finish");

    raise(Signal::SIGINT).expect("send it to ourselves");
    tokio::time::timeout(DEADLINE, shutdown.kill.cancelled()).await.expect("a second signal, of either kind, ends it");
}
