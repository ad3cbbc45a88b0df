//! Plugging and unplugging: slots, view and held memory follow the plugged device blocks, also after failures and
//! resets.

use std::ops::Range;

use proptest::prelude::prop;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use tidevm_abi::{MEMORY_BLOCK_SIZE as BLOCK, Size};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::fake::{FakeSlots, at, memory, memory_with_pmem, unplug, unplug_all};
use super::host_calls::{MemoryCall, watch};
use super::range::{GuestRange, OffsetRange};
use super::{Memory, layout};

mod failures;

const MIB: u64 = 1 << 20;
const BOOT: u64 = 64 * MIB;
const START: u64 = layout::HOLE_END;

/// `count` device blocks of 2 MiB of region 0, from device block `first` on.
fn blocks(first: u64, count: u64) -> GuestRange {
    at(START + first * 2 * MIB..START + (first + count) * 2 * MIB)
}

/// The open runs: the view without boot memory.
fn plugged(memory: &Memory) -> Vec<GuestRange> {
    let view = memory.view();
    let runs = view.iter().skip(1).map(|run| at(run.start_addr().0..run.start_addr().0 + run.len()));
    runs.collect()
}

/// Protection of the page that holds `offset` of region 0, from `/proc/self/maps`.
fn protection(memory: &Memory, offset: u64) -> String {
    protection_at(memory.region_mappings[0].host_address() + offset)
}

/// Protection of the page that holds a host address.
fn protection_at(address: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        (start..end).contains(&address)
    });
    line.unwrap().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a_plug_makes_one_slot_for_all_new_memory_blocks() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    // In three memory blocks; the first and the last one are plugged in part.
    memory.plug(0, blocks(60, 74)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START, 3 * BLOCK)]);
    assert_eq!(plugged(&memory), [blocks(60, 74)]);
    // Right behind it: in one memory block that has a slot and two that have none.
    memory.plug(0, blocks(134, 130)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START, 3 * BLOCK), (START + 3 * BLOCK, 2 * BLOCK)]);
    assert_eq!(plugged(&memory), [blocks(60, 204)]);
}

#[test]
fn a_plug_between_slots_fills_only_the_gaps() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(64, 1)).unwrap();
    memory.plug(0, blocks(4 * 64 + 63, 1)).unwrap();
    memory.plug(0, blocks(65, 4 * 64 + 63 - 65)).unwrap();
    let expected = [(START + BLOCK, BLOCK), (START + 2 * BLOCK, 2 * BLOCK), (START + 4 * BLOCK, BLOCK)];
    assert_eq!(slots.hotplug(BOOT), expected);
}

#[test]
fn a_slot_goes_when_all_its_memory_blocks_are_empty() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(0, 128)).unwrap();
    unplug(&memory, 0, blocks(64, 64)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START, 2 * BLOCK)], "half of it is in use");
    assert_eq!(protection(&memory, 127 * 2 * MIB), "---p");
    assert_eq!(protection(&memory, 63 * 2 * MIB), "rw-p");
    unplug(&memory, 0, blocks(0, 64)).unwrap();
    assert_eq!(slots.hotplug(BOOT), []);
    assert_eq!(protection(&memory, 0), "---p");
}

/// KVM waits for the guest's CPUs when a slot goes, so an unplug does not wait for it.
#[test]
fn an_empty_slot_goes_after_the_unplug_or_serves_the_next_plug() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(0, 128)).unwrap();
    let both = [(START, 2 * BLOCK)];
    memory.unplug(0, blocks(0, 64)).unwrap();
    memory.unplug(0, blocks(64, 64)).unwrap();
    assert_eq!((slots.hotplug(BOOT), protection(&memory, 0)), (both.to_vec(), "---p".to_owned()));
    memory.plug(0, blocks(64, 1)).unwrap();
    memory.remove_empty_slots();
    assert_eq!(slots.hotplug(BOOT), both, "it is in use again");
    memory.unplug_all(0).unwrap();
    assert_eq!(slots.hotplug(BOOT), both);
    memory.remove_empty_slots();
    assert_eq!(slots.hotplug(BOOT), []);
}

#[test]
fn a_slot_that_cannot_be_made_leaves_everything_as_it_was() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(64, 1)).unwrap();
    memory.plug(0, blocks(3 * 64, 1)).unwrap();
    let before = (plugged(&memory), slots.hotplug(BOOT));
    // Memory blocks 0, 2 and 4 need a slot each; every one of them fails once.
    for successes in 0..3 {
        slots.fail_add_after(successes);
        for range in [blocks(0, 64), blocks(65, 127), blocks(3 * 64 + 1, 127)] {
            let result = memory.plug(0, range);
            if result.is_err() {
                assert_eq!(protection(&memory, range.start().0 - START), "---p");
            } else {
                unplug(&memory, 0, range).unwrap();
            }
        }
        assert_eq!((plugged(&memory), slots.hotplug(BOOT)), before, "after {successes} successes");
    }
}

