//! Host memory behind guest memory: reserving, opening, closing and discarding it.
//!
//! A [`Mapping`] is anonymous private memory. It is reserved but not accounted for (`MAP_NORESERVE`), and gets
//! huge pages from [`Mapping::ask_for_huge_pages`] on. It starts closed (`PROT_NONE`): neither the guest nor this
//! process reaches a byte before [`Mapping::open`]. A [`Window`] is an open part of a mapping, as a region for `vm-memory`.
//!
//! Invariants: a mapping is not empty. Host addresses are aligned like guest addresses (1 GiB, or 2 MiB for
//! mappings below that), so that both sides can use huge pages. An unused guard page lies on each side, so
//! that no mapping's VMA merges with another's and `/proc/self/smaps` counts each by itself.
#![expect(unsafe_code, reason = "maps, protects and discards memory, and hands out access to it")]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress,
    VolatileSlice,
};

use super::host_calls::{FailedCall, MemoryCall, about_to};
use super::range::OffsetRange;

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const GIANT: usize = 1 << 30;

/// Host memory, owned.
#[derive(Debug)]
pub struct Mapping {
    /// Start of the reservation, guard pages included.
    reserved: NonNull<libc::c_void>,
    reserved_size: usize,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: a mapping is an address range, not tied to a thread. Its memory is reached only through volatile
// slices, because guest CPUs write it at the same time.
unsafe impl Send for Mapping {}
// SAFETY: as above; the system calls on a range need no exclusive access.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `size` bytes, closed. `size` is a multiple of 2 MiB.
    ///
    /// # Errors
    /// The error of `mmap`: `ENOMEM` when the host has no such address range. `EINVAL` when `size` is 0.
    pub fn reserve(size: u64) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let size = usize::try_from(size).map_err(|_| too_large())?;
        if size == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let align = if size >= GIANT { GIANT } else { HUGE };
        let reserved_size = size.checked_add(align + 2 * PAGE).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses an unused range.
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
        Ok(Self::without_slack(reserved, reserved_size, base, size))
    }

    /// Gives the slack that the alignment needed back to the host: it counts for the limit of addresses. Slack
    /// that the host keeps (a page of it can be in a VMA with a neighbour) stays reserved.
    fn without_slack(
        reserved: NonNull<libc::c_void>,
        reserved_size: usize,
        base: NonNull<u8>,
        size: usize,
    ) -> Self {
        let offset = base.as_ptr() as usize - reserved.as_ptr() as usize;
        let (head, guarded) = (offset - PAGE, offset + size + PAGE);
        let mut mapping = Self { reserved, reserved_size, base, size };
        let tail = reserved.as_ptr().wrapping_byte_add(guarded);
        if reserved_size > guarded && unmap(tail, reserved_size - guarded) {
            mapping.reserved_size = guarded;
        }
        if head > 0 && unmap(reserved.as_ptr(), head) {
            // SAFETY: head < reserved_size, so the result is in the reservation.
            mapping.reserved = unsafe { reserved.byte_add(head) };
            mapping.reserved_size -= head;
        }
        mapping
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

    /// All of it.
    ///
    /// # Panics
    /// Never: see [`Mapping::reserve`].
    #[must_use]
    pub fn all(&self) -> OffsetRange {
        OffsetRange::new(0..self.size()).expect("a mapping is not empty")
    }

    /// Makes a range readable and writable. Memory that was never written, or was discarded, is zero. Offsets
    /// are multiples of the page size.
    ///
    /// # Errors
    /// The error of `mprotect`; part of the range may then be open.
    pub fn open(&self, range: OffsetRange) -> Result<(), FailedCall> {
        self.protect(MemoryCall::Open(range), range, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Makes a range unreachable for this process, and for the guest, because KVM maps guest memory through
    /// this process's page tables: KVM drops its mappings before this returns. Contents stay.
    ///
    /// The caller removes every [`Window`] of the range first: an access through one would end the process.
    ///
    /// # Errors
    /// The error of `mprotect`; part of the range may then be closed.
    pub fn close(&self, range: OffsetRange) -> Result<(), FailedCall> {
        self.protect(MemoryCall::Close(range), range, libc::PROT_NONE)
    }

    /// Gives a range's memory back to the host, locked pages (`mlock`) included. It reads as zero from now on.
    ///
    /// # Errors
    /// The error of `madvise`; all content is as before.
    pub fn discard(&self, range: OffsetRange) -> Result<(), FailedCall> {
        let call = MemoryCall::Discard(range);
        about_to(call)?;
        // Locked pages are all that the host may refuse in the middle of a range, after it has discarded what comes before.
        let result = match self.advise(range, libc::MADV_DONTNEED_LOCKED) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.discard_unlocked(range),
            result => result,
        };
        result.map_err(|error| call.failed(error))
    }

    /// Discards on hosts before Linux 5.18, which know no `MADV_DONTNEED_LOCKED`. `MADV_COLD` fails at the same pages
    /// as `MADV_DONTNEED` and changes no content, so it comes first.
    ///
    /// # Errors
    /// The error of `madvise`, if a page is locked; all content is as before.
    fn discard_unlocked(&self, range: OffsetRange) -> io::Result<()> {
        self.advise(range, libc::MADV_COLD)?;
        self.advise(range, libc::MADV_DONTNEED)
    }

    /// Asks for huge pages where the range is touched from now on. Pages that are there stay small until the host
    /// finds the time to collapse them.
    pub fn ask_for_huge_pages(&self, range: OffsetRange) {
        // Kernels without transparent huge pages refuse; the guest runs without them then.
        if let Err(error) = self.advise(range, libc::MADV_HUGEPAGE) {
            log::debug!("no transparent huge pages for guest memory: {error}");
        }
    }

    fn protect(
        &self,
        call: MemoryCall,
        range: OffsetRange,
        protection: libc::c_int,
    ) -> Result<(), FailedCall> {
        let (start, size) = self.locate(range).map_err(|error| call.failed(error))?;
        let failed = about_to(call);
        // A change that fails may have been made in part.
        let size = if failed.is_ok() { size } else { PAGE };
        // SAFETY: `locate` checked that the range is inside this mapping, which `self` owns.
        let result = check(unsafe { libc::mprotect(start, size, protection) });
        failed.and(result.map_err(|error| call.failed(error)))
    }

    fn advise(&self, range: OffsetRange, advice: libc::c_int) -> io::Result<()> {
        let (start, size) = self.locate(range)?;
        // SAFETY: `locate` checked that the range is inside this mapping, which `self` owns. Only volatile
        // slices point into it, no Rust reference, so contents may change at any time.
        check(unsafe { libc::madvise(start, size, advice) })
    }

    /// Host address and size of a range of offsets, if it is in the mapping.
    fn locate(&self, range: OffsetRange) -> io::Result<(*mut libc::c_void, usize)> {
        #[cfg(test)]
        SYSTEM_CALLS.set(SYSTEM_CALLS.get() + 1);
        if range.end() > self.size() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let start = self.base.as_ptr().wrapping_add(range.start() as usize);
        Ok((start.cast(), range.size() as usize))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the reservation was made in `reserve` and is unmapped only here. Windows hold an `Arc` of
        // the mapping. KVM may still know the address, but looks it up in this process's page tables at every
        // use and finds nothing.
        let result = check(unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_size) });
        if let Err(error) = result {
            log::error!("cannot unmap guest memory: {error}");
        }
    }
}

