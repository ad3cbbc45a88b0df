//! A toy VMM: guest memory, a virtqueue and a virtio-mem device, all but the hypervisor.
//!
//! Run it with `cargo run -p virtio-mem --example toy_vmm`.
//!
//! `Vmm` is what a VMM adds to this library: memory behind the region ([`Backing`]), and the way of a request from the
//! queue to the device and back. `Guest` is what a guest kernel does at the other end: it writes requests into its own
//! memory and has the queue point at them. Both see the memory that `vm-memory` maps, and the VMM's half of the queue is
//! that of `virtio-queue`. In place of a notification register there is a call of `Vmm::notified`.
//!
//! A driver for a guest kernel is in this library too: see `toy_guest`, an example of `tidevm-mm`.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write, stdout};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use virtio_mem::wire::{CONFIG_SIZE, REQUEST_SIZE, RESPONSE_SIZE};
use virtio_mem::{
    Backing, Busy, Config, Device, DeviceConfig, PluggedRuns, Request, RequestKind, Response, Span,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;

/// Boot memory of the guest. It has room for a queue and its buffers, and for nothing else.
const BOOT_SIZE: usize = 64 << 10;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL_RING: u64 = 0x2000;
const USED_RING: u64 = 0x3000;
const REQUEST: u64 = 0x4000;
const RESPONSE: u64 = 0x5000;
const QUEUE_SIZE: u16 = 16;

/// Where the memory of the device lies in the guest, and how much it can be.
const REGION: u64 = 4 << 30;
const REGION_SIZE: u64 = 256 * MIB;
const BLOCK: u64 = 2 * MIB;

/// The memory behind the region: a memfd, in which a block takes memory when the guest touches it.
struct Memfd(File);

impl Memfd {
    /// Gives memory back to the host. A `madvise` would not do for a memfd.
    fn punch(&self, span: Span) -> Result<(), Busy> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.0, flags, span.offset(), span.size())
            .map_err(|error| Busy::call("fallocate", error.raw_os_error()))
    }
}

impl Backing for Memfd {
    /// A VMM with a hypervisor adds a memory slot here, or makes the pages accessible. If it cannot, it says why, and the
    /// guest is told to try again later.
    fn plug(&mut self, _: Span) -> Result<(), Busy> {
        Ok(())
    }

    /// And here it first takes the memory away from the guest.
    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        self.punch(span)
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        self.punch(plugged.region())
    }
}

struct Vmm {
    memory: GuestMemoryMmap,
    queue: Queue,
    device: Device,
    backing: Memfd,
}

impl Vmm {
    fn new() -> Result<Vmm, Box<dyn Error>> {
        let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, REGION_SIZE)?;
        let region = FileOffset::new(file.try_clone()?, 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), BOOT_SIZE, None),
            (GuestAddress(REGION), REGION_SIZE as usize, Some(region)),
        ])?;
        // The guest writes these addresses to registers of the transport, before it says DRIVER_OK.
        let mut queue = Queue::new(QUEUE_SIZE)?;
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL_RING as u32), Some(0));
        queue.set_used_ring_address(Some(USED_RING as u32), Some(0));
        queue.set_ready(true);
        let device = Device::new(DeviceConfig::new(REGION, REGION_SIZE, BLOCK))?;
        Ok(Vmm { memory, queue, device, backing: Memfd(file) })
    }

    /// The guest has notified the queue: each chain has a request to be read and room for a response.
    fn notified(&mut self) -> Result<(), Box<dyn Error>> {
        while let Some(chain) = self.queue.pop_descriptor_chain(&self.memory) {
            let head = chain.head_index();
            // A guest may give fewer bytes. The device answers them with ERROR.
            let mut request = Vec::new();
            chain.clone().reader(&self.memory)?.take(REQUEST_SIZE as u64).read_to_end(&mut request)?;
            let response = self.device.handle(&request, &mut self.backing);
            let written = chain.writer(&self.memory)?.write(&response.to_bytes())?;
            self.queue.add_used(&self.memory, head, written as u32)?;
            // A VMM raises the queue's interrupt now.
        }
        Ok(())
    }

    /// The bytes that a guest reads from the configuration space.
    fn read_config(&self) -> [u8; CONFIG_SIZE] {
        self.device.config().to_bytes()
    }

    /// MiB that the host holds for the region.
    fn held(&self) -> Result<u64, Box<dyn Error>> {
        Ok(self.backing.0.metadata()?.blocks() * 512 / MIB)
    }
}

