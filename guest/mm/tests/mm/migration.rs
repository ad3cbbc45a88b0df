//! Pages that migrate when their memory is taken away, and pages that cannot.

use std::sync::atomic::Ordering::SeqCst;

use tidevm_mm::{
    FaultStep, Gfp, Holder, MemoryContent, Mm, NodeId, OfflineError, Order, OwnerId, PageblockSet, PcpPolicy,
    SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Random, Tenant, unmovable};

const NEXT: SectionNr = SectionNr::new(33);

/// A default machine with `blocks` memory blocks online in Movable.
fn machine(blocks: u32, pcp: PcpPolicy) -> &'static Mm<Sim> {
    let mm = SimMachine {
        cpus: 2,
        sections: 48,
        options: SimMachine::OPTIONS.with_pcp(pcp),
        ..SimMachine::default()
    }
    .boot();
    for nr in (32..32 + blocks).map(SectionNr::new) {
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    }
    mm
}

#[test]
fn data_moves_to_boot_memory() {
    for pcp in [PcpPolicy::Disable, PcpPolicy::DrainAgain] {
        let mm = machine(1, pcp);
        let tenant = Tenant::new(mm, 3, 20_000);
        assert_eq!(tenant.fill_all(), 20_000);
        assert_eq!(tenant.held_in(BLOCK), 20_000, "Movable is used first");
        mm.hotplug().offline(BLOCK).unwrap();
        mm.check();
        assert_eq!(tenant.held_in(BLOCK), 0);
        assert_eq!((mm.stats().pages_migrated, mm.stats().migrate_failed), (20_000, 0));
        mm.hotplug().remove_memory(BLOCK).unwrap();
        // The memory block's content is lost now: this reads the copies.
        tenant.verify_all();
        assert_eq!(tenant.release_all(), 20_000);
        mm.check();
    }
}

/// Scattered pages of one memory block move to the holes of another memory block before boot memory is used.
#[test]
fn movable_memory_is_preferred() {
    let mm = machine(2, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 70_000);
    let filled = tenant.fill_all();
    let boot_free = mm.stats().zones[0].free;
    let mut random = Random::new("migration::movable_memory_is_preferred");
    for slot in 0..filled {
        if random.chance(70) {
            tenant.release(slot);
        }
    }
    assert!(tenant.held_in(NEXT) > 5000);
    mm.hotplug().offline(NEXT).unwrap();
    mm.hotplug().remove_memory(NEXT).unwrap();
    mm.check();
    tenant.verify_all();
    assert!(mm.stats().zones[0].free >= boot_free, "boot memory was not used");
    tenant.release_all();
    mm.check();
}

/// Taking several memory blocks away from the top down moves no page twice as long as there is room
/// below, because pages go to the lowest free addresses.
#[test]
fn no_page_moves_twice() {
    let mm = machine(8, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 8 * 32_256);
    let filled = tenant.fill_all().min(8 * 32_256);
    let mut random = Random::new("migration::no_page_moves_twice");
    for slot in 0..filled {
        if random.chance(88) {
            tenant.release(slot);
        }
    }
    let blocks = || (34..40).rev().map(SectionNr::new);
    let to_move: usize = blocks().map(|nr| tenant.held_in(nr)).sum();
    assert!(to_move > 15_000, "{to_move} pages to move");
    for nr in blocks() {
        mm.hotplug().offline(nr).unwrap();
        mm.hotplug().remove_memory(nr).unwrap();
    }
    mm.check();
    tenant.verify_all();
    let moved = mm.stats().pages_migrated as usize;
    assert!(moved <= to_move + to_move / 20, "{moved} migrations of {to_move} pages");
}

/// Pages whose holder cannot give them up fail the attempt before anything is migrated. The error counts
/// all of them and names four.
#[test]
fn pinned_pages_are_named() {
    let mm = machine(1, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 3000);
    tenant.fill_all();
    let pinned: Vec<_> = (0..6)
        .map(|tag| {
            let pfn = mm.alloc_pages(Order::new(tag as u8 % 2), Gfp::Movable).unwrap();
            mm.set_holder(pfn, 100 + tag);
            (pfn, Order::new(tag as u8 % 2), Holder::Tagged(100 + tag))
        })
        .collect();
    let mut expected: Vec<_> = pinned.iter().map(|&(pfn, _, holder)| Some((pfn, holder))).collect();
    expected.sort_by_key(|entry| entry.map(|(pfn, _)| pfn));
    let before = mm.stats().zones[2].managed;
    let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else { panic!("pages are pinned") };
    assert_eq!(stuck.pages, 9);
    assert_eq!(stuck.first[..], expected[..4]);
    assert_eq!(mm.stats().pages_migrated, 0);
    assert_eq!(mm.section_state(BLOCK), SectionState::Online);
    assert_eq!(mm.stats().zones[2].managed, before);
    mm.check();
    pinned.iter().for_each(|&(pfn, order, _)| mm.free_pages(pfn, order));
    mm.hotplug().offline(BLOCK).unwrap();
    tenant.verify_all();
    mm.check();
}

