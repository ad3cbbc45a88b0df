//! Workloads: tables of pages with a known pattern, and the owner interface through which memory management
//! moves those pages.
//!
//! Takes the place of Linux's `struct movable_operations`, which drivers with movable pages implement. A slot
//! of the table holds a page's frame number, or zero.
//!
//! Invariant: a CPU sets [`HELD`] in the slot before it migrates, verifies or releases the page. So a page has
//! one user at a time without a lock, and a page that is held is not movable meanwhile.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use tidevm_abi::{Failure, Handle, HogKind};
use tidevm_mm::{MovableOwner, Order, OwnerId, Pfn};

use crate::agent::pattern::PagePattern;
use crate::agent::pressure;
use crate::cpu;
use crate::mem::MM;

/// The owner of all workloads' pages; the owner's index of a page names workload and slot.
pub const OWNER: OwnerId = OwnerId(1);

/// Bit of a slot: its page is being moved, verified or freed. Frame numbers are far smaller.
const HELD: u32 = 1 << 31;
/// Slots per chunk of the table, which is one page.
const CHUNK: usize = 1024;
/// Most workloads at a time.
const MAX_WORKLOADS: usize = 64;

type Chunk = Box<[AtomicU32; CHUNK]>;

/// Pages of one workload.
pub struct Workload {
    handle: Handle,
    kind: HogKind,
    full: bool,
    /// Its index in `WORKLOADS`.
    place: usize,
    /// A call takes or frees its pages. A release beside it would forget the handle of pages that are still to come.
    changing: AtomicBool,
    chunks: Vec<Chunk>,
}

static WORKLOADS: Mutex<[Option<Arc<Workload>>; MAX_WORKLOADS]> = Mutex::new([const { None }; MAX_WORKLOADS]);

/// Workloads that have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Number of workloads that have ended, and so freed their pages, since boot.
pub fn ended() -> u64 {
    ENDED.load(Ordering::Acquire)
}

/// The result of an attempt to hold a slot's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The caller holds the page.
    Held(Pfn),
    /// The slot is empty.
    Empty,
    /// Another user holds the page; try again later.
    Busy,
}

/// The CPU for the `nth` job of a workload, counted from the last CPU down, because the boot CPU has the
/// drivers.
pub fn home_cpu(nth: usize) -> usize {
    let online = cpu::online();
    online - 1 - nth % online
}

impl Workload {
    /// Makes and registers a workload for up to `pages` pages. The caller is the one that changes which pages it has.
    ///
    /// # Errors
    /// [`Failure::HandleInUse`], or [`Failure::NoMemory`] when there is no room for its table; nothing is
    /// kept then.
    pub fn new(handle: Handle, kind: HogKind, full: bool, pages: u64) -> Result<Arc<Self>, Failure> {
        if find(handle).is_some() {
            return Err(Failure::HandleInUse);
        }
        let nr_chunks = usize::try_from(pages).map_err(|_| Failure::NoMemory)?.div_ceil(CHUNK);
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(nr_chunks).map_err(|_| Failure::NoMemory)?;
        for _ in 0..nr_chunks {
            chunks.push(new_chunk().ok_or(Failure::NoMemory)?);
        }
        let mut workloads = WORKLOADS.lock();
        let place = workloads.iter().position(Option::is_none).ok_or(Failure::NoMemory)?;
        let changing = AtomicBool::new(true);
        let workload = Arc::new(Self { handle, kind, full, place, changing, chunks });
        workloads[place] = Some(workload.clone());
        Ok(workload)
    }

    /// Forgets an empty workload's handle, unless another call has done it. Then a newer workload may stand at its
    /// place, and stays. Drivers that wait for memory try again after the answer to the call that ends the workload,
    /// which wakes their CPU.
    pub fn unregister(&self) {
        let workload = WORKLOADS.lock()[self.place].take_if(|stands| ptr::eq(&raw const **stands, self));
        drop(workload);
        ENDED.fetch_add(1, Ordering::Release);
        pressure::memory_came();
    }

