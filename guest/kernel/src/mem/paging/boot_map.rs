//! The mapping that boot makes once: the kernel's image with the access rights of each part.
//!
//! Mirrors Linux `mark_rodata_ro`. The parent's invariants about tables hold here. One CPU runs, so entries change
//! without the lock. The identity map is removed later, when all CPUs run; nothing else changes its entry.
#![expect(unsafe_code, reason = "declares the linker's symbols")]

use core::sync::atomic::Ordering;

use super::{
    ADDRESS, GLOBAL, KERNEL, NO_EXECUTE, NoPageTable, PRESENT, SMALL_PAGE, TableSource, WRITABLE, entries,
    entry, flush_tlb, index, next_table, root,
};

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// Maps the kernel's image again, by small pages: code read-only, constants read-only and not executable,
/// data not executable, and nothing outside of the image or at `guards`: the pages under the boot CPU's
/// stacks. The start-up tables allow all accesses to the first GiB until then.
///
/// # Errors
/// [`NoPageTable`]; the start-up tables stay in use then.
pub fn protect_kernel(
    guards: impl Iterator<Item = u64>,
    source: &mut dyn TableSource,
) -> Result<(), NoPageTable> {
    let [text, text_end, rodata_end, end] =
        [&raw const __text_start, &raw const __text_end, &raw const __rodata_end, &raw const __image_end]
            .map(|symbol| symbol as u64);
    let parts =
        [(text, text_end, 0), (text_end, rodata_end, NO_EXECUTE), (rodata_end, end, WRITABLE | NO_EXECUTE)];
    let table_of_tables = source.alloc().ok_or(NoPageTable)?;
    for (start, end, access) in parts {
        let mut virt = start;
        while virt < end {
            let table = next_table(entry(table_of_tables, index(virt, 1)), source)?;
            let mut page = (virt - KERNEL) | PRESENT | GLOBAL | access;
            for slot in entries(table, virt, end, SMALL_PAGE) {
                slot.store(page, Ordering::Relaxed);
                page += SMALL_PAGE;
                virt += SMALL_PAGE;
            }
        }
    }
    for guard in guards {
        let table = next_table(entry(table_of_tables, index(guard, 1)), source)?;
        entry(table, index(guard, 0)).store(0, Ordering::Relaxed);
    }
    let upper = entry(root(), index(KERNEL, 3)).load(Ordering::Relaxed) & ADDRESS;
    entry(upper, index(KERNEL, 2)).store(table_of_tables | PRESENT | WRITABLE, Ordering::Release);
    flush_tlb();
    Ok(())
}

/// Removes the identity map through which CPUs enter long mode, so that null pointers fault.
pub fn drop_identity_map() {
    entry(root(), 0).store(0, Ordering::Release);
}
