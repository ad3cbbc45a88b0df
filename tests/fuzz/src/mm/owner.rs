//! An owner of movable pages: slots with a page each, whose content it knows.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use tidevm_mm::{Gfp, Mm, MovableOwner, Order, OwnerId, Pfn};
use tidevm_mm_sim::Sim;

const ID: OwnerId = OwnerId(0);
const REFUSE_ISOLATE: u8 = 1;
const REFUSE_HAND_OVER: u8 = 2;

#[derive(Clone, Copy, Debug)]
struct Slot {
    page: Pfn,
    isolated: bool,
    content: u64,
}

pub struct Owner {
    mm: &'static Mm<Sim>,
    slots: Mutex<Vec<Option<Slot>>>,
    refuses: AtomicU8,
}

impl Owner {
    pub fn new(mm: &'static Mm<Sim>, slots: usize) -> &'static Self {
        let slots = Mutex::new(vec![None; slots]);
        let owner: &'static Self = Box::leak(Box::new(Self { mm, slots, refuses: AtomicU8::new(0) }));
        mm.register_owner(ID, owner);
        owner
    }

    /// Refuses to give up pages: bit 0 at isolation, bit 1 when a page is handed over.
    pub fn refuse(&self, bits: u8) {
        self.refuses.store(bits, SeqCst);
    }

    fn refuses(&self, bit: u8) -> bool {
        self.refuses.load(SeqCst) & bit != 0
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Vec<Option<Slot>>> {
        self.slots.lock().expect("a machine that panicked is not used again")
    }

    /// Allocates a page for slot `index`, unless it has one. Returns whether there was memory.
    pub fn fill(&self, index: usize, content: u64) -> bool {
        if self.slots()[index].is_some() {
            return true;
        }
        let Ok(page) = self.mm.alloc_pages(Order::PAGE, Gfp::Movable) else { return false };
        assert!(!self.has(page, 1), "{page:?} has an owner");
        self.mm.platform().write(page, content);
        self.slots()[index] = Some(Slot { page, isolated: false, content });
        self.mm.set_owner(page, ID, index as u64);
        true
    }

    /// Frees the page of slot `index`. Returns whether there was one.
    pub fn release(&self, index: usize) -> bool {
        let Some(slot) = self.slots()[index].take() else { return false };
        assert_eq!(self.mm.platform().read(slot.page), slot.content, "content of slot {index}, {slot:?}");
        self.mm.free_pages(slot.page, Order::PAGE);
        true
    }

    /// All pages have their content, and none is isolated between operations.
    pub fn verify(&self) {
        for slot in self.slots().iter().flatten() {
            assert!(!slot.isolated, "{slot:?}");
            assert_eq!(self.mm.platform().read(slot.page), slot.content, "content of {slot:?}");
        }
    }

    /// Whether a page of `count` from `first` on is in a slot.
    pub fn has(&self, first: Pfn, count: u32) -> bool {
        let inside = |slot: &Slot| (first.get()..first.get() + count).contains(&slot.page.get());
        self.slots().iter().flatten().any(inside)
    }
}

impl MovableOwner for Owner {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        match &mut self.slots()[index as usize] {
            Some(slot) if slot.page == pfn && !slot.isolated && !self.refuses(REFUSE_ISOLATE) => {
                slot.isolated = true;
                true
            }
            _ => false,
        }
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        let mut slots = self.slots();
        let slot = slots[index as usize].as_mut().filter(|slot| slot.page == from && slot.isolated);
        let slot = slot.unwrap_or_else(|| panic!("{from:?} of slot {index} is handed over and not isolated"));
        if self.refuses(REFUSE_HAND_OVER) {
            return false;
        }
        (slot.page, slot.isolated) = (to, false);
        true
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        let mut slots = self.slots();
        let slot = slots[index as usize].as_mut().filter(|slot| slot.page == pfn && slot.isolated);
        slot.unwrap_or_else(|| panic!("{pfn:?} of slot {index} is put back and not isolated")).isolated =
            false;
    }
}
