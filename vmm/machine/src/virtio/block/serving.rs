//! Requests of a disk, from the queue to the answer.
//!
//! A request is taken and answered with the device locked, and carried out without it: the thread of the disk waits for
//! the medium then. Data pass through one buffer of [`PIECE`] bytes, so a request of any length costs no more memory,
//! and neither the device nor guest memory is locked while the medium works.
//!
//! Between two pieces the driver may have reset the device, or memory may have been unplugged, or the VM may be ending. For a
//! driver that is gone nothing more is done. Memory that is gone makes the request fail.
//!
//! Invariant: a request begins only while the guest is not to stand still, which is looked at with the device locked. So who
//! has made that wish and finds the device idle knows that it stays idle.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES};

use super::Block;
use super::medium::Medium;
use super::request::{Answer, HEADER, Header, Kind, position};
use crate::sync::lock;
use crate::virtio::chain::{Chain, gather, scatter};

/// Most bytes of one request, far more than drivers ask for at once (Linux: 1.25 MiB). So a pause does not wait longer than for
/// these.
const LONGEST: usize = 64 << 20;

/// Bytes of the buffer through which data pass.
pub(crate) const PIECE: usize = 64 << 10;

/// What others want of the thread of a disk.
pub(crate) trait Wishes {
    /// The guest is to stand still: no further request begins.
    fn stands_still(&self) -> bool;

    /// The VM ends: the request under way is given up.
    fn ends(&self) -> bool;
}

/// What became of the next chain.
enum Taken {
    /// There is none, or it has to wait.
    Nothing,
    /// It went back.
    Answered,
    /// The medium has something to do for it.
    Work(Box<Work>),
}

/// A request that is being carried out.
struct Work {
    chain: Chain,
    kind: Kind,
    /// Where on the medium, and how many bytes.
    at: u64,
    length: usize,
    /// Bytes that are moved.
    done: usize,
    /// What is written is to be on the disk before the answer.
    stable: bool,
    /// The driver that waits for the answer: see [`Block::driver`].
    driver: u64,
}

/// Why a request is not carried out.
enum Stop {
    /// The driver is gone, or the VM ends: nobody waits for the answer.
    Gone,
    /// The driver is told.
    Failed,
}

/// Serves the queue of `device` until it is empty, the guest is to stand still, or the VM ends. `buffer` is not empty.
pub(crate) fn serve(device: &Mutex<Block>, medium: &impl Medium, buffer: &mut [u8], wishes: &impl Wishes) {
    while !wishes.ends() {
        // The guard goes before the request is carried out.
        let taken = lock(device).take(wishes);
        match taken {
            Taken::Nothing => return,
            Taken::Answered => {}
            Taken::Work(mut work) => {
                let outcome = carry_out(&mut work, device, medium, buffer, wishes);
                lock(device).end(&work, outcome);
            }
        }
    }
}

/// Has the medium do what `work` says.
fn carry_out(
    work: &mut Work,
    device: &Mutex<Block>,
    medium: &impl Medium,
    buffer: &mut [u8],
    wishes: &impl Wishes,
) -> Result<(), Stop> {
    while work.done < work.length {
        if wishes.ends() {
            return Err(Stop::Gone);
        }
        let rest = work.length - work.done;
        let room = rest.min(buffer.len());
        let (piece, at) = (&mut buffer[..room], work.at + work.done as u64);
        if work.kind == Kind::In {
            medium.read(piece, at).map_err(|error| failed(device, "read", &error))?;
            waiting(device, work)?.put(work, piece)?;
        } else {
            waiting(device, work)?.get(work, piece)?;
            medium.write(piece, at).map_err(|error| failed(device, "write", &error))?;
        }
        work.done += room;
    }
    if work.kind == Kind::Flush || work.stable {
        medium.flush().map_err(|error| failed(device, "flush", &error))?;
    }
    Ok(())
}

/// The device, if the driver that made the request `work` still waits for the answer.
fn waiting<'d>(device: &'d Mutex<Block>, work: &Work) -> Result<MutexGuard<'d, Block>, Stop> {
    let device = lock(device);
    if device.driver == work.driver { Ok(device) } else { Err(Stop::Gone) }
}

/// The medium failed. The first failure is told, because a guest can repeat it without end.
fn failed(device: &Mutex<Block>, what: &str, error: &io::Error) -> Stop {
    let mut guard = lock(device);
    let (index, was_told) = (guard.index, std::mem::replace(&mut guard.told, true));
    // Who reads the log may be slow.
    drop(guard);
    if was_told {
        log::debug!("--disk #{index}: cannot {what}: {error}");
    } else {
        log::warn!(
            "--disk #{index}: cannot {what}: {error}; the guest is told, and later failures are counted only"
        );
    }
    Stop::Failed
}

