//! Prepared memory: what mapping it needs is set aside, so that a CPU can map it with any lock held and without
//! an allocation. Deferred memory is mapped like this when it is wanted.
//!
//! Takes the place of Linux's `vmemmap_populate` and `kernel_physical_mapping_init` at boot and at hot-add, which map
//! everything at once.
//!
//! A table of the direct map maps 1 GiB, and one of the vmemmap window the memmaps of 64 GiB. A page for each table is set
//! aside. Its address is in the entry that will point to the table, which is not present: the processor ignores the other
//! bits then. The first CPU that maps something there clears the page and makes it the table.
//!
//! The pages for boot memory are one piece, in the order of the tables, so an entry that is zero says which page is its
//! own, and boot takes the same time for every size of memory ([`prepare_boot`]). They are never given back: boot memory
//! stays.
//!
//! Pages of 1 GiB are not used, although they would need no table: what is not wanted would be mapped too.
//!
//! Invariants: an entry with [`SET_ASIDE`] is not present, and nothing else refers to its page. The memory hotplug lock
//! is held where pages are set aside and given back, except at boot, while one CPU runs.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    ADDRESS, LARGE_PAGE, LOCK, MEMORY, NoPageTable, PRESENT, SET_ASIDE, SMALL_PAGE, TABLE_SPAN, TableSource,
    WRITABLE, clear_page, entries, entry, index, is_empty, next_table, root, span_of_table,
};

/// Software bit of an entry with [`SET_ASIDE`]: a CPU is making the table.
const BEING_MADE: u64 = 1 << 11;

/// The pages for the tables of boot memory: those of the direct map, and those of the vmemmap window.
static BOOT_PAGES: [BootPages; 2] = [const { BootPages::new() }; 2];

/// Pages that lie side by side, for the tables that lie side by side.
struct BootPages {
    /// The first address that the first table maps, and the end of what they map.
    virt: AtomicU64,
    end: AtomicU64,
    /// Address of the first page.
    pages: AtomicU64,
}

impl BootPages {
    const fn new() -> Self {
        Self { virt: AtomicU64::new(0), end: AtomicU64::new(0), pages: AtomicU64::new(0) }
    }

    /// The page for the table that maps `virt`.
    fn page(&self, virt: u64) -> Option<u64> {
        let start = self.virt.load(Ordering::Relaxed);
        let is_mine = (start..self.end.load(Ordering::Relaxed)).contains(&virt);
        is_mine.then(|| self.pages.load(Ordering::Relaxed) + (virt - start) / TABLE_SPAN * SMALL_PAGE)
    }
}

/// Sets the pages from the address `pages` on aside for the tables that boot memory from `virt` to `end` needs, in the
/// direct map or in the vmemmap window: one call for each.
///
/// # Errors
/// [`NoPageTable`]: there is none for a table above them.
pub fn prepare_boot(
    virt: u64,
    end: u64,
    pages: u64,
    source: &mut dyn TableSource,
) -> Result<(), NoPageTable> {
    for upper in index(virt, 3)..=index(end - 1, 3) {
        next_table(entry(root(), upper), source)?;
    }
    let set = BOOT_PAGES.iter().find(|set| set.end.load(Ordering::Relaxed) == 0);
    let set = set.expect("one call for each window");
    set.virt.store(span_of_table(virt).0, Ordering::Relaxed);
    set.end.store(end, Ordering::Relaxed);
    set.pages.store(pages, Ordering::Relaxed);
    Ok(())
}

/// The table of `slot`, which maps `virt`. It is there or set aside. It needs no lock: the first CPU that finds the page
/// set aside makes it the table, and others wait for that, which takes as long as clearing a page.
pub(super) fn table(slot: &AtomicU64, virt: u64) -> u64 {
    loop {
        let value = slot.load(Ordering::Acquire);
        if value & PRESENT != 0 {
            return value & ADDRESS;
        }
        let is_free = value & BEING_MADE == 0;
        let table = match value {
            0 => BOOT_PAGES.iter().find_map(|set| set.page(virt)),
            _ => Some(value & ADDRESS),
        };
        let table = table.unwrap_or_else(|| panic!("no page is set aside for the table of {virt:#x}"));
        let making = table | SET_ASIDE | BEING_MADE;
        if is_free && slot.compare_exchange(value, making, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            clear_page(table);
            slot.store(table | PRESENT | WRITABLE, Ordering::Release);
            return table;
        }
        core::hint::spin_loop();
    }
}

