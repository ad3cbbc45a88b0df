//! The errors of the library: each is an `Error` that can cross threads, and says something.

use core::any::type_name;
use core::error::Error;

use tidevm_mm::{
    AddAndOnlineError, AddError, AddedPart, AllocError, BootError, DevPageError, MemblockFull, MemremapError,
    MemunmapError, NoPageTable, NoPgmap, NodeId, NodeOverlap, OfflineAndRemoveError, OfflineError,
    OnlineError, Pfn, PhysAddr, PhysRange, RemoveError, RemovedPart, SectionNr,
};
use tidevm_mm_sim::SimMachine;

use crate::workload::BLOCK;

/// The name of an error's type, and its text as a caller sees it that takes any error.
fn named<E: Error + Send + Sync + 'static>(error: E) -> (&'static str, String) {
    let name = type_name::<E>().rsplit("::").next().unwrap_or_default();
    let error: Box<dyn Error + Send + Sync> = Box::new(error);
    (name, error.to_string())
}

#[test]
fn every_error_is_an_error_and_says_what_is_wrong() {
    let block = SectionNr::new(32);
    let range = PhysRange::new(PhysAddr::new(0), 4096);
    let errors = [
        (named(AddError::OutOfRange), "section"),
        (named(OnlineError::WrongZone), "zone"),
        (named(AddAndOnlineError::Online(OnlineError::Vetoed)), "online"),
        (named(AddedPart { end: block, error: AddError::Exists.into() }), "0x100000000 only"),
        (named(OfflineError::BootMemory), "boot"),
        (named(RemoveError::Granularity), "one by one"),
        (named(OfflineAndRemoveError::Offline(block, OfflineError::NotOnline)), "0x100000000"),
        (named(RemovedPart { first: block, error: None }), "0x100000000 on only"),
        (named(RemovedPart { first: block, error: Some(OfflineError::NotOnline) }), "not online"),
        (named(AllocError), "room"),
        (named(BootError::Cpus), "CPUs"),
        (named(MemblockFull), "ranges"),
        (named(NodeOverlap::With(range, NodeId::new(1))), "node"),
        (named(MemremapError::AltmapTooSmall { needed: 512 }), "512"),
        (named(MemunmapError::NotMapped), "mapped"),
        (named(DevPageError::NotDevice), "device"),
        (named(NoPgmap), "device memory"),
        (named(NoPageTable), "page table"),
    ];
    for ((name, text), says) in &errors {
        assert!(text.contains(says), "{name}: {text}");
    }
    // A new error gets a row above.
    let lib = include_str!("../../src/lib.rs");
    for word in lib.split(|c: char| !c.is_alphanumeric()).filter(|word| word.ends_with("Error")) {
        assert!(errors.iter().any(|((name, _), _)| *name == word), "{word} is not named in this test");
    }
}

/// Pages that stand in the way come with an error, and are one.
#[test]
fn pages_that_cannot_move_are_named_by_their_error() {
    let mm = SimMachine::default().boot();
    let hotplug = || mm.hotplug();
    hotplug()
        .add_memory(NodeId::FIRST, BLOCK, tidevm_mm::PageblockSet::ALL, tidevm_mm::MemoryContent::Unknown)
        .unwrap();
    hotplug().online(BLOCK, tidevm_mm::ZoneType::Movable).unwrap();
    let page: Pfn = mm.alloc_pages(tidevm_mm::Order::PAGE, tidevm_mm::Gfp::Movable).unwrap();
    let Err(OfflineError::Unmovable(stuck)) = hotplug().offline(BLOCK) else { panic!("a page is in use") };
    let (_, text) = named(stuck);
    assert_eq!(text, format!("1 pages, 0 of them on per-CPU lists, {:#x} held by Unclaimed", page.get()));
}