/// A region whose memory block 1 is empty and has a slot, which KVM did not remove. So a plug of memory blocks 0
/// to 2 needs two slots more.
fn memory_with_an_empty_slot() -> (Memory, FakeSlots) {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(64, 64)).unwrap();
    slots.fail_remove_after(0);
    unplug(&memory, 0, blocks(64, 64)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START + BLOCK, BLOCK)]);
    (memory, slots)
}

#[test]
fn one_failing_slot_of_several_takes_the_others_back() {
    let (memory, slots) = memory_with_an_empty_slot();
    slots.fail_add_after(1);
    assert!(memory.plug(0, blocks(0, 192)).is_err());
    assert_eq!((plugged(&memory), slots.hotplug(BOOT)), (vec![], vec![(START + BLOCK, BLOCK)]));
    for block in [0, 64, 128, 191] {
        assert_eq!(protection(&memory, block * 2 * MIB), "---p", "device block {block}");
    }
    memory.plug(0, blocks(0, 192)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [0, 1, 2].map(|nr| (START + nr * BLOCK, BLOCK)));
}

#[test]
fn a_slot_that_cannot_be_taken_back_serves_the_next_plug() {
    let (memory, slots) = memory_with_an_empty_slot();
    slots.fail_add_after(1);
    slots.fail_remove_after(0);
    assert!(memory.plug(0, blocks(0, 192)).is_err());
    assert_eq!((plugged(&memory), protection(&memory, 0)), (vec![], "---p".to_owned()));
    assert_eq!(slots.hotplug(BOOT), [(START, BLOCK), (START + BLOCK, BLOCK)]);
    // A second slot at the same place would be a defect.
    memory.plug(0, blocks(0, 192)).unwrap();
    unplug(&memory, 0, blocks(0, 192)).unwrap();
    assert_eq!(slots.hotplug(BOOT), []);
}

#[test]
fn a_slot_that_kvm_keeps_serves_the_next_plug() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(0, 64)).unwrap();
    slots.fail_remove_after(0);
    unplug(&memory, 0, blocks(0, 64)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START, BLOCK)]);
    assert_eq!((plugged(&memory), protection(&memory, 0)), (vec![], "---p".to_owned()));
    memory.plug(0, blocks(3, 1)).unwrap();
    assert_eq!(slots.hotplug(BOOT), [(START, BLOCK)]);
    unplug(&memory, 0, blocks(3, 1)).unwrap();
    assert_eq!(slots.hotplug(BOOT), []);
}

#[test]
fn the_view_reaches_plugged_memory_and_nothing_else() {
    let (memory, _) = memory(BOOT, &[1 << 30]);
    let write = |address| memory.view().write_obj(0x5a_u8, GuestAddress(address));
    let read = |address| memory.view().read_obj::<u8>(GuestAddress(address));
    assert!(write(START).is_err());
    memory.plug(0, blocks(0, 2)).unwrap();
    write(START).unwrap();
    write(START + 4 * MIB - 1).unwrap();
    assert!(write(START + 4 * MIB).is_err());
    // A buffer that begins in plugged memory and ends in unplugged memory.
    assert!(memory.view().write_slice(&[0x5a; 2], GuestAddress(START + 4 * MIB - 1)).is_err());
    unplug(&memory, 0, blocks(0, 1)).unwrap();
    assert!(read(START).is_err());
    assert_eq!(read(START + 4 * MIB - 1).unwrap(), 0x5a, "the neighbour keeps its content");
}

#[test]
fn held_memory_falls_with_an_unplug_and_comes_back_zeroed() {
    let (memory, _) = memory(BOOT, &[1 << 30]);
    assert_eq!(memory.held().unwrap()[0], Size(0));
    memory.plug(0, blocks(0, 32)).unwrap();
    assert_eq!(memory.held().unwrap()[0], Size(0), "a plug populates nothing");
    for block in 0..32 {
        memory.view().write_slice(&[0xa5; 4096], blocks(block, 1).start()).unwrap();
    }
    assert!(memory.held().unwrap()[0] >= Size(32 * 4096));
    unplug(&memory, 0, blocks(8, 24)).unwrap();
    let left = memory.held().unwrap()[0];
    assert!((Size(8 * 4096)..=Size(16 * MIB)).contains(&left), "{left}");
    unplug(&memory, 0, blocks(0, 8)).unwrap();
    assert_eq!(memory.held().unwrap()[0], Size(0));
    memory.plug(0, blocks(0, 1)).unwrap();
    assert_eq!(memory.view().read_obj::<u64>(GuestAddress(START)).unwrap(), 0);
}

