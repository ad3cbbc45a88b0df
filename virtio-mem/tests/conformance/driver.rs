//! Requirements on a driver, checked by the requests that it sends.

use virtio_mem::driver::{Action, ConfigError, Driver, DriverConfig, Idle, IdleReason, Outcome};
use virtio_mem::wire::{CONFIG_SIZE, Config, RESPONSE_SIZE, Request, RequestKind, Response};

use super::Row;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const ADDR: u64 = 4 << 30;
const GUEST: DriverConfig = DriverConfig::new(128 * MIB, BLOCK).with_memmap_size(BLOCK);

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

pub const ROWS: &[Row] = &[
    ("G2/3", "padding and an unnegotiated node are ignored", padding),
    ("G5", "what was plugged before and is not requested is unplugged until it is", unplug_all_first),
    ("G13", "a new target is acted upon", reacts),
    ("G14", "only usable blocks are plugged", usable_only),
    ("G17", "PLUG: only the type of the response counts", || only_the_type(RequestKind::Plug)),
    ("G18", "UNPLUG: only the type of the response counts", || only_the_type(RequestKind::Unplug)),
    ("G19", "UNPLUG_ALL: only the type of the response counts", || only_the_type(RequestKind::UnplugAll)),
    ("G20", "STATE: type and state count, padding does not", state_of_ack),
    ("G21", "STATE: the state counts with ACK only", state_without_ack),
    ("Y1", "after NACK the configuration is read again, and repeating is bounded", nack),
    ("Y4", "an unknown response is BUSY", unknown_response),
    ("Y5", "after ERROR the true state is found out, and work goes on", error),
    ("Y6", "a configuration that contradicts itself is refused", bad_configs),
];

fn config(requested: u64) -> Config {
    Config {
        block_size: BLOCK,
        node_id: 0,
        addr: ADDR,
        region_size: 1 << 30,
        usable_region_size: ((requested + 256) * MIB).min(1 << 30),
        plugged_size: 0,
        requested_size: requested * MIB,
    }
}

/// A response with garbage in the padding.
fn response(kind: u16, state: u16) -> Outcome {
    let mut bytes = [0xa5; RESPONSE_SIZE];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&state.to_le_bytes());
    Outcome::Response(Response::from_bytes(&bytes))
}

/// A driver with `plugged` MiB plugged and in use.
fn driver_with(plugged: u64) -> Driver {
    let mut driver = Driver::new(GUEST, config(plugged), 0).unwrap();
    loop {
        match driver.next() {
            Action::Send(_) => driver.complete(response(ACK, 0)),
            Action::AddMemoryBlocks { .. } => driver.complete(Outcome::Done),
            action => {
                assert_eq!(action, Action::Idle(Idle::Reached));
                return driver;
            }
        }
    }
}

/// Gives the driver a new configuration, and returns its next request.
fn retarget(driver: &mut Driver, config: Config) -> Request {
    driver.config_changed();
    loop {
        match driver.next() {
            Action::ReadConfig => driver.complete(Outcome::Config(config, 0)),
            Action::Send(request) => return request,
            Action::Idle(idle) => panic!("idle: {idle:?}"),
            _ => driver.complete(Outcome::Done),
        }
    }
}

fn sent(driver: &mut Driver) -> (RequestKind, u64, u16) {
    match driver.next() {
        Action::Send(Request { kind, addr, nb_blocks }) => (kind, addr, nb_blocks),
        action => panic!("{action:?} instead of a request"),
    }
}

/// A driver that waits for the answer to a request of `kind`.
fn asking(kind: RequestKind) -> Driver {
    let mut driver = match kind {
        RequestKind::Plug | RequestKind::State => Driver::new(GUEST, config(128), 0).unwrap(),
        RequestKind::Unplug => {
            let mut driver = driver_with(128);
            retarget(&mut driver, Config { plugged_size: 128 * MIB, ..config(0) });
            driver
        }
        RequestKind::UnplugAll => Driver::new(GUEST, Config { plugged_size: BLOCK, ..config(0) }, 0).unwrap(),
    };
    if kind == RequestKind::State {
        sent(&mut driver);
        driver.complete(response(ERROR, 0));
        assert_eq!(driver.next(), Action::ReadConfig);
        driver.complete(Outcome::Config(config(128), 0));
    }
    assert_eq!(sent(&mut driver).0, kind);
    driver
}

fn retry(after_ms: u32, reason: IdleReason) -> Action {
    Action::Idle(Idle::Retry { after_ms, reason })
}

