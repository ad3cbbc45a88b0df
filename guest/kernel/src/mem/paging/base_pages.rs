//! A memmap that has no large page, mapped by small pages.
//!
//! Mirrors Linux `vmemmap_populate_basepages`. The parent's invariants about tables and their lock hold here.

use core::sync::atomic::Ordering;

use super::{
    ADDRESS, ENTRIES, LARGE, LARGE_PAGE, LOCK, MEMORY, NoPageTable, PRESENT, TableSource, WRITABLE, entry,
    index, next_table, root, unmap,
};

/// Maps 2 MiB of the vmemmap window from `virt` on with small pages, to the frames at the addresses `frames`.
///
/// # Errors
/// [`NoPageTable`]; nothing is mapped then.
pub fn map_vmemmap_base(
    virt: u64,
    frames: impl Iterator<Item = u64>,
    source: &mut dyn TableSource,
) -> Result<(), NoPageTable> {
    let guard = LOCK.lock();
    let mut tables = || {
        let upper = next_table(entry(root(), index(virt, 3)), source)?;
        let middle = next_table(entry(upper, index(virt, 2)), source)?;
        let slot = entry(middle, index(virt, 1));
        assert_eq!(slot.load(Ordering::Relaxed), 0, "{virt:#x} is mapped");
        Ok((slot, source.alloc().ok_or(NoPageTable)?))
    };
    match tables() {
        Ok((slot, table)) => {
            for (place, frame) in frames.enumerate() {
                entry(table, place).store(frame | (MEMORY & !LARGE), Ordering::Relaxed);
            }
            slot.store(table | PRESENT | WRITABLE, Ordering::Release);
            Ok(())
        }
        Err(error) => {
            drop(guard);
            unmap(virt, LARGE_PAGE, source);
            Err(error)
        }
    }
}

/// Undoes [`map_vmemmap_base`]. Calls `back` with the index and the address of each frame, in order.
pub fn unmap_vmemmap_base(virt: u64, mut back: impl FnMut(usize, u64), source: &mut dyn TableSource) {
    let guard = LOCK.lock();
    let upper = entry(root(), index(virt, 3)).load(Ordering::Relaxed) & ADDRESS;
    let middle = entry(upper, index(virt, 2)).load(Ordering::Relaxed) & ADDRESS;
    let table = entry(middle, index(virt, 1)).load(Ordering::Relaxed);
    assert!(table & PRESENT != 0 && table & LARGE == 0, "{virt:#x} is not mapped by small pages: {table:#x}");
    for place in 0..ENTRIES {
        back(place, entry(table & ADDRESS, place).load(Ordering::Relaxed) & ADDRESS);
    }
    drop(guard);
    unmap(virt, LARGE_PAGE, source);
    source.free(table & ADDRESS);
}
