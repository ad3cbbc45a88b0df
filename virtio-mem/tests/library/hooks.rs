//! Worked examples of what follows the plugged memory of a VMM: a memfd as the backing, an IOMMU (VFIO), and a log of
//! dirty pages.
//!
//! A VMM shares its guest memory with a back-end in another process (vhost-user) by a memfd. Memory of a memfd is given
//! back by a hole: `MADV_DONTNEED` drops the pages of one mapping and frees nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use virtio_mem::device::hooks::{Hook, Hooked};

use super::*;

/// Guest memory in a memfd. The offsets are those of the region.
struct Memfd {
    file: File,
    /// The host has no means to give memory back for now.
    full: bool,
}

impl Memfd {
    fn new() -> Memfd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, REGION).expect("a size");
        Memfd { file: File::from(file), full: false }
    }

    /// Bytes that the host holds.
    fn held(&self) -> u64 {
        self.file.metadata().expect("a file").blocks() * 512
    }

    fn punch(&self, span: Span) -> Result<(), Busy> {
        if self.full {
            return Err(Busy::call("fallocate", 28));
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, span.offset(), span.size())
            .map_err(|error| Busy::call("fallocate", error.raw_os_error()))
    }
}

impl Backing for Memfd {
    /// A VMM adds a memory slot here, or changes the protection of its mapping.
    fn plug(&mut self, _: Span) -> Result<(), Busy> {
        Ok(())
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        self.punch(span)
    }

    /// One hole, however many runs there are.
    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        self.punch(plugged.region())
    }
}

/// An IOMMU, as `VFIO_IOMMU_MAP_DMA` fills it: it pins what it maps, and has few mappings (`dma_entry_limit`).
///
/// A mapping is removed as a whole only (`VFIO_IOMMU_UNMAP_DMA` refuses a part), and a driver unplugs parts of what it
/// plugged. So there is one mapping for each piece of the smallest size that is unplugged. QEMU does the same.
struct Iommu {
    granularity: u64,
    limit: usize,
    /// The mappings, by guest-physical address.
    maps: BTreeMap<u64, u64>,
}

impl Hook for Iommu {
    fn map(&mut self, span: Span) -> Result<(), Busy> {
        let pieces = span.size() / self.granularity;
        if self.maps.len() as u64 + pieces > self.limit as u64 {
            return Err(Busy::call("VFIO_IOMMU_MAP_DMA", 28));
        }
        for piece in 0..pieces {
            let before = self.maps.insert(span.addr() + piece * self.granularity, self.granularity);
            assert_eq!(before, None, "mapped twice");
        }
        Ok(())
    }

    fn unmap(&mut self, span: Span) {
        let addresses: Vec<u64> =
            self.maps.range(span.addr()..span.end()).map(|(&address, _)| address).collect();
        assert_eq!(addresses.len() as u64, span.size() / self.granularity, "all of it was mapped");
        for address in addresses {
            self.maps.remove(&address);
        }
    }
}

/// A log of dirty pages for migration: what is unplugged is not sent.
#[derive(Default)]
struct DirtyLog {
    /// The memory that has to be sent, in device blocks.
    to_send: std::collections::BTreeSet<u64>,
}

impl Hook for DirtyLog {
    fn map(&mut self, span: Span) -> Result<(), Busy> {
        self.to_send.extend(span.blocks().first()..span.blocks().end());
        Ok(())
    }

    fn unmap(&mut self, span: Span) {
        self.to_send.retain(|block| !(span.blocks().first()..span.blocks().end()).contains(block));
    }
}

type Machine = Hooked<Memfd, (DirtyLog, Iommu)>;

fn machine(limit: usize) -> Machine {
    let iommu = Iommu { granularity: BLOCK, limit, maps: BTreeMap::new() };
    Hooked::new(Memfd::new(), (DirtyLog::default(), iommu))
}

/// The device blocks that each hook knows, which are those that are plugged.
fn known(machine: &Machine, device: &Device) -> u64 {
    let (log, iommu) = &machine.hook;
    let plugged: Vec<u64> = device.plugged().runs().flat_map(|run| run.first()..run.end()).collect();
    assert!(log.to_send.iter().eq(&plugged));
    assert!(iommu.maps.keys().copied().eq(plugged.iter().map(|block| ADDR + block * BLOCK)));
    plugged.len() as u64
}

