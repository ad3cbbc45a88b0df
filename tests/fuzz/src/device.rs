//! A virtio-mem device against a model of virtio 1.3, section 5.15.6: the set of plugged device blocks, and the
//! answer to each request.
//!
//! The model knows blocks one by one and computes addresses in 128 bits, so it shares no arithmetic with the
//! device. The host of the model checks that the device only plugs what is unplugged, and the other way round.
//! In this file "block" means device block.

use std::collections::BTreeSet;

use virtio_mem::Config;
use virtio_mem::device::{Backing, Begun, Busy, Device, DeviceConfig, DeviceState, PluggedRuns, Span};

use crate::input::Input;

const MIB: u64 = 1 << 20;
/// Most operations of one input.
const OPERATIONS: usize = 200;

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// The memory behind the device.
#[derive(Default)]
struct Host {
    backed: BTreeSet<u64>,
    refuses: bool,
    calls: u32,
}

impl Host {
    fn call(&mut self) -> Result<(), Busy> {
        self.calls += 1;
        if self.refuses { Err(Busy::default()) } else { Ok(()) }
    }
}

impl Backing for Host {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        self.call()?;
        let range = span.blocks();
        for block in range.first()..range.end() {
            assert!(self.backed.insert(block), "block {block} is plugged twice");
        }
        Ok(())
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        self.call()?;
        let range = span.blocks();
        for block in range.first()..range.end() {
            assert!(self.backed.remove(&block), "block {block} is unplugged twice");
        }
        Ok(())
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        self.call()?;
        let runs = plugged.runs().flat_map(|run| run.blocks().first()..run.blocks().end());
        assert!(runs.eq(self.backed.iter().copied()), "all runs are named");
        self.backed.clear();
        Ok(())
    }
}

/// What the device has to be.
struct Model {
    fixed: DeviceConfig,
    blocks: u64,
    plugged: BTreeSet<u64>,
    requested: u64,
    usable: u64,
}

impl Model {
    fn needed(&self) -> u64 {
        let wanted = u128::from(self.requested) + u128::from(self.fixed.extent);
        let block = u128::from(self.fixed.block_size);
        let rounded = wanted.div_ceil(block) * block;
        if self.requested == 0 { 0 } else { rounded.min(u128::from(self.fixed.region_size)) as u64 }
    }

    fn resize(&mut self, size: u64) -> bool {
        let possible = size.is_multiple_of(self.fixed.block_size) && size <= self.fixed.region_size;
        if possible {
            self.requested = size;
            self.usable = self.usable.max(self.needed());
        }
        possible
    }

    /// The usable blocks that a request names.
    fn range(&self, addr: u64, count: u16) -> Option<std::ops::Range<u64>> {
        let block = u128::from(self.fixed.block_size);
        let (addr, start) = (u128::from(addr), u128::from(self.fixed.addr));
        let end = addr + u128::from(count) * block;
        let named = count > 0 && addr.is_multiple_of(block) && addr >= start;
        let usable = end <= start + u128::from(self.usable);
        let number = |at: u128| ((at - start) / block) as u64;
        (named && usable).then(|| number(addr)..number(end))
    }

    /// The answer to a request: its type and its state.
    fn answer(&mut self, request: &[u8], refuses: bool) -> (u16, u16) {
        let Some(request) = request.first_chunk::<24>() else { return (ERROR, 0) };
        let kind = u16::from_le_bytes([request[0], request[1]]);
        let addr = u64::from_le_bytes(*request[8..].first_chunk().expect("24 bytes"));
        let count = u16::from_le_bytes([request[16], request[17]]);
        if kind == 2 {
            if refuses && !self.plugged.is_empty() {
                return (BUSY, 0);
            }
            self.plugged.clear();
            self.usable = self.needed();
            return (ACK, 0);
        }
        let Some(range) = self.range(addr, count).filter(|_| kind < 4) else { return (ERROR, 0) };
        let plugged = self.plugged.range(range.clone()).count() as u64;
        let all = range.end - range.start;
        match kind {
            0 if plugged > 0 => (ERROR, 0),
            0 if (self.plugged.len() as u64 + all) * self.fixed.block_size > self.requested => (NACK, 0),
            1 if plugged < all => (ERROR, 0),
            0 | 1 if refuses => (BUSY, 0),
            0 => {
                self.plugged.extend(range);
                (ACK, 0)
            }
            1 => {
                self.plugged.retain(|block| !range.contains(block));
                (ACK, 0)
            }
            _ if plugged == all => (ACK, 0),
            _ if plugged == 0 => (ACK, 1),
            _ => (ACK, 2),
        }
    }

    fn config(&self) -> Config {
        Config {
            block_size: self.fixed.block_size,
            node_id: self.fixed.node_id.unwrap_or(0),
            addr: self.fixed.addr,
            region_size: self.fixed.region_size,
            usable_region_size: self.usable,
            plugged_size: self.plugged.len() as u64 * self.fixed.block_size,
            requested_size: self.requested,
        }
    }
}

