//! Metric families for the text format, from names and sums.

use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::histogram::HistogramSum;
use crate::telemetry::names;

/// The samples of one metric.
pub(super) struct Family {
    definition: names::Metric,
    kind: MetricType,
    samples: Vec<Metric>,
}

impl Family {
    pub(super) fn counter(definition: names::Metric) -> Self {
        Self { definition, kind: MetricType::COUNTER, samples: Vec::new() }
    }

    pub(super) fn gauge(definition: names::Metric) -> Self {
        Self { definition, kind: MetricType::GAUGE, samples: Vec::new() }
    }

    pub(super) fn histogram(definition: names::Metric) -> Self {
        Self { definition, kind: MetricType::HISTOGRAM, samples: Vec::new() }
    }

    /// Adds a sample; `labels` are the values in the order of the definition.
    pub(super) fn add(&mut self, labels: &[&str], value: f64) {
        let mut sample = self.sample(labels);
        if self.kind == MetricType::GAUGE {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        } else {
            let mut counter = Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        }
        self.samples.push(sample);
    }

    /// Adds a sample unless it is zero: of many possible label values only those that occurred are shown.
    pub(super) fn add_counted(&mut self, labels: &[&str], value: u64) {
        if value > 0 {
            self.add(labels, value as f64);
        }
    }

    /// Adds a histogram that shows these of its bounds.
    pub(super) fn add_histogram(&mut self, labels: &[&str], sum: &HistogramSum, bounds: &[u64]) {
        let buckets = sum.cumulative(bounds).map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound as f64 / 1e9);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(sum.count());
        histogram.set_sample_sum(sum.sum_nanos as f64 / 1e9);
        let mut sample = self.sample(labels);
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    /// Adds a histogram from counts of its own bounds: so many were no longer than each, and longer than the one
    /// before.
    pub(super) fn add_counts(&mut self, bounds: &[Duration], counts: &[u64], sum: Duration) {
        let mut count = 0;
        let buckets = bounds.iter().zip(counts).map(|(bound, within)| {
            count += within;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum.as_secs_f64());
        let mut sample = self.sample(&[]);
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    /// Nothing when no sample was added: a family without samples has no place in the text format.
    pub(super) fn finish(self) -> Option<MetricFamily> {
        if self.samples.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.definition.name.to_owned());
        family.set_help(self.definition.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(self.samples);
        Some(family)
    }

    fn sample(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(values.len(), self.definition.labels.len(), "{}", self.definition.name);
        let pairs = self.definition.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
    }
}