    /// Makes the caller the one that changes which pages the workload has; `false` while another one does.
    pub fn begin_change(&self) -> bool {
        self.changing.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The change is over, and the workload stays.
    pub fn end_change(&self) {
        self.changing.store(false, Ordering::Release);
    }

    /// The kind of its pages.
    pub fn kind(&self) -> HogKind {
        self.kind
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    fn slot(&self, index: u32) -> &AtomicU32 {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    /// The pattern of page `index`.
    pub fn pattern(&self, index: u32) -> PagePattern {
        PagePattern::new(self.handle, index, self.full)
    }

    /// Fills a page that was just allocated, alone and of order 0, and puts it into empty slot `index`. From
    /// here on the page may move.
    pub fn put(&self, index: u32, pfn: Pfn) {
        self.pattern(index).write(pfn);
        // Held until the page has its owner. The frame may have had this owner before, and a migration that
        // found it then would otherwise take the page away too early.
        self.slot(index).store(pfn.get() | HELD, Ordering::Release);
        match self.kind {
            HogKind::Unmovable | HogKind::Contiguous => MM.set_holder(pfn, self.handle),
            HogKind::Movable | HogKind::Pinned => {
                MM.set_owner(pfn, OWNER, (self.place as u64) << 32 | u64::from(index));
            }
        }
        self.let_go(index, pfn);
    }

    /// Holds the page of slot `index`.
    pub fn hold(&self, index: u32) -> Hold {
        let slot = self.slot(index);
        let value = slot.load(Ordering::Relaxed);
        if value == 0 {
            Hold::Empty
        } else if value & HELD != 0 || !exchange(slot, value, value | HELD) {
            Hold::Busy
        } else {
            Hold::Held(Pfn::new(value))
        }
    }

    /// Lets go of a page that [`Self::hold`] gave.
    pub fn let_go(&self, index: u32, pfn: Pfn) {
        self.slot(index).store(pfn.get(), Ordering::Release);
    }

    /// Takes a page that [`Self::hold`] gave out of its slot: the caller owns it now.
    pub fn give_up(&self, index: u32) {
        self.slot(index).store(0, Ordering::Release);
    }

    /// Frees a page that [`Self::hold`] gave.
    pub fn free(&self, index: u32, pfn: Pfn) {
        self.give_up(index);
        MM.free_pages(pfn, Order::PAGE);
    }
}

fn new_chunk() -> Option<Chunk> {
    let mut chunk = Vec::new();
    chunk.try_reserve_exact(CHUNK).ok()?;
    chunk.resize_with(CHUNK, || AtomicU32::new(0));
    chunk.into_boxed_slice().try_into().ok()
}

fn exchange(slot: &AtomicU32, from: u32, to: u32) -> bool {
    slot.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// The workload with this handle.
pub fn find(handle: Handle) -> Option<Arc<Workload>> {
    WORKLOADS.lock().iter().flatten().find(|workload| workload.handle == handle).cloned()
}

/// Handle of the workload whose page has this owner index, for reports.
pub fn handle_of(owned: u64) -> Option<Handle> {
    let workloads = WORKLOADS.lock();
    workloads.get((owned >> 32) as usize)?.as_ref().map(|workload| workload.handle)
}

/// Moves the pages of all workloads, as their owner.
pub struct Workloads;

impl Workloads {
    fn with_slot<T>(index: u64, use_slot: impl FnOnce(&Workload, &AtomicU32) -> T) -> Option<T> {
        let workloads = WORKLOADS.lock();
        let workload = workloads.get((index >> 32) as usize)?.as_ref()?;
        let slot = index as u32;
        (slot < workload.capacity()).then(|| use_slot(workload, workload.slot(slot)))
    }
}

impl MovableOwner for Workloads {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        Self::with_slot(index, |workload, slot| {
            workload.kind == HogKind::Movable && exchange(slot, pfn.get(), pfn.get() | HELD)
        })
        .unwrap_or(false)
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        Self::with_slot(index, |_, slot| exchange(slot, from.get() | HELD, to.get())).unwrap_or(false)
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        Self::with_slot(index, |_, slot| slot.store(pfn.get(), Ordering::Release));
    }
}
