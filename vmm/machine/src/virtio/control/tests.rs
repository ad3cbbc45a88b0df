//! The control device: calls wait for buffers, and reports of the guest change the state or are ignored.

use std::time::{Duration, Instant};

use tidevm_abi::kernel::RECORDS_VERSION;
use tidevm_abi::{Answer, Op};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_QUEUE_NOTIFY};

use super::*;
use crate::memory::fake::memory;
use crate::state::WaitError;
use crate::virtio::fake::{Buffer, Ring, initialise, interrupts, write};

const MIB: u64 = 1 << 20;

struct Rig {
    control: Control,
    calls: Ring,
    reports: Ring,
    shared: Arc<SharedState>,
    kicks: [EventFd; 2],
}

fn rig() -> Rig {
    let (memory, shared, mut control, kicks) = device(false);
    let (calls, reports) = (Ring::new(&memory, MIB), Ring::new(&memory, 2 * MIB));
    initialise(&mut control, 0, &[&calls, &reports]);
    Rig { control, calls, reports, shared, kicks }
}

fn device(has_port: bool) -> (Arc<Memory>, Arc<SharedState>, Control, [EventFd; 2]) {
    let memory = Arc::new(memory(64 * MIB, &[]).0);
    let shared = Arc::new(SharedState::new(Instant::now(), Vec::new()));
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let kicks = [event(), event()];
    let kicked = [CALLS, REPORTS].map(|queue| kicks[queue].try_clone().unwrap());
    let control = Control::new(Arc::clone(&memory), Arc::clone(&shared), event(), kicked, has_port).unwrap();
    (memory, shared, control, kicks)
}

impl Rig {
    fn offer_room(&mut self, head: u16, size: u32) -> u16 {
        let address = self.calls.place(head.into());
        self.calls.offer(head, &[Buffer { address, size, writable: true }])
    }

    fn report(&mut self, bytes: &[u8]) {
        let address = self.reports.place(0);
        self.reports.fill(address, bytes);
        self.reports.offer(0, &[Buffer { address, size: bytes.len() as u32, writable: false }]);
        self.control.serve_reports();
    }

    fn report_record(&mut self, report: &Report) {
        let mut buffer = [0; MAX_RECORD];
        let bytes = encode(report, &mut buffer).unwrap().to_vec();
        self.report(&bytes);
    }
}

