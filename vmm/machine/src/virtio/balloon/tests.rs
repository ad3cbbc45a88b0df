//! The balloon on real queues: reports, refusals, statistics and resets.

use tidevm_abi::Size;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::fake::memory;
use crate::memory::layout::HOLE_END;
use crate::state::BalloonStats;
use crate::virtio::fake::{Buffer, Ring, initialise, interrupts, read, write};

const MIB: u64 = 1 << 20;
const BOOT: u64 = 64 * MIB;

/// Boot memory that no queue and no test but the one at hand uses.
const FREE: u64 = 32 * MIB;

struct Rig {
    balloon: Balloon,
    rings: Vec<Ring>,
    memory: Arc<Memory>,
    shared: Arc<SharedState>,
    line: EventFd,
}

/// A balloon beside a region of 1 GiB, whose driver accepts `features`.
fn rig(features: u32) -> Rig {
    let memory = Arc::new(memory(BOOT, &[1 << 30]).0);
    let shared = Arc::new(SharedState::new(Instant::now(), Vec::new()));
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let line = event();
    let config = BalloonConfig { reporting: true, stats_interval: Some(Duration::from_secs(1)) };
    let (on_memory, on_shared, raised) =
        (Arc::clone(&memory), Arc::clone(&shared), line.try_clone().unwrap());
    let mut balloon = Balloon::new(config, on_memory, on_shared, raised, event()).unwrap();
    // A test's turn does not depend on the load of the host.
    balloon.turn = Duration::MAX;
    let mut rig = Rig { balloon, rings: Vec::new(), memory, shared, line };
    rig.start(features);
    rig
}

impl Rig {
    /// Initialises the driver, with queues that are empty.
    fn start(&mut self, features: u32) {
        self.rings = (0..QUEUES as u64).map(|queue| Ring::new(&self.memory, MIB * (queue + 1))).collect();
        for ring in &self.rings {
            ring.fill(ring.place(0) - 0x1_0000, &[0; 0x1000]);
        }
        let rings: Vec<&Ring> = self.rings.iter().collect();
        initialise(&mut self.balloon, features, &rings);
    }

    /// Writes to each page of `count` pages at `address`, so that the host holds them.
    fn touch(&self, address: u64, count: u64) {
        let view = self.memory.view();
        (0..count).for_each(|page| view.write_obj(0x55_u8, GuestAddress(address + page * PAGE)).unwrap());
    }

    fn byte(&self, address: u64) -> u8 {
        self.memory.view().read_obj(GuestAddress(address)).unwrap()
    }

    /// Offers `ranges` on `queue` in one chain, serves until there is no more, and returns the number of turns. The chain
    /// has come back then.
    fn report(&mut self, queue: usize, ranges: &[(u64, u32)]) -> u32 {
        let buffers: Vec<_> =
            ranges.iter().map(|&(address, size)| Buffer { address, size, writable: true }).collect();
        let n = self.rings[queue].offer(0, &buffers);
        let mut turns = 1;
        while self.balloon.serve() {
            turns += 1;
        }
        assert_eq!((self.rings[queue].used(), self.rings[queue].written(n)), (n + 1, 0), "{ranges:x?}");
        turns
    }

    fn counts(&self) -> ReportCounts {
        self.balloon.counters.read()
    }

    fn status(&self) -> BalloonStatus {
        self.shared.snapshot().balloon.unwrap()
    }

    /// Lends a buffer with the statistic `tag`.
    fn lend(&mut self, tag: u16, value: u64) {
        let ring = &mut self.rings[STATS];
        let place = ring.place(0);
        ring.fill(place, &[&tag.to_le_bytes()[..], &value.to_le_bytes()].concat());
        ring.offer(0, &[Buffer { address: place, size: 10, writable: false }]);
        assert!(!self.balloon.serve());
    }
}

const REPORTING: u32 = 1 << F_REPORTING;
const STATISTICS: u32 = 1 << F_STATS_VQ;
const BOTH: u32 = REPORTING | STATISTICS;

#[test]
fn a_balloon_asks_for_no_pages_and_says_what_was_agreed() {
    let mut rig = rig(BOTH);
    let mut config = [1; 16];
    rig.balloon.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [0; 16]);
    rig.balloon.write(VIRTIO_MMIO_CONFIG as u64 + 4, &[9, 0, 0, 0]).unwrap();
    rig.balloon.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [0; 16], "what the driver says of its balloon changes nothing");
    let expected =
        BalloonStatus { driver: true, reporting: true, statistics: true, ..BalloonStatus::default() };
    assert_eq!(rig.status(), expected);
    rig.start(STATISTICS);
    assert_eq!((rig.status().reporting, rig.status().statistics), (false, true));
    write(&mut rig.balloon, VIRTIO_MMIO_STATUS, 0);
    assert_eq!(rig.status(), BalloonStatus::default());
}

