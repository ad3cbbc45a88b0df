//! The disk on a real queue, on a medium in memory that fails or does something else when a test wants it.

use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use std::time::Instant;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};

use super::medium::Medium;
use super::*;
use crate::memory::fake::{at, memory, unplug};
use crate::memory::layout::HOLE_END;
use crate::sync::lock;
use crate::virtio::fake::{Buffer, Ring, initialise, interrupts, read, write};

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 64;
const FLUSH: u32 = 1 << VIRTIO_BLK_F_FLUSH;

/// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const SYNC: u32 = 4;
const GET_ID: u32 = 8;

/// Answers.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What is at the place of a status that was not written.
const NONE: u8 = 0xee;

/// A medium in memory.
struct Fake {
    content: RefCell<Vec<u8>>,
    /// The calls, with positions and lengths.
    calls: RefCell<Vec<(&'static str, u64, usize)>>,
    /// The call that fails.
    fails: Cell<&'static str>,
    /// Done once, amid the next call.
    amid: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Fake {
    fn call(&self, name: &'static str, at: u64, length: usize) -> io::Result<()> {
        self.calls.borrow_mut().push((name, at, length));
        if let Some(amid) = self.amid.take() {
            amid();
        }
        if self.fails.get() == name { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl Medium for Fake {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.call("read", at, bytes.len())?;
        bytes.copy_from_slice(&self.content.borrow()[at as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.call("write", at, bytes.len())?;
        self.content.borrow_mut()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.call("flush", 0, 0)
    }
}

#[derive(Default)]
struct Wanted {
    still: Cell<bool>,
    /// How many more looks find that the VM does not end.
    looks: Cell<Option<u32>>,
}

impl Wishes for Wanted {
    fn stands_still(&self) -> bool {
        self.still.get()
    }

    fn ends(&self) -> bool {
        let looks = self.looks.get();
        self.looks.set(looks.map(|looks| looks.saturating_sub(1)));
        looks == Some(0)
    }
}

struct Rig {
    device: Arc<Mutex<Block>>,
    ring: Ring,
    memory: Arc<Memory>,
    shared: Arc<SharedState>,
    medium: Fake,
    wanted: Wanted,
    buffer: Vec<u8>,
}

fn block(memory: &Arc<Memory>, shared: &Arc<SharedState>, read_only: bool) -> Block {
    block_of(SECTORS, memory, shared, read_only)
}

fn block_of(sectors: u64, memory: &Arc<Memory>, shared: &Arc<SharedState>, read_only: bool) -> Block {
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (memory, shared) = (Arc::clone(memory), Arc::clone(shared));
    Block::new(0, (sectors, read_only), memory, shared, event(), event()).unwrap()
}

/// A disk beside a region of 1 GiB, whose driver accepts `features`. Byte `n` of sector `s` is `s + n`, modulo 251.
fn rig_of(read_only: bool, features: u32) -> Rig {
    let memory = Arc::new(memory(64 * MIB, &[1 << 30]).0);
    let shared = Arc::new(SharedState::new(Instant::now(), Vec::new()));
    let device = Arc::new(Mutex::new(block(&memory, &shared, read_only)));
    let content = (0..SECTORS * SECTOR).map(|at| ((at / SECTOR + at % SECTOR) % 251) as u8).collect();
    let medium = Fake {
        content: RefCell::new(content),
        calls: RefCell::default(),
        fails: Cell::new(""),
        amid: RefCell::default(),
    };
    let ring = Ring::new(&memory, MIB);
    let wanted = Wanted::default();
    let mut rig = Rig { device, ring, memory, shared, medium, wanted, buffer: vec![0; PIECE] };
    rig.start(features);
    rig
}

fn rig() -> Rig {
    rig_of(false, FLUSH)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0xff; 4], &sector.to_le_bytes()[..]].concat()
}

impl Rig {
    /// Initialises the driver, with a queue that is empty.
    fn start(&mut self, features: u32) {
        self.ring = Ring::new(&self.memory, MIB);
        self.ring.fill(self.ring.place(0) - 0x1_0000, &[0; 0x1000]);
        initialise(&mut *lock(&self.device), features, &[&self.ring]);
    }

    fn serve(&mut self) {
        serve(&self.device, &self.medium, &mut self.buffer, &self.wanted);
    }

    /// Where data are: 16 KiB of boot memory.
    fn data(&self) -> u64 {
        self.ring.place(8)
    }

    fn status(&self) -> u64 {
        self.ring.place(1)
    }

    /// Offers a request with the header at the first place, `data` between, and the status.
    fn offer(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
        let (head, status) = (self.ring.place(0), self.status());
        self.ring.fill(head, &header(kind, sector));
        self.ring.fill(status, &[NONE]);
        let mut buffers = vec![Buffer { address: head, size: 16, writable: false }];
        buffers.extend(data);
        buffers.push(Buffer { address: status, size: 1, writable: true });
        self.ring.offer(0, &buffers)
    }

    /// Serves a request with one buffer of data. Returns its status, and the number of bytes that went back.
    fn ask(&mut self, kind: u32, sector: u64, address: u64, size: u32) -> (u8, u32) {
        let data = Buffer { address, size, writable: kind != OUT };
        let data = if size == 0 { Vec::new() } else { vec![data] };
        let n = self.offer(kind, sector, &data);
        self.serve();
        assert_eq!(self.ring.used(), n + 1, "the chain went back");
        (self.ring.bytes(self.status(), 1)[0], self.ring.written(n))
    }

    fn calls(&self) -> Vec<(&'static str, u64, usize)> {
        self.medium.calls.take()
    }

    fn counts(&self) -> DiskCounts {
        lock(&self.device).counters.read()
    }

    fn driver(&self) -> bool {
        self.shared.snapshot().disks[0].driver
    }

    /// Has `amid` happen in the next call of the medium.
    fn amid(&self, amid: impl FnOnce() + 'static) {
        *self.medium.amid.borrow_mut() = Some(Box::new(amid));
    }
}

/// `length` bytes that no sector has.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 13) as u8 ^ 0xff).collect()
}

#[test]
fn a_disk_tells_its_size_and_whether_it_can_be_written() {
    for (read_only, kind) in [(false, VIRTIO_BLK_F_FLUSH), (true, VIRTIO_BLK_F_RO)] {
        let rig = rig_of(read_only, 0);
        let mut device = lock(&rig.device);
        let features = read(&mut *device, VIRTIO_MMIO_DEVICE_FEATURES);
        assert_eq!(features, 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << kind);
        let mut config = [1; 28];
        device.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
        let mut expected = [0; 28];
        (expected[0], expected[12], expected[21]) = (SECTORS as u8, 126, 2);
        assert_eq!(config, expected);
    }
}

/// A driver may have filled its queue before it was ready, and need not notify then.
#[test]
fn the_thread_is_woken_when_a_driver_is_ready_and_when_it_notifies() {
    let memory = Arc::new(memory(64 * MIB, &[]).0);
    let shared = Arc::new(SharedState::new(Instant::now(), Vec::new()));
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let kick = event();
    let (on_memory, raised) = (Arc::clone(&memory), kick.try_clone().unwrap());
    let mut device = Block::new(0, (SECTORS, false), on_memory, shared, event(), raised).unwrap();
    initialise(&mut device, FLUSH, &[&Ring::new(&memory, MIB)]);
    assert_eq!(kick.read().unwrap(), 1);
    write(&mut device, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(kick.read().unwrap(), 1);
}

#[test]
fn data_go_between_the_medium_and_guest_memory() {
    let mut rig = rig();
    assert!(rig.driver());
    let data = rig.data();
    assert_eq!(rig.ask(IN, 3, data, 1024), (OK, 1025));
    assert_eq!(rig.ring.bytes(data, 1024), rig.medium.content.borrow()[3 * 512..][..1024]);
    rig.ring.fill(data, &pattern(1024));
    assert_eq!(rig.ask(OUT, 62, data, 1024), (OK, 1));
    assert_eq!(rig.medium.content.borrow()[62 * 512..], pattern(1024));
    assert_eq!(rig.calls(), [("read", 3 * 512, 1024), ("write", 62 * 512, 1024)]);
    assert_eq!(interrupts(&mut *lock(&rig.device)), VIRTIO_MMIO_INT_VRING);
    assert!(lock(&rig.device).is_idle());
    let counts = rig.counts();
    assert_eq!((counts.by[0], counts.by[1]), ([1, 0, 0], [1, 0, 0]));
    assert_eq!((counts.read.0, counts.written.0), (1024, 1024));
}

/// Where a buffer ends has no meaning, and neither has where a piece of data ends.
#[test]
fn a_request_is_the_same_however_it_is_cut() {
    const LENGTH: usize = 1536;
    for cut in [1, 15, 16, 17, 100, 511, 512, 513, 16 + LENGTH - 1, 16 + LENGTH] {
        for piece in [1, 7, 512, 4096] {
            let mut rig = rig();
            rig.buffer = vec![0; piece];
            let (first, second) = (rig.ring.place(2), rig.ring.place(4));
            let request = [header(OUT, 5), pattern(LENGTH)].concat();
            let (one, two) = request.split_at(cut);
            rig.ring.fill(first, one);
            rig.ring.fill(second, two);
            let readable = |address, size: usize| Buffer { address, size: size as u32, writable: false };
            let writable = |address, size: usize| Buffer { address, size: size as u32, writable: true };
            let mut buffers = vec![readable(first, one.len())];
            if !two.is_empty() {
                buffers.push(readable(second, two.len()));
            }
            buffers.push(writable(rig.status(), 1));
            rig.ring.offer(0, &buffers);
            rig.serve();
            assert_eq!((rig.ring.bytes(rig.status(), 1)[0], rig.ring.written(0)), (OK, 1), "{cut} {piece}");
            assert_eq!(rig.medium.content.borrow()[5 * 512..][..LENGTH], pattern(LENGTH), "{cut} {piece}");
            // The answer to a read of the same: data and status.
            let (one, two) = ((cut - 1).clamp(1, LENGTH), LENGTH + 1 - (cut - 1).clamp(1, LENGTH));
            rig.ring.fill(rig.ring.place(0), &header(IN, 5));
            let head = readable(rig.ring.place(0), 16);
            rig.ring.fill(second, &[NONE; LENGTH + 1]);
            rig.ring.offer(4, &[head, writable(first, one), writable(second, two)]);
            rig.serve();
            assert_eq!(rig.ring.written(1) as usize, LENGTH + 1, "{cut} {piece}");
            let answer = [rig.ring.bytes(first, one), rig.ring.bytes(second, two)].concat();
            assert_eq!(answer, [pattern(LENGTH), vec![OK]].concat(), "{cut} {piece}");
        }
    }
}

#[test]
fn every_request_has_its_answer() {
    for (read_only, kind, sector, size, answer) in [
        (false, IN, 0, SECTORS as u32 * 512, (OK, SECTORS as u32 * 512 + 1)),
        (false, IN, SECTORS, 0, (OK, 1)),
        (false, IN, SECTORS, 512, (IOERR, 0)),
        (false, IN, SECTORS - 1, 1024, (IOERR, 0)),
        (false, IN, 0, 513, (IOERR, 0)),
        (false, IN, 0, 511, (IOERR, 0)),
        (false, IN, u64::MAX, 512, (IOERR, 0)),
        (false, IN, u64::MAX / 512 + 1, 512, (IOERR, 0)),
        (false, IN, SECTORS + 1, 0, (IOERR, 1)),
        (false, OUT, SECTORS - 1, 512, (OK, 1)),
        (false, OUT, SECTORS - 1, 1024, (IOERR, 1)),
        (false, OUT, u64::MAX - 1, 1024, (IOERR, 1)),
        (false, OUT, 0, 100, (IOERR, 1)),
        (true, OUT, 0, 512, (IOERR, 1)),
        (true, OUT, 0, 0, (IOERR, 1)),
        (true, IN, 0, 512, (OK, 513)),
        (false, SYNC, 0, 0, (OK, 1)),
        (true, SYNC, 0, 0, (OK, 1)),
        // DISCARD, SCSI_CMD, GET_LIFETIME, and one that nobody knows.
        (false, 11, 0, 512, (UNSUPP, 0)),
        (false, 2, 0, 0, (UNSUPP, 1)),
        (false, 10, 0, 0, (UNSUPP, 1)),
        (false, u32::MAX, 0, 0, (UNSUPP, 1)),
    ] {
        let mut rig = rig_of(read_only, if read_only { 0 } else { FLUSH });
        let before = rig.medium.content.borrow().clone();
        let data = rig.data();
        let found = rig.ask(kind, sector, data, size);
        assert_eq!(found, answer, "{kind} of {size} bytes at {sector}, read-only: {read_only}");
        let calls = rig.calls();
        assert_eq!(
            calls.is_empty(),
            answer.0 != OK || size == 0 && kind != SYNC,
            "{kind} {sector}: {calls:?}"
        );
        let changed = *rig.medium.content.borrow() != before;
        assert_eq!(changed, kind == OUT && answer.0 == OK, "{kind} of {size} bytes at {sector}");
        let counts = rig.counts();
        let row = [IN, OUT, SYNC, GET_ID].into_iter().position(|other| other == kind).unwrap_or(4);
        assert_eq!(counts.by[row][answer.0 as usize], 1, "{counts:?}");
        // The disk goes on.
        assert_eq!(rig.ask(IN, 1, data, 512), (OK, 513));
    }
}

#[test]
fn a_disk_has_a_name_of_twenty_bytes_which_a_shorter_buffer_cuts() {
    let mut rig = rig();
    let data = rig.data();
    let name = b"tidevm-disk0\0\0\0\0\0\0\0\0";
    rig.ring.fill(data, &[NONE; 32]);
    assert_eq!(rig.ask(GET_ID, 0, data, 20), (OK, 21));
    assert_eq!(rig.ring.bytes(data, 21), [&name[..], &[NONE]].concat());
    rig.ring.fill(data, &[NONE; 32]);
    assert_eq!(rig.ask(GET_ID, 0, data, 6), (OK, 7));
    assert_eq!(rig.ring.bytes(data, 7), *b"tidevm\xee");
    assert_eq!(rig.ask(GET_ID, 0, data, 24), (OK, 20), "bytes between the name and the status");
    assert_eq!(rig.ask(GET_ID, 0, HOLE_END, 20), (IOERR, 0));
    assert!(rig.calls().is_empty());
}

#[test]
fn a_chain_without_a_whole_header_or_without_room_for_its_status_is_no_request() {
    let mut rig = rig();
    let (head, data, status) = (rig.ring.place(0), rig.data(), rig.status());
    rig.ring.fill(head, &header(IN, 0));
    rig.ring.fill(status, &[NONE]);
    let head = |size| Buffer { address: head, size, writable: false };
    rig.ring.offer(0, &[head(16)]);
    rig.ring.offer(2, &[head(16), Buffer { address: data, size: 512, writable: false }]);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(0), rig.ring.written(1)), (2, 0, 0));
    assert_eq!(rig.counts().refused_chains, 2);
    rig.ring.offer(4, &[head(15), Buffer { address: status, size: 1, writable: true }]);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(2), rig.ring.bytes(status, 1)[0]), (3, 1, IOERR));
    // A status that is nowhere.
    rig.ring.offer(6, &[head(16), Buffer { address: HOLE_END, size: 1, writable: true }]);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(3)), (4, 0));
    assert!(rig.calls().is_empty() && lock(&rig.device).is_idle());
}

