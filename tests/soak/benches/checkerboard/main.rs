//! What a checkerboard costs the VMM: memory of which every second device block is plugged, and each of the others is protected
//! by itself: `cargo bench -p tidevm-soak`.
//!
//! The device and its memory are those of the VMM, without KVM. The kernel has a mapping for each change of protection, so 10,000
//! protected device blocks are 20,000 mappings, of the 65,530 that a process may have by default.

use std::fs;

use tidevm_bench::clock::wall;
use tidevm_bench::table::{Row, Table, time};
use tidevm_machine::hosted;
use tidevm_soak::stack::{BLOCK, DeviceAndDriver, MEMORY_BLOCK};
use virtio_mem::{Request, RequestKind, Response, ResponseType};

/// Protected device blocks.
const PROTECTED: u64 = 10_000;
const REGION: u64 = 2 * PROTECTED * BLOCK;

fn main() {
    let mut table = Table::default();
    table.section("A checkerboard of 10,000 protected device blocks of 2 MiB");
    let mut stack = DeviceAndDriver::with_region(REGION.next_multiple_of(MEMORY_BLOCK), 0);
    stack.resize(REGION);
    let request =
        |kind, first: u64, count| Request { kind, addr: hosted::REGION + first * BLOCK, nb_blocks: count };
    let ack = Response::new(ResponseType::Ack);
    let all = u16::try_from(2 * PROTECTED).expect("one request");
    let plug = wall(|| assert_eq!(stack.ask(request(RequestKind::Plug, 0, all)), ack));
    table.add(Row::new("PLUG of all in one request", time(plug)));
    stack.resize(REGION / 2);
    let before = (mappings(), resident());
    let mut unplug = |from: u64, to: u64| {
        let time = wall(|| {
            for block in from..to {
                assert_eq!(stack.ask(request(RequestKind::Unplug, 2 * block + 1, 1)), ack);
            }
        });
        time / (to - from) as f64
    };
    let first = unplug(0, 1000);
    unplug(1000, PROTECTED - 1000);
    let last = unplug(PROTECTED - 1000, PROTECTED);
    table.add(Row::new("UNPLUG of one device block, the first 1,000", time(first)));
    let row = Row::new("UNPLUG of one device block, the last 1,000", time(last));
    table.add(row.beside(format!("the first {}", time(first)), last / first));
    let (maps, bytes) = (mappings() - before.0, resident() - before.1);
    table.add(Row::new("mappings of the VMM more", maps.to_string()));
    table.add(Row::new("memory of the VMM more", format!("{} KiB", bytes >> 10)));
    let config = wall(|| (0..1000).for_each(|_| _ = stack.read_config())) / 1000.0;
    table.add(Row::new("read of the configuration", time(config)));
    stack.resize(0);
    let all = wall(|| assert_eq!(stack.ask(request(RequestKind::UnplugAll, 0, 0)), ack));
    table.add(Row::new("UNPLUG_ALL of the 10,000 that are plugged", time(all)));
    print!("{table}");
}

/// Mappings of this process.
fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("this process has mappings");
    maps.lines().count()
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").expect("this process has memory");
    let pages: u64 =
        status.split_ascii_whitespace().nth(1).expect("seven numbers").parse().expect("a number");
    pages * 4096
}