/// Unmaps slack of a new reservation. Returns whether the host did it.
fn unmap(start: *mut libc::c_void, size: usize) -> bool {
    // SAFETY: called by `without_slack` only, for pages outside the mapping and its guard pages, which no other
    // value knows of.
    let result = check(unsafe { libc::munmap(start, size) });
    if let Err(error) = &result {
        log::debug!("{size} bytes of address space stay reserved: {error}");
    }
    result.is_ok()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An open part of a mapping at its guest-physical address.
#[derive(Clone, Debug)]
pub struct Window {
    mapping: Arc<Mapping>,
    offsets: OffsetRange,
    start: GuestAddress,
}

impl Window {
    /// The part of `mapping` at `offsets`, seen by the guest at `start`.
    ///
    /// # Safety
    /// The range was opened, and is not closed as long as the window exists.
    ///
    /// # Panics
    /// When the range is not in the mapping: both are made by this crate.
    #[must_use]
    pub unsafe fn new(mapping: Arc<Mapping>, offsets: OffsetRange, start: GuestAddress) -> Self {
        assert!(offsets.end() <= mapping.size(), "{offsets} of {mapping:x?}");
        Self { mapping, offsets, start }
    }
}

impl GuestMemoryRegion for Window {
    type B = ();

    fn len(&self) -> u64 {
        self.offsets.size()
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
        let end = offset.0.checked_add(count as u64).filter(|&end| end <= self.offsets.size());
        if end.is_none() {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let host = self.mapping.base.as_ptr().wrapping_add((self.offsets.start() + offset.0) as usize);
        // SAFETY: offset + count <= the window's size, and `new` checked that the window is inside the
        // mapping, which the `Arc` keeps. The caller of `new` promised that the window's range is open.
        Ok(unsafe { VolatileSlice::new(host, count) })
    }
}

impl GuestMemoryRegionBytes for Window {}

#[cfg(test)]
thread_local! {
    /// System calls of this thread that change a range of a mapping.
    pub(crate) static SYSTEM_CALLS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests;