#[test]
fn a_medium_that_fails_is_an_error_of_the_request_alone() {
    for (call, kind, size, written) in [("read", IN, 512, 0), ("write", OUT, 512, 1), ("flush", SYNC, 0, 1)] {
        let mut rig = rig();
        let data = rig.data();
        rig.medium.fails.set(call);
        assert_eq!(rig.ask(kind, 0, data, size), (IOERR, written), "{call}");
        assert_eq!(rig.calls().len(), 1);
        rig.medium.fails.set("");
        assert_eq!(rig.ask(kind, 0, data, size).0, OK, "{call}");
    }
}

#[test]
fn a_flush_reaches_the_medium_after_the_writes_before_it() {
    let mut rig = rig();
    let data = rig.data();
    assert_eq!(rig.ask(OUT, 1, data, 512).0, OK);
    assert_eq!(rig.ask(SYNC, 0, data, 0).0, OK);
    assert_eq!(rig.calls(), [("write", 512, 512), ("flush", 0, 0)], "a write alone is in the cache");
}

/// Without FLUSH there is no cache (virtio 1.3, section 5.2.6.2).
#[test]
fn a_driver_that_cannot_flush_has_every_write_on_the_disk() {
    let mut rig = rig_of(false, 0);
    let data = rig.data();
    assert_eq!(rig.ask(OUT, 1, data, 512), (OK, 1));
    assert_eq!(rig.calls(), [("write", 512, 512), ("flush", 0, 0)]);
    rig.medium.fails.set("flush");
    assert_eq!(rig.ask(OUT, 1, data, 512), (IOERR, 1));
    assert_eq!(rig.ask(IN, 1, data, 512), (OK, 513), "a read needs no flush");
}

