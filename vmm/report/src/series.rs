//! Memory over time: what was requested, plugged, used and held, of all devices together.

use tidevm_events::Sampled;

/// Most points that are kept. When there are more, every other one is dropped, and from then on as many of the new
/// ones.
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
    points: Vec<Point>,
    /// One of so many points is kept.
    stride: u64,
    /// How many came.
    count: u64,
    last: Option<Point>,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, count: 0, last: None }
    }
}

impl Series {
    pub fn take(&mut self, point: Point) {
        self.count += 1;
        self.last = Some(point);
        if !self.count.is_multiple_of(self.stride) {
            return;
        }
        self.points.push(point);
        if self.points.len() > MAX_POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
    }

    /// The points that are drawn. The last one that came is among them.
    pub fn points(&self) -> Vec<Point> {
        let mut points = self.points.clone();
        points.extend(self.last.filter(|last| points.last() != Some(last)));
        points
    }

    /// How many came.
    pub fn count(&self) -> u64 {
        self.count
    }
}
