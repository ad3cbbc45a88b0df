//! The memory that a simulated guest uses, over a day.
//!
//! It swings tenfold between [`LOW`] and [`HIGH`], on a logarithmic scale: half with all other guests, as day and
//! night do, and half by itself, slowly and at random. Now and then there is a burst to the top. It changes by at most
//! [`RATE`] a second, as programs do that fill memory.

use tidevm_abi::Size;

use super::DAY;

const LOW: Size = Size::mib(300);
const HIGH: Size = Size::gib(3);
pub const RATE: u64 = 64 << 20;
/// Its own part of the swing gets another goal once in so many seconds.
const GOAL: u32 = 300;
/// A burst begins once in so many seconds, and lasts so many.
const BURST: (u32, u32) = (1800, 60);

/// The part of the swing that all guests share, in `0.0..=1.0` by second.
pub struct Swing(Vec<f64>);

impl Swing {
    pub fn of_a_day() -> Self {
        let turn = std::f64::consts::TAU / f64::from(DAY);
        Self((0..DAY).map(|second| 0.5 - 0.5 * (turn * f64::from(second)).cos()).collect())
    }
}

/// A guest's load. Its seconds are asked for in their order.
pub struct Load {
    random: fastrand::Rng,
    /// Its own part of the swing, and where that goes.
    own: f64,
    goal: f64,
    burst: u32,
    used: Option<u64>,
}

impl Load {
    pub fn new(number: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(u64::from(number));
        let (own, goal) = (random.f64(), random.f64());
        Self { random, own, goal, burst: 0, used: None }
    }

    /// The memory in use in `second`.
    pub fn at(&mut self, second: u32, swing: &Swing) -> Size {
        if self.random.u32(..BURST.0) == 0 {
            self.burst = BURST.1;
        }
        self.burst = self.burst.saturating_sub(1);
        if self.random.u32(..GOAL) == 0 {
            self.goal = self.random.f64();
        }
        self.own += (self.goal - self.own) / 100.0;
        let level = if self.burst > 0 { 1.0 } else { (swing.0[second as usize] + self.own) / 2.0 };
        let wanted = (LOW.0 as f64 * (HIGH.0 as f64 / LOW.0 as f64).powf(level)) as u64;
        let used = self.used.unwrap_or(wanted);
        let used = wanted.clamp(used.saturating_sub(RATE), used + RATE);
        self.used = Some(used);
        Size(used)
    }
}
