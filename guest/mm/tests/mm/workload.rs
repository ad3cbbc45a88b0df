//! Parts that the tests share: random numbers with a seed to replay, and an owner of movable pages that knows
//! their content.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{SystemTime, UNIX_EPOCH};

use tidevm_mm::{
    AllocError, Gfp, Holder, InitPolicy, MemoryContent, Mm, MovableOwner, NodeId, OfflineError, Order,
    OwnerId, Pfn, SectionNr, ZoneId, ZoneType,
};
use tidevm_mm_sim::Sim;

/// The first hot-added memory block of a default machine: at 4 GiB.
pub const BLOCK: SectionNr = SectionNr::new(32);

/// Struct pages are written at once, or not written where they are known to be zero.
pub const POLICIES: [(InitPolicy, MemoryContent); 2] =
    [(InitPolicy::Eager, MemoryContent::Unknown), (InitPolicy::Lazy, MemoryContent::Zero)];

/// All zones that a machine can have.
pub fn zones() -> impl Iterator<Item = ZoneId> {
    NodeId::all().flat_map(|node| ZoneType::ALL.map(|zone| node.zone(zone)))
}

/// What an attempt to take memory offline says of pages that cannot move: how many, how many of them on per-CPU lists, and
/// the first ones.
#[track_caller]
pub fn unmovable(result: Result<(), OfflineError>) -> (u32, u32, [Option<(Pfn, Holder)>; 4]) {
    match result {
        Err(OfflineError::Unmovable(stuck)) => (stuck.pages, stuck.listed, stuck.first),
        other => panic!("pages cannot move, and the result is {other:?}"),
    }
}

/// xorshift64*.
pub struct Random(u64);

impl Random {
    /// A new seed for every run, or the seed in `TIDEVM_SEED`. It is printed, so a failing test shows it.
    pub fn new(test: &str) -> Self {
        let seed = match std::env::var("TIDEVM_SEED") {
            Ok(seed) => seed.parse().expect("TIDEVM_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64,
        };
        println!("{test}: TIDEVM_SEED={seed}");
        Self(seed | 1)
    }

    /// Independent numbers for another thread.
    pub fn fork(&mut self) -> Self {
        Self(self.next() | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// True `percent` of the time.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, Default)]
struct Slot {
    page: Option<Pfn>,
    isolated: bool,
    content: u64,
}

/// Holds movable pages in numbered slots, each with content of its own.
pub struct Tenant {
    mm: &'static Mm<Sim>,
    id: OwnerId,
    slots: Vec<Mutex<Slot>>,
    /// Whether the tenant refuses to give up pages, and at which step.
    pub refuse_isolate: AtomicBool,
    pub refuse_hand_over: AtomicBool,
}

impl Tenant {
    pub fn new(mm: &'static Mm<Sim>, id: u8, slots: usize) -> &'static Self {
        let tenant: &'static Self = Box::leak(Box::new(Self {
            mm,
            id: OwnerId(id),
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            refuse_isolate: AtomicBool::new(false),
            refuse_hand_over: AtomicBool::new(false),
        }));
        mm.register_owner(OwnerId(id), tenant);
        tenant
    }

    /// Fills an empty slot with a new page of content `content`.
    pub fn fill(&self, slot: usize, content: u64) -> Result<Pfn, AllocError> {
        let page = self.mm.alloc_pages(Order::PAGE, Gfp::Movable)?;
        self.mm.platform().write(page, content);
        let mut entry = self.slots[slot].lock().unwrap();
        assert!(entry.page.is_none(), "slot {slot} is in use");
        *entry = Slot { page: Some(page), isolated: false, content };
        self.mm.set_owner(page, self.id, slot as u64);
        Ok(page)
    }

    /// Fills slots from the first on until there is no memory or no slot; returns their number.
    pub fn fill_all(&self) -> usize {
        (0..self.slots.len()).take_while(|&slot| self.fill(slot, !(slot as u64)).is_ok()).count()
    }

    /// The page in a slot.
    pub fn page(&self, slot: usize) -> Option<Pfn> {
        self.slots[slot].lock().unwrap().page
    }

    /// Checks a slot's content.
    pub fn verify(&self, slot: usize) {
        let entry = self.slots[slot].lock().unwrap();
        if let Some(page) = entry.page {
            let found = self.mm.platform().read(page);
            assert_eq!(found, entry.content, "content of slot {slot} in {page:?}");
        }
    }

    pub fn verify_all(&self) {
        (0..self.slots.len()).for_each(|slot| self.verify(slot));
    }

    /// Checks and frees a slot, after waiting until migration is done with its page. False when it was empty.
    pub fn release(&self, slot: usize) -> bool {
        loop {
            self.verify(slot);
            let mut entry = self.slots[slot].lock().unwrap();
            if !entry.isolated {
                let Some(page) = entry.page.take() else { return false };
                drop(entry);
                self.mm.free_pages(page, Order::PAGE);
                return true;
            }
            drop(entry);
            std::thread::yield_now();
        }
    }

    /// Frees everything; returns the number of pages.
    pub fn release_all(&self) -> usize {
        (0..self.slots.len()).filter(|&slot| self.release(slot)).count()
    }

    /// Pages held in section `nr`.
    pub fn held_in(&self, nr: SectionNr) -> usize {
        let in_section = |slot| self.page(slot).is_some_and(|page| nr.frames().contains(page));
        (0..self.slots.len()).filter(|&slot| in_section(slot)).count()
    }

    fn slot(&self, pfn: Pfn, index: u64) -> Option<std::sync::MutexGuard<'_, Slot>> {
        let entry = self.slots.get(index as usize)?.lock().unwrap();
        (entry.page == Some(pfn)).then_some(entry)
    }
}

impl MovableOwner for Tenant {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        match self.slot(pfn, index) {
            Some(mut slot) if !slot.isolated && !self.refuse_isolate.load(SeqCst) => {
                slot.isolated = true;
                true
            }
            _ => false,
        }
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        let mut slot = self.slot(from, index).expect("an isolated page stays in its slot");
        assert!(slot.isolated, "hands over {from:?}, which is not isolated");
        if self.refuse_hand_over.load(SeqCst) {
            return false;
        }
        *slot = Slot { page: Some(to), isolated: false, ..*slot };
        true
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        let mut slot = self.slot(pfn, index).expect("an isolated page stays in its slot");
        assert!(std::mem::take(&mut slot.isolated), "puts back {pfn:?}, which is not isolated");
    }
}
