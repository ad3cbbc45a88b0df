//! The control channel: a virtio-console port (virtio 1.3, section 5.3) on which calls come in and
//! reports go out, one record a buffer. See `tidevm_abi`.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use spin::Mutex;
use tidevm_abi::{self as abi, Answer, Call, Failure, Report};
use virtio_drivers::transport::Transport;

use crate::agent;
use crate::irq;
use crate::job::{Job, Step};
use crate::virtio::Device;
use crate::virtio::queue::{Inbox, Outbox};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTIO_F_VERSION_1.
const FEATURES: u64 = 1 << 32;

/// Reports that wait for a buffer. Any CPU adds to it; the boot CPU's job sends them.
static OUTGOING: Mutex<VecDeque<Report>> = Mutex::new(VecDeque::new());

/// Sends `report`, soon.
pub fn report(report: Report) {
    OUTGOING.lock().push_back(report);
    irq::wake(0);
}

/// The job that serves the channel. It runs on the boot CPU, where the device's interrupts go.
pub struct Control {
    device: Device,
    inbox: Inbox,
    outbox: Outbox,
}

impl Control {
    /// Sets up the device; `None` when it refuses.
    pub fn new(mut device: Device) -> Option<Box<Self>> {
        device.negotiate(FEATURES)?;
        let inbox = Inbox::new(&mut device.transport, RECEIVE).ok()?;
        let outbox = Outbox::new(&mut device.transport, TRANSMIT).ok()?;
        device.transport.finish_init();
        let mut control = Box::new(Self { device, inbox, outbox });
        control.inbox.start(&mut control.device.transport);
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

impl Job for Control {
    fn step(&mut self) -> Step {
        self.device.interrupts();
        while let Some(call) = self.inbox.take(&mut self.device.transport, |bytes| abi::decode::<Call>(bytes))
        {
            match call {
                Ok(call) => agent::carry_out(call),
                // Calls have other ids than 0; the VMM counts this one.
                Err(abi::BadRecord) => {
                    report(Report::Done { id: 0, answer: Answer::Failed(Failure::BadRecord) });
                }
            }
        }
        self.send_reports();
        let waiting = !OUTGOING.lock().is_empty();
        // A full outbox empties without an interrupt; look again shortly.
        Step::Idle(waiting.then(|| crate::time::Instant::in_millis(1)))
    }
}
