//! `/balloon` of a machine that runs. The texts are Firecracker's.

use std::time::{Duration, Instant};

use serde_json::json;
use tidevm_machine::IntervalRefused;

use super::{NO_DEVICE, Running};
use crate::balloon::{INFLATED, seconds, statistics};
use crate::body::{BalloonStatsUpdate, BalloonUpdate};
use crate::draft::not_supported;
use crate::response::Response;

const NO_STATISTICS: &str = "Internal VMM error: Balloon: Received stats query when stats are disabled.";
const STATE_CHANGE: &str =
    "Internal VMM error: Balloon: Statistics cannot be enabled/disabled after activation.";

impl Running {
    /// Firecracker's fields, and what became of reports.
    pub(super) fn get_balloon(&mut self, now: Instant) -> Response {
        let Some(mut balloon) = self.draft.balloon() else { return Response::fault(NO_DEVICE) };
        balloon.stats_polling_interval_s = self.vm.balloon_stats_interval().map_or(0, seconds);
        let mut answer = json!(balloon);
        let status = self.vm.state().balloon.unwrap_or_default();
        let reports = self.vm.balloon_reports().unwrap_or_default();
        answer["driver"] = json!(status.driver);
        answer["reporting"] = json!(status.reporting);
        answer["given_back"] = json!(reports.given_back.0);
        answer["refused"] = json!(reports.refused);
        answer["boot_memory_host_held"] = json!(self.boot_held(now).map(|held| held.0));
        Response::json(&answer)
    }

    pub(super) fn get_balloon_stats(&self) -> Response {
        match (self.draft.balloon(), self.vm.balloon_stats_interval()) {
            (None, _) => Response::fault(NO_DEVICE),
            (Some(_), None) => Response::fault(NO_STATISTICS),
            (Some(_), Some(_)) => Response::json(&statistics(self.vm.balloon_stats())),
        }
    }

    pub(super) fn update_balloon(&self, update: BalloonUpdate) -> Response {
        match (self.draft.balloon(), update.amount_mib) {
            (None, _) => Response::fault(NO_DEVICE),
            (Some(_), 0) => Response::done(),
            (Some(_), _) => Response::fault(&not_supported(INFLATED)),
        }
    }

    pub(super) fn update_balloon_stats(&self, update: BalloonStatsUpdate) -> Response {
        let interval = Duration::from_secs(update.stats_polling_interval_s.into());
        match (self.draft.balloon(), self.vm.balloon_stats_interval()) {
            (None, _) => Response::fault(NO_DEVICE),
            (Some(_), None) if interval.is_zero() => Response::done(),
            (Some(_), None) => Response::fault(STATE_CHANGE),
            (Some(_), Some(_)) if interval.is_zero() => Response::fault(STATE_CHANGE),
            (Some(_), Some(_)) => match self.vm.set_balloon_stats_interval(interval) {
                Ok(()) => Response::done(),
                Err(IntervalRefused::NoStatistics(_)) => Response::fault(STATE_CHANGE),
                Err(error) => Response::fault(&format!("Internal VMM error: Balloon: {error}")),
            },
        }
    }
}