/// The buffer of the thread is all the memory that a request costs.
#[test]
fn a_long_request_passes_in_pieces() {
    let mut rig = rig();
    rig.buffer = vec![0; 2048];
    let data = rig.data();
    rig.ring.fill(data, &pattern(5120));
    assert_eq!(rig.ask(OUT, 2, data, 5120), (OK, 1));
    assert_eq!(rig.calls(), [("write", 1024, 2048), ("write", 3072, 2048), ("write", 5120, 1024)]);
    assert_eq!(rig.medium.content.borrow()[1024..][..5120], pattern(5120));
}

#[test]
fn memory_that_is_not_plugged_makes_a_request_fail() {
    let mut rig = rig();
    assert_eq!(rig.ask(IN, 0, HOLE_END, 512), (IOERR, 0));
    assert_eq!(rig.ask(OUT, 0, HOLE_END, 512), (IOERR, 1));
    assert_eq!(rig.calls(), [("read", 0, 512)], "nothing is written to the medium");
    rig.memory.plug(0, at(HOLE_END..HOLE_END + 2 * MIB)).unwrap();
    assert_eq!(rig.ask(IN, 0, HOLE_END, 512), (OK, 513));
    assert_eq!(rig.ask(IN, 0, HOLE_END + 2 * MIB - 256, 512), (IOERR, 0), "half of it is there");
    assert_eq!(rig.ask(IN, 0, u64::MAX - 255, 512), (IOERR, 0), "an address beyond 64 bits");
}

