//! How long WAL waits from its receipt until it is stored without a gap, for the metrics. Of what came together one
//! moment is kept, and nothing is done for a message but to look at the clock's last reading.

use crate::metrics::DurableLatency;
use crate::wal::Lsn;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// What comes closer together than this counts as one, from its first byte on.
const GRAIN: Duration = Duration::from_millis(2);

/// So many moments are kept while the store takes nothing: two seconds of them, then what comes counts with the last.
const MOMENTS_MAX: usize = 1024;

/// The moments at which something came that is not durable yet.
#[derive(Debug)]
pub(super) struct Latency {
    told: DurableLatency,
    /// When the first byte came, and where those end that came with it.
    waiting: VecDeque<(Instant, Lsn)>,
}

impl Latency {
    /// Tells this one.
    pub(super) fn new(told: DurableLatency) -> Latency {
        Latency { told, waiting: VecDeque::new() }
    }

    /// WAL up to `end` has come.
    pub(super) fn received(&mut self, end: Lsn, now: Instant) {
        let is_full = self.waiting.len() >= MOMENTS_MAX;
        match self.waiting.back_mut() {
            Some((since, last)) if is_full || now.duration_since(*since) < GRAIN => *last = (*last).max(end),
            _ => self.waiting.push_back((now, end)),
        }
    }

    /// WAL up to `durable` is stored.
    pub(super) fn stored(&mut self, durable: Lsn, now: Instant) {
        while let Some(&(since, end)) = self.waiting.front()
            && end <= durable
        {
            self.told.observe(now.duration_since(since));
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn latency() -> (Metrics, Latency) {
        let metrics = Metrics::new("main").unwrap();
        let latency = Latency::new(metrics.durable_latency());
        (metrics, latency)
    }

    fn value(metrics: &Metrics, name: &str) -> String {
        let text = metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("seawall_commit_durable_seconds_{name}{{")));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    }

    #[test]
    fn what_came_together_waits_from_its_first_byte_until_its_last_is_stored() {
        let (metrics, mut latency) = latency();
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        latency.received(Lsn(100), after(0));
        latency.received(Lsn(200), after(1));
        latency.received(Lsn(300), after(500));
        latency.stored(Lsn(199), after(600));
        assert_eq!(value(&metrics, "count"), "0", "not all of the first is stored");
        latency.stored(Lsn(250), after(1000));
        assert_eq!((value(&metrics, "count"), value(&metrics, "sum")), ("1".into(), "1".into()));
        latency.stored(Lsn(300), after(1500));
        assert_eq!((value(&metrics, "count"), value(&metrics, "sum")), ("2".into(), "2".into()));
    }

    #[test]
    fn a_store_that_takes_nothing_costs_no_memory_and_no_wait_is_lost() {
        let (metrics, mut latency) = latency();
        let begun = Instant::now();
        for second in 0..100_000 {
            latency.received(Lsn(second + 1), begun + Duration::from_secs(second));
        }
        assert_eq!(latency.waiting.len(), MOMENTS_MAX);
        latency.stored(Lsn(99_999), begun + Duration::from_secs(100_000));
        assert_eq!(value(&metrics, "count"), (MOMENTS_MAX - 1).to_string(), "the last byte is not stored");
        latency.stored(Lsn(100_000), begun + Duration::from_secs(100_000));
        assert_eq!(value(&metrics, "count"), MOMENTS_MAX.to_string());
    }
}
