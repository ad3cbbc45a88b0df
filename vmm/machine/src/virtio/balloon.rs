//! The virtio-balloon device without a balloon: free-page reporting and statistics.
//!
//! Mirrors virtio 1.3, section 5.5. A driver that agreed on `REPORTING` lends the device its free memory, as buffers
//! that the device may write, and uses none of it until it has the chain back. The device gives the memory to the
//! host meanwhile. A driver that agreed on `STATS_VQ` lends a buffer with statistics. The device keeps that until it
//! wants new ones.
//!
//! Differs on purpose: the device asks for 0 pages, so its driver inflates nothing. Pages that a driver inflates all
//! the same stay the driver's.
//!
//! The numbers of the queues behind the first two are disputed. By the specification they are fixed; Linux and QEMU leave
//! out those of features that are not there. The device offers no `FREE_PAGE_HINT`, so the queue for reports is 4 or 3, or
//! 2 for a driver without statistics. All of them are served: no queue means two things at once.
//!
//! Every chain goes back. A range that is not memory that the guest may use now is left alone, and counted: a report
//! gives a guest no way to anything. A report costs time in proportion to its memory, so it is given back in pieces, and
//! a turn of the event loop ends after some of them.
//!
//! Invariants: all queues of all devices are served by the event loop, one after another, and [`Memory`] orders a piece
//! and an unplug. So a piece is plugged while it is given back. After a reset nothing of the driver before is answered.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::eventfd::EventFd;

use crate::config::BalloonConfig;
use crate::memory::Memory;
use crate::memory::range::GuestRange;
use crate::state::{BalloonStatus, SharedState};
use crate::virtio::chain::Chain;
use crate::virtio::mmio::{Effect, Registers};
use crate::virtio::{RegisterDevice, Transport};

mod counters;
mod saved;
mod stats;

pub(crate) use counters::ReportCounters;
pub use counters::ReportCounts;
pub use saved::BalloonState;
pub(crate) use stats::Asks;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const F_STATS_VQ: u32 = 1;

/// `VIRTIO_BALLOON_F_REPORTING`.
const F_REPORTING: u32 = 5;

/// The number of queues: see above.
pub const QUEUES: usize = 5;

/// Where statistics come. Inflated and deflated pages, which nothing is done with, come on the two queues before it.
const STATS: usize = 2;

const QUEUE_SIZE: u16 = 128;

/// `num_pages`, `actual`, `free_page_hint_cmd_id`, `poison_val`. What a driver writes to them has no meaning here.
const CONFIG: [u8; 16] = [0; 16];

/// The unit of reports.
const PAGE: u64 = 4096;

/// Most memory that is given back at a time.
const PIECE: u64 = 4 << 20;

/// Most rounds in one turn of the event loop. A round takes at most one chain from each queue, and gives back one piece.
const ROUNDS_PER_TURN: u32 = 32;

/// The time after which no further round begins in the same turn.
const TURN: Duration = Duration::from_millis(5);

/// The virtio-balloon device.
#[derive(Debug)]
pub struct Balloon {
    transport: Transport,
    memory: Arc<Memory>,
    state: Arc<SharedState>,
    kick: EventFd,
    asks: Arc<Asks>,
    counters: Arc<ReportCounters>,
    /// The driver's buffer for statistics, until new ones are wanted.
    lent: Option<Chain>,
    /// The report that is being given back.
    report: Option<Report>,
    /// See [`TURN`].
    turn: Duration,
}

/// A report on its way to the host.
#[derive(Debug)]
struct Report {
    queue: usize,
    chain: Chain,
    /// The range that comes next, and how many of its bytes are given back.
    next: usize,
    done: u64,
}

impl Balloon {
    /// The device that `config` describes. `interrupt` reaches the driver. `kick` is written when a queue has chains.
    ///
    /// # Errors
    /// An event descriptor cannot be shared.
    pub(crate) fn new(
        config: BalloonConfig,
        memory: Arc<Memory>,
        state: Arc<SharedState>,
        interrupt: EventFd,
        kick: EventFd,
    ) -> io::Result<Self> {
        let reporting = u64::from(config.reporting) << F_REPORTING;
        let features = reporting | u64::from(config.stats_interval.is_some()) << F_STATS_VQ;
        let registers = Registers::new(VIRTIO_ID_BALLOON, features, 0, &[QUEUE_SIZE; QUEUES], &CONFIG)
            .map_err(io::Error::other)?;
        let asks = Arc::new(Asks::new(config.stats_interval.unwrap_or_default(), kick.try_clone()?));
        state.change(|state| state.balloon = Some(BalloonStatus::default()));
        Ok(Self {
            transport: Transport::new(registers, interrupt),
            memory,
            state,
            kick,
            asks,
            counters: Arc::default(),
            lent: None,
            report: None,
            turn: TURN,
        })
    }

    /// Where others ask for statistics.
    #[must_use]
    pub(crate) fn asks(&self) -> Arc<Asks> {
        Arc::clone(&self.asks)
    }

    /// What is counted of reports.
    #[must_use]
    pub(crate) fn counters(&self) -> Arc<ReportCounters> {
        Arc::clone(&self.counters)
    }

    /// System reset: there is no driver, and nothing of it is answered. [`SharedState::restart`] shows that.
    pub fn disconnect(&mut self) {
        self.transport.registers.reset();
        self.forget();
    }

