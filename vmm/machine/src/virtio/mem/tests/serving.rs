//! Requests that the host takes its time for: the device answers meanwhile.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_mem::device::{Backing, PluggedRuns, Span};

use super::*;

/// Longest time that the host waits for what the guest does meanwhile.
const LIMIT: Duration = Duration::from_secs(10);

/// A host that works on a request until the guest has done something. If that does not come, the request is refused.
struct Slow {
    begun: SyncSender<()>,
    done: Receiver<()>,
}

impl Slow {
    fn new() -> (Self, Receiver<()>, SyncSender<()>) {
        let ((begun, has_begun), (tell, done)) = (sync_channel(1), sync_channel(1));
        (Self { begun, done }, has_begun, tell)
    }

    fn work(&self) -> Result<(), Busy> {
        self.begun.send(()).unwrap();
        self.done.recv_timeout(LIMIT).map_err(|error| {
            assert_eq!(error, RecvTimeoutError::Timeout);
            Busy::because("the guest waits for the device")
        })
    }
}

impl Backing for Slow {
    fn plug(&mut self, _: Span) -> Result<(), Busy> {
        self.work()
    }

    fn unplug(&mut self, _: Span) -> Result<(), Busy> {
        self.work()
    }

    fn unplug_all(&mut self, _: &PluggedRuns) -> Result<(), Busy> {
        self.work()
    }
}

impl Rig {
    /// Offers a request for device block 0, and returns where its answer comes.
    fn offer(&mut self, kind: RequestKind) -> u64 {
        let (from, to) = (self.ring.place(0), self.ring.place(1));
        self.ring.fill(from, &Request { kind, addr: HOLE_END, nb_blocks: 1 }.to_bytes());
        let request = Buffer { address: from, size: 24, writable: false };
        self.ring.offer(0, &[request, Buffer { address: to, size: 10, writable: true }]);
        to
    }
}

/// Serves one turn of `device` with a host that is slow, and does `meanwhile` in another thread while the host is at work.
fn serve_slowly(device: &Mutex<Mem>, meanwhile: impl FnOnce() + Send) -> Served {
    let (mut slow, begun, done) = Slow::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv_timeout(LIMIT).expect("the host is asked");
            meanwhile();
            // Fails when the host has given up, which its answer shows.
            let _ = done.send(());
        });
        serve(device, &mut slow)
    })
}

/// If the device were locked while the host works, the reading would wait for the host, and the host for the reading.
#[test]
fn a_driver_reads_the_configuration_while_the_host_is_at_work() {
    let mut rig = rig(4 * BLOCK);
    for (kind, before, after) in [
        (RequestKind::Plug, 0, BLOCK),
        (RequestKind::Unplug, BLOCK, 0),
        (RequestKind::Plug, 0, BLOCK),
        (RequestKind::UnplugAll, BLOCK, 0),
    ] {
        let to = rig.offer(kind);
        let device = Mutex::new(rig.mem);
        let read = || {
            let mut bytes = [0; 56];
            lock(&device).read(VIRTIO_MMIO_CONFIG.into(), &mut bytes);
            assert_eq!(Config::from_bytes(&bytes).plugged_size, before);
        };
        assert!(!serve_slowly(&device, read).more);
        rig.mem = device.into_inner().unwrap();
        assert_eq!(rig.ring.bytes(to, 2), ACK.to_le_bytes(), "{kind:?}");
        assert_eq!(rig.config().plugged_size, after, "{kind:?}");
    }
}

/// A target waits for nothing either, and is the next thing that the driver hears.
#[test]
fn a_target_that_is_set_while_the_host_is_at_work_is_told_at_once() {
    let mut rig = rig(4 * BLOCK);
    rig.offer(RequestKind::Plug);
    rig.raised();
    let target = rig.mem.target();
    let device = Mutex::new(rig.mem);
    serve_slowly(&device, || {
        target.set(&device, Size(2 * BLOCK), None).unwrap();
        assert_eq!(lock(&device).device.requested_size(), 2 * BLOCK);
        assert_eq!(interrupts(&mut *lock(&device)), VIRTIO_MMIO_INT_CONFIG);
    });
    let mut mem = device.into_inner().unwrap();
    assert_eq!((mem.device.plugged_size(), interrupts(&mut mem)), (BLOCK, VIRTIO_MMIO_INT_VRING));
}

/// The buffers of the first driver are not written any more, and the second driver's ring gets nothing that it did not offer.
#[test]
fn an_answer_does_not_reach_a_driver_that_did_not_ask() {
    let mut rig = rig(4 * BLOCK);
    let to = rig.offer(RequestKind::Plug);
    rig.ring.fill(to, &[0x55; 10]);
    let second = Ring::new(&rig.memory, 8 * MIB);
    let device = Mutex::new(rig.mem);
    let served = serve_slowly(&device, || {
        initialise(&mut *lock(&device), 1 << F_UNPLUGGED_INACCESSIBLE, &[&second]);
    });
    assert_eq!(served, IDLE);
    let mut mem = device.into_inner().unwrap();
    assert_eq!((second.used(), rig.ring.used()), (0, 0));
    assert_eq!(rig.ring.bytes(to, 10), [0x55; 10]);
    let status = read(&mut mem, VIRTIO_MMIO_STATUS);
    assert_eq!(status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_DRIVER_OK), VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(mem.device.plugged_size(), BLOCK, "the host did it");
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
}
