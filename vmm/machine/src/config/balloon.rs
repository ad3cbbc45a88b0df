//! The virtio-balloon device in the description of a VM.
//!
//! The words are Firecracker's (`free_page_reporting`, `stats_polling_interval_s`) and QEMU's
//! (`free-page-reporting=on`). Differs on purpose: the balloon is never inflated, because virtio-mem resizes a machine.

use std::str::FromStr;
use std::time::Duration;

use tidevm_abi::{ShowDuration, parse_duration};

/// Longest interval between two statistics: that of Firecracker's field, which has 16 bits.
pub const MAX_STATS_INTERVAL: Duration = Duration::from_secs(u16::MAX as u64);

/// Least interval between two statistics. A driver gathers them each time.
pub const MIN_STATS_INTERVAL: Duration = Duration::from_millis(100);

/// A virtio-balloon device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest reports memory that is free, and the host takes it back.
    pub reporting: bool,
    /// The guest gives statistics each time this has passed, from [`MIN_STATS_INTERVAL`] to [`MAX_STATS_INTERVAL`].
    /// When absent, the device has no statistics.
    pub stats_interval: Option<Duration>,
}

/// Why a [`BalloonConfig`] is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// A word of a description is none that there is, or is there twice.
    #[error("`{0}` is not one of reporting and stats=INTERVAL (such as stats=1s), each given once")]
    Word(String),
    /// The device would do nothing.
    #[error("--balloon: needs reporting, stats=INTERVAL or both")]
    Nothing,
    /// The interval is too short or too long.
    #[error(
        "--balloon stats={}: the interval between statistics is from {} to {}",
        ShowDuration(*.0), ShowDuration(MIN_STATS_INTERVAL), ShowDuration(MAX_STATS_INTERVAL)
    )]
    Interval(Duration),
}

/// Reads `reporting`, `stats=1s` or `reporting,stats=1s`.
impl FromStr for BalloonConfig {
    type Err = BalloonError;

    fn from_str(text: &str) -> Result<Self, BalloonError> {
        let mut config = Self::default();
        for word in text.split(',') {
            let interval = word.strip_prefix("stats=").and_then(parse_duration);
            match (word, interval) {
                ("reporting", _) if !config.reporting => config.reporting = true,
                (_, Some(_)) if config.stats_interval.is_none() => config.stats_interval = interval,
                _ => return Err(BalloonError::Word(word.to_owned())),
            }
        }
        config.validate().map(|()| config)
    }
}

impl BalloonConfig {
    /// Checks the device.
    ///
    /// # Errors
    /// [`BalloonError`].
    pub fn validate(&self) -> Result<(), BalloonError> {
        match self.stats_interval {
            None if !self.reporting => Err(BalloonError::Nothing),
            Some(interval) => check_interval(interval),
            None => Ok(()),
        }
    }
}

/// Checks an interval between statistics.
///
/// # Errors
/// [`BalloonError::Interval`].
pub(crate) fn check_interval(interval: Duration) -> Result<(), BalloonError> {
    if (MIN_STATS_INTERVAL..=MAX_STATS_INTERVAL).contains(&interval) {
        Ok(())
    } else {
        Err(BalloonError::Interval(interval))
    }
}

#[cfg(test)]
mod tests {
    use super::{BalloonConfig, BalloonError, Duration};

    #[test]
    fn a_balloon_reports_gives_statistics_or_both() {
        let read = str::parse::<BalloonConfig>;
        let second = Some(Duration::from_secs(1));
        for (text, reporting, stats_interval) in
            [("reporting", true, None), ("stats=1s", false, second), ("stats=1000ms,reporting", true, second)]
        {
            assert_eq!(read(text), Ok(BalloonConfig { reporting, stats_interval }), "{text}");
        }
        for bad in
            ["", "reporting,", "reporting,reporting", "stats", "stats=1", "stats=1s,stats=2s", "inflate=1G"]
        {
            assert!(matches!(read(bad), Err(BalloonError::Word(_))), "{bad}");
        }
        for bad in ["stats=99ms", "stats=65536s", "stats=0s"] {
            assert!(read(bad).unwrap_err().to_string().contains("from 100ms to 65535s"), "{bad}");
        }
        assert_eq!(BalloonConfig::default().validate(), Err(BalloonError::Nothing));
    }
}
