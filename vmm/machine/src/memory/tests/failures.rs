//! The order of the calls to the host, and what is left when one of them fails.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::memory::fake::offsets;
use crate::memory::host_calls::FailedCall;

/// The calls that `act` makes.
fn calls(act: impl FnOnce()) -> Vec<MemoryCall> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&seen);
    watch(move |call| {
        noted.borrow_mut().push(call);
        false
    });
    act();
    watch(|_| false);
    seen.take()
}

/// Lets the calls fail for which `fails` holds, while `act` runs.
fn failing<T>(fails: impl Fn(MemoryCall) -> bool + 'static, act: impl FnOnce() -> T) -> T {
    watch(fails);
    let result = act();
    watch(|_| false);
    result
}

/// Offsets of device blocks of 2 MiB.
fn part(first: u64, count: u64) -> OffsetRange {
    offsets(first * 2 * MIB..(first + count) * 2 * MIB)
}

#[test]
fn what_can_fail_comes_first_and_what_cannot_be_taken_back_comes_last() {
    let (memory, _) = memory(BOOT, &[1 << 30]);
    let plug = calls(|| memory.plug(0, blocks(60, 74)).unwrap());
    assert_eq!(plug, [MemoryCall::Open(part(60, 74)), MemoryCall::AddSlot(START, 3 * BLOCK)]);
    let unplug = calls(|| unplug(&memory, 0, blocks(60, 74)).unwrap());
    let slot = MemoryCall::RemoveSlot(1);
    assert_eq!(unplug, [MemoryCall::Close(part(60, 74)), MemoryCall::Discard(part(60, 74)), slot]);
    memory.plug(0, blocks(0, 1)).unwrap();
    let unplug = calls(|| unplug_all(&memory, 0).unwrap());
    let slot = MemoryCall::RemoveSlot(2);
    assert_eq!(unplug, [MemoryCall::Close(part(0, 512)), MemoryCall::Discard(part(0, 512)), slot]);
    let reset = calls(|| memory.reset(Box::new(FakeSlots::default())).unwrap());
    let boot = [MemoryCall::Discard(offsets(0..BOOT)), MemoryCall::AddSlot(0, BOOT)];
    assert_eq!(reset[..2], [MemoryCall::Close(part(0, 512)), MemoryCall::Discard(part(0, 512))]);
    assert_eq!(reset[2..], boot);
}

/// Another thread may take the lock of the view whenever it is free, and use every window.
#[test]
fn no_thread_sees_a_window_into_closed_memory() {
    let (memory, _) = memory(BOOT, &[1 << 30]);
    let memory = Arc::new(memory);
    let (seen, looks) = (Arc::clone(&memory), Rc::new(RefCell::new(0)));
    let looked = Rc::clone(&looks);
    watch(move |call| {
        // Device blocks that are not open yet, or will be closed in a moment.
        if let MemoryCall::Open(range) | MemoryCall::Close(range) = call {
            *looked.borrow_mut() += 1;
            let Ok(view) = seen.view.try_read() else { return false };
            for run in view.iter().skip(1) {
                let start = run.start_addr().0 - START;
                assert!(
                    start + run.len() <= range.start() || range.end() <= start,
                    "{call:?} with a window at {start:#x}"
                );
            }
        }
        false
    });
    memory.plug(0, blocks(0, 8)).unwrap();
    memory.plug(0, blocks(16, 8)).unwrap();
    unplug(&memory, 0, blocks(2, 2)).unwrap();
    unplug_all(&memory, 0).unwrap();
    memory.plug(0, blocks(0, 8)).unwrap();
    memory.reset(Box::new(FakeSlots::default())).unwrap();
    // Beside what was open before the reset.
    memory.plug(0, blocks(8, 1)).unwrap();
    assert_eq!((plugged(&memory), *looks.borrow()), (vec![blocks(8, 1)], 7));
}

#[test]
fn memory_that_cannot_be_opened_gets_no_slot() {
    let (memory, slots) = memory(BOOT, &[1 << 30]);
    let result = failing(|call| matches!(call, MemoryCall::Open(_)), || memory.plug(0, blocks(0, 64)));
    assert!(result.is_err());
    assert_eq!((plugged(&memory), slots.hotplug(BOOT)), (vec![], vec![]));
    assert_eq!(protection(&memory, 0), "---p", "the host had opened a part");
    memory.plug(0, blocks(0, 64)).unwrap();
}

/// An unplug of either kind.
type Unplug = fn(&Memory) -> Result<(), FailedCall>;

const UNPLUGS: [Unplug; 2] = [|memory| unplug(memory, 0, blocks(4, 2)), |memory| unplug_all(memory, 0)];

#[test]
fn an_unplug_that_fails_leaves_slots_view_and_content_as_they_were() {
    let fails: [fn(MemoryCall) -> bool; 2] =
        [|call| matches!(call, MemoryCall::Close(_)), |call| matches!(call, MemoryCall::Discard(_))];
    for unplug in UNPLUGS {
        for fails in fails {
            let (memory, slots) = memory(BOOT, &[1 << 30]);
            let runs = [blocks(0, 2), blocks(4, 2), blocks(70, 2)];
            for run in runs {
                memory.plug(0, run).unwrap();
                memory.view().write_obj(7_u8, run.start()).unwrap();
            }
            let before = slots.hotplug(BOOT);
            assert!(failing(fails, || unplug(&memory)).is_err());
            assert_eq!((plugged(&memory), slots.hotplug(BOOT)), (runs.to_vec(), before));
            for run in runs {
                assert_eq!(memory.view().read_obj::<u8>(run.start()).unwrap(), 7);
                memory.view().write_obj(1_u8, run.start()).unwrap();
            }
            unplug(&memory).unwrap();
            assert!(!plugged(&memory).contains(&runs[1]));
        }
    }
}

#[test]
fn runs_that_the_host_does_not_open_again_are_out_of_view_and_no_others() {
    for unplug in UNPLUGS {
        let (memory, slots) = memory(BOOT, &[1 << 30]);
        let runs = [blocks(0, 2), blocks(4, 2), blocks(70, 2)];
        runs.iter().for_each(|&run| memory.plug(0, run).unwrap());
        let lost = part(4, 2);
        let fails = move |call| matches!(call, MemoryCall::Discard(_)) || call == MemoryCall::Open(lost);
        assert!(failing(fails, || unplug(&memory)).is_err());
        assert_eq!((plugged(&memory), slots.hotplug(BOOT).len()), (vec![runs[0], runs[2]], 2));
        for run in [runs[0], runs[2]] {
            memory.view().write_obj(1_u8, run.start()).unwrap();
        }
        // The guest was told of an error, and unplugs what it has once more.
        runs.iter().for_each(|&run| super::unplug(&memory, 0, run).unwrap());
        assert_eq!((plugged(&memory), slots.hotplug(BOOT)), (vec![], vec![]));
    }
}