/// A page without an owner ends the attempt only after a bounded number of rounds; all others have moved.
#[test]
fn unclaimed_page_ends_the_attempt() {
    for pcp in [PcpPolicy::Disable, PcpPolicy::DrainAgain] {
        let mm = machine(1, pcp);
        let tenant = Tenant::new(mm, 0, 500);
        tenant.fill_all();
        let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
        let stuck = (1, 0, [Some((pfn, Holder::Unclaimed)), None, None, None]);
        assert_eq!(unmovable(mm.hotplug().offline(BLOCK)), stuck);
        let rounds = mm.platform().grace_periods();
        assert!((8..64).contains(&rounds), "{rounds} rounds");
        mm.check();
        tenant.verify_all();
        // The memory block is as usable as before.
        let stats = mm.stats().zones[2];
        assert_eq!((stats.managed, stats.nr_isolate_pageblock), (32256, 0));
        assert_eq!(stats.free + stats.pcp, 32255);
        mm.free_pages(pfn, Order::PAGE);
        mm.hotplug().offline(BLOCK).unwrap();
        tenant.release_all();
        mm.check();
    }
}

#[test]
fn owner_that_refuses() {
    let mm = machine(1, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 7, 50);
    tenant.fill_all();
    let free = || mm.stats().zones.iter().map(|zone| zone.free + zone.pcp).sum::<u64>();
    let free_before = free();
    for flag in [&tenant.refuse_isolate, &tenant.refuse_hand_over] {
        flag.store(true, SeqCst);
        let before = mm.stats();
        let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else {
            panic!("the owner refuses")
        };
        assert_eq!(stuck.pages, 50);
        for (pfn, holder) in stuck.first.into_iter().flatten() {
            let Holder::Owned { owner: OwnerId(7), index } = holder else { panic!("held by {holder:?}") };
            assert_eq!(tenant.page(index as usize), Some(pfn));
        }
        let after = mm.stats();
        assert!(after.migrate_failed >= before.migrate_failed + 50);
        assert_eq!(after.pages_migrated, before.pages_migrated);
        assert_eq!(free(), free_before, "the pages that were targets are free again");
        mm.check();
        tenant.verify_all();
        flag.store(false, SeqCst);
    }
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(tenant.release_all(), 50);
    mm.check();
}

/// The error for lack of room differs from the error for pages that cannot move. No page is lost, and no page
/// moves in vain.
#[test]
fn no_room() {
    let mm = machine(1, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 100_000);
    let filled = tenant.fill_all();
    assert!(filled > 90_000, "all memory is in use");
    let before = mm.stats().zones;
    let Err(OfflineError::NoRoom(stuck)) = mm.hotplug().offline(BLOCK) else { panic!("there is no room") };
    assert!(stuck.pages > 30_000, "{} pages left", stuck.pages);
    assert!(matches!(stuck.first[3], Some((_, Holder::Owned { .. }))));
    mm.check();
    tenant.verify_all();
    assert_eq!(mm.stats().zones.map(|z| z.managed), before.map(|z| z.managed));
    // There is room for all pages but a few.
    let in_boot = |slot: &usize| tenant.page(*slot).is_some_and(|pfn| pfn < BLOCK.start());
    let some: Vec<_> = (0..filled).filter(in_boot).take(32_000).collect();
    some.iter().for_each(|&slot| assert!(tenant.release(slot)));
    assert!(matches!(mm.hotplug().offline(BLOCK), Err(OfflineError::NoRoom(_))));
    assert_eq!(mm.stats().pages_migrated, 0);
    mm.check();
    tenant.verify_all();
    for slot in 0..filled / 2 {
        tenant.release(slot);
    }
    mm.hotplug().offline(BLOCK).unwrap();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    tenant.verify_all();
    tenant.release_all();
    mm.check();
    assert_eq!(mm.stats().zones[0].free + mm.stats().zones[0].pcp, 63488);
}

/// One migration that fails is tried again in the next round; if all fail, the pages stay.
#[test]
fn failing_migrations() {
    let mm = machine(1, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 100);
    tenant.fill_all();
    let sim = mm.platform();
    sim.inject_always(FaultStep::Migrate, true);
    let Err(OfflineError::Unmovable(stuck)) = mm.hotplug().offline(BLOCK) else { panic!("nothing moves") };
    assert_eq!(stuck.pages, 100);
    mm.check();
    sim.inject(FaultStep::Migrate, 50);
    let failed = mm.stats().migrate_failed;
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(mm.stats().migrate_failed, failed + 1);
    tenant.verify_all();
    tenant.release_all();
    mm.check();
}

/// Pages on another CPU's lists do not prevent offlining, under either policy.
#[test]
fn pages_on_per_cpu_lists() {
    for pcp in [PcpPolicy::Disable, PcpPolicy::DrainAgain] {
        let mm = machine(1, pcp);
        Sim::run_on(1, || {
            let pages: Vec<_> = (0..20).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
            pages.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
        });
        assert!(mm.stats().zones[2].pcp > 0);
        mm.hotplug().offline(BLOCK).unwrap();
        mm.check();
    }
}

/// The pages of a split buddy block can be owned and moved one by one.
#[test]
fn split_pages_move() {
    let mm = machine(1, PcpPolicy::Disable);
    let tenant = Tenant::new(mm, 0, 10);
    let block = mm.alloc_pages(Order::new(10), Gfp::Movable).unwrap();
    mm.split_page_to(block, Order::new(10), Order::new(5));
    mm.split_page(block, Order::new(5));
    for offset in 0..32 {
        mm.free_pages(block.add(offset), Order::PAGE);
    }
    for part in 1..32 {
        mm.free_pages(block.add(32 * part), Order::new(5));
    }
    tenant.fill_all();
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
    tenant.release_all();
    mm.check();
}
