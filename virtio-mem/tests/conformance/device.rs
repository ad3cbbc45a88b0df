//! Requirements on a device that concern no single kind of request, and the rig that the checks use.

use virtio_mem::blocks::{BlockBitmap, BlockRange};
use virtio_mem::device::{ConfigError, Refusal, ResizeError};
use virtio_mem::wire::{F_ACPI_PXM, F_PERSISTENT_SUSPEND, F_UNPLUGGED_INACCESSIBLE, REQUEST_SIZE};
use virtio_mem::{
    Backing, BlockState, Busy, Config, Device, DeviceConfig, PluggedRuns, Response, ResponseType, Span,
};

use super::Row;

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 2 * MIB;
pub const ADDR: u64 = 4 << 30;
/// Larger than the usable part of most tests.
pub const REGION: u64 = 2 << 30;

pub const PLUG: u16 = 0;
pub const UNPLUG: u16 = 1;
pub const UNPLUG_ALL: u16 = 2;
pub const STATE: u16 = 3;

pub const ROWS: &[Row] = &[
    ("D2", "block size, node, address and region size never change", fixed_fields),
    ("D3", "plugged_size is what is plugged", plugged_size),
    ("D4", "usable_region_size is at least requested_size", usable_holds_requested),
    ("D5", "the block size is a power of two", block_size),
    ("D6", "all sizes are multiples of the block size", multiples),
    ("D7", "a region of nothing is a region", empty_region),
    ("D8", "the usable region shrinks in UNPLUG_ALL and system reset only", usable_grows),
    ("D9", "a notification is due when requested or usable change", notification),
    ("D10", "none is due when plugged changes", no_notification),
    ("D18", "blocks that were not named are left alone", neighbours),
    ("D22", "a system reset unplugs everything", system_reset),
    ("X3", "an unknown request is ERROR", unknown),
    ("X5", "addresses near 2^64 and 0 wrap nothing", wrapping),
    ("X6", "range comes before state, state before quota", order),
    ("X7", "the generation changes with the configuration", generation),
    ("X8", "what the host cannot changes nothing", rollback),
    ("features", "as the configuration says", features),
    ("resize", "a refused size changes nothing and names its bound", bad_sizes),
];

/// The reason of [`Memory`] for a failure.
pub const BUSY: Refusal = Refusal::Busy(Busy::call("mprotect", 12));

/// A backing that records the plugged device blocks, and fails on demand.
pub struct Memory {
    pub plugged: BlockBitmap,
    /// Number of calls that succeed before one fails.
    pub fail_after: Option<u32>,
    start: u64,
    block_size: u64,
}

impl Memory {
    /// The memory behind the region of `fixed`.
    fn new(fixed: DeviceConfig) -> Memory {
        let plugged = BlockBitmap::new(fixed.region_size / fixed.block_size);
        Memory { plugged, fail_after: None, start: fixed.addr, block_size: fixed.block_size }
    }