#[test]
fn ranges_outside_the_region_are_refused() {
    let (memory, _) = memory(BOOT, &[BLOCK, BLOCK]);
    let second = memory.regions()[1];
    assert_eq!(second.start().0 % layout::REGION_ALIGN, 0);
    assert_eq!(GuestRange::new(START..START), None);
    for range in [at(START - 2 * MIB..START), at(START..START + BLOCK + 2 * MIB), second] {
        assert!(memory.plug(0, range).is_err() && unplug(&memory, 0, range).is_err());
    }
    memory.plug(1, second).unwrap();
    assert!(memory.plug(2, at(START..START + BLOCK)).is_err());
    assert!(unplug_all(&memory, 2).is_err());
    assert_eq!(memory.held().unwrap().len(), 2);
}

#[derive(Clone, Debug)]
enum MemoryStep {
    Plug { first: u64, count: u64 },
    Unplug { first: u64, count: u64 },
    UnplugAll,
    FailAdd(u32),
    FailRemove(u32),
    FailMapping(u32),
}

/// Device blocks in the region of the model test: four memory blocks.
const COUNT: usize = 256;

fn steps() -> impl Strategy<Value = Vec<MemoryStep>> {
    let range = || (0..COUNT as u64, prop_oneof![Just(64), Just(1), 1..128_u64]);
    let step = prop_oneof![
        12 => range().prop_map(|(first, count)| MemoryStep::Plug { first, count }),
        12 => range().prop_map(|(first, count)| MemoryStep::Unplug { first, count }),
        1 => Just(MemoryStep::UnplugAll),
        2 => (0..3_u32).prop_map(MemoryStep::FailAdd),
        2 => (0..3_u32).prop_map(MemoryStep::FailRemove),
        3 => (0..4_u32).prop_map(MemoryStep::FailMapping),
    ];
    prop::collection::vec(step, 1..60)
}

/// From now on one failure is due at a time: what takes back the changes of a failed operation does not fail.
fn fail_one(slots: &FakeSlots, step: &MemoryStep) {
    let mut left = None;
    slots.never_fail();
    match step {
        MemoryStep::FailAdd(after) => slots.fail_add_after(*after),
        MemoryStep::FailRemove(after) => slots.fail_remove_after(*after),
        MemoryStep::FailMapping(after) => left = Some(*after),
        _ => {}
    }
    watch(move |call| {
        if let (MemoryCall::AddSlot(..) | MemoryCall::RemoveSlot(_), _) | (_, None) = (call, left) {
            return false;
        }
        left = left.and_then(|left| left.checked_sub(1));
        left.is_none()
    });
}

/// The runs of device blocks in `range` whose `model` is `state`: first device block and count.
fn runs(model: &[bool], range: Range<usize>, state: bool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in range.filter(|&block| model[block] == state).map(|block| block as u64) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == block => *count += 1,
            _ => runs.push((block, 1)),
        }
    }
    runs
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

    /// The view equals the runs of a model bitmap. Slots are whole memory blocks that cover it. A step at
    /// which the host fails changes nothing. The protection of the memory agrees with the model.
    #[test]
    fn the_view_is_exactly_what_is_plugged(steps in steps(), at in any::<prop::sample::Index>()) {
        watch(|_| false);
        let (memory, slots) = memory(BOOT, &[COUNT as u64 * 2 * MIB]);
        let mut model = [false; COUNT];
        for step in steps {
            match step {
                MemoryStep::FailAdd(_) | MemoryStep::FailRemove(_) | MemoryStep::FailMapping(_) => {
                    fail_one(&slots, &step);
                }
                MemoryStep::UnplugAll => {
                    if unplug_all(&memory, 0).is_ok() {
                        model.fill(false);
                    }
                }
                MemoryStep::Plug { first, count } | MemoryStep::Unplug { first, count } => {
                    let plug = matches!(step, MemoryStep::Plug { .. });
                    let range = first as usize..COUNT.min((first + count) as usize);
                    for (first, count) in runs(&model, range, !plug) {
                        let done = if plug {
                            memory.plug(0, blocks(first, count)).is_ok()
                        } else {
                            unplug(&memory, 0, blocks(first, count)).is_ok()
                        };
                        if done {
                            model[first as usize..(first + count) as usize].fill(plug);
                        }
                    }
                }
            }
            let expected = runs(&model, 0..COUNT, true);
            let expected: Vec<_> = expected.into_iter().map(|(first, count)| blocks(first, count)).collect();
            assert_eq!(plugged(&memory), expected);
            let covered = |range: &GuestRange| {
                let mut next = range.start().0;
                for (address, size) in slots.hotplug(BOOT) {
                    if (address..address + size).contains(&next) {
                        next = address + size;
                    }
                }
                next >= range.end().0
            };
            assert!(expected.iter().all(covered), "{expected:x?} in {:x?}", slots.hotplug(BOOT));
        }
        let block = at.index(COUNT);
        let open = protection(&memory, block as u64 * 2 * MIB) == "rw-p";
        assert_eq!(open, model[block]);
    }
}

