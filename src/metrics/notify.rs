//! Who was told what is wrong, and who was not.

use super::Metrics;
use super::registry::{Builder, count_to};
use crate::error::Result;
use prometheus::IntCounterVec;

pub(super) struct Notify {
    sent: IntCounterVec,
}

impl Notify {
    pub(super) fn register(build: &mut Builder) -> Result<Notify> {
        Ok(Notify {
            sent: build.counters(
                "seawall_notifications_total",
                &["receiver", "result"],
                "Messages to each receiver that is configured (`webhook`, `slack`, `pagerduty`), by what became of them: \
                 `delivered`; `failed`, refused or not answered for ten minutes; `dropped`, because too many waited.",
            )?,
        })
    }
}

impl Metrics {
    /// What became of so many messages to this receiver, since the start of the process. The names must come from small fixed sets.
    pub fn count_notifications(&self, receiver: &'static str, result: &'static str, total: u64) {
        let counter = self.0.notify.sent.with_label_values(&[receiver, result]);
        count_to(&counter, total);
    }
}