impl Block {
    /// Takes the next chain, if it may begin now.
    fn take(&mut self, wishes: &impl Wishes) -> Taken {
        if wishes.stands_still() {
            return Taken::Nothing;
        }
        let (memory, ran) = (Arc::clone(&self.memory), self.transport.registers.running());
        let Some(chain) = self.transport.pop(memory.view(), 0, HEADER, usize::MAX) else {
            if ran && !self.transport.registers.running() {
                // The queue broke.
                self.publish();
            }
            return Taken::Nothing;
        };
        // The last byte that can be written is for the status.
        let Some(room) = chain.room().checked_sub(1) else {
            self.counters.refuse_chain();
            self.transport.push(memory.view(), 0, &chain, 0);
            self.transport.notify_used();
            return Taken::Answered;
        };
        let Some(Header { kind, sector }) = Header::parse(chain.request()) else {
            return self.answer(&chain, Kind::Other, Answer::Failed, 0);
        };
        let length = match kind {
            Kind::In => room,
            Kind::Out => chain.source().iter().map(|&(_, size)| size).sum(),
            Kind::Flush => 0,
            Kind::GetId => return self.tell_id(&chain, room),
            Kind::Other => return self.answer(&chain, kind, Answer::Unsupported, 0),
        };
        let at = if kind == Kind::Flush { Some(0) } else { position(sector, length, self.sectors) };
        let is_possible = length <= LONGEST && (kind != Kind::Out || !self.read_only);
        let Some(at) = at.filter(|_| is_possible) else {
            return self.answer(&chain, kind, Answer::Failed, 0);
        };
        self.under_way = true;
        let stable = kind == Kind::Out && !self.transport.registers.agreed(VIRTIO_BLK_F_FLUSH);
        Taken::Work(Box::new(Work { chain, kind, at, length, done: 0, stable, driver: self.driver }))
    }

    /// Answers GET_ID. The name is the same in every process that has this disk, as the guest may look for it.
    fn tell_id(&mut self, chain: &Chain, room: usize) -> Taken {
        let mut id = format!("tidevm-disk{}", self.index).into_bytes();
        id.resize((VIRTIO_BLK_ID_BYTES as usize).min(room), 0);
        if scatter(&self.memory.view(), chain.writable(), 0, &id) {
            self.answer(chain, Kind::GetId, Answer::Done, id.len())
        } else {
            self.answer(chain, Kind::GetId, Answer::Failed, 0)
        }
    }

    /// Writes a piece that was read.
    fn put(&self, work: &Work, piece: &[u8]) -> Result<(), Stop> {
        let written = scatter(&self.memory.view(), work.chain.writable(), work.done, piece);
        written.then_some(()).ok_or(Stop::Failed)
    }

    /// Reads a piece that is to be written.
    fn get(&self, work: &Work, piece: &mut [u8]) -> Result<(), Stop> {
        let read = gather(&self.memory.view(), work.chain.source(), work.done, piece);
        read.then_some(()).ok_or(Stop::Failed)
    }

    /// The request is carried out, or not.
    fn end(&mut self, work: &Work, outcome: Result<(), Stop>) {
        self.under_way = false;
        let answer = match outcome {
            Ok(()) => Answer::Done,
            Err(Stop::Failed) => Answer::Failed,
            Err(Stop::Gone) => return,
        };
        if work.driver == self.driver {
            self.answer(&work.chain, work.kind, answer, work.done);
        }
    }

    /// Gives `chain` back with its `answer`. `moved` bytes of its data were moved.
    fn answer(&mut self, chain: &Chain, kind: Kind, answer: Answer, moved: usize) -> Taken {
        self.counters.answered(kind, answer, moved);
        let memory = Arc::clone(&self.memory);
        let data = chain.room().saturating_sub(1);
        let told = scatter(&memory.view(), chain.writable(), data, &[answer.status()]);
        // The driver is told how many bytes were written from the first one on (virtio 1.3, section 2.7.8.2). The status
        // counts if nothing before it was left out.
        let written = if matches!(kind, Kind::In | Kind::GetId) { moved } else { 0 };
        let used = match (told, written == data) {
            (false, _) => 0,
            (true, true) => data + 1,
            (true, false) => written,
        };
        self.transport.push(memory.view(), 0, chain, used as u32);
        self.transport.notify_used();
        Taken::Answered
    }
}
