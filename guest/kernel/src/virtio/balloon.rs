//! The virtio-balloon driver (virtio 1.3, section 5.5): free-page reporting and statistics. It inflates nothing.
//!
//! Mirrors Linux `drivers/virtio/virtio_balloon.c` and the worker of `mm/page_reporting.c`. It runs as a job of the boot
//! CPU. Differs from Linux on purpose:
//!
//! - A look at the free lists comes a quarter of a second after the CPU was awake, where Linux waits 2 s after a free.
//!   All work that frees memory ends by waking this CPU. While another CPU works, looks go on.
//! - While memory goes offline, none is lent: see [`lending`].
//!
//! Invariants: [`lending::is_lent`] holds from before memory is lent until after it is put back. Memory that is lent is put
//! back when the device has answered, or after the device was reset. A device that cannot be reset keeps it.

use alloc::boxed::Box;
use core::fmt;

use tidevm_mm::{Lent, PAGE_SIZE, ZoneStats};
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use super::queue::{Reports, Slate};
use super::{Device, Unready};
use crate::console::println;
use crate::cpu;
use crate::cpu::time::Instant;
use crate::job::{Job, Progress};
use crate::mem::{MM, lending};

const VERSION_1: u64 = 1 << 32;
const F_STATS_VQ: u64 = 1 << 1;
const F_REPORTING: u64 = 1 << 5;

const STATS: u16 = 2;

/// Where the specification has the queue for reports, and where devices have it that leave out the queue of free-page
/// hints.
const REPORTS: [u16; 2] = [4, 3];

/// Time from the moment that this CPU is awake to the look at the free lists. Work that frees memory frees more of it
/// meanwhile, and neighbours merge.
const DELAY_MILLIS: u64 = 250;

/// Bytes of one statistic: a tag and a value.
const STATISTIC: usize = 10;

/// The statistics that this kernel gives: it has no swap, no page faults, no caches and no huge pages for users. So it
/// leaves faults and huge pages out, and the rest of them is 0.
const STATISTICS: usize = 6;

/// Why a device cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// The device cannot be started.
    Unready(Unready),
    /// A queue is missing.
    Queue(virtio_drivers::Error),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unready(reason) => reason.fmt(f),
            Self::Queue(error) => write!(f, "a queue is missing: {error}"),
        }
    }
}

/// A virtio-balloon device's driver.
pub struct BalloonDriver<T> {
    device: Device<T>,
    queues: Queues,
    /// When the free lists are looked at next.
    look_at: Option<Instant>,
}

/// The queues of the features that were agreed on.
#[derive(Default)]
struct Queues {
    stats: Option<Slate<{ STATISTICS * STATISTIC }>>,
    reports: Option<Reports>,
}

impl Queues {
    /// Resets the device and sets it up.
    fn new<T: Transport>(device: &mut Device<T>) -> Result<Self, Unusable> {
        let features = device.negotiate(VERSION_1 | F_STATS_VQ | F_REPORTING).map_err(Unusable::Unready)?;
        let transport = &mut device.transport;
        let mut queues = Self::default();
        if features & F_STATS_VQ != 0 {
            queues.stats = Some(Slate::new(transport, STATS).map_err(Unusable::Queue)?);
        }
        if features & F_REPORTING != 0 {
            let [first, second] = REPORTS;
            let reports = Reports::new(transport, first).or_else(|_| Reports::new(transport, second));
            queues.reports = Some(reports.map_err(Unusable::Queue)?);
        }
        transport.finish_init();
        Ok(queues)
    }
}

impl<T: Transport> BalloonDriver<T> {
    /// Binds the device.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn new(mut device: Device<T>) -> Result<Box<Self>, Unusable> {
        let queues = Queues::new(&mut device)?;
        Ok(Box::new(Self { device, queues, look_at: None }))
    }

    /// Resets a device that cannot go on, takes back what it had, and sets it up anew. Returns whether it can be used.
    fn restart(&mut self) -> bool {
        let before = core::mem::take(&mut self.queues);
        match Queues::new(&mut self.device) {
            Ok(queues) => {
                put_back(before.reports.and_then(Reports::take_back), false);
                self.queues = queues;
                true
            }
            Err(reason) => {
                println!("virtio-balloon: after a reset: {reason}");
                // What the device still has is lost, and its queues stay where they are. Nothing waits for it.
                core::mem::forget(before);
                lending::set_lent(false);
                false
            }
        }
    }

    /// Takes back what the device has answered, and lends it more if it is time. Returns when to go on.
    fn report(&mut self) -> Progress {
        let Some(reports) = &mut self.queues.reports else { return Progress::Idle(None) };
        if reports.is_busy() {
            let Some(lent) = reports.poll() else { return Progress::Idle(None) };
            put_back(Some(lent), true);
            self.look_at = Some(Instant::now());
        }
        let look_at = *self.look_at.get_or_insert_with(|| Instant::in_millis(DELAY_MILLIS));
        let look_at = look_at.max(lending::held_until());
        if !look_at.has_passed() {
            return Progress::Idle(Some(look_at));
        }
        let mut lent = Lent::default();
        // Said before memory is lent: who finds none has to know.
        lending::set_lent(true);
        let more = MM.lend_unreported(&mut lent);
        if !lent.is_empty() {
            reports.send(&mut self.device.transport, lent);
            return Progress::Idle(None);
        }
        lending::set_lent(false);
        if more {
            return Progress::Again;
        }
        // The end, unless another CPU frees memory now.
        self.look_at = others_work().then(|| Instant::in_millis(DELAY_MILLIS));
        Progress::Idle(self.look_at)
    }
}

/// Puts memory back that was lent.
fn put_back(lent: Option<Lent>, taken: bool) {
    if let Some(mut lent) = lent {
        MM.put_back(&mut lent, taken);
        lending::set_lent(false);
    }
}

/// Whether another CPU is at work.
fn others_work() -> bool {
    let me = cpu::this();
    (0..cpu::online()).any(|index| index != me && !cpu::area(index).passes.is_idle())
}

/// Writes the statistics (virtio 1.3, section 5.5.6.3).
fn write_statistics(bytes: &mut [u8; STATISTICS * STATISTIC]) {
    let stats = MM.stats();
    let sum = |pages: fn(&ZoneStats) -> u64| stats.zones.iter().map(pages).sum::<u64>() * PAGE_SIZE;
    let free = sum(|zone| zone.all_free() + zone.pcp);
    let available = MM.available_pages() * PAGE_SIZE;
    let statistics: [(u16, u64); STATISTICS] =
        [(0, 0), (1, 0), (4, free), (5, sum(|zone| zone.managed)), (6, available), (7, 0)];
    for (bytes, (tag, value)) in bytes.chunks_exact_mut(STATISTIC).zip(statistics) {
        bytes[..2].copy_from_slice(&tag.to_le_bytes());
        bytes[2..].copy_from_slice(&value.to_le_bytes());
    }
}

impl<T: Transport + Send> Job for BalloonDriver<T> {
    fn step(&mut self) -> Progress {
        let changed = self.device.interrupts().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
        let broken = DeviceStatus::DEVICE_NEEDS_RESET;
        if changed && self.device.transport.get_status().contains(broken) && !self.restart() {
            return Progress::Done;
        }
        if let Some(stats) = &mut self.queues.stats {
            stats.serve(&mut self.device.transport, write_statistics);
        }
        self.report()
    }
}
