//! The content of guest memory, in pieces, on its way to a file and back.
//!
//! Mirrors the RAM part of QEMU's `migration/ram.c`, and `GuestMemoryExtension::dump` of Firecracker. Differs on purpose:
//! what nobody has touched is not read. Reading it would be slow, and on some hosts would make it resident. The system
//! knows what was touched: `/proc/self/pagemap` tells of each page whether it is present or swapped out.
//!
//! All memory has a place in one range of *places*: boot memory, then each hotplug region, then each range of device
//! memory, each from its first byte on, plugged or not.
//!
//! Invariants: only open memory is read or written. It stays open meanwhile, because the lock of the hotplug regions is
//! held. A page that is zero is never written to memory that is new, so it takes no host memory.
#![expect(unsafe_code, reason = "makes windows into mappings; see the invariants")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

use super::mapping::{Mapping, Window};
use super::range::{GuestRange, OffsetRange};
use super::runs::Runs;
use super::{Hotplug, Memory};
use crate::sync::lock;

/// Bytes of a piece. All memory is made of whole ones.
pub const PIECE: usize = 2 << 20;

/// Bytes of a page of the host.
pub const PAGE: usize = 4096;

/// Bytes of what the system tells of one page.
const ENTRY: usize = 8;

/// The page is present, or swapped out (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const TOUCHED: u64 = 1 << 63 | 1 << 62;

/// What the system tells of the pages of this process, kept open: a process that is locked in opens no file.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the table of this process.
    ///
    /// # Errors
    /// The system has none, or does not give it.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Reads the entries of the pages of a piece that begins at the host address `start`.
    fn read(&self, start: u64, entries: &mut [u8; PIECE / PAGE * ENTRY]) -> io::Result<()> {
        self.0.read_exact_at(entries, start / PAGE as u64 * ENTRY as u64)
    }
}

/// A part of all memory: its first place, its mapping, and what of it is open.
struct Part {
    start: u64,
    mapping: Arc<Mapping>,
    open: Runs,
}

impl Memory {
    /// Bytes of all memory, plugged or not.
    #[must_use]
    pub fn places(&self) -> u64 {
        let pmem = self.pmem.iter().map(|(_, mapping)| mapping);
        let all = std::iter::once(&self.boot).chain(&self.region_mappings).chain(pmem);
        all.map(|mapping| mapping.size()).sum()
    }

    /// Calls `each` with the number of every piece of open memory that was touched, and its content. The guest stands
    /// still.
    ///
    /// # Errors
    /// The first error of `each`, or of the system, which does not tell what was touched.
    pub fn save<E: From<io::Error>>(
        &self,
        pagemap: &Pagemap,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let hotplug = lock(&self.hotplug);
        let mut entries = [0; PIECE / PAGE * ENTRY];
        let mut content = vec![0; PIECE];
        for Part { start, mapping, open } in self.parts(&hotplug) {
            for run in open.iter() {
                // SAFETY: `run` is open. The lock that is held keeps the runs of regions open, and no code closes other memory.
                let window = unsafe { Window::new(Arc::clone(&mapping), run, GuestAddress(0)) };
                for offset in (0..run.size()).step_by(PIECE) {
                    let host = mapping.host_address() + run.start() + offset;
                    pagemap.read(host, &mut entries)?;
                    if copy_touched(&window, offset, &entries, &mut content)? {
                        each((start + run.start() + offset) / PIECE as u64, &content)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills each of `pieces` with what `read` gives of it. Each is new, all of its pages zero. Returns the first piece that
    /// there is not, or of which not all is open; then the ones before it are filled.
    ///
    /// # Errors
    /// The first error of `read`.
    pub fn load<E>(
        &self,
        pieces: impl IntoIterator<Item = u64>,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<u64>, E> {
        let hotplug = lock(&self.hotplug);
        let parts = self.parts(&hotplug);
        let mut content = vec![0; PIECE];
        for piece in pieces {
            let Some(window) = window(&parts, piece) else { return Ok(Some(piece)) };
            read(piece, &mut content)?;
            for (index, page) in content.chunks(PAGE).enumerate().filter(|(_, page)| !is_zero(page)) {
                // The window has all bytes of the piece.
                if window.write_slice(page, MemoryRegionAddress((index * PAGE) as u64)).is_err() {
                    return Ok(Some(piece));
                }
            }
        }
        Ok(None)
    }

    fn parts(&self, hotplug: &Hotplug) -> Vec<Part> {
        let all = |mapping: &Arc<Mapping>| {
            let mut open = Runs::default();
            open.insert(mapping.all());
            (Arc::clone(mapping), open)
        };
        let boot = std::iter::once(all(&self.boot));
        let regions =
            hotplug.regions.iter().map(|region| (Arc::clone(region.mapping()), region.open_runs().clone()));
        let pmem = self.pmem.iter().map(|(_, mapping): &(GuestRange, _)| all(mapping));
        let mut next = 0;
        let part = |(mapping, open): (Arc<Mapping>, Runs)| {
            let start = next;
            next += mapping.size();
            Part { start, mapping, open }
        };
        boot.chain(regions).chain(pmem).map(part).collect()
    }
}

/// The piece with this number, if there is one and all of it is open. The caller holds the lock that keeps it so.
fn window(parts: &[Part], piece: u64) -> Option<Window> {
    let place = piece.checked_mul(PIECE as u64)?;
    let holds = |part: &&Part| place >= part.start && place - part.start < part.mapping.size();
    let Part { start, mapping, open } = parts.iter().find(holds)?;
    let offset = place - start;
    let range = OffsetRange::new(offset..offset + PIECE as u64)?;
    // SAFETY: `range` is open, and stays so as in `save`.
    open.contains(range).then(|| unsafe { Window::new(Arc::clone(mapping), range, GuestAddress(0)) })
}

/// Whether `page`, a page or a part of one, is all zero.
pub fn is_zero(page: &[u8]) -> bool {
    const ZERO: [u8; PAGE] = [0; PAGE];
    page == &ZERO[..page.len().min(PAGE)]
}

/// Copies the touched pages of the piece at `offset` of `window` to `content`, and makes the others zero. Returns whether
/// there was one.
fn copy_touched(
    window: &Window,
    offset: u64,
    entries: &[u8; PIECE / PAGE * ENTRY],
    content: &mut [u8],
) -> io::Result<bool> {
    let touched = |entry: &[u8]| entry.try_into().is_ok_and(|entry| u64::from_le_bytes(entry) & TOUCHED != 0);
    if !entries.chunks(ENTRY).any(touched) {
        return Ok(false);
    }
    let pages = content.chunks_mut(PAGE).zip(entries.chunks(ENTRY)).enumerate();
    for (index, (page, entry)) in pages {
        if touched(entry) {
            let at = MemoryRegionAddress(offset + (index * PAGE) as u64);
            window.read_slice(page, at).map_err(io::Error::other)?;
        } else {
            page.fill(0);
        }
    }
    Ok(true)
}
