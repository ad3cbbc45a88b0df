//! The control channel: a virtio-console port (virtio 1.3, section 5.3) on which calls come in and reports go
//! out, one record per buffer (see `tidevm_abi`).

use alloc::boxed::Box;

use tidevm_abi::{self as abi, Answer, Call, Failure};
use virtio_drivers::transport::Transport;

use crate::agent::{self, pressure};
use crate::cpu::time::Instant;
use crate::job::{Job, Progress};
use crate::mailbox::{self, Requester};
use crate::virtio::Device;
use crate::virtio::queue::{Inbox, Outbox};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTIO_F_VERSION_1.
const FEATURES: u64 = 1 << 32;

/// The job that serves the channel. It runs on the boot CPU, where the device's interrupts go.
pub struct Control<T> {
    device: Device<T>,
    inbox: Inbox,
    outbox: Outbox,
}

impl<T: Transport> Control<T> {
    /// Sets up the device; `None` when the device refuses. The job that is returned delivers all reports from
    /// now on, those that already wait among them.
    pub fn new(mut device: Device<T>) -> Option<Box<Self>> {
        device.negotiate(FEATURES).ok()?;
        let inbox = Inbox::new(&mut device.transport, RECEIVE).ok()?;
        let outbox = Outbox::new(&mut device.transport, TRANSMIT).ok()?;
        device.transport.finish_init();
        let mut control = Box::new(Self { device, inbox, outbox });
        control.inbox.start(&mut control.device.transport);
        Some(control)
    }

    /// Sends the reports that wait. Returns whether all were sent: the outbox may be full.
    fn send_reports(&mut self) -> bool {
        mailbox::deliver_reports(|report| {
            self.outbox.send(&mut self.device.transport, |buffer| {
                abi::encode(&report, buffer).expect("every record fits into MAX_RECORD").len()
            })
        })
    }
}

impl<T: Transport + Send> Job for Control<T> {
    fn step(&mut self) -> Progress {
        self.device.interrupts();
        while let Some(call) = self.inbox.take(&mut self.device.transport, |bytes| abi::decode::<Call>(bytes))
        {
            match call {
                Ok(call) => agent::carry_out(call.op, Requester::Vmm(call.id)),
                // No call has id 0; the VMM counts answers to it as bad records.
                Err(abi::BadRecord) => Requester::Vmm(0).answer(Answer::Failed(Failure::BadRecord)),
            }
        }
        pressure::look();
        let all_sent = self.send_reports();
        // A full outbox empties without an interrupt, so this job looks again after a millisecond. A report
        // that comes after this pass wakes the CPU.
        Progress::Idle((!all_sent).then(|| Instant::in_millis(1)))
    }
}
