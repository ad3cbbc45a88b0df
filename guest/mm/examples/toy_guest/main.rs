//! A toy guest: the driver of a virtio-mem device and the page allocator, on plain memory of this process.
//!
//! Run it with `cargo run -p tidevm-mm --example toy_guest`.
//!
//! This is what a kernel puts between the two libraries. `Plain` is its platform: it maps nothing, because all of its
//! memory is always mapped. `Guest::follow` is its driver job: it carries out what [`Driver`] asks for, and tells how that
//! went. The device is that of `virtio-mem`, called directly where a kernel sends a request through a virtqueue.
//!
//! The guest has 256 MiB when it boots. It grows by 1 GiB, fills some of that with a cache, and shrinks again: the pages of
//! the cache move to what is left.

mod plain;

use std::error::Error;
use std::io::{Write, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidevm_mm::{
    Gfp, MemoryContent, Mm, MovableOwner, NodeId, OfflineError, Order, OwnerId, PAGE_SIZE, Pfn, PhysAddr,
    SECTION_SIZE, SectionNr, SectionRange, ZoneType,
};
use virtio_mem::{
    Action, Backing, Busy, Device, DeviceConfig, Driver, DriverConfig, Idle, IdleReason, Outcome,
    PluggedRuns, Span,
};

use self::plain::{BOOT_SIZE, Plain, boot};

const MIB: u64 = 1 << 20;
/// The region of the device begins where boot memory ends.
const REGION: u64 = BOOT_SIZE;
const REGION_SIZE: u64 = 1 << 30;

/// The memory behind the device. It is always there, so the host has nothing to do.
struct Host;

impl Backing for Host {
    fn plug(&mut self, _: Span) -> Result<(), Busy> {
        Ok(())
    }

    fn unplug(&mut self, _: Span) -> Result<(), Busy> {
        Ok(())
    }

    fn unplug_all(&mut self, _: &PluggedRuns) -> Result<(), Busy> {
        Ok(())
    }
}

struct Guest {
    mm: &'static Mm<Plain>,
    driver: Driver,
}

impl Guest {
    /// Does what the driver asks for until it has nothing more to do.
    fn follow(&mut self, device: &mut Device) -> Idle {
        self.driver.config_changed();
        loop {
            let outcome = match self.driver.next() {
                Action::Idle(idle) => return idle,
                Action::ReadConfig => Outcome::Config(device.config(), device.config_generation()),
                Action::Send(request) => Outcome::Response(device.handle(&request.to_bytes(), &mut Host)),
                Action::AddMemoryBlocks { addr, size, .. } => self.add(addr, size),
                Action::RemoveMemoryBlocks { addr, size } => self.remove(addr, size),
                action @ (Action::OnlineDeviceBlocks { .. } | Action::OfflineDeviceBlocks { .. }) => {
                    unreachable!("{action:?}: this guest takes whole memory blocks, as `DriverConfig` says")
                }
            };
            self.driver.complete(outcome);
        }
    }

    fn add(&self, addr: u64, size: u64) -> Outcome {
        let (range, zone, content) = (sections(addr, size), ZoneType::Movable, MemoryContent::Unknown);
        match self.mm.hotplug().add_and_online_memory(NodeId::FIRST, range, 1, zone, content, || true) {
            Ok(_) => Outcome::Done,
            Err(part) => {
                let done = part.end.start().address().get() - addr;
                Outcome::Part { done, failed: Some(IdleReason::NoMemory) }
            }
        }
    }

    /// Pages in use move elsewhere first.
    fn remove(&self, addr: u64, size: u64) -> Outcome {
        match self.mm.hotplug().offline_and_remove_from_end(sections(addr, size), || true) {
            Ok(()) => Outcome::Done,
            Err(part) => {
                let failed = part.error.map(|error| match error {
                    OfflineError::NoRoom(_) => IdleReason::NoRoom,
                    _ => IdleReason::Unmovable,
                });
                Outcome::Part { done: addr + size - part.first.start().address().get(), failed }
            }
        }
    }
}

fn sections(addr: u64, size: u64) -> SectionRange {
    let count = (size / SECTION_SIZE) as u32;
    SectionRange::new(SectionNr::of(PhysAddr::new(addr)), count).expect("sections of the region")
}

/// A user of memory whose pages can move, such as a page cache.
struct Cache(Mutex<Vec<Pfn>>);

impl Cache {
    /// The page of each index.
    fn pages(&self) -> MutexGuard<'_, Vec<Pfn>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugged(&self) -> usize {
        self.pages().iter().filter(|page| page.address().get() >= REGION).count()
    }
}

impl MovableOwner for Cache {
    /// From here on nobody may write to the page. Nobody does: there is one CPU.
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        self.pages()[index as usize] == pfn
    }

    /// The content has been copied.
    fn hand_over(&self, _: Pfn, to: Pfn, index: u64) -> bool {
        self.pages()[index as usize] = to;
        true
    }

    fn put_back(&self, _: Pfn, _: u64) {}
}

/// Grows and shrinks the guest, and writes to `out` what happens.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mm = boot(REGION_SIZE)?;
    let free = || mm.available_pages() * PAGE_SIZE / MIB;
    writeln!(out, "booted with {} MiB, {} MiB of them are free", BOOT_SIZE / MIB, free())?;
    let mut device = Device::new(DeviceConfig::new(REGION, REGION_SIZE, 2 * MIB))?;
    let geometry = DriverConfig::new(SECTION_SIZE, SECTION_SIZE);
    let mut guest = Guest { mm, driver: Driver::new(geometry, device.config(), device.config_generation())? };

    // The host raises the target. The guest would hear of it by a configuration interrupt.
    device.resize(1 << 30)?;
    let idle = guest.follow(&mut device);
    writeln!(
        out,
        "1024 MiB wanted: {idle:?}, {} MiB plugged, {} MiB free",
        device.plugged_size() / MIB,
        free()
    )?;

    // 100 MiB of the cache lie in what was plugged, because movable pages come from there first.
    let cache: &'static Cache = Box::leak(Box::new(Cache(Mutex::new(Vec::new()))));
    mm.register_owner(OwnerId(0), cache);
    for index in 0..100 * MIB / PAGE_SIZE {
        let page = mm.alloc_pages(Order::PAGE, Gfp::Movable)?;
        mm.platform().write(page, index);
        cache.pages().push(page);
        mm.set_owner(page, OwnerId(0), index);
    }
    writeln!(out, "the cache has {} pages in plugged memory", cache.plugged())?;

    // Down to nothing: the last memory block can go only when the cache has moved to boot memory.
    for wanted in [256 * MIB, 0] {
        device.resize(wanted)?;
        let idle = guest.follow(&mut device);
        let size = device.plugged_size() / MIB;
        writeln!(out, "{} MiB wanted: {idle:?}, {size} MiB plugged, {} MiB free", wanted / MIB, free())?;
    }
    let is_intact = (0..).zip(cache.pages().iter()).all(|(index, &page)| mm.platform().read(page) == index);
    let (plugged, moved) = (cache.plugged(), mm.stats().pages_migrated);
    writeln!(
        out,
        "the cache has {plugged} pages in plugged memory; pages were moved {moved} times; intact: {is_intact}"
    )?;
    // Every invariant of the allocator holds.
    mm.check();
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut stdout().lock())
}
