//! Host memory behind guest memory: reserving, opening, closing and discarding it.
//!
//! A [`Mapping`] is anonymous private memory that is reserved but not accounted for
//! (`MAP_NORESERVE`) and asks for huge pages. It is born closed (`PROT_NONE`): nobody, neither the
//! guest nor this process, reaches a byte before [`Mapping::open`]. A [`Window`] is an open part of
//! a mapping, as a region for `vm-memory`.
//!
//! Invariants: host addresses are aligned like guest addresses (1 GiB, or 2 MiB for mappings below
//! that), so that both sides can use huge pages; a page that belongs to nobody lies on each side,
//! so that no mapping's VMA merges with another's and `/proc/self/smaps` counts each alone.
#![expect(unsafe_code, reason = "maps, protects and discards memory, and hands out access to it")]

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress,
    VolatileSlice,
};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const GIANT: usize = 1 << 30;

/// Host memory, owned.
#[derive(Debug)]
pub struct Mapping {
    /// Start of the reservation, guard pages and alignment slack included.
    reserved: NonNull<libc::c_void>,
    reserved_size: usize,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: a mapping is an address range, not tied to a thread. What is behind it is only reached
// through volatile slices, which guest CPUs write at the same time anyway.
unsafe impl Send for Mapping {}
// SAFETY: as above; the system calls on a range need no exclusive access.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `size` bytes, closed. `size` is a multiple of 2 MiB and not 0.
    ///
    /// # Errors
    /// What `mmap` says; `ENOMEM` when the host has no such address range.
    pub fn reserve(size: u64) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let size = usize::try_from(size).map_err(|_| too_large())?;
        let align = if size >= GIANT { GIANT } else { HUGE };
        let reserved_size = size.checked_add(align + 2 * PAGE).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nobody uses.
        let start = unsafe { libc::mmap(ptr::null_mut(), reserved_size, libc::PROT_NONE, flags, -1, 0) };
        let reserved = match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => start,
            _ => return Err(io::Error::last_os_error()),
        };
        let past_guard = reserved.as_ptr() as usize + PAGE;
        let offset = past_guard.next_multiple_of(align) - reserved.as_ptr() as usize;
        // SAFETY: offset <= PAGE + align - 1, so offset + size + PAGE <= reserved_size: the result
        // and the guard page behind its end are in the reservation.
        let base = unsafe { reserved.cast::<u8>().add(offset) };
        let mapping = Self { reserved, reserved_size, base, size };
        // Refused where the kernel has no transparent huge pages; then there are none.
        if let Err(error) = mapping.advise(0..size as u64, libc::MADV_HUGEPAGE) {
            log::debug!("no transparent huge pages for guest memory: {error}");
        }
        Ok(mapping)
    }

    /// Host address of the first byte.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Makes a range readable and writable. What was never written there, or was discarded, is
    /// zero. Offsets are multiples of the page size.
    ///
    /// # Errors
    /// What `mprotect` says; part of the range may then be open.
    pub fn open(&self, range: Range<u64>) -> io::Result<()> {
        self.protect(range, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Makes a range unreachable, for this process and, as KVM maps guest memory through this
    /// process's page tables, for the guest: KVM drops its mappings before this returns. Contents
    /// stay.
    ///
    /// The caller takes the range out of every [`Window`] first: an access through one would end
    /// the process.
    ///
    /// # Errors
    /// What `mprotect` says; part of the range may then be closed.
    pub fn close(&self, range: Range<u64>) -> io::Result<()> {
        self.protect(range, libc::PROT_NONE)
    }

    /// Gives a range's memory back to the host; it reads as zero from now on.
    ///
    /// # Errors
    /// What `madvise` says.
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.advise(range, libc::MADV_DONTNEED)
    }

    fn protect(&self, range: Range<u64>, protection: libc::c_int) -> io::Result<()> {
        let (start, size) = self.locate(range)?;
        // SAFETY: `locate` checked that the range is inside this mapping, which `self` owns.
        check(unsafe { libc::mprotect(start, size, protection) })
    }

    fn advise(&self, range: Range<u64>, advice: libc::c_int) -> io::Result<()> {
        let (start, size) = self.locate(range)?;
        // SAFETY: `locate` checked that the range is inside this mapping, which `self` owns. No
        // Rust reference points into it, only volatile slices, so contents may change at any time.
        check(unsafe { libc::madvise(start, size, advice) })
    }

    /// Host address and size of a range of offsets, if it is in the mapping.
    fn locate(&self, range: Range<u64>) -> io::Result<(*mut libc::c_void, usize)> {
        if range.start > range.end || range.end > self.size() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let start = self.base.as_ptr().wrapping_add(range.start as usize);
        Ok((start.cast(), (range.end - range.start) as usize))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the reservation was made in `reserve` and is unmapped only here. Windows hold an
        // `Arc` of the mapping, and KVM, which may still know the address, looks it up in this
        // process's page tables at every use and finds nothing.
        let result = check(unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_size) });
        if let Err(error) = result {
            log::error!("cannot unmap guest memory: {error}");
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An open part of a mapping at its guest-physical address.
#[derive(Clone, Debug)]
pub struct Window {
    mapping: Arc<Mapping>,
    offset: u64,
    size: u64,
    start: GuestAddress,
}

impl Window {
    /// The part of `mapping` at `offsets`, seen by the guest at `start`.
    ///
    /// # Safety
    /// The range was opened, and is not closed as long as the window exists.
    ///
    /// # Panics
    /// When the range is empty or not in the mapping: both are made by this crate.
    #[must_use]
    pub unsafe fn new(mapping: Arc<Mapping>, offsets: Range<u64>, start: GuestAddress) -> Self {
        assert!(!offsets.is_empty() && offsets.end <= mapping.size(), "{offsets:x?} of {mapping:x?}");
        Self { mapping, offset: offsets.start, size: offsets.end - offsets.start, start }
    }
}

impl GuestMemoryRegion for Window {
    type B = ();

    fn len(&self) -> u64 {
        self.size
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let end = offset.0.checked_add(count as u64).filter(|&end| end <= self.size);
        if end.is_none() {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let host = self.mapping.base.as_ptr().wrapping_add((self.offset + offset.0) as usize);
        // SAFETY: offset + count <= size, and `new` checked that the window is inside the mapping,
        // which the `Arc` keeps. Its caller promised that the window's range is open.
        Ok(unsafe { VolatileSlice::new(host, count) })
    }
}

impl GuestMemoryRegionBytes for Window {}

#[cfg(test)]
mod tests;
