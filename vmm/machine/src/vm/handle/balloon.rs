//! What several threads may do with the virtio-balloon device: read statistics, ask for new ones, and change how often they
//! come.
//!
//! Invariant: no method here waits, neither for the guest nor for memory that is given back.

use std::io;
use std::time::Duration;

use tidevm_abi::Size;

use super::VmHandle;
use crate::config::BalloonError;
use crate::config::balloon::check_interval;
use crate::state::BalloonStats;
use crate::virtio::balloon::ReportCounts;
use crate::vm::devices::BalloonDevice;

/// The VM has no balloon, or the balloon has no statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has no balloon with statistics: Config::balloon needs a stats_interval")]
pub struct NoStatistics;

/// Why the interval between statistics was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntervalRefused {
    /// There are no statistics.
    #[error(transparent)]
    NoStatistics(#[from] NoStatistics),
    /// The interval is not possible.
    #[error(transparent)]
    Interval(#[from] BalloonError),
}

impl VmHandle {
    /// The last statistics that the guest gave, and how long ago that was on the clock of [`VmHandle::now`], which stands
    /// still while the guest is paused. `None` as long as there are none: no balloon with statistics, or no driver that
    /// gave some since the last reset. To wait for newer ones, see [`BalloonStatus::updates`](crate::BalloonStatus).
    #[must_use]
    pub fn balloon_stats(&self) -> Option<(BalloonStats, Duration)> {
        let stats = self.state().balloon?.stats?;
        Some((stats, self.now().saturating_duration_since(stats.at)))
    }

    /// Asks the guest for new statistics now, beside the regular ones. They come a moment later, if there is a driver.
    ///
    /// # Errors
    /// [`NoStatistics`].
    pub fn ask_balloon_stats(&self) -> Result<(), NoStatistics> {
        self.statistics()?.asks.ask();
        Ok(())
    }

    /// How often statistics are asked for. `None` when the device has none.
    #[must_use]
    pub fn balloon_stats_interval(&self) -> Option<Duration> {
        self.statistics().ok().map(|balloon| balloon.asks.interval())
    }

    /// Changes how often statistics are asked for.
    ///
    /// # Errors
    /// [`IntervalRefused`]; nothing changed.
    pub fn set_balloon_stats_interval(&self, interval: Duration) -> Result<(), IntervalRefused> {
        let balloon = self.statistics()?;
        check_interval(interval)?;
        balloon.asks.set_interval(interval);
        Ok(())
    }

    /// The memory that the guest reported as free since the start. `None` without a balloon.
    #[must_use]
    pub fn balloon_reports(&self) -> Option<ReportCounts> {
        self.shared.devices.balloon.as_ref().map(|balloon| balloon.counters.read())
    }

    /// The host memory that boot memory really holds, resident and swapped out.
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read.
    pub fn boot_memory_held(&self) -> io::Result<Size> {
        self.shared.memory.boot_held()
    }

    fn statistics(&self) -> Result<&BalloonDevice, NoStatistics> {
        let wanted = self.config().balloon.is_some_and(|balloon| balloon.stats_interval.is_some());
        self.shared.devices.balloon.as_ref().filter(|_| wanted).ok_or(NoStatistics)
    }
}
