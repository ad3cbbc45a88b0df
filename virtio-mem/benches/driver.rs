//! What the driver's own work costs: `cargo bench -p virtio-mem`.
//!
//! The guest's memory management and the device are stand-ins that answer at once, so the time is the driver's. The
//! figures are those of a run on this machine; the tests in `driver/tests/work.rs` show what the cost follows.

use std::time::{Duration, Instant};

use virtio_mem::{
    Action, Config, Driver, DriverConfig, Idle, IdleReason, Outcome, RequestKind, Response, ResponseType,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 * MIB;
const ADDR: u64 = 4 * GIB;

/// What a pass of the driver took.
struct Pass {
    time: Duration,
    requests: u64,
    actions: u64,
}

struct Guest {
    driver: Driver,
    config: Config,
}

impl Guest {
    fn new(region_size: u64) -> Guest {
        let config = Config {
            block_size: BLOCK,
            node_id: 0,
            addr: ADDR,
            region_size,
            usable_region_size: region_size,
            plugged_size: 0,
            requested_size: 0,
        };
        let guest = DriverConfig::new(128 * MIB, BLOCK).with_memmap_size(BLOCK);
        Guest { driver: Driver::new(guest, config, 0).expect("a good configuration"), config }
    }

    /// Sets a target and lets the driver work until it is idle. Single device blocks for which `goes` holds go offline.
    fn resize(&mut self, size: u64, goes: impl Fn(u64) -> bool) -> Pass {
        let mut pass = Pass { time: Duration::ZERO, requests: 0, actions: 0 };
        self.config.requested_size = size;
        let began = Instant::now();
        self.driver.config_changed();
        loop {
            let failed = Outcome::Failed(IdleReason::Unmovable);
            let outcome = match self.driver.next() {
                Action::Idle(idle) => {
                    assert!(self.driver.plugged_size() == size || idle != Idle::Reached);
                    pass.time = began.elapsed();
                    return pass;
                }
                Action::ReadConfig => Outcome::Config(self.config, 0),
                Action::Send(request) => {
                    pass.requests += u64::from(request.kind != RequestKind::State);
                    Outcome::Response(Response::new(ResponseType::Ack))
                }
                Action::OfflineDeviceBlocks { addr, .. } if !goes((addr - ADDR) / BLOCK) => failed,
                Action::RemoveMemoryBlocks { .. } if !goes(0) => failed,
                _ => Outcome::Done,
            };
            pass.actions += 1;
            self.driver.complete(outcome);
        }
    }
}

/// The best of several runs of `measure`, against a target.
fn row(what: &str, target: Option<Duration>, measure: impl Fn() -> Pass) {
    let passes = (0..5).map(|_| measure());
    let best = passes.min_by_key(|pass| pass.time).expect("five runs");
    let verdict = match target {
        Some(target) if best.time <= target => format!("<= {target:?}  met"),
        Some(target) => format!("<= {target:?}  MISSED"),
        None => String::new(),
    };
    println!(
        "{what:58} {:>12.1?} {:6} requests {:6} actions  {verdict}",
        best.time, best.requests, best.actions
    );
}

fn main() {
    let all = |_| true;
    let odd = |block: u64| block % 2 == 1;
    let full = |size| {
        let mut guest = Guest::new(size);
        guest.resize(size, all);
        guest
    };
    let target = Some(Duration::from_millis(50));
    row("64 GiB plugged", None, || Guest::new(64 * GIB).resize(64 * GIB, all));
    row("64 GiB unplugged", None, || full(64 * GIB).resize(0, all));
    row("16 TiB unplugged", target, || full(16 << 40).resize(0, all));
    row("128 GiB, every second device block pinned: the first pass", target, || {
        full(128 * GIB).resize(0, odd)
    });
    row("the same: a pass that finds nothing", target, || {
        let mut guest = full(128 * GIB);
        guest.resize(0, odd);
        guest.resize(0, |_| false)
    });
}
