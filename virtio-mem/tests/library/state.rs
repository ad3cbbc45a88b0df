//! The state of a device and its bytes: everything survives, and nothing that is damaged or contradicts itself is
//! restored.

use virtio_mem::device::{ConfigError, DeviceState, ResizeError, StateError};

use super::*;

/// A device in the middle of its life.
fn lived() -> Device {
    let mut fixed = DeviceConfig::new(ADDR, REGION, BLOCK);
    (fixed.node_id, fixed.extent, fixed.persistent_suspend) = (Some(3), 32 * MIB, true);
    let (mut device, mut host) = (Device::new(fixed).unwrap(), Host::new());
    device.resize(REGION / 2).unwrap();
    for (block, count) in [(0, 1), (63, 2), (100, 56)] {
        assert_eq!(ask(&mut device, &mut host, RequestKind::Plug, block, count), ResponseType::Ack);
    }
    device.resize(REGION / 4).unwrap();
    host.unable = true;
    assert_eq!(ask(&mut device, &mut host, RequestKind::Unplug, 0, 1), ResponseType::Busy);
    device
}

#[test]
fn a_restored_device_is_the_one_that_was_saved() {
    let device = lived();
    let bytes = device.state().unwrap().to_bytes();
    let state = DeviceState::from_bytes(&bytes).unwrap();
    let mut restored = Device::from_state(&state).unwrap();
    assert_eq!(
        (restored.config(), restored.config_generation()),
        (device.config(), device.config_generation())
    );
    assert_eq!((restored.features(), state.config().extent), (device.features(), 32 * MIB));
    assert!(restored.plugged().runs().eq(device.plugged().runs()));
    assert_eq!(restored.plugged().count(), 59);
    assert_eq!((restored.retry_after_ms(), restored.refused().is_none()), (Some(100), true));
    assert_eq!(restored.state().unwrap().to_bytes(), bytes, "the same bytes again");
    // Life goes on: it shrinks and grows.
    let mut host = Host::new();
    restored.plugged_runs().runs().for_each(|run| host.plug(run).unwrap());
    assert_eq!(ask(&mut restored, &mut host, RequestKind::Unplug, 100, 56), ResponseType::Ack);
    assert_eq!(ask(&mut restored, &mut host, RequestKind::Plug, 1, 62), ResponseType::Ack);
    assert_eq!(ask(&mut restored, &mut host, RequestKind::UnplugAll, 0, 0), ResponseType::Ack);
    assert_eq!(restored.usable_region_size(), REGION / 4 + 32 * MIB);
}

/// The bytes that a device of version 1 wrote. They are restored for as long as there is version 1.
#[test]
fn the_bytes_of_version_1_stay_what_they_are() {
    let mut device = Device::new(DeviceConfig::new(0, 18, 2)).unwrap();
    device.resize(6).unwrap();
    let mut host = Host::new();
    assert_eq!(
        device.handle(&Request { kind: RequestKind::Plug, addr: 4, nb_blocks: 2 }.to_bytes(), &mut host).kind,
        ResponseType::Ack
    );
    let bytes = device.state().unwrap().to_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "766d656d01000000110000000012020080808080010006120200020c00096f3029");
}

