//! What the sizes of a VM add up to: bytes times seconds.
//!
//! Invariant: a size counts from the moment at which it was entered to the next entry.

use std::time::Duration;

use tidevm_abi::Size;

/// Sizes over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The smallest and the largest.
    range: Option<(Size, Size)>,
    last: Option<(Duration, Size)>,
    time: Duration,
    /// In bytes and nanoseconds.
    sum: u128,
}

impl Ledger {
    /// The VM has `size` at `at` and from then on. Times do not go back.
    pub fn enter(&mut self, at: Duration, size: Size) {
        let (least, most) = self.range.unwrap_or((size, size));
        self.range = Some((least.min(size), most.max(size)));
        if let Some((since, before)) = self.last.replace((at, size)) {
            let time = at.saturating_sub(since);
            self.time += time;
            self.sum += u128::from(before.0) * time.as_nanos();
        }
    }

    /// The smallest size and the largest, if there is one.
    pub fn range(&self) -> Option<(Size, Size)> {
        self.range
    }

    /// From the first entry to the last.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Bytes times seconds until the last entry.
    pub fn byte_seconds(&self) -> u64 {
        u64::try_from(self.sum / Duration::from_secs(1).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidevm_abi::Size;

    use super::Ledger;

    #[test]
    fn each_size_counts_until_the_next() {
        let mut ledger = Ledger::default();
        for (millis, bytes) in [(1000, 100), (1500, 1000), (3500, 7), (3500, 0)] {
            ledger.enter(Duration::from_millis(millis), Size(bytes));
        }
        assert_eq!(ledger.range(), Some((Size(0), Size(1000))));
        assert_eq!((ledger.time(), ledger.byte_seconds()), (Duration::from_millis(2500), 50 + 2000));
    }
}