#[test]
fn a_call_waits_for_a_buffer_and_fills_one() {
    let mut rig = rig();
    let call = Call { id: 7, op: Op::Stats };
    rig.control.call(call).unwrap();
    assert_eq!(rig.calls.used(), 0);
    rig.offer_room(0, MAX_RECORD as u32);
    rig.control.serve_calls();
    assert_eq!(rig.calls.used(), 1);
    let size = rig.calls.written(0) as usize;
    assert_eq!(decode(&rig.calls.bytes(rig.calls.place(0), size)), Ok(call));
    assert_eq!(interrupts(&mut rig.control), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn calls_keep_their_order_and_their_number_is_limited() {
    let mut rig = rig();
    for id in 0..MAX_UNREAD as u32 {
        rig.control.call(Call { id, op: Op::Check }).unwrap();
    }
    assert_eq!(rig.control.call(Call { id: 999, op: Op::Check }), Err(CallsQueueFull));
    for n in 0..10 {
        rig.offer_room(n, 64);
    }
    rig.control.serve_calls();
    assert_eq!(rig.calls.used(), 10);
    for n in 0..10 {
        let size = rig.calls.written(n) as usize;
        let call: Call = decode(&rig.calls.bytes(rig.calls.place(n.into()), size)).unwrap();
        assert_eq!(call.id, u32::from(n));
    }
    rig.control.call(Call { id: 999, op: Op::Check }).unwrap();
}

#[test]
fn a_buffer_that_is_too_short_goes_back_and_the_call_stays() {
    let mut rig = rig();
    rig.offer_room(0, 1);
    rig.offer_room(1, 64);
    rig.control.call(Call { id: 300, op: Op::Check }).unwrap();
    assert_eq!(rig.calls.used(), 2);
    assert_eq!(rig.calls.written(0), 0);
    let size = rig.calls.written(1) as usize;
    let call: Call = decode(&rig.calls.bytes(rig.calls.place(1), size)).unwrap();
    assert_eq!(call.id, 300);
    assert_eq!(rig.shared.snapshot().bad_records, 1);
}

#[test]
fn reports_change_the_state() {
    let mut rig = rig();
    rig.report_record(&Report::Ready { cpus: 2, mem_devices: 1 });
    assert_eq!(rig.shared.snapshot().ready.map(|ready| (ready.cpus, ready.mem_devices)), Some((2, 1)));
    rig.shared.expect_answer(5);
    rig.report_record(&Report::Done { id: 5, answer: Answer::Checked { pages: 9, deferred: 0 } });
    let answer = rig.shared.take_answer(5, Duration::ZERO, "the answer");
    assert_eq!(answer, Ok(Answer::Checked { pages: 9, deferred: 0 }));
    assert_eq!(rig.shared.snapshot().bad_records, 0);
}

#[test]
fn a_message_that_fits_nothing_is_counted_and_ignored() {
    let mut rig = rig();
    rig.report(&[0xff; 40]);
    rig.report(&[0; MAX_RECORD + 1]);
    // The bytes up to the longest record would be a Ready.
    assert_eq!(rig.shared.snapshot().ready, None);
    // An answer to no call, an answer given twice, and a second Ready.
    rig.shared.expect_answer(1);
    for _ in 0..2 {
        rig.report_record(&Report::Done { id: 1, answer: Answer::Done });
        rig.report_record(&Report::Ready { cpus: 1, mem_devices: 0 });
    }
    rig.report_record(&Report::Done { id: 2, answer: Answer::Done });
    // A buffer outside memory is an empty record.
    rig.reports.offer(0, &[Buffer { address: 1 << 40, size: 16, writable: false }]);
    rig.control.serve_reports();
    assert_eq!(rig.shared.snapshot().bad_records, 6);
    assert_eq!(rig.reports.used(), 8);
}

/// The last byte of the record is 0, and lies where there is no memory.
#[test]
fn a_record_whose_end_cannot_be_read_is_none() {
    let mut rig = rig();
    let mut buffer = [0; MAX_RECORD];
    let record = encode(&Report::Ready { cpus: 2, mem_devices: 0 }, &mut buffer).unwrap();
    let (last, first) = record.split_last().unwrap();
    assert_eq!(*last, 0);
    let address = rig.reports.place(0);
    rig.reports.fill(address, first);
    let parts = [(address, first.len() as u32), (1 << 40, 1)];
    rig.reports.offer(0, &parts.map(|(address, size)| Buffer { address, size, writable: false }));
    rig.control.serve_reports();
    let state = rig.shared.snapshot();
    assert_eq!((state.ready, state.bad_records), (None, 1));
}

#[test]
fn a_driver_is_interrupted_only_for_buffers_that_were_used() {
    let mut rig = rig();
    rig.control.serve_calls();
    rig.control.serve_reports();
    rig.control.call(Call { id: 1, op: Op::Stats }).unwrap();
    assert_eq!(interrupts(&mut rig.control), 0, "no buffer was offered");
    rig.report(&[0xff; 40]);
    assert_eq!(interrupts(&mut rig.control), VIRTIO_MMIO_INT_VRING);
    rig.control.serve_reports();
    assert_eq!(interrupts(&mut rig.control), 0);
}

/// Calls may wait before there is a driver, and a driver may fill its queue before it is ready.
#[test]
fn each_notification_reaches_its_queue() {
    let mut rig = rig();
    let kicks = |rig: &Rig| [CALLS, REPORTS].map(|queue| rig.kicks[queue].read().ok());
    assert_eq!(kicks(&rig), [Some(1), None], "the driver is ready");
    for (queue, expected) in [(CALLS, [Some(1), None]), (REPORTS, [None, Some(1)])] {
        write(&mut rig.control, VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        assert_eq!(kicks(&rig), expected);
    }
}

#[test]
fn a_flood_is_served_in_batches() {
    let mut rig = rig();
    for head in 0..Ring::SIZE {
        let address = rig.reports.place(0);
        rig.reports.offer(head, &[Buffer { address, size: 4, writable: false }]);
    }
    assert!(rig.control.serve_reports(), "other devices have their turn first");
    assert!(!rig.control.serve_reports());
    assert_eq!(rig.reports.used(), Ring::SIZE);
}

#[test]
fn a_system_reset_forgets_calls_and_driver() {
    let mut rig = rig();
    rig.control.call(Call { id: 1, op: Op::Stats }).unwrap();
    rig.shared.expect_answer(1);
    rig.control.disconnect();
    rig.offer_room(0, MAX_RECORD as u32);
    // Made while the reset is under way.
    rig.control.call(Call { id: 2, op: Op::Stats }).unwrap();
    rig.control.forget_calls();
    rig.shared.restart(Vec::new);
    assert_eq!(rig.calls.used(), 0, "there is no driver");
    initialise(&mut rig.control, 0, &[&rig.calls, &rig.reports]);
    rig.control.serve_calls();
    assert_eq!(rig.calls.used(), 0);
    assert_eq!(rig.shared.take_answer(1, Duration::ZERO, "the answer"), Err(WaitError::Reset));
}

#[test]
fn an_indirect_descriptor_breaks_the_channel_until_its_reset() {
    let mut rig = rig();
    let table = 8 * MIB;
    for head in 0..3 {
        rig.reports.offer_indirect(head, table, 65_535);
    }
    assert!(!rig.control.serve_reports());
    assert_eq!((rig.reports.used(), rig.shared.snapshot().bad_records), (0, 0));
    assert!(!rig.control.transport.registers.running());
}

/// virtio 1.3, section 2.7.7: each queue has its own wish.
#[test]
fn a_driver_is_told_of_buffers_of_the_queues_that_it_chose() {
    let flags = |start: u64| start + 16 * u64::from(Ring::SIZE);
    for (quiet, told) in [(CALLS, [0, VIRTIO_MMIO_INT_VRING]), (REPORTS, [VIRTIO_MMIO_INT_VRING, 0])] {
        let mut rig = rig();
        rig.calls.fill(flags(MIB * (quiet as u64 + 1)), &[1, 0]);
        rig.offer_room(0, MAX_RECORD as u32);
        rig.control.call(Call { id: 7, op: Op::Stats }).unwrap();
        let of_calls = interrupts(&mut rig.control);
        rig.report(&[]);
        assert_eq!((rig.calls.used(), rig.reports.used()), (1, 1));
        assert_eq!([of_calls, interrupts(&mut rig.control)], told, "queue {quiet} is quiet");
    }
}

/// The device for an agent in Linux, whose driver has offered room for messages about the port.
struct PortRig {
    rig: Rig,
    to_driver: Ring,
    from_driver: Ring,
    said: u16,
}

/// Messages about port 0: the event, and the value 1.
const ADD: [u8; 8] = [0, 0, 0, 0, 1, 0, 1, 0];
const OPEN: [u8; 8] = [0, 0, 0, 0, 6, 0, 1, 0];
const DRIVER_READY: [u8; 8] = [0, 0, 0, 0, 0, 0, 1, 0];
const PORT_READY: [u8; 8] = [0, 0, 0, 0, 3, 0, 1, 0];

fn port_rig() -> PortRig {
    let (memory, shared, control, kicks) = device(true);
    let [calls, reports, mut to_driver, from_driver] =
        [1, 2, 3, 4].map(|place| Ring::new(&memory, place * MIB));
    for head in 0..Ring::SIZE {
        let address = to_driver.place(head.into());
        to_driver.offer(head, &[Buffer { address, size: 32, writable: true }]);
    }
    let mut rig =
        PortRig { rig: Rig { control, calls, reports, shared, kicks }, to_driver, from_driver, said: 0 };
    rig.drive();
    rig
}

impl PortRig {
    fn drive(&mut self) {
        let rings = [&self.rig.calls, &self.rig.reports, &self.to_driver, &self.from_driver];
        initialise(&mut self.rig.control, 1 << port::F_MULTIPORT, &rings);
    }

    /// The driver sends a message.
    fn say(&mut self, message: &[u8]) {
        let address = self.from_driver.place(0);
        self.from_driver.fill(address, message);
        self.from_driver.offer(0, &[Buffer { address, size: message.len() as u32, writable: false }]);
        self.rig.control.serve_reports();
        self.said += 1;
        assert_eq!(self.from_driver.used(), self.said, "the buffer comes back");
    }

    /// What the device has sent.
    fn heard(&self) -> Vec<Vec<u8>> {
        let message =
            |n: u16| self.to_driver.bytes(self.to_driver.place(n.into()), self.to_driver.written(n) as usize);
        (0..self.to_driver.used()).map(message).collect()
    }
}

#[test]
fn linux_is_told_of_one_port_and_calls_wait_until_it_is_open() {
    let mut rig = port_rig();
    let mut config = [0; 4];
    rig.rig.control.read(0x104, &mut config);
    assert_eq!((u32::from_le_bytes(config), rig.rig.control.queues()), (1, 4), "one port");
    rig.rig.offer_room(0, MAX_RECORD as u32);
    let call = Call { id: 7, op: Op::Stats };
    rig.rig.control.call(call).unwrap();
    assert!(rig.heard().is_empty());
    rig.say(&DRIVER_READY);
    assert_eq!(rig.heard(), [ADD]);
    rig.say(&PORT_READY);
    assert_eq!(rig.heard(), [ADD, OPEN]);
    assert_eq!(rig.rig.calls.used(), 0, "the driver would drop it");
    rig.say(&OPEN);
    assert_eq!(rig.rig.calls.used(), 1);
    let size = rig.rig.calls.written(0) as usize;
    assert_eq!(decode(&rig.rig.calls.bytes(rig.rig.calls.place(0), size)), Ok(call));
    rig.rig.report_record(&Report::Ready { cpus: 2, mem_devices: 1 });
    assert!(rig.rig.shared.snapshot().ready.is_some());
    assert_eq!(rig.rig.shared.snapshot().bad_records, 0);
}

#[test]
fn a_driver_that_says_nonsense_of_ports_is_counted() {
    let mut rig = port_rig();
    for message in [&[][..], &[0; 7], &[0xff; 8], &[1, 0, 0, 0, 6, 0, 1, 0]] {
        rig.say(message);
    }
    assert_eq!((rig.heard().len(), rig.rig.shared.snapshot().bad_records), (0, 4));
}

#[test]
fn the_next_driver_is_told_of_the_port_anew() {
    let mut rig = port_rig();
    rig.say(&DRIVER_READY);
    rig.say(&PORT_READY);
    rig.say(&OPEN);
    rig.rig.control.disconnect();
    let saved = rig.rig.control.state();
    let mut rig = port_rig();
    assert_eq!(saved.port, Some(Port::default()), "no program has the port");
    rig.say(&DRIVER_READY);
    rig.say(&OPEN);
    // Written by a driver that goes.
    write(&mut rig.rig.control, virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(rig.rig.control.state().port, Some(Port::default()));
}

#[test]
fn notifications_of_messages_reach_the_loop() {
    let mut rig = port_rig();
    let kicks = |rig: &PortRig| [CALLS, REPORTS].map(|queue| rig.rig.kicks[queue].read().is_ok());
    kicks(&rig);
    for (queue, expected) in [(port::TO_DRIVER, [true, false]), (port::FROM_DRIVER, [false, true])] {
        write(&mut rig.rig.control, VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        assert_eq!(kicks(&rig), expected);
    }
}

#[test]
fn a_guest_of_other_records_does_not_become_ready() {
    let mut rig = rig();
    rig.report_record(&Report::Speaks { version: RECORDS_VERSION + 1 });
    rig.report_record(&Report::Ready { cpus: 1, mem_devices: 0 });
    let state = rig.shared.snapshot();
    assert_eq!((state.ready, state.foreign_records), (None, Some(RECORDS_VERSION + 1)));
    rig.shared.restart(Vec::new);
    assert_eq!(rig.shared.snapshot().foreign_records, None);
    rig.report_record(&Report::Speaks { version: RECORDS_VERSION });
    rig.report_record(&Report::Ready { cpus: 1, mem_devices: 0 });
    assert!(rig.shared.snapshot().ready.is_some());
}
