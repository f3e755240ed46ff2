//! The only source of time, randomness, retry, tasks and threads: everything else asks here, so that a test can decide them.

mod background;
mod clock;
mod retry;
mod shutdown;
mod supervisor;

pub use background::{Background, processors};
pub use clock::Clock;
pub use retry::{Backoff, RetryPolicy};
pub use shutdown::Shutdown;
pub use supervisor::{Tasks, blocking, make_repeatable, spawn, spawn_if_running};
