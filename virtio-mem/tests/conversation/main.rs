//! Conversations: the driver against the device, with random targets and random faults.
//!
//! The host runs out of memory or cannot plug certain device blocks, the actions of the guest fail, and the device
//! answers wrongly or not at all. After every step the invariants of both ends must hold (`invariants.rs`). When
//! the faults stop, the driver must reach its target. Identifiers such as D3 are rows of the tables in
//! `tests/conformance`.
//!
//! Each run draws new seeds. A failure prints its seed and the last steps; `TIDEVM_SEED=seed`
//! replays that conversation alone. `TIDEVM_CONVERSATIONS=n` sets how many there are.

mod guest;
mod host;
mod invariants;
mod random;
mod world;

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use self::random::Random;
use self::world::{Shape, World};

const MIB: u64 = 1 << 20;

/// Number of conversations per run.
const CONVERSATIONS: u64 = 200;

/// Number of steps with faults per conversation.
const STEPS: u32 = 600;

/// Most steps to a target without faults.
///
/// A memory block takes at most four steps (offline or online, unplug or plug, and the same for a remainder), a
/// device block takes two, and the region has at most 4096 device blocks.
const STEPS_TO_CONVERGE: u32 = 8 * 4 + 2 * 4096;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

fn conversation(seed: u64) {
    let mut random = Random::new(seed);
    let shape = Shape::random(&mut random);
    let mut world = World::new(shape, random);
    let told = catch_unwind(AssertUnwindSafe(|| {
        world.converse(STEPS);
        world.settle(STEPS_TO_CONVERGE);
        world.empty(STEPS_TO_CONVERGE);
    }));
    if let Err(panic) = told {
        eprintln!("TIDEVM_SEED={seed} replays this: {shape:?}");
        world.tell();
        resume_unwind(panic);
    }
}

#[test]
fn random_conversations() {
    if let Some(seed) = number("TIDEVM_SEED") {
        return conversation(seed);
    }
    let first = RandomState::new().hash_one(0);
    for nr in 0..number("TIDEVM_CONVERSATIONS").unwrap_or(CONVERSATIONS) {
        conversation(first.wrapping_add(nr));
    }
}

/// A world without faults.
fn plain(block_mib: u64, memmap_inside: bool) -> World {
    plain_with(block_mib, 128, memmap_inside)
}

fn plain_with(block_mib: u64, memory_block_mib: u64, memmap_inside: bool) -> World {
    let shape = Shape::plain(block_mib * MIB, memory_block_mib * MIB, memmap_inside);
    World::new(shape, Random::new(1))
}

#[test]
fn without_faults_every_size_is_reached_at_once() {
    for block in [2, 4, 16, 64, 128] {
        for memmap_inside in [false, true] {
            let mut world = plain(block, memmap_inside);
            for requested in [block, 0, 1024, 512, 512 + block, 384, 1024, 0, 128, 128 - block, 256] {
                world.resize(requested * MIB);
                world.settle(STEPS_TO_CONVERGE);
                assert_eq!(world.pauses, 0, "{block} MiB blocks to {requested} MiB");
            }
        }
    }
}

#[test]
fn one_request_for_1_gib_of_growth() {
    let mut world = plain(2, true);
    world.resize(1024 * MIB);
    world.settle(STEPS_TO_CONVERGE);
    assert_eq!(world.requests, 1);
    world.resize(0);
    world.settle(STEPS_TO_CONVERGE);
    assert_eq!(world.requests, 1 + 1, "and one to shrink");
}

/// Memory device blocks of several sections, with targets that end inside a memmap and just after one.
#[test]
fn large_memory_blocks_reach_every_size_at_once() {
    for memory_block in [256, 1024, 2048] {
        for block in [8, 64, 128] {
            for memmap_inside in [false, true] {
                let mut world = plain_with(block, memory_block, memmap_inside);
                let (one, rest) = (memory_block, block);
                for requested in [rest, 0, 2 * one, one + rest, one + 2 * rest, one, 4 * one, one - rest] {
                    world.resize(requested * MIB);
                    world.settle(STEPS_TO_CONVERGE);
                    assert_eq!(world.pauses, 0, "{block} of {memory_block} MiB to {requested} MiB");
                }
                world.empty(STEPS_TO_CONVERGE);
            }
        }
    }
}

/// A race: each PLUG of a burst arrives after the target has moved below it.
#[test]
fn a_target_that_moves_with_every_request() {
    let mut world = plain(2, true);
    for nr in 0..200_u64 {
        world.resize((nr * 37 % 513) * 2 * MIB);
        world.step();
        world.resize((nr * 101 % 513) * 2 * MIB);
        world.step();
        world.step();
    }
    world.settle(STEPS_TO_CONVERGE);
    assert_eq!(world.driver.device_errors(), 0, "a moving target is no error of the device");
}

/// The host can never plug one device block. The driver asks for fewer and fewer device blocks, and gets all
/// device blocks below that one.
#[test]
fn a_host_that_cannot_plug_one_block() {
    for bad in [0, 1, 63, 64, 200, 511] {
        let mut world = plain(2, true);
        world.host.fails_at = Some(bad);
        world.resize(1024 * MIB);
        world.until_it_pauses_often(STEPS_TO_CONVERGE);
        assert_eq!(world.device.plugged_size(), bad * 2 * MIB);
        world.host.fails_at = None;
        world.settle(STEPS_TO_CONVERGE);
    }
}
