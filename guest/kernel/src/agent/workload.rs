//! Workloads: tables of pages with checkable content, and the owner interface through which
//! memory management moves those pages.
//!
//! A slot of the table holds a page's frame number, or zero. Whoever touches the page sets
//! [`HELD`] in the slot first: the migrating CPU, the verifying one, the releasing one. So a page
//! has one user at a time without a lock, and a page that is held is simply not movable just now.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use tidevm_abi::{Handle, HogKind};
use tidevm_mm::{MovableOwner, Order, OwnerId, Pfn};

use crate::agent::pattern::PagePattern;
use crate::cpu::lapic;
use crate::mem::MM;

/// The owner of all workloads' pages; the index names workload and slot.
pub const OWNER: OwnerId = OwnerId(1);

/// A slot's page is being moved, checked or freed. Frame numbers end far below.
const HELD: u32 = 1 << 31;
/// Slots of one chunk of the table: one page of them.
const CHUNK: usize = 1024;
/// Most workloads at a time.
const MAX_WORKLOADS: usize = 64;

type Chunk = Box<[AtomicU32; CHUNK]>;

/// Pages of one workload.
pub struct Workload {
    handle: Handle,
    kind: HogKind,
    full: bool,
    /// Its place in `WORKLOADS`.
    place: usize,
    chunks: Vec<Chunk>,
}

static WORKLOADS: Mutex<[Option<Arc<Workload>>; MAX_WORKLOADS]> = Mutex::new([const { None }; MAX_WORKLOADS]);

/// Workloads that have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Number of workloads that have ended, and so freed their pages, since boot.
pub fn ended() -> u64 {
    ENDED.load(Ordering::Acquire)
}

/// Why a workload was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMade {
    /// The handle is taken.
    HandleInUse,
    /// No room for its table.
    NoMemory,
}

/// What came of trying to use a slot's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The caller holds the page.
    Held(Pfn),
    /// There is none.
    Empty,
    /// Somebody else holds it; try again later.
    Busy,
}

impl Workload {
    /// Makes and registers a workload for up to `pages` pages.
    ///
    /// # Errors
    /// [`NotMade`]; nothing is kept then.
    pub fn new(handle: Handle, kind: HogKind, full: bool, pages: u64) -> Result<Arc<Self>, NotMade> {
        if find(handle).is_some() {
            return Err(NotMade::HandleInUse);
        }
        let nr_chunks = usize::try_from(pages).map_err(|_| NotMade::NoMemory)?.div_ceil(CHUNK);
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(nr_chunks).map_err(|_| NotMade::NoMemory)?;
        for _ in 0..nr_chunks {
            chunks.push(new_chunk().ok_or(NotMade::NoMemory)?);
        }
        let mut workloads = WORKLOADS.lock();
        let place = workloads.iter().position(Option::is_none).ok_or(NotMade::NoMemory)?;
        let workload = Arc::new(Self { handle, kind, full, place, chunks });
        workloads[place] = Some(workload.clone());
        Ok(workload)
    }

    /// Forgets an empty workload's handle, and tells drivers that wait for memory.
    pub fn unregister(&self) {
        WORKLOADS.lock()[self.place] = None;
        ENDED.fetch_add(1, Ordering::Release);
        lapic::wake(0);
    }

    /// What kind of pages it holds.
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

    /// What page `index` holds.
    pub fn pattern(&self, index: u32) -> PagePattern {
        PagePattern::new(self.handle, index, self.full)
    }

    /// Fills a page that was just allocated, alone and of order 0, and puts it into empty slot
    /// `index`. From here on it may move.
    pub fn put(&self, index: u32, pfn: Pfn) {
        self.pattern(index).write(pfn);
        // Held until the page has its owner: a migration that found this owner in the page's former
        // life would otherwise take it away before that.
        self.slot(index).store(pfn.get() | HELD, Ordering::Release);
        match self.kind {
            HogKind::Unmovable | HogKind::Contiguous => MM.set_holder(pfn, self.handle),
            HogKind::Movable | HogKind::Pinned => {
                MM.set_owner(pfn, OWNER, (self.place as u64) << 32 | u64::from(index));
            }
        }
        self.let_go(index, pfn);
    }

    /// Takes hold of slot `index`'s page.
    pub fn take(&self, index: u32) -> Take {
        let slot = self.slot(index);
        let value = slot.load(Ordering::Relaxed);
        if value == 0 {
            Take::Empty
        } else if value & HELD != 0 || !exchange(slot, value, value | HELD) {
            Take::Busy
        } else {
            Take::Held(Pfn::new(value))
        }
    }

    /// Lets go of a page that [`Self::take`] gave.
    pub fn let_go(&self, index: u32, pfn: Pfn) {
        self.slot(index).store(pfn.get(), Ordering::Release);
    }

    /// Takes a page that [`Self::take`] gave out of its slot: it is the caller's now.
    pub fn give_up(&self, index: u32) {
        self.slot(index).store(0, Ordering::Release);
    }

    /// Frees a page that [`Self::take`] gave.
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

/// Name of the workload whose page has this owner index, for reports.
pub fn handle_of(owned: u64) -> Option<Handle> {
    let workloads = WORKLOADS.lock();
    workloads.get((owned >> 32) as usize)?.as_ref().map(|workload| workload.handle)
}

/// Moves workloads' pages.
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