#[test]
fn memory_that_is_unplugged_while_the_medium_works_makes_the_request_fail() {
    for (kind, written) in [(IN, 0), (OUT, 1)] {
        let mut rig = rig();
        rig.buffer = vec![0; 512];
        rig.memory.plug(0, at(HOLE_END..HOLE_END + 2 * MIB)).unwrap();
        let memory = Arc::clone(&rig.memory);
        rig.amid(move || unplug(&memory, 0, at(HOLE_END..HOLE_END + 2 * MIB)).unwrap());
        assert_eq!(rig.ask(kind, 0, HOLE_END, 1024), (IOERR, written));
        assert_eq!(rig.calls().len(), 1, "no further piece");
        assert_eq!(rig.counts().by[kind as usize], [0, 1, 0]);
    }
}

/// The first piece is under way when the reset comes, by the driver or of the machine.
#[test]
fn after_a_reset_nothing_of_the_driver_before_is_read_written_or_answered() {
    for kind in [IN, OUT, SYNC] {
        // By the driver, by the machine, and of the queue alone.
        for how in 0..3 {
            let mut rig = rig();
            rig.buffer = vec![0; 512];
            let data = rig.data();
            rig.ring.fill(data, &[NONE; 1024]);
            let device = Arc::clone(&rig.device);
            rig.amid(move || {
                let mut device = lock(&device);
                assert!(!device.is_idle());
                match how {
                    0 => write(&mut *device, VIRTIO_MMIO_STATUS, 0),
                    1 => device.disconnect(),
                    _ => {
                        write(&mut *device, VIRTIO_MMIO_QUEUE_SEL, 0);
                        write(&mut *device, VIRTIO_MMIO_QUEUE_READY, 0);
                    }
                }
            });
            let data_buffer = Buffer { address: data, size: 1024, writable: kind == IN };
            let before = rig.medium.content.borrow().clone();
            rig.offer(kind, 0, if kind == SYNC { &[] } else { std::slice::from_ref(&data_buffer) });
            rig.serve();
            assert_eq!(rig.ring.used(), 0);
            assert_eq!(rig.ring.bytes(data, 1024), [NONE; 1024]);
            assert_eq!(rig.ring.bytes(rig.status(), 1), [NONE]);
            assert_eq!(rig.medium.content.borrow()[512..], before[512..]);
            assert_eq!(rig.calls().len(), 1);
            assert_eq!(interrupts(&mut *lock(&rig.device)), 0);
            assert_eq!(rig.counts(), DiskCounts::default());
            // The next driver has the same disk.
            rig.start(FLUSH);
            assert!(lock(&rig.device).is_idle());
            assert_eq!(rig.ask(IN, 1, data, 512), (OK, 513));
        }
    }
}