fn padding() {
    let mut bytes = config(128).to_bytes();
    bytes[8..16].fill(0xa5);
    let read = Config::from_bytes(&bytes);
    assert_eq!(bytes.len(), CONFIG_SIZE);
    let mut driver = Driver::new(GUEST, read, 0).unwrap();
    assert_eq!(sent(&mut driver), (RequestKind::Plug, ADDR, 64));
    // Nor does the driver react to a changed node.
    assert_eq!(
        retarget(&mut driver_with(128), Config { plugged_size: 128 * MIB, ..config(256) }).nb_blocks,
        64
    );
}

fn unplug_all_first() {
    let plugged = Config { plugged_size: 64 * MIB, ..config(0) };
    let mut driver = Driver::new(GUEST, plugged, 0).unwrap();
    for after_ms in [100, 200, 400] {
        assert_eq!(sent(&mut driver).0, RequestKind::UnplugAll);
        assert_eq!(driver.plugged_size(), 64 * MIB);
        driver.complete(response(BUSY, 0));
        assert_eq!(driver.next(), retry(after_ms, IdleReason::HostBusy));
        driver.retry();
        assert_eq!(driver.next(), Action::ReadConfig);
        driver.complete(Outcome::Config(plugged, 0));
    }
    assert_eq!(sent(&mut driver).0, RequestKind::UnplugAll);
    driver.complete(response(ACK, 0));
    assert_eq!(driver.next(), Action::ReadConfig, "the usable region may have shrunk");
    driver.complete(Outcome::Config(Config { usable_region_size: 130 * MIB, ..config(136) }, 0));
    assert_eq!(driver.plugged_size(), 0);
    assert_eq!(sent(&mut driver), (RequestKind::Plug, ADDR, 65));
}

fn reacts() {
    let mut driver = driver_with(128);
    let more = retarget(&mut driver, Config { plugged_size: 128 * MIB, ..config(256) });
    assert_eq!(more, Request { kind: RequestKind::Plug, addr: ADDR + 128 * MIB, nb_blocks: 64 });
    driver.complete(response(ACK, 0));
    let less = retarget(&mut driver, Config { plugged_size: 256 * MIB, ..config(64) });
    assert_eq!(less.kind, RequestKind::Unplug);
}

fn usable_only() {
    let mut driver = Driver::new(GUEST, Config { usable_region_size: 256 * MIB, ..config(1024) }, 0).unwrap();
    assert_eq!(sent(&mut driver), (RequestKind::Plug, ADDR, 128));
}

fn only_the_type(kind: RequestKind) {
    for code in [ACK, NACK, BUSY, ERROR, 4] {
        let next: Vec<_> = [0, 1, 2, 3, 0xa5a5]
            .map(|state| {
                let mut driver = asking(kind);
                driver.complete(response(code, state));
                (driver.next(), driver.plugged_size(), driver.device_errors())
            })
            .into();
        assert!(next.iter().all(|after| *after == next[0]), "{next:?}");
    }
}

fn state_of_ack() {
    for (state, plugged, next) in [(0, 128, None), (1, 0, None), (2, 0, Some(32))] {
        let mut driver = asking(RequestKind::State);
        driver.complete(response(ACK, state));
        assert_eq!(driver.plugged_size(), plugged * MIB);
        match next {
            Some(nb_blocks) => assert_eq!(sent(&mut driver), (RequestKind::State, ADDR, nb_blocks)),
            None => assert_eq!(driver.next(), retry(100, IdleReason::DeviceError)),
        }
    }
}

fn state_without_ack() {
    for (code, reason) in
        [(NACK, IdleReason::HostBusy), (BUSY, IdleReason::HostBusy), (ERROR, IdleReason::DeviceError)]
    {
        for state in [0, 1, 2] {
            let mut driver = asking(RequestKind::State);
            driver.complete(response(code, state));
            assert_eq!(driver.next(), retry(100, reason));
            driver.retry();
            assert_eq!(driver.next(), Action::ReadConfig);
            driver.complete(Outcome::Config(config(128), 0));
            assert_eq!(sent(&mut driver), (RequestKind::State, ADDR, 64), "nothing was learned");
        }
    }
}