/// Plays one device.
///
/// # Panics
/// When the device differs from the model.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let fixed = fixed(&mut input);
    // The model decides by itself which configurations there can be.
    let fits = fixed.block_size.is_power_of_two()
        && fixed.addr.is_multiple_of(fixed.block_size)
        && fixed.region_size.is_multiple_of(fixed.block_size)
        && u128::from(fixed.addr) + u128::from(fixed.region_size) < 1 << 64;
    let device = Device::new(fixed);
    assert_eq!(device.is_ok(), fits, "{fixed:?}: {:?}", device.err());
    let Ok(mut device) = device else { return };
    let mut host = Host::default();
    let blocks = fixed.region_size / fixed.block_size;
    let mut model = Model { fixed, blocks, plugged: BTreeSet::new(), requested: 0, usable: 0 };
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        let before = (device.config(), device.config_generation());
        match input.byte() {
            0..16 => {
                let blocks = input.below(model.blocks + 2);
                let size = blocks * fixed.block_size + input.pick(&[0, 0, 0, 0, 1]);
                assert_eq!(device.resize(size).is_ok(), model.resize(size), "resize to {size:#x}");
            }
            16..20 => {
                device.reset();
                host.backed.clear();
                model.plugged.clear();
                model.usable = model.needed();
            }
            20..24 => {
                let bytes = device.state().expect("no change is under way").to_bytes();
                let state = DeviceState::from_bytes(&bytes).expect("the bytes are whole");
                device = Device::from_state(&state).expect("the state is that of a device");
            }
            choice => {
                host.refuses = choice.is_multiple_of(8);
                let request = request(&mut input, &model);
                ask(&mut device, &mut host, &mut model, &request);
            }
        }
        let changed = before.0 != device.config();
        assert_eq!(changed, before.1 != device.config_generation(), "the generation tells of changes");
        assert_eq!(device.config(), model.config());
        assert!(plugged(&device) == model.plugged, "{:?}, not {:?}", device.plugged(), model.plugged);
        assert_eq!(host.backed, model.plugged, "backed by the host, and plugged");
    }
}

/// Sends one request and compares the bytes of its answer.
fn ask(device: &mut Device, host: &mut Host, model: &mut Model, request: &[u8]) {
    let calls = host.calls;
    let answer = match device.begin(request) {
        Begun::Answer(answer) => answer,
        Begun::Change(change) => {
            let outcome = change.apply(host);
            device.commit(change, outcome).expect("no reset came between")
        }
    };
    let answer = answer.to_bytes();
    assert!(host.calls - calls <= 1, "{} calls of the host for one request", host.calls - calls);
    let (kind, state) = model.answer(request, host.refuses);
    let mut expected = [0; 10];
    expected[..2].copy_from_slice(&kind.to_le_bytes());
    expected[8..].copy_from_slice(&state.to_le_bytes());
    assert_eq!(answer, expected, "to {request:02x?}");
    if kind != ACK {
        let refused = device.refused().expect("a refusal has a reason").to_string();
        assert!(!refused.is_empty() && refused.len() < 200, "{refused}");
    }
}

fn plugged(device: &Device) -> BTreeSet<u64> {
    device.plugged().runs().flat_map(|run| run.first()..run.end()).collect()
}

/// Mostly a device of few blocks, sometimes one that cannot be.
fn fixed(input: &mut Input<'_>) -> DeviceConfig {
    let block_size = input.pick(&[2 * MIB, 2 * MIB, 4 * MIB, 128 * MIB, 1 << 30, 1, 4096, 3 * MIB, 0]);
    let blocks = input.below(700);
    let addr = match input.byte() {
        0..4 => u64::MAX - input.below(4096),
        4..8 => 0_u64.wrapping_sub((blocks + input.below(2)).wrapping_mul(block_size)),
        _ => 4 << 30,
    };
    let skew = input.pick(&[0, 0, 0, 0, 0, 0, 0, 1]);
    let node_id = input.pick(&[None, Some(3)]);
    let mut fixed = DeviceConfig::new(addr, blocks * block_size + skew, block_size);
    fixed.node_id = node_id;
    fixed.extent = input.pick(&[fixed.extent, fixed.extent, 0, 1, 4 << 30, u64::MAX]);
    fixed
}

fn request(input: &mut Input<'_>, model: &Model) -> Vec<u8> {
    if input.byte() < 16 {
        return input.bytes(32).to_vec();
    }
    let kind = u16::from(input.byte() % 5);
    let first = input.below(model.blocks + 2);
    let start = model.fixed.addr.wrapping_add(first.wrapping_mul(model.fixed.block_size));
    let addr = start.wrapping_add(input.pick(&[0, 0, 0, 0, 0, 0, 0, 1, u64::MAX]));
    let count = match input.byte() {
        0..4 => input.u16(),
        count => u16::from(count - 4) % 64,
    };
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes.to_vec()
}