/// A pause waits for the request under way, so no request takes for ever.
#[test]
fn a_request_of_more_than_64_mib_is_refused() {
    let mut rig = rig();
    *lock(&rig.device) = block_of(1 << 20, &rig.memory, &rig.shared, false);
    rig.start(FLUSH);
    let buffer = Buffer { address: 2 * MIB, size: 40 << 20, writable: true };
    rig.offer(IN, 0, &[buffer, buffer]);
    rig.serve();
    assert_eq!(rig.ring.bytes(rig.status(), 1), [IOERR]);
    assert_eq!(rig.calls(), []);
}

/// The new driver is up when the medium is ready, and its queue is at the same place.
#[test]
fn a_driver_that_came_meanwhile_gets_no_answer_of_the_one_before() {
    let mut rig = rig();
    let data = rig.data();
    let (device, memory) = (Arc::clone(&rig.device), Arc::clone(&rig.memory));
    rig.amid(move || {
        let ring = Ring::new(&memory, MIB);
        ring.fill(MIB, &[0; 0x1000]);
        initialise(&mut *lock(&device), FLUSH, &[&ring]);
    });
    rig.ring.fill(data, &[NONE; 512]);
    rig.offer(IN, 0, &[Buffer { address: data, size: 512, writable: true }]);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.ring.bytes(data, 512)), (0, vec![NONE; 512]));
    assert!(rig.driver() && lock(&rig.device).is_idle());
}

