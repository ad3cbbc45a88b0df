//! How long steps took: counts between bounds that are 1, 2 and 5 times a power of ten apart.

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// More was plugged after it than before.
    Plug,
    /// Less was plugged.
    Unplug,
    /// Neither.
    Other,
}

/// The lowest bound, in seconds.
const LEAST: f64 = 1e-5;

/// Bars: the first one is below [`LEAST`], the last one above all bounds.
const BARS: usize = 28;

/// Times of one kind of step.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u64; BARS],
    pub count: u64,
    pub least: f64,
    pub most: f64,
    sum: f64,
}

/// A bar: the times between two bounds, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    pub from: f64,
    pub to: f64,
    pub count: u64,
    /// The upper bound is a power of ten.
    pub is_decade: bool,
}

/// Times by kind.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    pub plug: Histogram,
    pub unplug: Histogram,
    pub other: Histogram,
}

impl Latencies {
    pub fn take(&mut self, kind: Kind, seconds: f64) {
        match kind {
            Kind::Plug => self.plug.take(seconds),
            Kind::Unplug => self.unplug.take(seconds),
            Kind::Other => self.other.take(seconds),
        }
    }
}

/// The upper bound of the bar with this index.
fn bound(index: usize) -> f64 {
    let power = i32::try_from(index / 3).unwrap_or(0);
    LEAST * [1.0, 2.0, 5.0][index % 3] * 10_f64.powi(power)
}

impl Histogram {
    fn take(&mut self, seconds: f64) {
        let bar = (0..BARS - 1).find(|bar| seconds < bound(*bar)).unwrap_or(BARS - 1);
        self.counts[bar] += 1;
        self.least = if self.count == 0 { seconds } else { self.least.min(seconds) };
        self.most = self.most.max(seconds);
        self.sum += seconds;
        self.count += 1;
    }

    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    /// The bars from the first to the last one that is not empty.
    pub fn bars(&self) -> Vec<Bar> {
        let Some(first) = self.counts.iter().position(|count| *count > 0) else { return Vec::new() };
        let last = self.counts.iter().rposition(|count| *count > 0).unwrap_or(first);
        let bar = |index: usize| Bar {
            from: if index == 0 { 0.0 } else { bound(index - 1) },
            to: if index == BARS - 1 { self.most } else { bound(index) },
            count: self.counts[index],
            is_decade: index.is_multiple_of(3),
        };
        (first..=last).map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, Histogram, Kind, Latencies};

    #[test]
    fn each_time_is_in_the_bar_around_it() {
        for seconds in [0.0, 1e-6, 0.000_9, 0.001, 0.003, 0.25, 1.0, 59.0, 2999.0, 1e12] {
            let mut histogram = Histogram::default();
            histogram.take(seconds);
            let bars = histogram.bars();
            assert_eq!(bars.len(), 1, "{seconds}");
            assert!(bars[0].from <= seconds + 1e-12 && seconds <= bars[0].to + 1e-12, "{seconds}: {bars:?}");
        }
    }

    #[test]
    fn bars_between_are_shown_though_empty() {
        let mut all = Latencies::default();
        for seconds in [0.003, 0.004, 0.015] {
            all.take(Kind::Plug, seconds);
        }
        all.take(Kind::Other, 7.0);
        let counts: Vec<u64> = all.plug.bars().iter().map(|bar| bar.count).collect();
        assert_eq!(counts, [2, 0, 1]);
        let Bar { from, to, .. } = all.plug.bars()[0];
        assert!((from - 0.002).abs() < 1e-9 && (to - 0.005).abs() < 1e-9);
        assert!((all.plug.mean() - 0.022 / 3.0).abs() < 1e-9);
        assert_eq!((all.plug.least, all.plug.most, all.other.count), (0.003, 0.015, 1));
        assert!(all.unplug.bars().is_empty());
    }
}
