//! How long to wait before trying again, and when to stop.

use std::time::Duration;

/// Bounds on a retried operation.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The first pause; each following one is twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// No attempt starts later than this after the first one; `None`: try for ever.
    pub budget: Option<Duration>,
}

impl RetryPolicy {
    /// For one operation on a store: half a minute, then the caller decides.
    pub const STORE: RetryPolicy = RetryPolicy {
        first_pause: Duration::from_millis(100),
        longest_pause: Duration::from_secs(5),
        budget: Some(Duration::from_secs(30)),
    };

    /// For a connection to a server: for ever, capped.
    pub const RECONNECT: RetryPolicy =
        RetryPolicy { first_pause: Duration::from_millis(250), longest_pause: Duration::from_secs(15), budget: None };
}

/// The pauses of one retried operation: doubling, capped, each between half and all of its length by chance, so that
/// many clients do not come back at one instant.
#[derive(Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    pause: Duration,
}

impl Backoff {
    /// Starts with the policy's first pause.
    pub fn new(policy: RetryPolicy) -> Backoff {
        Backoff { policy, pause: policy.first_pause }
    }

    /// The length of the next pause.
    #[allow(clippy::disallowed_methods)] // the one place that may
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.policy.longest_pause);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Begins again with the first pause: things went well for a while.
    pub fn reset(&mut self) {
        self.pause = self.policy.first_pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(RetryPolicy::RECONNECT);
        for _ in 0..20 {
            assert!(backoff.next_pause() <= RetryPolicy::RECONNECT.longest_pause);
        }
        assert!(backoff.next_pause() >= RetryPolicy::RECONNECT.longest_pause / 2);
        backoff.reset();
        assert!(backoff.next_pause() <= RetryPolicy::RECONNECT.first_pause);
    }
}
