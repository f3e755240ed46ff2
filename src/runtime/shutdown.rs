//! Two tokens for two signals: stop taking more, and drop what is left.

use tokio_util::sync::CancellationToken;

/// Told to everything that runs. Tokens are level-triggered: who looks late still sees them.
#[derive(Clone, Default, Debug)]
pub struct Shutdown {
    /// Take no more, finish what was taken. The first SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// Leave at once. The second signal.
    pub kill: CancellationToken,
}

impl Shutdown {
    /// Begins an orderly stop.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Ends everything at once.
    pub fn begin_kill(&self) {
        self.stop.cancel();
        self.kill.cancel();
    }
}