    fn call(&mut self) -> Result<(), Busy> {
        match self.fail_after.as_mut() {
            Some(0) => Err(Busy::call("mprotect", 12)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Backing for Memory {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        let range = span.blocks();
        assert_eq!(span.addr() - self.start, range.first() * self.block_size);
        assert_eq!((span.size(), span.offset()), (range.count() * self.block_size, span.addr() - self.start));
        assert_eq!(span.end(), span.addr() + span.size());
        assert_eq!(self.plugged.count_in(range), 0, "plug of {range:?}");
        self.call()?;
        self.plugged.set(range);
        Ok(())
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        let range = span.blocks();
        assert_eq!(span.addr() - self.start, range.first() * self.block_size);
        assert_eq!((span.size(), span.offset()), (range.count() * self.block_size, span.addr() - self.start));
        assert_eq!(span.end(), span.addr() + span.size());
        assert_eq!(self.plugged.count_in(range), range.count(), "unplug of {range:?}");
        self.call()?;
        self.plugged.clear(range);
        Ok(())
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        assert!(plugged.runs().map(Span::blocks).eq(self.plugged.runs()));
        assert_eq!(plugged.size(), self.plugged.count() * self.block_size);
        assert_eq!((plugged.region().addr(), plugged.region().size()), (self.start, REGION));
        self.call()?;
        self.plugged = BlockBitmap::new(REGION / BLOCK);
        Ok(())
    }
}

pub struct Rig {
    pub device: Device,
    pub memory: Memory,
}

impl Rig {
    pub fn reset(&mut self) {
        self.device.reset();
        self.memory.plugged = BlockBitmap::new(REGION / BLOCK);
    }

    /// A device with `requested` MiB requested and nothing plugged.
    pub fn new(requested: u64) -> Rig {
        Rig::of(DeviceConfig::new(ADDR, REGION, BLOCK), requested)
    }

    /// The same with other properties.
    pub fn of(fixed: DeviceConfig, requested: u64) -> Rig {
        let mut device = Device::new(fixed).unwrap();
        device.resize(requested * MIB).unwrap();
        Rig { device, memory: Memory::new(fixed) }
    }

    pub fn send(&mut self, bytes: &[u8]) -> Response {
        let response = self.device.handle(bytes, &mut self.memory);
        assert!(self.device.plugged().runs().eq(self.memory.plugged.runs()));
        response
    }

    pub fn ask(&mut self, kind: u16, addr: u64, nb_blocks: u16) -> ResponseType {
        self.send(&bytes(kind, addr, nb_blocks)).kind
    }

    /// Sends a request that must be answered with ACK.
    pub fn ack(&mut self, kind: u16, mib: u64, nb_blocks: u16) {
        assert_eq!(self.ask(kind, ADDR + mib * MIB, nb_blocks), ResponseType::Ack);
    }

    /// Sends a request that must be refused with `answer` because of `why`, and must change nothing.
    pub fn refuse(&mut self, kind: u16, addr: u64, nb_blocks: u16, answer: ResponseType, why: Refusal) {
        let before = self.snapshot();
        assert_eq!(self.ask(kind, addr, nb_blocks), answer, "{kind} {addr:#x} {nb_blocks}");
        assert_eq!(self.snapshot(), before);
        assert_eq!(self.device.refused().map(|refused| refused.why), Some(why));
    }

    pub fn error(&mut self, kind: u16, addr: u64, nb_blocks: u16, why: Refusal) {
        self.refuse(kind, addr, nb_blocks, ResponseType::Error, why);
    }

    pub fn state(&mut self, mib: u64, nb_blocks: u16) -> BlockState {
        let response = self.send(&bytes(STATE, ADDR + mib * MIB, nb_blocks));
        assert_eq!(response.kind, ResponseType::Ack);
        response.state
    }

    fn snapshot(&self) -> (Config, u32, Vec<BlockRange>) {
        (self.device.config(), self.device.config_generation(), self.device.plugged().runs().collect())
    }

    /// The usable region in MiB.
    pub fn usable(&self) -> u64 {
        self.device.config().usable_region_size / MIB
    }

    /// The plugged size in MiB.
    pub fn plugged(&self) -> u64 {
        self.device.config().plugged_size / MIB
    }
}

pub fn bytes(kind: u16, addr: u64, nb_blocks: u16) -> [u8; REQUEST_SIZE] {
    let mut bytes = [0; REQUEST_SIZE];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&nb_blocks.to_le_bytes());
    bytes
}

/// Runs a device through resizes and requests, and calls `look` after each.
fn life(mut look: impl FnMut(&Rig)) {
    let mut rig = Rig::new(0);
    for requested in [64, 2048, 300, 0, 512] {
        rig.device.resize(requested * MIB).unwrap();
        look(&rig);
        for kind in [PLUG, PLUG, UNPLUG, STATE, 7] {
            for mib in [0, 16, 100, 400, 2044] {
                rig.ask(kind, ADDR + mib * MIB, 2);
                look(&rig);
            }
        }
        // It unplugs and shrinks the usable region; only shrinks it; only unplugs.
        if [300, 0, 512].contains(&requested) {
            rig.ask(PLUG, ADDR, 2);
            look(&rig);
            rig.ask(UNPLUG_ALL, 0, 0);
            look(&rig);
        }
    }
    rig.reset();
    look(&rig);
}

fn fixed_fields() {
    life(|rig| {
        let Config { block_size, node_id, addr, region_size, .. } = rig.device.config();
        assert_eq!((block_size, node_id, addr, region_size), (BLOCK, 0, ADDR, REGION));
    });
}

fn plugged_size() {
    let mut most = 0;
    life(|rig| {
        assert_eq!(rig.device.config().plugged_size, rig.memory.plugged.count() * BLOCK);
        assert_eq!(rig.device.config().plugged_size, rig.device.plugged_size());
        most = most.max(rig.plugged());
    });
    assert!(most > 8);
}

fn usable_holds_requested() {
    life(|rig| {
        let config = rig.device.config();
        assert!(config.usable_region_size >= config.requested_size);
        assert_eq!(config.requested_size, rig.device.requested_size());
        assert_eq!(config.usable_region_size, rig.device.usable_region_size());
    });
    let mut rig = Rig::new(512);
    rig.ack(UNPLUG_ALL, 0, 0);
    assert!(rig.usable() >= 512, "in UNPLUG_ALL too");
}

fn block_size() {
    let with = |block_size| Device::new(DeviceConfig::new(0, 0, block_size)).map(|_| ());
    for block_size in [0, 3 * MIB, BLOCK + 1, u64::MAX] {
        assert_eq!(with(block_size), Err(ConfigError::BlockSize));
    }
    for block_size in [1, BLOCK, 1 << 63] {
        assert_eq!(with(block_size), Ok(()));
    }
}

fn multiples() {
    let with = |addr, region_size| Device::new(DeviceConfig::new(addr, region_size, BLOCK)).map(|_| ());
    assert_eq!(with(ADDR + MIB, REGION), Err(ConfigError::Misaligned));
    assert_eq!(with(ADDR, REGION + MIB), Err(ConfigError::Misaligned));
    assert_eq!(with(u64::MAX - BLOCK + 1, BLOCK), Err(ConfigError::Wraps));
    life(|rig| {
        let config = rig.device.config();
        for size in [config.usable_region_size, config.plugged_size, config.requested_size] {
            assert!(size.is_multiple_of(BLOCK));
        }
    });
    // Device blocks larger than the amount by which the usable size exceeds the requested size.
    let fixed = DeviceConfig::new(0, 4 << 30, 1 << 30);
    let mut device = Device::new(fixed).unwrap();
    device.resize(1 << 30).unwrap();
    assert_eq!(device.usable_region_size(), 2 << 30);
}

fn empty_region() {
    let fixed = DeviceConfig::new(ADDR, 0, BLOCK);
    let mut device = Device::new(fixed).unwrap();
    let mut memory = Memory::new(fixed);
    assert_eq!(device.resize(BLOCK), Err(ResizeError::BeyondRegion { region_size: 0 }));
    for (kind, answer) in [
        (PLUG, ResponseType::Error),
        (UNPLUG, ResponseType::Error),
        (STATE, ResponseType::Error),
        (UNPLUG_ALL, ResponseType::Ack),
    ] {
        assert_eq!(device.handle(&bytes(kind, ADDR, 1), &mut memory).kind, answer);
    }
}

fn usable_grows() {
    let mut rig = Rig::new(0);
    assert_eq!(rig.usable(), 0);
    for (requested, usable) in [(64, 320), (512, 768), (128, 768), (0, 768), (2000, 2048), (0, 2048)] {
        rig.device.resize(requested * MIB).unwrap();
        assert_eq!(rig.usable(), usable);
    }
    rig.device.resize(64 * MIB).unwrap();
    rig.ack(PLUG, 0, 32);
    rig.ack(UNPLUG, 0, 32);
    assert_eq!(rig.usable(), 2048);
    rig.reset();
    assert_eq!(rig.usable(), 320);
}

fn notification() {
    let mut rig = Rig::new(0);
    let mut due = |mib: u64| rig.device.resize(mib * MIB).unwrap();
    assert!(due(64) && !due(64), "nothing changed");
    assert!(due(32) && due(0) && !due(0) && due(2048));
}

/// Only `resize` returns whether a notification is due. It must not report one because the plugged size has
/// changed.
fn no_notification() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 8);
    assert_eq!(rig.device.resize(64 * MIB), Ok(false));
    rig.ack(UNPLUG_ALL, 0, 0);
    assert_eq!(rig.device.resize(64 * MIB), Ok(false));
}

