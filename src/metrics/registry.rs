//! How a metric comes to be: registered, remembered for the documentation, and set.

use super::Definition;
use crate::error::{Error, Kind, Result};
use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Registers metrics and remembers what they are.
pub(super) struct Builder {
    pub(super) registry: Registry,
    pub(super) definitions: Vec<Definition>,
}

impl Builder {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        definition: Definition,
        metric: prometheus::Result<C>,
    ) -> Result<C> {
        let bad = |error| Error::new(Kind::Internal, format!("metric {}", definition.name)).because(error);
        let metric = metric.map_err(bad)?;
        self.registry.register(Box::new(metric.clone())).map_err(bad)?;
        self.definitions.push(definition);
        Ok(metric)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Result<Gauge> {
        self.add(Definition { name, kind: "gauge", labels: &[], help }, Gauge::new(name, help))
    }

    pub(super) fn int_gauge(&mut self, name: &'static str, help: &'static str) -> Result<IntGauge> {
        self.add(Definition { name, kind: "gauge", labels: &[], help }, IntGauge::new(name, help))
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Result<IntCounter> {
        self.add(Definition { name, kind: "counter", labels: &[], help }, IntCounter::new(name, help))
    }

    pub(super) fn counters(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Result<IntCounterVec> {
        let definition = Definition { name, kind: "counter", labels, help };
        self.add(definition, IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Absent until they are set.
    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Result<GaugeVec> {
        let definition = Definition { name, kind: "gauge", labels, help };
        self.add(definition, GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&mut self, name: &'static str, bounds: &[f64], help: &'static str) -> Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add(Definition { name, kind: "histogram", labels: &[], help }, Histogram::with_opts(options))
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        bounds: &[f64],
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add(Definition { name, kind: "histogram", labels, help }, HistogramVec::new(options, labels))
    }
}

/// Totals are counted elsewhere; a counter only follows.
pub(super) fn count_to(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Gauges are signed; nothing counted here gets beyond.
pub(super) fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Unix time.
pub(super) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

/// 1 or 0.
pub(super) fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A gauge that is absent while its value is not known.
pub(super) fn show(gauge: &GaugeVec, value: Option<f64>) {
    match value {
        Some(value) => gauge.with_label_values::<&str>(&[]).set(value),
        None => gauge.reset(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_the_signed_range_stays_at_its_end() {
        assert_eq!(whole(u64::MAX), i64::MAX);
    }
}