#[test]
fn a_balloon_offers_what_it_was_made_for() {
    let second = Some(Duration::from_secs(1));
    for (reporting, stats_interval, offered) in
        [(true, None, REPORTING), (false, second, STATISTICS), (true, second, BOTH)]
    {
        let mut rig = rig(BOTH);
        let config = BalloonConfig { reporting, stats_interval };
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        rig.balloon = Balloon::new(config, rig.memory, rig.shared, event(), event()).unwrap();
        assert_eq!(read(&mut rig.balloon, VIRTIO_MMIO_DEVICE_FEATURES) & BOTH, offered);
    }
}

#[test]
fn reported_memory_goes_back_to_the_host_and_stays_usable() {
    let mut rig = rig(BOTH);
    let region = GuestRange::new(HOLE_END..HOLE_END + 8 * MIB).unwrap();
    rig.memory.plug(0, region).unwrap();
    rig.touch(FREE, 512);
    rig.touch(HOLE_END, 2048);
    let (boot, hotplug) = (rig.memory.boot_held().unwrap(), rig.memory.held().unwrap()[0]);
    assert!(boot >= Size(2 * MIB) && hotplug >= Size(8 * MIB));
    rig.report(4, &[(FREE, 2 << 20), (HOLE_END + 2 * MIB, 4 << 20)]);
    assert_eq!(rig.counts(), ReportCounts { given_back: Size::mib(6), ..ReportCounts::default() });
    assert_eq!(rig.memory.held().unwrap()[0], Size(hotplug.0 - 4 * MIB));
    assert!(rig.memory.boot_held().unwrap().0 + 2 * MIB <= boot.0);
    // What lies beside is left alone, and what was given back is zero and can be used.
    let at = [FREE, HOLE_END + MIB, HOLE_END + 2 * MIB, HOLE_END + 6 * MIB];
    assert_eq!(at.map(|address| rig.byte(address)), [0, 0x55, 0, 0x55]);
    rig.touch(FREE, 1);
    assert_eq!(rig.byte(FREE), 0x55);
    assert_eq!((rig.line.read().is_ok(), interrupts(&mut rig.balloon)), (true, VIRTIO_MMIO_INT_VRING));
}

#[test]
fn each_number_that_a_driver_may_give_the_queue_of_reports_is_served() {
    for (features, queues) in [(BOTH, &[3, 4][..]), (REPORTING, &[2, 3, 4])] {
        let mut rig = rig(features);
        for &queue in queues {
            rig.touch(FREE, 1);
            rig.report(queue, &[(FREE, 4096)]);
            assert_eq!(rig.byte(FREE), 0, "queue {queue}");
        }
    }
}

#[test]
fn a_report_that_nobody_agreed_on_does_nothing() {
    let mut rig = rig(STATISTICS);
    rig.touch(FREE, 1);
    for queue in [0, 1, 3, 4] {
        rig.report(queue, &[(FREE, 4096)]);
    }
    assert_eq!((rig.byte(FREE), rig.counts()), (0x55, ReportCounts::default()));
}