/// The starts of the parts of `virt..end` that one table each maps.
fn spans(virt: u64, end: u64) -> impl Iterator<Item = u64> {
    (span_of_table(virt).0..end).step_by(TABLE_SPAN as usize)
}

/// How many tables the large pages from `virt` to `end` need.
pub fn tables_for(virt: u64, end: u64) -> u64 {
    spans(virt, end).count() as u64
}

/// Sets pages aside for the tables that the large pages from `virt` to `end` need. They come from `stock`, the addresses of
/// pages that lie side by side, and when that is empty from `source`.
///
/// # Errors
/// [`NoPageTable`]; nothing is set aside then.
pub fn prepare(
    virt: u64,
    end: u64,
    stock: &mut Range<u64>,
    source: &mut dyn TableSource,
) -> Result<(), NoPageTable> {
    let guard = LOCK.lock();
    let (mut next, end) = (span_of_table(virt).0, span_of_table(end - 1).1);
    while next < end {
        let upper = next_table(entry(root(), index(next, 3)), source);
        let set_aside = upper.and_then(|upper| {
            for slot in entries(upper, next, end, TABLE_SPAN) {
                set_aside(slot, stock, source)?;
                next += TABLE_SPAN;
            }
            Ok(())
        });
        if set_aside.is_err() {
            drop(guard);
            let (mut done, stop) = (virt, next);
            while done < stop {
                done = release(done, stop, source);
            }
            return Err(NoPageTable);
        }
    }
    Ok(())
}

/// Sets a page aside for the table of `slot`, unless there is a table or a page.
fn set_aside(
    slot: &AtomicU64,
    stock: &mut Range<u64>,
    source: &mut dyn TableSource,
) -> Result<(), NoPageTable> {
    if slot.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let is_stocked = !stock.is_empty();
    let page = if is_stocked { stock.start } else { source.take().ok_or(NoPageTable)? };
    // A CPU that has claimed boot memory beside may make the table meanwhile.
    let is_new = slot.compare_exchange(0, page | SET_ASIDE, Ordering::Release, Ordering::Relaxed).is_ok();
    match (is_stocked, is_new) {
        (true, true) => stock.start += SMALL_PAGE,
        (false, false) => source.give_back(page),
        (true, false) | (false, true) => {}
    }
    Ok(())
}

/// Maps the large pages from `virt` to `end`, for which [`prepare`] was called, to the memory from `phys` on. It needs no lock: the tables stay, and no other CPU changes these entries.
pub fn map_prepared(virt: u64, end: u64, phys: u64) {
    let (mut next, mut page) = (virt, phys | MEMORY);
    while next < end {
        let upper = entry(root(), index(next, 3)).load(Ordering::Acquire);
        assert!(upper & PRESENT != 0, "no tables for {next:#x}");
        let table = table(entry(upper & ADDRESS, index(next, 2)), next);
        let slots = entries(table, next, end, LARGE_PAGE);
        for slot in slots {
            assert_eq!(slot.load(Ordering::Relaxed), 0, "an address is mapped, and not to {page:#x}");
            slot.store(page, Ordering::Release);
            page += LARGE_PAGE;
        }
        next += slots.len() as u64 * LARGE_PAGE;
    }
}

/// Gives back what [`prepare`] set aside from `virt` to `end`, as far as the tables do not stay and map
/// nothing. Stops behind a table that a CPU may have seen, for the caller to flush the TLBs. Returns where it stopped.
pub fn release(virt: u64, end: u64, source: &mut dyn TableSource) -> u64 {
    let _guard = LOCK.lock();
    for span in spans(virt, end) {
        let upper = entry(root(), index(span, 3)).load(Ordering::Relaxed);
        if upper & PRESENT == 0 || source.stays(span) {
            continue;
        }
        let slot = entry(upper & ADDRESS, index(span, 2));
        let value = slot.load(Ordering::Acquire);
        if value & SET_ASIDE != 0 {
            slot.store(0, Ordering::Release);
            source.give_back(value & ADDRESS);
        } else if value & PRESENT != 0 && is_empty(value & ADDRESS) {
            slot.store(0, Ordering::Release);
            source.free(value & ADDRESS);
            return end.min(span + TABLE_SPAN);
        }
    }
    end
}
