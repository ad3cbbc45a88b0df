//! The guest's memory management under the driver: memory blocks, workloads, and the account of pages.
//!
//! Takes the place of `guest/kernel/src/virtio/mem.rs` and of `agent/`, on the simulated machine.
//!
//! Invariant: pages in slots are movable and have the content that the slot says; kernel pages are outside of the
//! memory that comes and goes.

use std::sync::Mutex;

use tidevm_mm::{
    FaultStep, Gfp, InitPolicy, MemoryContent, MhpFlags, Mm, MovableOwner, NodeId, OfflineError, Order,
    OwnerId, PageblockSet, Pfn, PhysAddr, SECTION_SIZE, SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};
use virtio_mem::{Action, IdleReason, Outcome};

use crate::Random;
use crate::stack::{BLOCK, MEMORY_BLOCK};

const OWNER: OwnerId = OwnerId(0);
/// Pages in slots at most.
const SLOTS: usize = 3000;
const CPUS: u64 = 2;
#[derive(Clone, Copy, Debug)]
struct Slot {
    page: Pfn,
    isolated: bool,
    content: u64,
}

/// The owner of movable pages.
struct Slots {
    slots: Mutex<Vec<Option<Slot>>>,
}

/// Pages of each zone: present, managed, free.
type Account = Vec<[u64; 3]>;

/// A guest without a CPU.
pub struct Guest {
    mm: &'static Mm<Sim>,
    slots: &'static Slots,
    memmap_on_memory: bool,
    content: MemoryContent,
    kernel: Vec<Pfn>,
    start: Account,
}

impl Guest {
    /// A guest with 32 MiB at boot. `random` picks the policies.
    pub fn new(random: &mut Random) -> Self {
        let (init, content) = random
            .pick(&[(InitPolicy::Eager, MemoryContent::Unknown), (InitPolicy::Lazy, MemoryContent::Zero)]);
        let memmap_on_memory = random.chance(70);
        let options = SimMachine::OPTIONS.with_init(init).with_content(content);
        let options = options.with_memmap_on_memory(memmap_on_memory);
        let memory = [(0, 8 * 1024)].into();
        let mm = SimMachine { memory, cpus: CPUS as usize, options, ..SimMachine::default() }.boot();
        let slots: &'static Slots = Box::leak(Box::new(Slots { slots: Mutex::new(vec![None; SLOTS]) }));
        mm.register_owner(OWNER, slots);
        let mut guest = Self { mm, slots, memmap_on_memory, content, kernel: Vec::new(), start: Vec::new() };
        guest.start = guest.account();
        guest
    }

    /// As `memmap_size` of [`virtio_mem::DriverConfig`].
    pub fn memmap_size(&self) -> u64 {
        if self.memmap_on_memory { MEMORY_BLOCK / 64 } else { 0 }
    }

