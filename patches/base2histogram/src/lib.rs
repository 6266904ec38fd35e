//! Stands in for base2histogram 0.2 under openraft. That crate fills look-up tables for sixteen precisions, 24 MiB, at the
//! first value it records, and openraft reads one of them, for statistics that nothing here asks for (its feature
//! `runtime-stats` is off). These histograms count and forget, with the same names.
//!
//! Decides nothing; goes when openraft can do without.
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// How many values were recorded, and nothing of what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    total: u64,
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    #[expect(clippy::new_without_default, reason = "the crate it stands in for has no other way either")]
    pub fn new() -> Self {
        Self { total: 0, slots: PhantomData }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, _value: u64, count: u64) {
        self.total += count;
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// All percentiles are zero: values are not kept.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.total, ..PercentileStats::default() }
    }
}

/// What openraft would print of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}]", self.samples)
    }
}

/// A chart of histograms: their names and how much each has counted.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart(Vec<(String, u64)>);

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram.total()));
        self
    }

    /// The same chart: there is no more to tell.
    #[must_use]
    pub fn detailed(self) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, total)| writeln!(f, "{name}: {total}"))
    }
}
