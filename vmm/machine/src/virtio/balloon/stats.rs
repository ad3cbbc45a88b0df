//! Statistics as a driver writes them, and the wish for new ones.
//!
//! Mirrors virtio 1.3, section 5.5.6.3: 10 bytes for each, a tag and a value. Unknown tags are skipped, as later
//! versions add some.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::state::BalloonStats;

/// Bytes of one statistic.
const SIZE: usize = 10;

/// Bytes of statistics that are read: a driver gives each tag once, and there are 16.
pub(super) const MAX_BYTES: usize = 64 * SIZE;

/// Reads the statistics that came at `at`. A part of one at the end is none. Of a tag that is there twice, the last
/// value counts.
pub(super) fn parse(bytes: &[u8], at: Instant) -> BalloonStats {
    let mut stats = BalloonStats::none(at);
    for statistic in bytes.chunks_exact(SIZE) {
        let (tag, value) = statistic.split_at(2);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if let Some(field) = field(&mut stats, number(tag)) {
            *field = Some(number(value));
        }
    }
    stats
}

/// The place of the statistic with this tag.
fn field(stats: &mut BalloonStats, tag: u64) -> Option<&mut Option<u64>> {
    Some(match tag {
        0 => &mut stats.swap_in,
        1 => &mut stats.swap_out,
        2 => &mut stats.major_faults,
        3 => &mut stats.minor_faults,
        4 => &mut stats.free,
        5 => &mut stats.total,
        6 => &mut stats.available,
        7 => &mut stats.caches,
        8 => &mut stats.hugetlb_allocations,
        9 => &mut stats.hugetlb_failures,
        10 => &mut stats.oom_kills,
        11 => &mut stats.alloc_stalls,
        12 => &mut stats.async_scans,
        13 => &mut stats.direct_scans,
        14 => &mut stats.async_reclaims,
        15 => &mut stats.direct_reclaims,
        _ => return None,
    })
}

/// The wish for new statistics, from any thread to the event loop. Wishing waits for nothing.
#[derive(Debug)]
pub(crate) struct Asks {
    wanted: AtomicBool,
    interval_millis: AtomicU64,
    kick: EventFd,
}

impl Asks {
    /// No wish; statistics are asked for every `interval`. `kick` wakes the event loop.
    pub(super) fn new(interval: Duration, kick: EventFd) -> Self {
        let (wanted, interval_millis) = (AtomicBool::new(false), AtomicU64::new(millis(interval)));
        Self { wanted, interval_millis, kick }
    }

    /// Asks for new statistics.
    pub(crate) fn ask(&self) {
        self.wanted.store(true, Ordering::Release);
        self.wake();
    }

    /// Takes the wish.
    pub(super) fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// How often statistics are asked for.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_millis.load(Ordering::Acquire))
    }

    /// Changes how often statistics are asked for.
    pub(crate) fn set_interval(&self, interval: Duration) {
        self.interval_millis.store(millis(interval), Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let result: io::Result<()> = self.kick.write(1);
        // Fails only when the counter is full. The event is pending then.
        if let Err(error) = result {
            log::debug!("event: {error}");
        }
    }
}

fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::parse;
    use crate::state::BalloonStats;

    fn statistic(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn statistics_are_read_by_their_tags() {
        let at = Instant::now();
        let mut bytes = [statistic(4, 1 << 40), statistic(77, 1), statistic(15, 9), statistic(4, 3)].concat();
        let expected = BalloonStats { free: Some(3), direct_reclaims: Some(9), ..BalloonStats::none(at) };
        assert_eq!(parse(&bytes, at), expected);
        bytes.extend(&statistic(5, 1)[..9]);
        assert_eq!(parse(&bytes, at), expected, "a part of a statistic is none");
        assert_eq!(parse(&[], at), BalloonStats::none(at));
    }

    #[test]
    fn each_tag_has_a_place_of_its_own() {
        let at = Instant::now();
        let each: Vec<_> = (0..16).map(|tag| parse(&statistic(tag, 1), at)).collect();
        for (index, stats) in each.iter().enumerate() {
            assert_ne!(*stats, BalloonStats::none(at), "tag {index}");
            assert!(!each[..index].contains(stats), "tag {index}");
        }
    }
}
