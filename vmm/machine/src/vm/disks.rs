//! The threads of the disks: one each, because a disk may keep its thread as long as the host wants.
//!
//! A thread sleeps until the driver notifies, serves the queue, and sleeps again. It holds no lock while the medium works, so
//! nothing else waits for a disk but what wants it idle: a pause and a save, which look again and again up to their limits, and
//! the end of the VM, for at most [`END_LIMIT`].
//!
//! Mirrors an `iothread` of QEMU. Differs on purpose: a request is carried out by plain system calls, one at a time, because
//! asynchronous ones would need calls that the thread has no other use for (`io_uring`).
//!
//! Invariant: a thread begins no request while the guest is to stand still. Whoever ends that wish kicks all disks afterwards.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::devices::DiskDevice;
use super::shared::VmShared;
use crate::clock::{self, Nap};
use crate::confine::rules::Kind;
use crate::confine::thread::{Gate, spawn};
use crate::death::{Death, DeathKind};
use crate::error::StartError;
use crate::sync::lock;
use crate::virtio::block::{PIECE, Wishes, serve};

/// Longest time that the end of a VM waits for a request that a disk carries out.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The thread of a disk. Dropping it ends it, or leaves it behind if the medium does not answer.
#[derive(Debug)]
pub(super) struct DiskThread {
    shared: Arc<VmShared>,
    index: usize,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread ends. Nobody shares it: the mutex makes the type one that threads can share.
    ended: Mutex<Receiver<()>>,
}

/// Starts the thread of disk `index`, locked in.
///
/// # Errors
/// The host provides no thread, or it was not locked in.
pub(super) fn start(shared: &Arc<VmShared>, index: usize) -> Result<DiskThread, StartError> {
    let (ends, ended) = sync_channel::<()>(0);
    let on_thread = Arc::clone(shared);
    let body = move |gate| {
        let _ends = ends;
        let result = catch_unwind(AssertUnwindSafe(|| run(&on_thread, index, gate)));
        let (kind, text) = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let errno = error.raw_os_error().unwrap_or(0);
                (DeathKind::EventLoop { errno }, format!("  the thread of disk #{index} failed: {error}"))
            }
            Err(_) => (DeathKind::VmmPanic, format!("  the thread of disk #{index} panicked")),
        };
        on_thread.state.change(|state| state.died(Death { kind, text }));
    };
    let confinement = shared.config.confinement;
    let thread = spawn("start the thread of a disk", format!("disk{index}"), confinement, Kind::Disk, body)?;
    Ok(DiskThread { shared: Arc::clone(shared), index, thread: Some(thread), ended: Mutex::new(ended) })
}

/// Serves disk `index` until the VM ends.
fn run(shared: &VmShared, index: usize, gate: Gate) -> io::Result<()> {
    let Some(DiskDevice { device, disk, kick, .. }) = shared.devices.disks.get(index) else { return Ok(()) };
    let mut buffer = vec![0; PIECE];
    if !gate.pass() {
        return Ok(());
    }
    while !shared.ends() {
        match kick.read() {
            Ok(_) => serve(device, &**disk, &mut buffer, shared),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Wishes for VmShared {
    fn stands_still(&self) -> bool {
        self.pause.is_wanted()
    }

    fn ends(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        // The start of a VM may have failed.
        self.shared.over.store(true, Ordering::Release);
        self.shared.devices.kick_disks();
        // The disks of a VM have one limit together: all of them were told at once.
        let start = *self.shared.disks_end.get_or_init(clock::now);
        while let Some(left) = END_LIMIT.checked_sub(clock::now() - start).filter(|left| !left.is_zero()) {
            let nap = Nap::of(left);
            let ended = lock(&self.ended).recv_timeout(nap.time());
            nap.end();
            if ended == Err(RecvTimeoutError::Disconnected) {
                // Panics were caught and reported in the thread itself.
                drop(self.thread.take().map(JoinHandle::join));
                return;
            }
        }
        let disk = self.shared.devices.disks.get(self.index);
        let path = disk.map_or_else(Default::default, |disk| disk.disk.path().display().to_string());
        log::warn!(
            "--disk #{} {path}: waited {END_LIMIT:?} for a request that the host is carrying out; the VM ends without it",
            self.index
        );
    }
}
