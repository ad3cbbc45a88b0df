//! Memory over time: what was requested, plugged, used and held, of all devices together.

use tidevm_events::Sampled;

use crate::thinned::Thinned;

/// Most points that are kept.
pub const MAX_POINTS: usize = 4000;

/// Bytes of a page of the guest.
const PAGE: u64 = 4096;

/// The devices at one moment, in seconds and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub at: f64,
    pub requested: u64,
    pub plugged: u64,
    /// Pages of the zone Movable that are not free.
    pub used: Option<u64>,
    pub held: Option<u64>,
}

impl Point {
    pub fn new(at: f64, sampled: &Sampled) -> Self {
        let sum = |part: fn(&tidevm_events::Device) -> u64| {
            sampled.devices.iter().map(part).fold(0, u64::saturating_add)
        };
        let mut held = sampled.devices.iter().map(|device| device.held);
        let movable = sampled.guest.as_ref().and_then(|guest| guest.zones.get("Movable"));
        let used = movable.map(|zone| {
            let pages = |key: &str| zone.get(key).copied().unwrap_or(0);
            let free = pages("free").saturating_add(pages("pcp"));
            pages("managed").saturating_sub(free).saturating_mul(PAGE)
        });
        Self {
            at,
            requested: sum(|device| device.requested),
            plugged: sum(|device| device.plugged),
            used,
            held: held.try_fold(0_u64, |sum, held| Some(sum.saturating_add(held?))),
        }
    }

    pub fn most(&self) -> u64 {
        [Some(self.requested), Some(self.plugged), self.used, self.held]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or(0)
    }
}

/// Points in the order of their times.
#[derive(Clone, Debug)]
pub struct Series {
    points: Thinned<Point>,
    last: Option<Point>,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Thinned::at_most(MAX_POINTS), last: None }
    }
}

impl Series {
    pub fn take(&mut self, point: Point) {
        self.last = Some(point);
        if self.points.comes() {
            self.points.keep(point);
        }
    }

    /// The points that are drawn. The last one that came is among them.
    pub fn points(&self) -> Vec<Point> {
        let mut points = self.points.kept().to_vec();
        points.extend(self.last.filter(|last| points.last() != Some(last)));
        points
    }

    /// How many came.
    pub fn count(&self) -> u64 {
        self.points.count()
    }
}
