//! Prepared memory: what mapping it needs is set aside, so that a CPU can map it with any lock held and without
//! an allocation. Deferred memory is mapped like this when it is wanted.
//!
//! Takes the place of Linux's `vmemmap_populate` and `kernel_physical_mapping_init` at boot and at hot-add, which map
//! everything at once.
//!
//! A table of the vmemmap window maps the memmaps of 64 GiB; it is made, and stays. A table of the direct map maps 1 GiB;
//! only a page for it is set aside. Its address is in the entry that will point to the table, which is not present: the
//! processor ignores the other bits then. The first CPU that maps something there clears the page and makes it the table.
//!
//! Invariants: an entry with [`SET_ASIDE`] is not present, and nothing else refers to its page. The memory hotplug lock
//! is held where pages are set aside and given back.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    ADDRESS, DIRECT_MAP, KEPT, LARGE_PAGE, LOCK, MEMORY, NoPageTable, PRESENT, SET_ASIDE, TABLE_SPAN,
    TableSource, WRITABLE, clear_page, entries, entry, index, is_empty, next_table, root,
};

/// Software bit of an entry with [`SET_ASIDE`]: a CPU is making the table.
const BEING_MADE: u64 = 1 << 11;

/// Makes the tables for the large pages of the vmemmap window from `virt` to `end`. They stay for good, also
/// when their pages are unmapped.
///
/// # Errors
/// [`NoPageTable`]; tables that were made stay too.
pub fn prepare_vmemmap(virt: u64, end: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let _guard = LOCK.lock();
    for virt in (virt - virt % TABLE_SPAN..end).step_by(TABLE_SPAN as usize) {
        let upper = next_table(entry(root(), index(virt, 3)), source)?;
        let middle = entry(upper, index(virt, 2));
        next_table(middle, source)?;
        middle.fetch_or(KEPT, Ordering::Release);
    }
    Ok(())
}

/// Maps the large page of the vmemmap window at `virt`, for which [`prepare_vmemmap`] was called. It needs no
/// lock: the table stays, and no other CPU changes this entry.
pub fn map_prepared_vmemmap(virt: u64, phys: u64) {
    let upper = entry(root(), index(virt, 3)).load(Ordering::Relaxed);
    assert!(upper & PRESENT != 0, "no tables for {virt:#x}");
    let middle = entry(upper & ADDRESS, index(virt, 2)).load(Ordering::Acquire);
    assert!(middle & KEPT != 0, "{virt:#x} is not prepared: {middle:#x}");
    let before = entry(middle & ADDRESS, index(virt, 1)).swap(phys | MEMORY, Ordering::Release);
    assert_eq!(before, 0, "{virt:#x} is mapped, and not to {phys:#x}");
}

/// The table of `slot`, which is there or set aside. It needs no lock: the first CPU that finds the page set aside makes
/// it the table, and others wait for that, which takes as long as clearing a page.
pub(super) fn table(slot: &AtomicU64) -> u64 {
    loop {
        let value = slot.load(Ordering::Acquire);
        if value & PRESENT != 0 {
            return value & ADDRESS;
        }
        assert!(value & SET_ASIDE != 0, "no page is set aside for a table: {value:#x}");
        let is_free = value & BEING_MADE == 0;
        let making = value | BEING_MADE;
        if is_free && slot.compare_exchange(value, making, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let table = value & ADDRESS;
            clear_page(table);
            slot.store(table | PRESENT | WRITABLE, Ordering::Release);
            return table;
        }
        core::hint::spin_loop();
    }
}

/// The starts of the parts of `start..end` that one table each maps.
fn spans(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start - start % TABLE_SPAN..end).step_by(TABLE_SPAN as usize)
}

/// The entry for the table of the direct map with physical address `phys`.
fn slot(phys: u64, source: &mut dyn TableSource) -> Result<&'static AtomicU64, NoPageTable> {
    let virt = DIRECT_MAP + phys;
    let upper = next_table(entry(root(), index(virt, 3)), source)?;
    Ok(entry(upper, index(virt, 2)))
}

/// Sets pages aside for the tables that physical `[start, end)` needs in the direct map.
///
/// # Errors
/// [`NoPageTable`]; nothing is set aside then.
pub fn prepare_direct(start: u64, end: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let guard = LOCK.lock();
    for span in spans(start, end) {
        let slot = slot(span, source);
        let set_aside = slot.and_then(|slot| match slot.load(Ordering::Relaxed) {
            0 => source.take().map(|page| slot.store(page | SET_ASIDE, Ordering::Release)).ok_or(NoPageTable),
            _ => Ok(()),
        });
        if set_aside.is_err() {
            drop(guard);
            let mut next = start;
            while next < span {
                next = release_direct(next, span, source);
            }
            return Err(NoPageTable);
        }
    }
    Ok(())
}

/// Maps physical `[start, end)`, whole large pages for which [`prepare_direct`] was called, in the direct map. It needs
/// no lock: the tables stay, and no other CPU changes these entries.
pub fn map_prepared_direct(start: u64, end: u64) {
    let mut next = DIRECT_MAP + start;
    while next < DIRECT_MAP + end {
        let upper = entry(root(), index(next, 3)).load(Ordering::Acquire);
        assert!(upper & PRESENT != 0, "no tables for {next:#x}");
        let table = table(entry(upper & ADDRESS, index(next, 2)));
        let slots = entries(table, next, DIRECT_MAP + end, LARGE_PAGE);
        let mut page = next - DIRECT_MAP | MEMORY;
        for slot in slots {
            assert_eq!(slot.load(Ordering::Relaxed), 0, "{page:#x} is mapped already");
            slot.store(page, Ordering::Release);
            page += LARGE_PAGE;
        }
        next += slots.len() as u64 * LARGE_PAGE;
    }
}

/// Gives back what [`prepare_direct`] set aside for physical `[start, end)`, as far as the tables do not stay and map
/// nothing. Stops behind a table that a CPU may have seen, for the caller to flush the TLBs. Returns where it stopped.
pub fn release_direct(start: u64, end: u64, source: &mut dyn TableSource) -> u64 {
    let _guard = LOCK.lock();
    for span in spans(start, end) {
        let upper = entry(root(), index(DIRECT_MAP + span, 3)).load(Ordering::Relaxed);
        if upper & PRESENT == 0 || source.stays(DIRECT_MAP + span) {
            continue;
        }
        let slot = entry(upper & ADDRESS, index(DIRECT_MAP + span, 2));
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
