//! A VM whose event loop is held inside one UNPLUG_ALL of fragmented memory: what may not wait for it, and what it does.
//!
//! The test is the driver, and the guest halts. Signals act on a whole process, so the VM has one of its own.
#![expect(unsafe_code, reason = "sends a signal to its own process")]

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_mem::wire::{F_UNPLUGGED_INACCESSIBLE, Request, RequestKind};

use super::*;
use crate::memory::host_calls::{MemoryCall, watch_all};
use crate::memory::range::OffsetRange;
use crate::process::{BlockedSignals, GRACE, ONE_WISH};
use crate::state::WaitError;
use crate::sync::lock;
use crate::virtio::fake::{Buffer, Ring, initialise, write};
use crate::virtio::mem::{Mem, RegionMemory, serve};

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 * MIB;
const BLOCKS: u64 = GIB / BLOCK;

/// How long something may take that waits for nothing.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_unplug_all_of_fragmented_memory_holds_up_no_deadline_and_no_signal() {
    if !kvm() {
        return;
    }
    let name = "vm::tests::unplug_all::a_process_with_an_unplug_all_under_way";
    // The child inherits this in all threads, also those of the test harness. As in `tidevm`, a signal waits for the VM.
    let _blocked = BlockedSignals::block().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
    assert_eq!(output.status.code(), Some(128 + libc::SIGTERM), "{text}");
}

/// The calls of the host that change guest memory, from when they are watched.
struct HostCalls {
    is_watched: AtomicBool,
    /// Whether the next call is held.
    is_held: AtomicBool,
    seen: Mutex<Vec<MemoryCall>>,
}

impl HostCalls {
    /// Watches this process. Each held call is told to the receiver, and waits for the sender.
    fn watch() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let (entered, is_entered) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let may_go = Mutex::new(may_go);
        let calls = Arc::new(Self {
            is_watched: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let shared = Arc::clone(&calls);
        watch_all(move |call| {
            if shared.is_watched.load(Ordering::SeqCst) {
                lock(&shared.seen).push(call);
            }
            if shared.is_held.swap(false, Ordering::SeqCst) {
                entered.send(()).unwrap();
                // The sender is dropped when the test fails.
                let _ = lock(&may_go).recv();
            }
            false
        });
        (calls, is_entered, go)
    }

    /// From now on calls are recorded, and the next one is held.
    fn hold_next(&self) {
        self.is_held.store(true, Ordering::SeqCst);
        self.is_watched.store(true, Ordering::SeqCst);
    }
}

/// The driver of the VM's virtio-mem device.
pub(super) struct Driver {
    ring: Ring,
    pub(super) device: Arc<Mutex<Mem>>,
    backing: Arc<Mutex<RegionMemory>>,
}

impl Driver {
    pub(super) fn new(vm: &Vm) -> Self {
        let ring = Ring::new(&vm.shared.memory, MIB);
        let mem = &vm.shared.devices.mem[0];
        let (device, backing) = (Arc::clone(&mem.device), Arc::clone(&mem.backing));
        initialise(&mut *lock(&device), 1 << F_UNPLUGGED_INACCESSIBLE, &[&ring]);
        Self { ring, device, backing }
    }

    fn offer(&mut self, kind: RequestKind, block: u64, nb_blocks: u16) {
        let (from, to) = (self.ring.place(0), self.ring.place(1));
        let addr = HOLE_END + block * BLOCK;
        self.ring.fill(from, &Request { kind, addr, nb_blocks }.to_bytes());
        let request = Buffer { address: from, size: 24, writable: false };
        self.ring.offer(0, &[request, Buffer { address: to, size: 10, writable: true }]);
    }

    /// A request that is served at once, by this thread.
    fn ask(&mut self, kind: RequestKind, block: u64, nb_blocks: u16) {
        self.offer(kind, block, nb_blocks);
        serve(&*self.device, &mut *lock(&self.backing));
        self.assert_acknowledged();
    }

    /// An UNPLUG_ALL for the event loop.
    fn unplug_all(&mut self) {
        self.send(RequestKind::UnplugAll, 0, 0);
    }