/// `Memory` asserts that each call is for device blocks that change. This checks that no other device block
/// changes.
fn neighbours() {
    let mut rig = Rig::new(512);
    rig.ack(PLUG, 0, 200);
    rig.ack(UNPLUG, 130, 62);
    let runs: Vec<_> = rig.memory.plugged.runs().map(|run| (run.first(), run.count())).collect();
    assert_eq!(runs, [(0, 65), (127, 73)]);
}

fn system_reset() {
    let mut rig = Rig::new(512);
    rig.ack(PLUG, 0, 8);
    rig.ack(PLUG, 100, 8);
    let before = rig.device.config_generation();
    rig.reset();
    assert_eq!((rig.plugged(), rig.device.requested_size()), (0, 512 * MIB));
    assert_ne!(rig.device.config_generation(), before);
    rig.ack(PLUG, 0, 256);
}

fn unknown() {
    let mut rig = Rig::new(64);
    for kind in [4, 5, 0x100, u16::MAX] {
        assert_eq!(rig.ask(kind, ADDR, 1), ResponseType::Error);
        assert_eq!(rig.device.refused().unwrap().to_string(), format!("request type {kind} is unknown"));
    }
    for len in 0..REQUEST_SIZE {
        assert_eq!(rig.send(&bytes(PLUG, ADDR, 1)[..len]).kind, ResponseType::Error);
    }
    assert_eq!(rig.plugged(), 0);
}

