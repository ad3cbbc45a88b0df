//! A turn of the event loop for a virtio-mem device: requests are taken and answered with the device locked, and carried out
//! without it.
//!
//! Taking back gigabytes takes the host long. A vCPU that reads the configuration meanwhile needs the device and nothing else, so
//! the device is given up between the two halves of a request: [`Device::begin`](virtio_mem::device::Device::begin) and
//! [`Device::commit`](virtio_mem::device::Device::commit). Mirrors what QEMU cannot do, whose discards hold its one lock.
//!
//! The driver may reset the device between the halves, and start it again. The request is carried out all the same, as
//! if the reset had come behind it (virtio 1.3, section 5.15.6.2), and its answer goes nowhere: the buffers of another driver are
//! not written.
//!
//! Invariant: of each device one request at a time is under way, because the event loop alone serves, with the lock of the
//! device's backing. Who has that lock and the device finds no request under way.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_mem::device::{Backing, Begun, Busy, Change};
use virtio_mem::wire::{REQUEST_SIZE, RESPONSE_SIZE, Request, Response, ResponseType};

use super::{Mem, REQUESTS_PER_TURN, Served, refusal};
use crate::sync::lock;
use crate::virtio::chain::Chain;

/// A way to a device, for a moment at a time.
pub trait Reach {
    /// Does `work` with the device.
    fn reach<T>(&mut self, work: impl FnOnce(&mut Mem) -> T) -> T;
}

impl Reach for &Mutex<Mem> {
    fn reach<T>(&mut self, work: impl FnOnce(&mut Mem) -> T) -> T {
        work(&mut lock(self))
    }
}

/// What a turn has to know of its beginning.
#[derive(Debug)]
struct Turn {
    start: Instant,
    /// What the device had counted.
    unplugged: u64,
    /// There was a driver.
    driver: bool,
    /// Most requests of this turn.
    most: u16,
    /// How long further requests are taken.
    time: Duration,
}

/// What became of the next chain.
enum Taken {
    /// There is none.
    Nothing,
    /// It went back.
    Answered,
    /// The host has something to do for it.
    Work(Box<Work>),
}

/// A request between its halves.
struct Work {
    chain: Chain,
    change: Change,
    /// The driver that waits for the answer: see [`Mem::driver`].
    driver: u64,
    start: Instant,
}

/// Serves requests in the queue of `device`, as many as are due in one turn of the event loop. `backing` carries them out.
pub fn serve(mut device: impl Reach, backing: &mut (impl Backing + ?Sized)) -> Served {
    let turn = device.reach(Mem::begin_turn);
    let mut more = turn.most > 0;
    for request in 0..turn.most {
        if request > 0 && turn.start.elapsed() >= turn.time {
            break;
        }
        match device.reach(Mem::take_request) {
            Taken::Nothing => {
                more = false;
                break;
            }
            Taken::Answered => {}
            Taken::Work(work) => {
                let outcome = work.change.apply(backing);
                device.reach(|device| device.end_request(*work, outcome));
            }
        }
    }
    device.reach(|device| device.end_turn(&turn, more))
}

impl Mem {
    fn begin_turn(&mut self) -> Turn {
        self.retry_announced &= self.device.retry_after_ms().is_some();
        self.apply_target();
        Turn {
            start: Instant::now(),
            unplugged: self.device.counts().unplugged,
            driver: self.transport.registers.running(),
            most: self.transport.batch(0).min(REQUESTS_PER_TURN),
            time: self.turn,
        }
    }

    /// Takes the next chain. A request without room for its answer is not served: its driver would never learn the result.
    fn take_request(&mut self) -> Taken {
        let memory = Arc::clone(&self.memory);
        let Some(chain) = self.transport.pop(memory.view(), 0, REQUEST_SIZE, RESPONSE_SIZE) else {
            return Taken::Nothing;
        };
        if chain.room() != RESPONSE_SIZE {
            self.counters.refuse_chain();
            self.publish(Some(format!("no room for an answer: {} bytes", chain.room()).into()));
            self.transport.push(memory.view(), 0, &chain, 0);
            self.apply_target();
            return Taken::Answered;
        }
        let start = Instant::now();
        match self.device.begin(chain.request()) {
            Begun::Change(change) => {
                Taken::Work(Box::new(Work { chain, change, driver: self.driver, start }))
            }
            Begun::Answer(response) => {
                self.answer(&chain, response, start, true);
                Taken::Answered
            }
        }
    }

    /// The host has done its part, with this outcome.
    fn end_request(&mut self, work: Work, outcome: Result<(), Busy>) {
        let Work { chain, change, driver, start } = work;
        // A system reset is made by the thread that serves, so none came between.
        let response = self.device.commit(change, outcome).unwrap_or(Response::new(ResponseType::Busy));
        self.answer(&chain, response, start, driver == self.driver);
    }

    /// Counts and shows the answer to the request in `chain`, and gives it to the driver if that `waits`.
    fn answer(&mut self, chain: &Chain, response: Response, start: Instant, waits: bool) {
        let kind = Request::from_bytes(chain.request()).ok().map(|request| request.kind);
        self.counters.answered(kind, start.elapsed(), self.device.counts());
        let refused = self.device.refused().filter(|_| response.kind != ResponseType::Ack);
        let refusal = refused.map(|refused| refusal(response.kind, *refused));
        self.publish(refusal);
        if waits {
            let memory = Arc::clone(&self.memory);
            let written = chain.write(&memory.view(), &response.to_bytes());
            self.transport.push(memory.view(), 0, chain, written);
        }
        self.apply_target();
    }

    fn end_turn(&mut self, turn: &Turn, more: bool) -> Served {
        let more = more && self.transport.batch(0) > 0;
        let freed = turn.unplugged != self.device.counts().unplugged;
        if turn.driver && self.transport.registers.needs_reset() {
            let broken = "the queue cannot be used; the driver has to reset the device";
            // The driver has to reset the device first.
            self.device.driver_gone();
            self.counters.refuse_chain();
            self.publish(Some(broken.to_owned().into()));
        }
        self.transport.notify_used();
        let mut served = Served { retry_after: None, freed, more };
        // The pause begins with the first BUSY. A driver that asks on and on does not put its end off.
        if let Some(ms) = self.device.retry_after_ms()
            && !std::mem::replace(&mut self.retry_announced, true)
        {
            served.retry_after = Some(Duration::from_millis(ms.into()));
        }
        served
    }
}

#[cfg(any(test, feature = "hosted"))]
impl Reach for &mut Mem {
    fn reach<T>(&mut self, work: impl FnOnce(&mut Mem) -> T) -> T {
        work(self)
    }
}

#[cfg(any(test, feature = "hosted"))]
impl Mem {
    /// [`serve`], for a caller that has the device to itself.
    pub(crate) fn serve(&mut self) -> Served {
        let backing = self.backing();
        serve(self, &mut *lock(&backing))
    }
}
