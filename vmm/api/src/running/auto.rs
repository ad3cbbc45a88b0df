//! `/hotplug/memory/auto`: the machine is sized by what its guest uses.

use serde_json::{Value, json};
use tidevm_abi::Size;
use tidevm_sizer::{Status, Wish};

use super::Running;
use crate::body::{AutoConfig, AutoUpdate};
use crate::draft::mib;
use crate::response::Response;

/// The fault of a change to what is not there.
const OFF: &str = "Automatic sizing error: it is off; PUT its bounds first.";

impl Running {
    /// How the machine is sized.
    pub(super) fn auto(&self) -> Value {
        told(self.sizer.status(&self.vm).as_ref())
    }

    pub(super) fn set_auto(&mut self, config: AutoConfig) -> Response {
        let size = |mib: u32| Size(u64::from(mib) << 20);
        let (min, max) = (size(config.min_size_mib), size(config.max_size_mib));
        let wish = Wish { min, max, headroom: config.headroom_percent };
        match wish.bounds(self.vm.config()) {
            Ok(bounds) => {
                self.sizer.start(&self.vm, bounds);
                Response::done()
            }
            Err(error) => Response::fault(&format!("Automatic sizing error: {error}")),
        }
    }

    pub(super) fn update_auto(&mut self, update: AutoUpdate) -> Response {
        if self.sizer.status(&self.vm).is_none() {
            return Response::fault(OFF);
        }
        if update.held {
            self.sizer.hold(&self.vm);
        } else {
            self.sizer.release(&self.vm);
        }
        Response::done()
    }

    pub(super) fn stop_auto(&mut self) -> Response {
        self.sizer.stop();
        Response::done()
    }
}

/// How a machine is sized, as JSON.
fn told(status: Option<&Status>) -> Value {
    let Some(status) = status else { return json!({ "enabled": false }) };
    let Status { bounds, counts, pressure, .. } = status;
    json!({
        "enabled": true,
        "held": status.held,
        "min_size_mib": mib(bounds.min()),
        "max_size_mib": mib(bounds.max()),
        "headroom_percent": bounds.headroom(),
        "target_size_mib": mib(status.target),
        "size_mib": mib(status.size),
        "smallest_size_mib": mib(status.range.0),
        "largest_size_mib": mib(status.range.1),
        "why": status.why,
        "available": pressure.map(|pressure| pressure.available.0),
        "waiting": pressure.map(|pressure| pressure.waiting),
        "waited": pressure.map(|pressure| pressure.waited),
        "longest_wait_us": pressure.map(|pressure| pressure.longest_micros),
        "grows": counts.grows,
        "shrinks": counts.shrinks,
        "holds": counts.holds,
        "pressures": counts.pressures,
        "questions": counts.questions,
        "seconds": status.time.as_secs_f64(),
        "byte_seconds": status.byte_seconds,
    })
}