/// What the guest's driver knows of its queue.
struct Guest {
    /// Requests so far: the index of the next entry in both rings.
    requests: u16,
}

impl Guest {
    /// Sends a request to the device, and reads the response.
    fn ask(
        &mut self,
        vmm: &mut Vmm,
        kind: RequestKind,
        first: u64,
        blocks: u16,
    ) -> Result<Response, Box<dyn Error>> {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let request = Request { kind, addr: REGION + first * BLOCK, nb_blocks: blocks };
        let memory = &vmm.memory;
        memory.write_slice(&request.to_bytes(), GuestAddress(REQUEST))?;
        // A chain of two descriptors: what the device reads, and what it writes.
        let chain = [
            Descriptor::new(REQUEST, REQUEST_SIZE as u32, NEXT, 1),
            Descriptor::new(RESPONSE, RESPONSE_SIZE as u32, WRITE, 0),
        ];
        for (at, descriptor) in (DESCRIPTORS..).step_by(size_of::<Descriptor>()).zip(chain) {
            memory.write_obj(descriptor, GuestAddress(at))?;
        }
        // The rings begin with two words: flags and an index.
        let entry = AVAIL_RING + 4 + u64::from(self.requests % QUEUE_SIZE) * 2;
        memory.write_obj(0_u16, GuestAddress(entry))?;
        self.requests = self.requests.wrapping_add(1);
        memory.write_obj(self.requests, GuestAddress(AVAIL_RING + 2))?;
        vmm.notified()?;
        let used: u16 = vmm.memory.read_obj(GuestAddress(USED_RING + 2))?;
        assert_eq!(used, self.requests, "the device has used the chain");
        let mut response = [0; RESPONSE_SIZE];
        vmm.memory.read_slice(&mut response, GuestAddress(RESPONSE))?;
        Ok(Response::from_bytes(&response))
    }

    /// Uses blocks of the region: writes to every page.
    fn touch(vmm: &Vmm, first: u64, blocks: u64) -> Result<(), Box<dyn Error>> {
        for page in (first * BLOCK..(first + blocks) * BLOCK).step_by(4096) {
            vmm.memory.write_obj(page, GuestAddress(REGION + page))?;
        }
        Ok(())
    }
}

/// Grows the guest to 64 MiB and shrinks it to 16 MiB, and writes to `out` what happens.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let (mut vmm, mut guest) = (Vmm::new()?, Guest { requests: 0 });
    // Someone asks the VMM for more memory. The guest learns of it by a configuration interrupt, if this returns true.
    let is_due = vmm.device.resize(64 * MIB)?;
    writeln!(out, "the host wants 64 MiB: notification {is_due}")?;
    let config = Config::from_bytes(&vmm.read_config());
    let missing = (config.requested_size - config.plugged_size) / config.block_size;
    let answer = guest.ask(&mut vmm, RequestKind::Plug, 0, missing as u16)?.kind;
    Guest::touch(&vmm, 0, missing)?;
    writeln!(
        out,
        "PLUG of {missing} blocks: {answer:?}; the guest has used them, the host holds {} MiB",
        vmm.held()?
    )?;
    // A guest that takes more than it was given is refused. The device keeps the reason for the VMM to show.
    let answer = guest.ask(&mut vmm, RequestKind::Plug, missing, 1)?.kind;
    let reason = vmm.device.refused().expect("a request was refused");
    writeln!(out, "PLUG of one more: {answer:?}; {reason}")?;
    // And less is wanted: the guest gives blocks back that it does not need any more.
    let is_due = vmm.device.resize(16 * MIB)?;
    writeln!(out, "the host wants 16 MiB: notification {is_due}")?;
    let answer = guest.ask(&mut vmm, RequestKind::Unplug, 8, 24)?.kind;
    writeln!(out, "UNPLUG of 24 blocks: {answer:?}; the host holds {} MiB", vmm.held()?)?;
    for (first, blocks) in [(0, 8), (8, 24), (0, 32)] {
        let state = guest.ask(&mut vmm, RequestKind::State, first, blocks)?.state;
        writeln!(out, "STATE of blocks {first} to {}: {state:?}", first + u64::from(blocks) - 1)?;
    }
    // The guest reboots: everything goes back, and the memory with it.
    let answer = guest.ask(&mut vmm, RequestKind::UnplugAll, 0, 0)?.kind;
    writeln!(out, "UNPLUG_ALL: {answer:?}; the host holds {} MiB", vmm.held()?)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut stdout().lock())
}