#[test]
fn a_reset_leaves_zero_boot_memory_in_the_slots_of_a_new_machine() {
    let (memory, old) = memory(BOOT, &[1 << 30]);
    memory.plug(0, blocks(0, 65)).unwrap();
    // KVM keeps this slot. The new machine does not have it.
    old.fail_remove_after(0);
    unplug(&memory, 0, blocks(0, 65)).unwrap();
    assert_eq!(old.hotplug(BOOT), [(START, 2 * BLOCK)]);
    memory.view().write_obj(7_u8, GuestAddress(MIB)).unwrap();
    let new = FakeSlots::default();
    memory.reset(Box::new(new.clone())).unwrap();
    assert_eq!(memory.view().read_obj::<u8>(GuestAddress(MIB)).unwrap(), 0);
    assert_eq!((new.count(), new.hotplug(BOOT)), (1, vec![]));
    memory.plug(0, blocks(0, 1)).unwrap();
    assert_eq!(new.hotplug(BOOT), [(START, BLOCK)]);
    let refusing = FakeSlots::default();
    refusing.fail_add_after(0);
    let error = memory.reset(Box::new(refusing)).unwrap_err().to_string();
    assert!(error.contains("the memslot of boot memory of 64M"), "{error}");
}

/// Runs unplugged one by one, each with a new view of the rest, would take quadratic time.
#[test]
fn a_reset_takes_all_runs_at_once() {
    const RUNS: u64 = 1000;
    let (memory, old) = memory(BOOT, &[8 << 30, 1 << 30]);
    let second = memory.regions()[1].start().0;
    // Everything is plugged first, in one slot, so that no run needs its own.
    memory.plug(0, blocks(0, 2 * RUNS)).unwrap();
    memory.plug(1, at(second..second + 2 * MIB)).unwrap();
    for run in 0..RUNS {
        unplug(&memory, 0, blocks(2 * run, 1)).unwrap();
        memory.view().write_obj(7_u8, blocks(2 * run + 1, 1).start()).unwrap();
    }
    assert!(memory.held().unwrap()[0] >= Size(RUNS * 4096));
    assert_eq!(plugged(&memory).len() as u64, RUNS + 1);
    // Slots go with the old machine and are not removed one by one.
    old.fail_remove_after(0);
    let new = FakeSlots::default();
    memory.reset(Box::new(new.clone())).unwrap();
    assert_eq!(
        (memory.held().unwrap()[0], memory.held().unwrap()[1], plugged(&memory)),
        (Size(0), Size(0), vec![])
    );
    assert_eq!((new.count(), protection(&memory, 2 * MIB)), (1, "---p".to_owned()));
    memory.plug(0, blocks(1, 2)).unwrap();
    assert_eq!(memory.view().read_obj::<u8>(blocks(1, 1).start()).unwrap(), 0);
    assert_eq!(new.hotplug(BOOT), [(START, BLOCK)]);
}

/// Device memory is behind the regions and in a slot from the start. A reset keeps its content.
#[test]
fn device_memory_is_there_from_the_start_and_outlives_a_reset() {
    let (memory, slots) = memory_with_pmem(BOOT, &[BLOCK], &[BLOCK, 2 * BLOCK]);
    let gib = 1 << 30;
    let pmem = [(5 * gib, BLOCK), (6 * gib, 2 * BLOCK)];
    assert_eq!(slots.hotplug(BOOT), pmem);
    for (_, mapping) in &memory.pmem {
        assert_eq!(protection_at(mapping.host_address()), "rw-p", "the guest may use it at once");
    }
    let region = &memory.regions()[0];
    assert_eq!((region.start().0, region.end().0), (4 * gib, 4 * gib + BLOCK));
    assert!(memory.view().find_region(GuestAddress(5 * gib)).is_none(), "no device writes there");
    let new = FakeSlots::default();
    memory.reset(Box::new(new.clone())).unwrap();
    assert_eq!(new.hotplug(BOOT), pmem);
}