#[test]
fn every_flipped_bit_and_every_missing_byte_is_noticed() {
    let bytes = lived().state().unwrap().to_bytes();
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(DeviceState::from_bytes(&damaged).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(DeviceState::from_bytes(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let longer = [&bytes[..], &[0]].concat();
    let (expected, found) = (bytes.len() as u64, bytes.len() as u64 + 1);
    assert_eq!(DeviceState::from_bytes(&longer), Err(StateError::Length { expected, found }));
}

/// Bytes with a checksum that is right.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let checksum = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn what_is_wrong_with_the_bytes_is_said() {
    let bytes = device().state().unwrap().to_bytes();
    let changed = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        changed
    };
    let refused = |bytes: &[u8]| DeviceState::from_bytes(bytes).unwrap_err();
    assert_eq!(refused(b""), StateError::NoState);
    assert_eq!(refused(&changed(0, b'V')), StateError::NoState);
    assert_eq!(refused(&bytes[..11]), StateError::Length { expected: 16, found: 11 });
    assert_eq!(refused(&changed(4, 2)), StateError::Checksum);
    assert_eq!(refused(&sealed(changed(4, 2))), StateError::Version { found: 2 });
    // A byte less of the state, with a length and a checksum that say so.
    let mut short = bytes.clone();
    short.remove(bytes.len() - 5);
    short[8] -= 1;
    assert_eq!(refused(&sealed(short)), StateError::Malformed);
    let mut long = bytes.clone();
    long.insert(bytes.len() - 4, 0);
    long[8] += 1;
    assert_eq!(refused(&sealed(long)), StateError::Malformed);
    for why in [StateError::Checksum, StateError::Version { found: 2 }, StateError::Changing] {
        assert!(!why.to_string().is_empty());
    }
    assert_eq!(
        StateError::Version { found: 2 }.to_string(),
        "the state has version 2, and version 1 can be restored"
    );
}

/// A state with other fields. Its fields are private, so that only a device makes one: this is what a file may hold.
fn state(fixed: DeviceConfig, requested: u64, usable: u64, plugged: &[u8]) -> DeviceState {
    let body = postcard::to_allocvec(&(fixed, requested, usable, 7_u32, false, plugged)).unwrap();
    let mut bytes = [b"vmem", &1_u32.to_le_bytes()[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    bytes.extend([0; 4]);
    DeviceState::from_bytes(&sealed(bytes)).unwrap()
}

#[test]
fn a_state_that_contradicts_itself_is_refused_with_what_is_wrong() {
    let fixed = DeviceConfig::new(ADDR, 18 * BLOCK, BLOCK);
    let refused = |state: DeviceState| Device::from_state(&state).map(drop).unwrap_err();
    let good = state(fixed, 4 * BLOCK, 9 * BLOCK, &[0xff, 1, 0]);
    let device = Device::from_state(&good).unwrap();
    assert_eq!((device.plugged_size(), device.config_generation()), (9 * BLOCK, 7));

    let misaligned = DeviceConfig::new(ADDR + 1, 18 * BLOCK, BLOCK);
    assert_eq!(refused(state(misaligned, 0, 0, &[0; 3])), StateError::Config(ConfigError::Misaligned));
    for (block_size, why) in [(0, ConfigError::BlockSize), (3, ConfigError::BlockSize)] {
        assert_eq!(refused(state(DeviceConfig::new(0, 0, block_size), 0, 0, &[])), StateError::Config(why));
    }
    let (block_size, region_size) = (BLOCK, 18 * BLOCK);
    for (size, why) in
        [(1, ResizeError::Misaligned { block_size }), (19 * BLOCK, ResizeError::BeyondRegion { region_size })]
    {
        assert_eq!(refused(state(fixed, size, 18 * BLOCK, &[0; 3])), StateError::Requested(why));
        assert_eq!(refused(state(fixed, 0, size, &[0; 3])), StateError::Usable(why));
    }
    let (usable_region_size, requested_size) = (3 * BLOCK, 4 * BLOCK);
    let below = StateError::UsableBelowRequested { usable_region_size, requested_size };
    assert_eq!(refused(state(fixed, 4 * BLOCK, 3 * BLOCK, &[0; 3])), below);
    for bitmap in [&[0, 0][..], &[0; 4], &[0, 0, 4]] {
        assert_eq!(refused(state(fixed, 0, 18 * BLOCK, bitmap)), StateError::Bitmap { blocks: 18 });
    }
    let beyond = StateError::PluggedBeyondUsable { block: 9, usable: 9 };
    assert_eq!(refused(state(fixed, 4 * BLOCK, 9 * BLOCK, &[0xff, 3, 0])), beyond);
    assert_eq!(beyond.to_string(), "the state has block 9 plugged, and only the first 9 blocks are usable");
    // A region whose bitmap no host has memory for.
    let huge = DeviceConfig::new(0, 1 << 63, 1);
    assert_eq!(refused(state(huge, 0, 0, &[0; 3])), StateError::Bitmap { blocks: 1 << 63 });
}

/// Bytes with a right checksum come from somebody who wants them to be taken. What a device makes of them holds its
/// invariants, and can be saved again.
#[test]
fn no_bytes_make_a_device_that_contradicts_itself() {
    let bytes = lived().state().unwrap().to_bytes();
    // xorshift64, as in Marsaglia's "Xorshift RNGs".
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let (mut restored, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random(3) {
            let at = 12 + random(bytes.len() - 16);
            changed[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        let device = DeviceState::from_bytes(&sealed(changed)).and_then(|state| Device::from_state(&state));
        let Ok(device) = device else {
            refused += 1;
            continue;
        };
        restored += 1;
        let config = device.config();
        let sizes =
            [config.plugged_size, config.requested_size, config.usable_region_size, config.region_size];
        assert!(sizes.iter().all(|size| size.is_multiple_of(config.block_size)), "round {round}: {config:?}");
        assert!(config.requested_size <= config.usable_region_size, "round {round}: {config:?}");
        assert!(config.usable_region_size <= config.region_size, "round {round}: {config:?}");
        let end = device.plugged().runs().last().map_or(0, |run| run.end() * config.block_size);
        assert!(end <= config.usable_region_size, "round {round}: {config:?}");
        assert_eq!(config.plugged_size, device.plugged_runs().size(), "round {round}");
        let again = DeviceState::from_bytes(&device.state().unwrap().to_bytes()).unwrap();
        assert_eq!(again, device.state().unwrap(), "round {round}");
    }
    assert!(restored > 100 && refused > 100, "{restored} restored, {refused} refused");
}
