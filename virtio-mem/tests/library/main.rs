//! The device as a library of a VMM: saving and restoring, requests in two halves, retries, hooks and counts.

mod change;
mod errors;
mod hooks;
mod retry;
mod state;

use virtio_mem::blocks::BlockBitmap;
use virtio_mem::device::{Backing, Begun, Busy, Change, Device, DeviceConfig, PluggedRuns, Span};
use virtio_mem::{Request, RequestKind, Response, ResponseType};

const MIB: u64 = 1 << 20;
const ADDR: u64 = 4 << 30;
const BLOCK: u64 = 2 * MIB;
const REGION: u64 = 1 << 30;

/// A host that can always do it, unless it is told that it cannot.
struct Host {
    backed: BlockBitmap,
    unable: bool,
}

impl Host {
    fn new() -> Host {
        Host { backed: BlockBitmap::new(REGION / BLOCK), unable: false }
    }

    fn able(&self) -> Result<(), Busy> {
        if self.unable { Err(Busy::call("madvise", 11)) } else { Ok(()) }
    }
}

impl Backing for Host {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        self.able()?;
        assert_eq!(self.backed.count_in(span.blocks()), 0);
        self.backed.set(span.blocks());
        Ok(())
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        self.able()?;
        assert_eq!(self.backed.count_in(span.blocks()), span.blocks().count());
        self.backed.clear(span.blocks());
        Ok(())
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        self.able()?;
        plugged.runs().for_each(|run| self.backed.clear(run.blocks()));
        assert!(self.backed.is_empty());
        Ok(())
    }
}

/// A device that may have all of its region plugged.
fn device() -> Device {
    let mut device = Device::new(DeviceConfig::new(ADDR, REGION, BLOCK)).unwrap();
    device.resize(REGION).unwrap();
    device
}

fn request(kind: RequestKind, block: u64, nb_blocks: u16) -> [u8; 24] {
    Request { kind, addr: ADDR + block * BLOCK, nb_blocks }.to_bytes()
}

fn ask(device: &mut Device, host: &mut dyn Backing, kind: RequestKind, block: u64, nb: u16) -> ResponseType {
    device.handle(&request(kind, block, nb), host).kind
}

/// Begins a request that changes something.
fn begin(device: &mut Device, kind: RequestKind, block: u64, nb_blocks: u16) -> Change {
    match device.begin(&request(kind, block, nb_blocks)) {
        Begun::Change(change) => change,
        Begun::Answer(answer) => panic!("answered with {answer:?}"),
    }
}

/// Begins a request that is answered at once.
fn answer(device: &mut Device, kind: RequestKind, block: u64, nb_blocks: u16) -> Response {
    match device.begin(&request(kind, block, nb_blocks)) {
        Begun::Answer(answer) => answer,
        Begun::Change(change) => panic!("began {change:?}"),
    }
}