#[test]
fn no_request_begins_while_the_guest_is_to_stand_still() {
    let mut rig = rig();
    let data = rig.data();
    rig.offer(IN, 0, &[Buffer { address: data, size: 512, writable: true }]);
    rig.wanted.still.set(true);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.calls().len()), (0, 0));
    rig.wanted.still.set(false);
    rig.serve();
    assert_eq!((rig.ring.used(), rig.calls().len()), (1, 1));
}

#[test]
fn a_vm_that_ends_gives_a_long_request_up() {
    let mut rig = rig();
    rig.buffer = vec![0; 512];
    let data = rig.data();
    rig.offer(OUT, 0, &[Buffer { address: data, size: 8192, writable: false }]);
    // One look before the request, and one before each piece.
    rig.wanted.looks.set(Some(3));
    rig.serve();
    assert_eq!((rig.ring.used(), rig.calls().len()), (0, 2));
    assert!(lock(&rig.device).is_idle());
}

#[test]
fn a_broken_queue_ends_the_service_until_the_reset() {
    let mut rig = rig();
    rig.ring.offer_head(Ring::SIZE);
    rig.serve();
    let status = read(&mut *lock(&rig.device), VIRTIO_MMIO_STATUS);
    assert_ne!(status & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert!(!rig.driver());
    rig.start(FLUSH);
    assert!(rig.driver());
    let data = rig.data();
    assert_eq!(rig.ask(IN, 0, data, 512), (OK, 513));
}

/// The other process has the same memory and the same medium.
#[test]
fn a_restored_disk_goes_on_with_its_queue() {
    let mut rig = rig();
    let data = rig.data();
    assert_eq!(rig.ask(IN, 0, data, 512), (OK, 513));
    rig.offer(IN, 3, &[Buffer { address: data, size: 512, writable: true }]);
    let state = lock(&rig.device).state();
    assert_eq!(state.sectors(), SECTORS);
    let other = block(&rig.memory, &Arc::new(SharedState::new(Instant::now(), Vec::new())), true);
    let other = Mutex::new(other);
    assert!(lock(&other).restore(&state).is_err(), "a disk that was writable is not read-only");
    let shared = Arc::new(SharedState::new(Instant::now(), Vec::new()));
    rig.device = Arc::new(Mutex::new(block(&rig.memory, &shared, false)));
    rig.shared = shared;
    lock(&rig.device).restore(&state).unwrap();
    assert!(rig.driver());
    rig.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(1)), (2, 513));
    assert_eq!(rig.memory.view().read_obj::<u8>(GuestAddress(data + 1)).unwrap(), 4);
}