    /// A request for the event loop.
    pub(super) fn send(&mut self, kind: RequestKind, block: u64, nb_blocks: u16) {
        self.offer(kind, block, nb_blocks);
        write(&mut *lock(&self.device), VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    /// How many answers there are, and the last one.
    pub(super) fn answers(&self) -> (u16, [u8; 2]) {
        (self.ring.used(), self.ring.bytes(self.ring.place(1), 2).try_into().unwrap())
    }

    fn assert_acknowledged(&self) {
        assert_eq!(self.answers().1, [0, 0], "ACK");
    }
}

/// The host's wish that this process ends.
fn sigterm() {
    // SAFETY: the call takes no pointer, and the VM has blocked the signal in all threads.
    assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGTERM) }, 0);
}

/// Sets a target and waits for it as a session does that resizes `within` a time. Nobody drives the device.
fn resize_within(vm: &Vm, target: Size, within: Duration) -> Result<(), WaitError> {
    let (handle, (done, is_done)) = (vm.handle(), mpsc::channel());
    thread::spawn(move || {
        let result = handle.resize(0, target).map(|()| {
            handle.wait(within, "the resize", |state| {
                state.mem[0].settled(target, handle.reports(), true).map(drop)
            })
        });
        // Nobody receives when the test has failed.
        drop(done.send(result));
    });
    is_done.recv_timeout(SOON).expect("the resize ends").expect("a size that can be")
}

#[test]
#[ignore = "ends its process; the test above starts it"]
fn a_process_with_an_unplug_all_under_way() {
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let hotplug = vec![HotplugConfig { requested: Size(GIB), ..HotplugConfig::new(Size(GIB)) }];
    let vm = start(Config { hotplug, ..kernel.config() }).unwrap();
    // Its end is that of the process.
    drop(kernel);
    let (calls, is_entered, go) = HostCalls::watch();
    let mut driver = Driver::new(&vm);
    driver.ask(RequestKind::Plug, 0, BLOCKS as u16);
    (1..BLOCKS).step_by(2).for_each(|block| driver.ask(RequestKind::Unplug, block, 1));
    calls.hold_next();
    driver.unplug_all();
    is_entered.recv_timeout(SOON).expect("the event loop serves the request");

    // The event loop is held from here on.
    let within = Duration::from_millis(100);
    let late = WaitError::Deadline { what: "the resize".to_owned(), after: within };
    assert_eq!(resize_within(&vm, Size(GIB / 2), within), Err(late));
    let status = vm.state().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (Size(GIB / 2), false), "the device has it");
    sigterm();
    let nothing = |_: &crate::state::State| None::<()>;
    assert_eq!(vm.wait(SOON, "a signal", nothing), Err(WaitError::Signal(libc::SIGTERM)));
    assert_eq!(vm.state().mem[0].plugged, Size(GIB / 2), "the request is not done");
    go.send(()).unwrap();

    // The lock is free when the request is done.
    drop(lock(&driver.backing));
    driver.assert_acknowledged();
    let status = vm.state().mem[0].clone();
    assert_eq!((status.plugged, status.requested, status.target_pending), (Size(0), Size(GIB / 2), false));
    let all = OffsetRange::new(0..GIB).unwrap();
    let seen = std::mem::take(&mut *lock(&calls.seen));
    let on_memory: Vec<_> =
        seen.into_iter().filter(|call| !matches!(call, MemoryCall::RemoveSlot(_))).collect();
    assert_eq!(on_memory.len(), 2, "one operation");
    assert_eq!(on_memory, [MemoryCall::Close(all), MemoryCall::Discard(all)]);

    // The next signal ends the process, whatever the event loop is at.
    driver.ask(RequestKind::Plug, 0, 1);
    calls.hold_next();
    driver.unplug_all();
    is_entered.recv_timeout(SOON).expect("the event loop serves the request");
    // On a busy host the VM may count the time of one wish from later on. All of this is less than the grace, whose end
    // would end the process with the same status.
    const TRIES: u32 = 8;
    const { assert!(ONE_WISH.as_secs() * 2 * (TRIES as u64) < GRACE.as_secs()) };
    for _ in 0..TRIES {
        thread::sleep(ONE_WISH);
        sigterm();
    }
    thread::sleep(ONE_WISH);
    std::process::exit(2);
}
