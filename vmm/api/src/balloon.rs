//! Firecracker's balloon, as far as tidevm's balloon has it: free-page reporting and statistics.
//!
//! Pure. What Firecracker's balloon can do and tidevm's cannot is refused where it is set.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tidevm_machine::{BalloonConfig, BalloonStats};

use crate::body::Balloon;

/// A target size, which tidevm's balloon never has.
pub const INFLATED: &str = "a balloon that is inflated (amount_mib other than 0)";

/// What a balloon that is to be made has and tidevm's has not.
pub fn missing(balloon: &Balloon) -> Option<&'static str> {
    let asked = [
        (balloon.amount_mib != 0, INFLATED),
        (balloon.deflate_on_oom, "deflate_on_oom: true"),
        (balloon.free_page_hinting, "free_page_hinting: true"),
    ];
    asked.iter().find(|(asked, _)| *asked).map(|(_, what)| *what)
}

/// The device to make. A balloon that does nothing needs none.
pub fn config(balloon: &Balloon) -> Option<BalloonConfig> {
    let seconds = Some(balloon.stats_polling_interval_s).filter(|&seconds| seconds > 0);
    let stats_interval = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    let config = BalloonConfig { reporting: balloon.free_page_reporting, stats_interval };
    config.validate().ok().map(|()| config)
}

/// A device in Firecracker's words.
pub fn of(config: BalloonConfig) -> Balloon {
    Balloon {
        stats_polling_interval_s: config.stats_interval.map_or(0, seconds),
        free_page_reporting: config.reporting,
        ..Balloon::default()
    }
}

/// Whole seconds: at least one, because no interval is zero.
pub fn seconds(interval: Duration) -> u16 {
    u16::try_from(interval.as_secs_f64().ceil() as u64).unwrap_or(u16::MAX)
}

/// The answer of `GET /balloon/statistics`. Statistics that the guest does not give are left out, as in Firecracker.
pub fn statistics(stats: Option<(BalloonStats, Duration)>) -> Value {
    let mut answer = Map::new();
    for field in ["target_pages", "actual_pages", "target_mib", "actual_mib"] {
        answer.insert(field.to_owned(), json!(0));
    }
    if let Some((stats, age)) = stats {
        let fields = [
            ("swap_in", stats.swap_in),
            ("swap_out", stats.swap_out),
            ("major_faults", stats.major_faults),
            ("minor_faults", stats.minor_faults),
            ("free_memory", stats.free),
            ("total_memory", stats.total),
            ("available_memory", stats.available),
            ("disk_caches", stats.caches),
            ("hugetlb_allocations", stats.hugetlb_allocations),
            ("hugetlb_failures", stats.hugetlb_failures),
            ("oom_kill", stats.oom_kills),
            ("alloc_stall", stats.alloc_stalls),
            ("async_scan", stats.async_scans),
            ("direct_scan", stats.direct_scans),
            ("async_reclaim", stats.async_reclaims),
            ("direct_reclaim", stats.direct_reclaims),
        ];
        for (field, value) in fields {
            answer.extend(value.map(|value| (field.to_owned(), json!(value))));
        }
        answer.insert("age_ms".to_owned(), json!(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    }
    answer.into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_only_firecracker_can_do_is_missing() {
        let none = Balloon::default();
        assert_eq!((missing(&none), config(&none)), (None, None));
        let cases = [
            (Balloon { amount_mib: 1, ..none }, "(amount_mib other than 0)"),
            (Balloon { deflate_on_oom: true, ..none }, "deflate_on_oom: true"),
            (Balloon { free_page_hinting: true, ..none }, "free_page_hinting: true"),
        ];
        for (balloon, what) in cases {
            assert!(missing(&balloon).is_some_and(|missing| missing.ends_with(what)), "{balloon:?}");
        }
    }

    #[test]
    fn a_balloon_is_a_device_and_back() {
        for (reporting, seconds) in [(true, 0), (false, 1), (true, u16::MAX)] {
            let balloon = Balloon {
                free_page_reporting: reporting,
                stats_polling_interval_s: seconds,
                ..Balloon::default()
            };
            assert_eq!(of(config(&balloon).unwrap()), balloon);
        }
        assert_eq!([1, 999, 1000, 1001].map(|millis| seconds(Duration::from_millis(millis))), [1, 1, 1, 2]);
    }

    #[test]
    fn statistics_that_are_not_given_are_left_out() {
        assert_eq!(
            statistics(None),
            json!({ "target_pages": 0, "actual_pages": 0, "target_mib": 0, "actual_mib": 0 })
        );
        let stats =
            BalloonStats { free: Some(7), direct_reclaims: Some(0), ..BalloonStats::none(Instant::now()) };
        let answer = statistics(Some((stats, Duration::from_millis(9))));
        assert_eq!(
            (&answer["free_memory"], &answer["direct_reclaim"], &answer["age_ms"]),
            (&json!(7), &json!(0), &json!(9))
        );
        assert_eq!(answer.as_object().unwrap().len(), 7);
    }
}