#[test]
fn memory_that_is_not_the_guests_is_refused_without_harm() {
    let mut rig = rig(BOTH);
    let plugged = GuestRange::new(HOLE_END..HOLE_END + 4 * MIB).unwrap();
    rig.memory.plug(0, plugged).unwrap();
    rig.touch(HOLE_END, 1024);
    rig.touch(FREE, 2);
    let held = rig.memory.held().unwrap()[0];
    let bad = [
        (HOLE_END + 4 * MIB, 2 << 20),
        // Partly plugged: not even its plugged part.
        (HOLE_END + 2 * MIB, 4 << 20),
        (BOOT - 4096, 8192),
        (BOOT, 4096),
        (1 << 40, 4096),
        (u64::MAX - 4095, 8192),
        (FREE + 1, 4096),
        (FREE, 4095),
    ];
    for (n, range) in (1..).zip(bad) {
        rig.report(4, &[range]);
        assert_eq!(rig.counts(), ReportCounts { refused: n, ..ReportCounts::default() }, "{range:x?}");
    }
    // An empty range is none. A bad one does not spoil the others of its chain.
    rig.report(4, &[(FREE, 0)]);
    rig.report(4, &[bad[0], (FREE + PAGE, 4096)]);
    assert_eq!((rig.counts().refused, rig.counts().given_back), (bad.len() as u64 + 1, Size(4096)));
    assert_eq!(rig.memory.held().unwrap()[0], held);
    assert_eq!([FREE, FREE + PAGE].map(|address| rig.byte(address)), [0x55, 0]);
    assert_eq!(read(&mut rig.balloon, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn device_memory_keeps_its_content() {
    let (slots, all) = (crate::memory::fake::FakeSlots::default(), Size(128 * MIB));
    let memory = Memory::new(Size(BOOT), &[], &[all], Box::new(slots)).unwrap();
    let range = GuestRange::new(HOLE_END..HOLE_END + 2 * MIB).unwrap();
    assert!(!memory.is_usable(range));
    assert_eq!(memory.give_back(range).unwrap_err().error.raw_os_error(), Some(libc::EINVAL));
}

/// Boot memory above the register hole is another part of the same mapping.
#[test]
fn each_part_of_boot_memory_is_given_back_where_it_is() {
    let size = crate::memory::layout::HOLE_START + 4 * MIB;
    let memory = memory(size, &[]).0;
    let write = |address| memory.view().write_obj(0x55_u8, GuestAddress(address)).unwrap();
    let read = |address| memory.view().read_obj::<u8>(GuestAddress(address)).unwrap();
    let at = [0, 2 * MIB, HOLE_END, HOLE_END + 2 * MIB];
    at.iter().for_each(|&address| write(address));
    memory.give_back(GuestRange::new(HOLE_END..HOLE_END + 2 * MIB).unwrap()).unwrap();
    assert_eq!(at.map(read), [0x55, 0x55, 0, 0x55]);
    memory.give_back(GuestRange::new(2 * MIB..4 * MIB).unwrap()).unwrap();
    assert_eq!(at.map(read), [0x55, 0, 0, 0x55]);
    let across = GuestRange::new(crate::memory::layout::HOLE_START - PAGE..HOLE_END + PAGE).unwrap();
    assert!(memory.give_back(across).is_err());
}

#[test]
fn a_long_report_takes_several_turns_and_is_answered_at_its_end() {
    let mut rig = rig(BOTH);
    let plugged = GuestRange::new(HOLE_END..HOLE_END + (1 << 30)).unwrap();
    rig.memory.plug(0, plugged).unwrap();
    let last = HOLE_END + (1 << 30) - PAGE;
    rig.touch(last, 1);
    // 256 pieces.
    let turns = rig.report(4, &[(HOLE_END, 1 << 30)]);
    assert!(turns >= 8, "{turns} turns");
    assert_eq!((rig.byte(last), rig.counts().given_back), (0, Size::gib(1)));
    rig.balloon.turn = Duration::ZERO;
    assert!(rig.report(4, &[(HOLE_END, 1 << 30)]) >= 256, "a turn that is over begins no round");
}

#[test]
fn memory_that_is_unplugged_during_a_report_is_left_alone() {
    let mut rig = rig(BOTH);
    let plugged = GuestRange::new(HOLE_END..HOLE_END + (1 << 30)).unwrap();
    rig.memory.plug(0, plugged).unwrap();
    rig.rings[4].offer(0, &[Buffer { address: HOLE_END, size: 1 << 30, writable: true }]);
    assert!(rig.balloon.serve());
    let done = rig.counts().given_back;
    let unplugged = GuestRange::new(HOLE_END + (512 * MIB)..HOLE_END + (1 << 30)).unwrap();
    rig.memory.unplug(0, unplugged).unwrap();
    while rig.balloon.serve() {}
    assert_eq!(rig.counts(), ReportCounts { given_back: done, refused: 1, ..ReportCounts::default() });
    assert_eq!(rig.rings[4].used(), 1, "the chain goes back all the same");
}

#[test]
fn a_host_that_refuses_is_counted() {
    let mut rig = rig(BOTH);
    crate::memory::host_calls::watch(|call| {
        matches!(call, crate::memory::host_calls::MemoryCall::Discard(_))
    });
    rig.report(4, &[(FREE, 4096)]);
    crate::memory::host_calls::watch(|_| false);
    assert_eq!(rig.counts(), ReportCounts { failed: Size(4096), ..ReportCounts::default() });
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut rig = rig(BOTH);
    rig.lend(4, 1 << 30);
    let stats = |rig: &Rig| rig.status().stats.map(|stats| (stats.free, stats.total));
    assert_eq!((stats(&rig), rig.status().updates), (Some((Some(1 << 30), None)), 1));
    assert_eq!(rig.rings[STATS].used(), 0, "the buffer stays with the device");
    rig.balloon.asks.ask();
    assert!(!rig.balloon.serve());
    assert_eq!((rig.rings[STATS].used(), rig.rings[STATS].written(0)), (1, 0));
    // A driver that is slow is not asked twice.
    rig.balloon.asks.ask();
    rig.balloon.serve();
    rig.lend(5, 7);
    assert_eq!((stats(&rig), rig.status().updates, rig.rings[STATS].used()), (Some((None, Some(7))), 2, 1));
}

#[test]
fn a_second_buffer_for_statistics_sends_the_first_one_back() {
    let mut rig = rig(BOTH);
    rig.lend(4, 1);
    rig.lend(4, 2);
    assert_eq!((rig.status().stats.unwrap().free, rig.status().updates), (Some(2), 2));
    assert_eq!(rig.rings[STATS].used(), 1);
}

#[test]
fn after_a_reset_no_buffer_of_the_driver_before_is_answered() {
    let mut rig = rig(BOTH);
    let plugged = GuestRange::new(HOLE_END..HOLE_END + (1 << 30)).unwrap();
    rig.memory.plug(0, plugged).unwrap();
    rig.lend(4, 1);
    rig.rings[4].offer(0, &[Buffer { address: HOLE_END, size: 1 << 30, writable: true }]);
    assert!(rig.balloon.serve());
    let done = rig.counts().given_back;
    // The driver resets the device, and the next one starts.
    write(&mut rig.balloon, VIRTIO_MMIO_STATUS, 0);
    assert_eq!((rig.status().driver, rig.status().stats, rig.status().updates), (false, None, 1));
    rig.start(BOTH);
    rig.balloon.asks.ask();
    while rig.balloon.serve() {}
    assert_eq!((rig.rings[STATS].used(), rig.rings[4].used(), rig.counts().given_back), (0, 0, done));

    // A reset of the machine.
    rig.lend(4, 1);
    rig.rings[4].offer(0, &[Buffer { address: HOLE_END, size: 1 << 30, writable: true }]);
    assert!(rig.balloon.serve());
    let done = rig.counts().given_back;
    rig.balloon.disconnect();
    assert_eq!(read(&mut rig.balloon, VIRTIO_MMIO_STATUS), 0, "it has no driver");
    // The turn that was due comes before the next driver says anything: the rest of the report is the next guest's memory.
    assert!(!rig.balloon.serve());
    assert_eq!(rig.counts().given_back, done);
    rig.shared.restart(Vec::new);
    assert_eq!(rig.status(), BalloonStatus { updates: 2, ..BalloonStatus::default() });
    rig.start(BOTH);
    rig.balloon.asks.ask();
    while rig.balloon.serve() {}
    assert_eq!((rig.rings[STATS].used(), rig.rings[4].used(), rig.counts().given_back), (0, 0, done));
}

#[test]
fn a_broken_queue_forgets_what_was_lent() {
    let mut rig = rig(BOTH);
    rig.lend(4, 1);
    let table = rig.rings[3].place(1);
    rig.rings[3].offer_indirect(0, table, 1);
    rig.balloon.serve();
    assert_ne!(read(&mut rig.balloon, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert!(!rig.status().driver && !rig.status().reporting, "{:?}", rig.status());
    rig.start(BOTH);
    rig.balloon.asks.ask();
    rig.balloon.serve();
    assert_eq!(rig.rings[STATS].used(), 0);
    rig.lend(4, 2);
    assert_eq!(rig.status().stats.map(|stats: BalloonStats| stats.free), Some(Some(2)));
}

/// virtio 1.3, section 2.7.7: each queue has its own wish.
#[test]
fn a_driver_is_told_of_reports_and_not_of_statistics_if_it_chose_so() {
    let mut rig = rig(REPORTING | STATISTICS);
    let flags = MIB * (STATS as u64 + 1) + 16 * u64::from(Ring::SIZE);
    rig.rings[STATS].fill(flags, &[1, 0]);
    rig.lend(0, 0);
    rig.line.read().ok();
    interrupts(&mut rig.balloon);
    rig.balloon.asks.ask();
    rig.balloon.serve();
    assert_eq!(
        (rig.rings[STATS].used(), rig.line.read().is_ok(), interrupts(&mut rig.balloon)),
        (1, false, 0)
    );
    rig.report(3, &[(FREE, 4096)]);
    assert_eq!((rig.line.read().is_ok(), interrupts(&mut rig.balloon)), (true, VIRTIO_MMIO_INT_VRING));
}