fn wrapping() {
    // The smallest device blocks, a region that ends at the last address, and the largest device blocks.
    for (addr, region_size, block_size) in
        [(0, 1 << 20, 1), ((u64::MAX << 30) & !(1 << 30), 1 << 30, BLOCK), (0, 1 << 63, 1 << 62)]
    {
        let fixed = DeviceConfig::new(addr, region_size, block_size);
        let mut device = Device::new(fixed).unwrap();
        device.resize(region_size).unwrap();
        let mut memory = Memory::new(fixed);
        for kind in [PLUG, UNPLUG, STATE] {
            for at in [0, addr.wrapping_sub(block_size), addr + region_size, u64::MAX - (block_size - 1)] {
                for nb_blocks in [1, 2, u16::MAX] {
                    let inside = at == addr && u64::from(nb_blocks) <= region_size / block_size;
                    let answer = device.handle(&bytes(kind, at, nb_blocks), &mut memory).kind;
                    if !inside {
                        assert_eq!(answer, ResponseType::Error, "{at:#x} {nb_blocks}");
                    }
                }
            }
        }
    }
}

fn order() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 32);
    rig.error(PLUG, ADDR + 1, 100, Refusal::Misaligned);
    rig.error(PLUG, ADDR + 319 * MIB + MIB, 100, Refusal::NotUsable);
    rig.error(PLUG, ADDR + 62 * MIB, 100, Refusal::AlreadyPlugged);
    rig.refuse(PLUG, ADDR + 64 * MIB, 100, ResponseType::Nack, Refusal::OverAsk);
}

fn generation() {
    let mut before: Option<(Config, u32)> = None;
    let mut changes = 0;
    life(|rig| {
        let now = (rig.device.config(), rig.device.config_generation());
        if let Some((config, generation)) = before {
            assert_eq!(config != now.0, generation != now.1);
            changes += u32::from(config != now.0);
        }
        before = Some(now);
    });
    assert!(changes > 10);
}

fn rollback() {
    let mut rig = Rig::new(64);
    rig.ack(PLUG, 0, 8);
    rig.memory.fail_after = Some(0);
    for (kind, mib) in [(PLUG, 16), (UNPLUG, 0), (UNPLUG_ALL, 0)] {
        rig.refuse(kind, ADDR + mib * MIB, 8, ResponseType::Busy, BUSY);
    }
    assert_eq!(
        rig.device.refused().unwrap().why.to_string(),
        "the host cannot do it now: mprotect: error 12"
    );
    assert_eq!(Busy::because("a log is full").to_string(), "the host cannot do it now: a log is full");
    assert_eq!(Busy::default().to_string(), "the host cannot do it now");
}

fn features() {
    let inaccessible = 1 << F_UNPLUGGED_INACCESSIBLE;
    let mut fixed = DeviceConfig::new(ADDR, REGION, BLOCK);
    assert_eq!(Device::new(fixed).unwrap().features(), inaccessible);
    fixed.node_id = Some(3);
    let device = Device::new(fixed).unwrap();
    assert_eq!((device.features(), device.config().node_id), (inaccessible | 1 << F_ACPI_PXM, 3));
    (fixed.node_id, fixed.persistent_suspend) = (None, true);
    assert_eq!(Device::new(fixed).unwrap().features(), inaccessible | 1 << F_PERSISTENT_SUSPEND);
}

fn bad_sizes() {
    let mut rig = Rig::new(64);
    let before = rig.snapshot();
    let misaligned = rig.device.resize(MIB).unwrap_err();
    assert_eq!(misaligned, ResizeError::Misaligned { block_size: BLOCK });
    assert!(misaligned.to_string().contains("2097152"));
    let beyond = rig.device.resize(REGION + BLOCK).unwrap_err();
    assert_eq!(beyond, ResizeError::BeyondRegion { region_size: REGION });
    assert_eq!(rig.snapshot(), before);
}