    /// Carries out an action of the driver that is for memory management. A range ends early now and then, as when a
    /// notification comes in the middle.
    pub fn carry_out(&mut self, action: Action, random: &mut Random) -> Outcome {
        let hotplug = self.mm.hotplug();
        let section = |addr: u64| SectionNr::of(PhysAddr::new(addr));
        let part = |addr: u64, size: u64| {
            let first = addr % SECTION_SIZE / BLOCK;
            PageblockSet::range(first as u32..(first + size / BLOCK) as u32)
        };
        let done = match action {
            Action::AddMemoryBlocks { addr, size, fresh } => {
                let content = if fresh { self.content } else { MemoryContent::Unknown };
                let flags = MhpFlags::new(content).with_memmap_on_memory(self.memmap_on_memory);
                return range(size, random, |done| {
                    let at = addr + done;
                    let add = (size - done).min(MEMORY_BLOCK - at % MEMORY_BLOCK);
                    let added = hotplug.add_memory(NodeId::FIRST, section(at), part(at, add), flags);
                    let online = added.map_err(drop).and_then(|()| {
                        let online = hotplug.online(section(at), ZoneType::Movable);
                        online.map_err(|_| hotplug.remove_memory(section(at)).expect("it is offline"))
                    });
                    online.map(|()| add).map_err(|()| IdleReason::NoMemory)
                });
            }
            Action::RemoveMemoryBlocks { addr, size } => {
                return range(size, random, |done| {
                    let at = addr + size - done - MEMORY_BLOCK;
                    hotplug.offline(section(at)).map_err(reason)?;
                    hotplug.remove_memory(section(at)).expect("it is offline");
                    Ok(MEMORY_BLOCK)
                });
            }
            Action::OnlineDeviceBlocks { addr, size } => {
                let online = hotplug.online_pageblocks(section(addr), part(addr, size));
                online.map_err(|_| IdleReason::NoMemory)
            }
            Action::OfflineDeviceBlocks { addr, size } => {
                hotplug.offline_pageblocks(section(addr), part(addr, size)).map_err(reason)
            }
            action => unreachable!("{action:?} is not for memory management"),
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    /// Fills and empties some slots and kernel pages, on one CPU or the other.
    pub fn churn(&mut self, random: &mut Random) {
        let cpu = random.below(CPUS) as usize;
        let count = random.below(200);
        Sim::run_on(cpu, || {
            for _ in 0..count {
                let slot = random.below(SLOTS as u64) as usize;
                if !self.slots.release(self.mm, slot) {
                    self.slots.fill(self.mm, slot, random.number());
                }
            }
        });
        for _ in 0..random.below(8) {
            if self.kernel.len() > 200 || random.chance(50) {
                if let Some(page) = self.kernel.pop() {
                    self.mm.free_pages(page, Order::PAGE);
                }
            } else if let Ok(page) = self.mm.alloc_pages(Order::PAGE, Gfp::Kernel) {
                self.kernel.push(page);
            }
        }
    }

    /// Makes a step fail soon.
    pub fn inject(&self, random: &mut Random) {
        self.mm.platform().inject(random.pick(&FaultStep::ALL), random.below(8) as u32);
    }

    /// No step fails any more.
    pub fn disarm(&self) {
        FaultStep::ALL.iter().for_each(|&step| self.mm.platform().inject_always(step, false));
    }

    /// Checks the content of all slots. Returns the number of pages, and of those with wrong content.
    pub fn verify(&self) -> (u64, u64) {
        let slots = self.slots.slots.lock().expect("no panic holds it");
        let read = slots.iter().flatten().map(|slot| self.mm.platform().read(slot.page) == slot.content);
        read.fold((0, 0), |(all, wrong), right| (all + 1, wrong + u64::from(!right)))
    }

    /// Verifies every invariant.
    pub fn check(&self) {
        self.mm.check();
    }

    /// Pages that have moved so far.
    pub fn migrated(&self) -> u64 {
        self.mm.stats().pages_migrated
    }

    /// Gives all pages of workloads back.
    pub fn release_all(&mut self) {
        for slot in 0..SLOTS {
            self.slots.release(self.mm, slot);
        }
        self.kernel.drain(..).for_each(|page| self.mm.free_pages(page, Order::PAGE));
    }

    /// Takes all memory blocks away without the driver, as when the guest ends.
    pub fn empty(&mut self) {
        self.disarm();
        self.release_all();
        for nr in (32..36).map(SectionNr::new) {
            let hotplug = self.mm.hotplug();
            if hotplug.offline(nr).is_ok() {
                hotplug.remove_memory(nr).expect("it is offline");
            }
        }
    }

    /// Pages that are not free although everything was given back. Fails for another difference from the start.
    pub fn lost(&self) -> u64 {
        let account = self.account();
        let (mut lost, mut same) = (0, true);
        for (now, start) in account.iter().zip(&self.start) {
            same &= now[..2] == start[..2] && now[2] <= start[2];
            lost += start[2].saturating_sub(now[2]);
        }
        assert!(same, "pages present, managed and free per zone: {account:?}, at the start {:?}", self.start);
        lost
    }

    fn account(&self) -> Account {
        self.mm.check();
        let zones = self.mm.stats().zones;
        zones.iter().map(|zone| [zone.present, zone.managed, zone.free + zone.pcp]).collect()
    }
}

/// Carries out a range of `size` bytes by calls of `next`, which gets the bytes that are done and returns how many it did.
fn range(size: u64, random: &mut Random, mut next: impl FnMut(u64) -> Result<u64, IdleReason>) -> Outcome {
    let mut done = 0;
    while done < size {
        if done > 0 && random.chance(5) {
            return Outcome::Part { done, failed: None };
        }
        match next(done) {
            Ok(bytes) => done += bytes,
            Err(reason) => return Outcome::Part { done, failed: Some(reason) },
        }
    }
    Outcome::Done
}

fn reason(error: OfflineError) -> IdleReason {
    match error {
        OfflineError::Unmovable(_) => IdleReason::Unmovable,
        OfflineError::NoRoom(_) => IdleReason::NoRoom,
        _ => IdleReason::NoMemory,
    }
}

impl Slots {
    fn fill(&self, mm: &Mm<Sim>, index: usize, content: u64) {
        let Ok(page) = mm.alloc_pages(Order::PAGE, Gfp::Movable) else { return };
        mm.platform().write(page, content);
        self.slots.lock().expect("no panic holds it")[index] = Some(Slot { page, isolated: false, content });
        mm.set_owner(page, OWNER, index as u64);
    }

    fn release(&self, mm: &Mm<Sim>, index: usize) -> bool {
        let slot = self.slots.lock().expect("no panic holds it")[index].take();
        let Some(slot) = slot else { return false };
        assert_eq!(mm.platform().read(slot.page), slot.content, "content of slot {index}, {slot:?}");
        mm.free_pages(slot.page, Order::PAGE);
        true
    }

    fn change(&self, pfn: Pfn, index: u64, isolated: bool, change: impl FnOnce(&mut Slot)) -> bool {
        let mut slots = self.slots.lock().expect("no panic holds it");
        let slot =
            slots[index as usize].as_mut().filter(|slot| slot.page == pfn && slot.isolated == isolated);
        slot.map(change).is_some()
    }
}

impl MovableOwner for Slots {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        self.change(pfn, index, false, |slot| slot.isolated = true)
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        let moved = self.change(from, index, true, |slot| (slot.page, slot.isolated) = (to, false));
        assert!(moved, "{from:?} of slot {index} is not isolated");
        true
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        assert!(self.change(pfn, index, true, |slot| slot.isolated = false), "{pfn:?} is not isolated");
    }
}
