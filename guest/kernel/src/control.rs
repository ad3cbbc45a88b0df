//! The control channel: a virtio-console port (virtio 1.3, section 5.3) on which calls come in and
//! reports go out, one record a buffer. See `tidevm_abi`.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use tidevm_abi::{self as abi, Answer, Call, Failure, Report};
use virtio_drivers::transport::Transport;

use crate::agent::{self, Asker};
use crate::cpu::lapic;
use crate::job::{Job, Step};
use crate::shell;
use crate::virtio::Device;
use crate::virtio::queue::{Inbox, Outbox};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTIO_F_VERSION_1.
const FEATURES: u64 = 1 << 32;

/// Reports that wait for a buffer. Any CPU adds to it; the boot CPU's job sends them.
static OUTGOING: Mutex<VecDeque<Report>> = Mutex::new(VecDeque::new());

/// Whether there is a channel. Without one, reports are for people.
static BOUND: AtomicBool = AtomicBool::new(false);

/// Whether a VMM makes calls and listens to reports.
pub fn is_bound() -> bool {
    BOUND.load(Ordering::Relaxed)
}

/// Sends `report`, soon.
pub fn report(report: Report) {
    if is_bound() {
        OUTGOING.lock().push_back(report);
        lapic::wake(0);
    } else {
        shell::tell(report);
    }
}

/// The job that serves the channel. It runs on the boot CPU, where the device's interrupts go.
pub struct Control<T> {
    device: Device<T>,
    inbox: Inbox,
    outbox: Outbox,
}

impl<T: Transport> Control<T> {
    /// Sets up the device; `None` when it refuses.
    pub fn new(mut device: Device<T>) -> Option<Box<Self>> {
        device.negotiate(FEATURES)?;
        let inbox = Inbox::new(&mut device.transport, RECEIVE).ok()?;
        let outbox = Outbox::new(&mut device.transport, TRANSMIT).ok()?;
        device.transport.finish_init();
        let mut control = Box::new(Self { device, inbox, outbox });
        control.inbox.start(&mut control.device.transport);
        BOUND.store(true, Ordering::Relaxed);
        Some(control)
    }

    fn send_reports(&mut self) {
        loop {
            let Some(report) = OUTGOING.lock().front().copied() else { return };
            let sent = self.outbox.send(&mut self.device.transport, |buffer| {
                abi::encode(&report, buffer).expect("every record fits into MAX_RECORD").len()
            });
            if !sent {
                return;
            }
            OUTGOING.lock().pop_front();
        }
    }
}

impl<T: Transport + Send> Job for Control<T> {
    fn step(&mut self) -> Step {
        self.device.interrupts();
        while let Some(call) = self.inbox.take(&mut self.device.transport, |bytes| abi::decode::<Call>(bytes))
        {
            match call {
                Ok(call) => agent::carry_out(call.op, Asker::Vmm(call.id)),
                // Calls have other ids than 0; the VMM counts this one.
                Err(abi::BadRecord) => {
                    Asker::Vmm(0).answer(Answer::Failed(Failure::BadRecord));
                }
            }
        }
        self.send_reports();
        let waiting = !OUTGOING.lock().is_empty();
        // A full outbox empties without an interrupt; look again shortly.
        Step::Idle(waiting.then(|| crate::cpu::time::Instant::in_millis(1)))
    }
}