#[test]
fn hooks_know_what_is_plugged_and_the_host_gets_its_memory_back() {
    let (mut device, mut machine) = (device(), machine(64));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 4, 8), ResponseType::Ack);
    for block in 4..12 {
        machine.backing.file.write_all_at(&[7; 4096], block * BLOCK).unwrap();
    }
    assert_eq!((known(&machine, &device), machine.backing.held()), (8, 8 * 4096));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Unplug, 6, 2), ResponseType::Ack);
    assert_eq!((known(&machine, &device), machine.backing.held()), (6, 6 * 4096));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::UnplugAll, 0, 0), ResponseType::Ack);
    assert_eq!((known(&machine, &device), machine.backing.held()), (0, 0));
}

#[test]
fn a_guest_does_not_get_what_a_device_cannot_reach() {
    let (mut device, mut machine) = (device(), machine(8));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 6), ResponseType::Ack);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 6, 3), ResponseType::Busy);
    assert_eq!(
        device.refused().unwrap().to_string(),
        "Plug of 3 blocks at 0x100c00000: the host cannot do it now: VFIO_IOMMU_MAP_DMA: error 28"
    );
    assert_eq!(known(&machine, &device), 6);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Unplug, 0, 1), ResponseType::Ack);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 6, 3), ResponseType::Ack);
    assert_eq!(known(&machine, &device), 8);
}

#[test]
fn an_unplug_that_the_host_refuses_leaves_everything_mapped() {
    let (mut device, mut machine) = (device(), machine(64));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 6), ResponseType::Ack);
    machine.backing.full = true;
    for (kind, nb_blocks) in [(RequestKind::Unplug, 2), (RequestKind::UnplugAll, 0)] {
        assert_eq!(ask(&mut device, &mut machine, kind, 0, nb_blocks), ResponseType::Busy);
        assert_eq!(known(&machine, &device), 6);
    }
}

/// The backing opened the memory, the IOMMU refused it, and the backing cannot take it back. The guest does not have it,
/// and nobody gets anything before the backing has it.
#[test]
fn memory_that_is_neither_plugged_nor_taken_back_is_taken_back_first() {
    /// Refuses to unplug for a time, and never has a span twice.
    struct Sticky(Host);
    impl Backing for Sticky {
        fn plug(&mut self, span: Span) -> Result<(), Busy> {
            assert_eq!(self.0.backed.count_in(span.blocks()), 0, "it has that already");
            self.0.backed.set(span.blocks());
            Ok(())
        }
        fn unplug(&mut self, span: Span) -> Result<(), Busy> {
            self.0.unplug(span)
        }
        fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
            self.0.unplug_all(plugged)
        }
    }
    let iommu = Iommu { granularity: BLOCK, limit: 4, maps: BTreeMap::new() };
    let mut machine = Hooked::new(Sticky(Host::new()), iommu);
    let mut device = device();
    let known = |machine: &Hooked<Sticky, Iommu>| (machine.backing.0.backed.count(), machine.hook.maps.len());
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 2), ResponseType::Ack);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 2, 4), ResponseType::Busy);
    assert_eq!(known(&machine), (2, 2), "the backing takes it back at once if it can");
    for next in [RequestKind::Plug, RequestKind::UnplugAll] {
        machine.backing.0.unable = true;
        for _ in 0..2 {
            assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 2, 4), ResponseType::Busy);
            assert_eq!(known(&machine), (6, 2));
        }
        assert_eq!(ask(&mut device, &mut machine, RequestKind::UnplugAll, 0, 0), ResponseType::Busy);
        machine.backing.0.unable = false;
        assert_eq!(ask(&mut device, &mut machine, next, 2, 1), ResponseType::Ack);
        let expected = if next == RequestKind::Plug { (3, 3) } else { (0, 0) };
        assert_eq!(known(&machine), expected);
        if next == RequestKind::Plug {
            assert_eq!(ask(&mut device, &mut machine, RequestKind::Unplug, 2, 1), ResponseType::Ack);
        }
    }
}

/// The VMM takes back the memory itself.
#[test]
fn a_system_reset_unmaps_everything() {
    let (mut device, mut machine) = (device(), machine(64));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 6), ResponseType::Ack);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Unplug, 2, 1), ResponseType::Ack);
    let plugged = device.plugged_runs();
    device.reset();
    machine.reset(&plugged);
    assert_eq!(known(&machine, &device), 0);
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 6), ResponseType::Ack);
}

/// The first of two hooks is told that the second one refused.
#[test]
fn two_hooks_map_both_or_none() {
    let (mut device, mut machine) = (device(), machine(0));
    assert_eq!(ask(&mut device, &mut machine, RequestKind::Plug, 0, 1), ResponseType::Busy);
    assert_eq!(known(&machine, &device), 0);
}