fn nack() {
    let mut driver = asking(RequestKind::Plug);
    driver.complete(response(NACK, 0));
    assert_eq!(driver.next(), Action::ReadConfig);
    driver.complete(Outcome::Config(config(64), 0));
    let mut requests = 0;
    while let action @ (Action::Send(_) | Action::ReadConfig) = driver.next() {
        if action == Action::ReadConfig {
            driver.complete(Outcome::Config(config(64), 0));
        } else {
            assert_eq!(sent(&mut driver), (RequestKind::Plug, ADDR, 32));
            driver.complete(response(NACK, 0));
            requests += 1;
        }
        assert!(requests <= 2, "a tight loop");
    }
    assert_eq!(driver.next(), retry(100, IdleReason::HostBusy));
}

fn unknown_response() {
    for kind in [RequestKind::Plug, RequestKind::Unplug, RequestKind::UnplugAll, RequestKind::State] {
        for code in [4, 0x103, u16::MAX] {
            let mut driver = asking(kind);
            driver.complete(response(code, 0));
            assert_eq!(driver.next(), retry(100, IdleReason::HostBusy));
        }
    }
}

fn error() {
    for (kind, plugged) in [(RequestKind::Plug, 0), (RequestKind::Unplug, 128)] {
        let mut driver = asking(kind);
        let Action::Send(refused) = driver.next() else { unreachable!("asking") };
        let target = Config { plugged_size: plugged * MIB, ..config(128 - plugged) };
        for after_ms in [100, 200] {
            driver.complete(response(ERROR, 0));
            assert_eq!(driver.next(), Action::ReadConfig);
            driver.complete(Outcome::Config(target, 0));
            assert_eq!(driver.next(), Action::Send(Request { kind: RequestKind::State, ..refused }));
            driver.complete(response(ACK, u16::from(plugged == 0)));
            assert_eq!(driver.next(), retry(after_ms, IdleReason::DeviceError), "not in a tight loop");
            assert_eq!(driver.plugged_size(), plugged * MIB);
            driver.retry();
            driver.next();
            driver.complete(Outcome::Config(target, 0));
            assert_eq!(driver.next(), Action::Send(refused), "and not broken for ever");
        }
        assert_eq!(driver.device_errors(), 2);
    }
}

fn bad_configs() {
    let good = config(128);
    let verdict = |config| Driver::new(GUEST, config, 0).map(|_| ());
    assert_eq!(verdict(good), Ok(()));
    let largest = Config { block_size: 128 * MIB, usable_region_size: 384 * MIB, ..good };
    assert_eq!(verdict(largest), Ok(()));
    let ends_within_a_memory_block = Config { region_size: good.region_size + BLOCK, ..good };
    assert_eq!(verdict(ends_within_a_memory_block), Ok(()));
    for harmless in [
        Config { usable_region_size: 0, ..good },
        Config { region_size: good.region_size + BLOCK / 2, ..good },
        Config { usable_region_size: 129 * MIB, ..good },
        Config { plugged_size: MIB, ..good },
        Config { requested_size: 127 * MIB, ..good },
    ] {
        assert_eq!(verdict(harmless), Ok(()), "violates row D4 or D6 and does no harm: {harmless:?}");
    }
    for (bad, reason) in [
        (Config { block_size: 0, ..good }, ConfigError::BlockSize),
        (Config { block_size: 3 * MIB, ..good }, ConfigError::BlockSize),
        (Config { block_size: 256 * MIB, ..good }, ConfigError::MemoryBlockSize),
        (Config { addr: ADDR + BLOCK / 2, ..good }, ConfigError::Misaligned),
        (Config { addr: u64::MAX - (128 * MIB - 1), ..good }, ConfigError::Wraps),
        (Config { usable_region_size: 2 << 30, ..good }, ConfigError::Sizes),
        (Config { requested_size: 2 << 30, ..good }, ConfigError::Sizes),
        (Config { plugged_size: good.usable_region_size + BLOCK, ..good }, ConfigError::Sizes),
    ] {
        assert_eq!(verdict(bad), Err(reason), "{bad:?}");
    }
    let guest = |memory_block_size, memmap_size| {
        let guest = DriverConfig::new(memory_block_size, BLOCK).with_memmap_size(memmap_size);
        Driver::new(guest, good, 0).map(|_| ())
    };
    assert_eq!(guest(0, 0), Err(ConfigError::MemoryBlockSize));
    assert_eq!(guest(96 * MIB, 0), Err(ConfigError::MemoryBlockSize));
    assert_eq!(guest(256 << 30, 0), Err(ConfigError::MemoryBlockSize), "more blocks than a request can name");
    assert_eq!(guest(128 * MIB, 128 * MIB), Err(ConfigError::Memmap));
    assert_eq!(guest(128 * MIB, 2 * BLOCK), Ok(()));
    assert_eq!(guest(64 * MIB, MIB), Ok(()));
}