    /// Serves the queues, as much as is due in one turn of the event loop. Returns whether there may be more.
    pub fn serve(&mut self) -> bool {
        let start = Instant::now();
        let ran = self.transport.registers.running();
        if self.asks.take() {
            self.ask();
        }
        let mut more = true;
        for round in 0..ROUNDS_PER_TURN {
            if round > 0 && start.elapsed() >= self.turn {
                break;
            }
            let mut idle = true;
            for queue in 0..QUEUES {
                idle &= !self.take(queue);
            }
            idle &= !self.give_back();
            if idle {
                more = false;
                break;
            }
        }
        if !self.transport.registers.running() {
            self.forget();
            if ran {
                // A queue broke.
                self.publish();
            }
        }
        self.transport.notify_used();
        more
    }

    /// Takes the next chain of a queue, if it can be served now. Returns whether there was one.
    fn take(&mut self, queue: usize) -> bool {
        let registers = &self.transport.registers;
        let statistics = queue == STATS && registers.agreed(F_STATS_VQ);
        let reports = !statistics && queue >= STATS && registers.agreed(F_REPORTING);
        if reports && self.report.is_some() {
            return false;
        }
        let memory = Arc::clone(&self.memory);
        let readable = if statistics { stats::MAX_BYTES } else { 0 };
        let writable = if reports { usize::MAX } else { 0 };
        let Some(chain) = self.transport.pop(memory.view(), queue, readable, writable) else { return false };
        if statistics {
            // A second buffer is against the rules. The first one goes back then.
            self.ask();
            self.learn(&chain);
            self.lent = Some(chain);
        } else if reports {
            self.report = Some(Report { queue, chain, next: 0, done: 0 });
        } else {
            self.transport.push(memory.view(), queue, &chain, 0);
        }
        true
    }

    /// Has the driver write new statistics, by giving it its buffer back. If there is none, the driver is writing some.
    fn ask(&mut self) {
        if let Some(chain) = self.lent.take() {
            self.transport.push(self.memory.view(), STATS, &chain, 0);
        }
    }

    fn learn(&mut self, chain: &Chain) {
        let stats = stats::parse(chain.request(), self.state.now());
        self.state.change(|state| {
            let balloon = state.balloon.get_or_insert_default();
            balloon.stats = Some(stats);
            balloon.updates += 1;
        });
    }

    /// Gives the next piece of the report to the host, and the chain back after the last one. Returns whether there was
    /// a report.
    fn give_back(&mut self) -> bool {
        let Some(report) = &mut self.report else { return false };
        if let Some(&(address, size)) = report.chain.writable().get(report.next) {
            let (start, size) = (address.0, size as u64);
            match piece(&self.memory, start, size, report.done) {
                Some(range) => {
                    self.counters.count(range.size(), self.memory.give_back(range).is_ok());
                    report.done += range.size();
                }
                None => {
                    log::debug!("a report of {size:#x} bytes at {start:#x} is refused");
                    self.counters.refuse();
                    report.done = size;
                }
            }
            if report.done < size {
                return true;
            }
            (report.next, report.done) = (report.next + 1, 0);
        }
        if report.next >= report.chain.writable().len()
            && let Some(report) = self.report.take()
        {
            self.transport.push(self.memory.view(), report.queue, &report.chain, 0);
        }
        true
    }

    /// Forgets the buffers of a driver that is gone.
    fn forget(&mut self) {
        (self.lent, self.report) = (None, None);
    }

    fn publish(&self) {
        let registers = &self.transport.registers;
        let driver = registers.running();
        let agreed = |feature| driver && registers.agreed(feature);
        let (reporting, statistics) = (agreed(F_REPORTING), agreed(F_STATS_VQ));
        self.state.change(|state| {
            let before = state.balloon.unwrap_or_default();
            let stats = before.stats.filter(|_| driver);
            state.balloon = Some(BalloonStatus { driver, reporting, statistics, stats, ..before });
        });
    }
}

/// The piece that comes after `done` bytes of the range of `size` bytes at `start`. `None` if the range is not made of
/// pages, or not all of it can be given back.
fn piece(memory: &Memory, start: u64, size: u64, done: u64) -> Option<GuestRange> {
    let end = start.checked_add(size)?;
    let pages = start.is_multiple_of(PAGE) && size.is_multiple_of(PAGE);
    let whole = GuestRange::new(start..end).filter(|&whole| pages && memory.is_usable(whole))?;
    let from = whole.start().0 + done;
    GuestRange::new(from..end.min(from + PIECE))
}

#[cfg(feature = "hosted")]
impl Balloon {
    /// From now on each call of [`Balloon::serve`] makes one round, whatever the host's load.
    pub(crate) fn serve_singly(&mut self) {
        self.turn = Duration::ZERO;
    }

    /// The device's registers.
    pub(crate) fn registers(&self) -> &Registers {
        &self.transport.registers
    }
}

impl RegisterDevice for Balloon {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let effect = self.transport.write(|| self.memory.view(), offset, data);
        if !self.transport.registers.running() {
            self.forget();
        }
        match effect {
            Effect::None => Ok(()),
            Effect::StatusChanged => {
                self.publish();
                // A driver may have filled its queues before it was ready.
                self.kick.write(1)
            }
            Effect::Notify(_) => self.kick.write(1),
        }
    }
}

#[cfg(test)]
mod tests;
