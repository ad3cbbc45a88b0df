//! Records of the guest on the control channel against a model of the state that they change, and against bounds
//! on the text that they become.
//!
//! A record goes through a queue in guest memory, as a guest sends it. Calls come through the other queue in their
//! order, as they were made, as soon as the guest has a buffer for them. The model has the rules of the channel: one
//! Ready, one answer to a call that was made, reports of a device that there is, and everything else is counted.

use std::collections::{BTreeMap, VecDeque};

use tidevm_abi::kernel::RECORDS_VERSION;
use tidevm_abi::{
    Answer, Call, Handle, MAX_RECORD, Named, Op, Pressure, Report, Resize, Size, decode, encode,
};
use tidevm_machine::HotplugConfig;
use tidevm_machine::hosted::{Devices, REGION, Which};

use crate::input::Input;

/// Most operations of one input.
const OPERATIONS: usize = 60;
/// Most bytes of the text of one record. The longest list counters of zones and nodes.
const MOST_TEXT: usize = 16 << 10;

const BOOT: u64 = 64 << 10;
const TABLE: u64 = 0x1000;
const RING: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;
/// The queues of calls and of reports.
const CALLS: u32 = 0;
const REPORTS: u32 = 1;
/// The parts of the queue of calls, which has one buffer.
const CALL_TABLE: u64 = 0x4000;
const CALL_RING: u64 = 0x5000;
const CALL_USED: u64 = 0x6000;
const CALL_BUFFER: u64 = 0x7000;

#[derive(Default)]
struct Model {
    ready: Option<(u32, u32)>,
    report: Option<Resize>,
    pressure: Option<Pressure>,
    foreign: Option<u32>,
    bad: u64,
    /// Calls that were made and not taken, with the answer.
    calls: BTreeMap<u32, Option<Answer>>,
}

/// Plays one guest.
///
/// # Panics
/// When the state differs from the model, or a text is out of bounds.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let config = HotplugConfig::new(Size(128 << 20));
    let mut devices = Devices::new(Size(BOOT), &config).expect("resources of the host");
    initialise(&mut devices);
    let (mut model, mut sent, mut calls) = (Model::default(), 0_u16, Calls::default());
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        match input.byte() {
            0..20 => {
                let op = input.pick(&[Op::Stats, Op::Check, Op::Race { cycles: 1, held: false }]);
                let id = devices.call(op).expect("the guest has read all earlier calls");
                model.calls.insert(id, None);
                calls.made(&mut devices, Call { id, op });
                if input.byte() < 160 {
                    calls.offer(&mut devices);
                }
            }
            20..40 => {
                let index = input.below(8) as usize;
                let Some(&id) = model.calls.keys().nth(index) else { continue };
                assert_eq!(devices.take_answer(id), model.calls.remove(&id).flatten(), "call {id}");
            }
            40..44 => {
                devices.reset().expect("the host takes memory back");
                initialise(&mut devices);
                (sent, calls) = (0, Calls::default());
                (model.ready, model.report, model.pressure) = (None, None, None);
                model.foreign = None;
                // The guest that would have answered is gone. An answer that came stays.
                for (id, _) in model.calls.extract_if(.., |_, answer| answer.is_none()) {
                    assert_eq!(devices.take_answer(id), None, "call {id}");
                }
            }
            choice => {
                let record = record(&mut input, choice, &model);
                model.learn(&record);
                send(&mut devices, &record, &mut sent);
            }
        }
        let state = devices.state();
        assert_eq!(state.ready.map(|ready| (ready.cpus, ready.mem_devices)), model.ready);
        assert_eq!(state.bad_records, model.bad, "bad records");
        assert_eq!(state.mem[0].report, model.report);
        assert_eq!(state.pressure, model.pressure);
        assert_eq!(state.foreign_records, model.foreign);
        assert!(state.death.is_none() && !state.powered_off, "a record ends no guest");
        if let Some(report) = model.report {
            // Any generation, and any size.
            let _ = (state.mem[0].stopped(report.requested), state.mem[0].arrived(report.requested));
        }
    }
}

/// The guest's side of the queue of calls.
#[derive(Default)]
struct Calls {
    /// Made, and not received.
    waiting: VecDeque<Call>,
    /// Buffers that were offered, and that came back.
    offered: u16,
    received: u16,
}

impl Calls {
    /// A call was made. It is there when there was a buffer for it.
    fn made(&mut self, devices: &mut Devices, call: Call) {
        self.waiting.push_back(call);
        if self.offered > self.received {
            self.receive(devices);
        }
    }

    /// Offers the buffer until no call waits.
    fn offer(&mut self, devices: &mut Devices) {
        while self.offered == self.received {
            assert!(devices.write_memory(CALL_RING + 4 + 2 * u64::from(self.offered % 16), &[0; 2]));
            self.offered += 1;
            assert!(devices.write_memory(CALL_RING + 2, &self.offered.to_le_bytes()));
            devices.serve(Which::Control);
            if !self.waiting.is_empty() {
                self.receive(devices);
            }
        }
    }

    /// Reads the call that waited longest.
    fn receive(&mut self, devices: &Devices) {
        let mut used = [0; 2];
        assert!(devices.read_memory(CALL_USED + 2, &mut used));
        assert_eq!(u16::from_le_bytes(used), self.offered, "buffers for calls that came back");
        let mut element = [0; 8];
        assert!(devices.read_memory(CALL_USED + 4 + 8 * u64::from(self.received % 16), &mut element));
        let len = u32::from_le_bytes(*element.last_chunk().expect("8 bytes")) as usize;
        let mut record = vec![0; len];
        assert!(len <= MAX_RECORD && devices.read_memory(CALL_BUFFER, &mut record));
        assert_eq!(decode(&record).ok(), self.waiting.pop_front());
        self.received += 1;
    }
}

impl Model {
    fn learn(&mut self, record: &[u8]) {
        let Ok(report) = decode::<Report>(record) else {
            self.bad += 1;
            return;
        };
        let mut buffer = [0; MAX_RECORD];
        let again = encode(&report, &mut buffer).expect("what was decoded fits");
        assert_eq!(decode(again), Ok(report), "encoded again");
        match report {
            Report::Speaks { version } => self.foreign = (version != RECORDS_VERSION).then_some(version),
            Report::Ready { cpus, mem_devices } if self.ready.is_none() && self.foreign.is_none() => {
                self.ready = Some((cpus, mem_devices));
            }
            Report::Done { id, answer } => {
                bounded(&answer.to_string());
                let nobody = |_: Handle| None;
                if let Answer::Failed(failure) = &answer {
                    bounded(&Named::new(failure, &nobody).to_string());
                }
                match self.calls.get_mut(&id) {
                    Some(open @ None) => *open = Some(answer),
                    _ => self.bad += 1,
                }
            }
            Report::Resize(resize) => {
                bounded(&resize.state.to_string());
                if resize.region == REGION {
                    self.report = Some(resize);
                } else {
                    self.bad += 1;
                }
            }
            Report::Pressure(pressure) => {
                bounded(&pressure.to_string());
                self.pressure = Some(pressure);
            }
            Report::Ready { .. } => self.bad += 1,
        }
    }
}

fn bounded(text: &str) {
    assert!(text.len() <= MOST_TEXT, "{} bytes of text", text.len());
    let odd = text.chars().find(|&c| c.is_control() && c != '\n');
    assert_eq!(odd, None, "a character that a terminal obeys");
}

/// A record: any bytes, or one that is meant for something that is there.
fn record(input: &mut Input<'_>, choice: u8, model: &Model) -> Vec<u8> {
    let count = match choice {
        44..60 => MAX_RECORD - 2 + usize::from(input.byte() % 5),
        _ => usize::from(input.byte()),
    };
    let mut bytes = input.bytes(count).to_vec();
    if choice < 60 {
        bytes.resize(count, input.byte());
    }
    let mut buffer = [0; MAX_RECORD];
    match (choice, decode::<Report>(&bytes)) {
        (100..180, Ok(Report::Done { answer, .. })) => {
            let index = input.below(8) as usize;
            let id = model.calls.keys().nth(index).copied().unwrap_or(1);
            encode(&Report::Done { id, answer }, &mut buffer).expect("it fits").to_vec()
        }
        (100..180, Ok(Report::Resize(resize))) => {
            let resize = Resize { region: REGION, ..resize };
            encode(&Report::Resize(resize), &mut buffer).expect("it fits").to_vec()
        }
        _ => bytes,
    }
}

fn initialise(devices: &mut Devices) {
    let mut write = |offset, value: u32| devices.write(Which::Control, offset, &value.to_le_bytes());
    for (offset, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(offset, value);
    }
    for (queue, parts) in [(CALLS, [CALL_TABLE, CALL_RING, CALL_USED]), (REPORTS, [TABLE, RING, USED])] {
        write(0x30, queue);
        write(0x38, 16);
        for (offset, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            write(offset, address as u32);
        }
        write(0x44, 1);
    }
    write(0x70, 15);
    for start in [RING, USED, CALL_RING, CALL_USED] {
        assert!(devices.write_memory(start, &[0; 4]));
    }
    // The one buffer for calls is device-writable, and is not offered.
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&CALL_BUFFER.to_le_bytes());
    bytes[8..12].copy_from_slice(&(MAX_RECORD as u32).to_le_bytes());
    bytes[12] = 2;
    assert!(devices.write_memory(CALL_TABLE, &bytes));
}

/// Sends a record in two buffers and sees it come back.
fn send(devices: &mut Devices, record: &[u8], sent: &mut u16) {
    assert!(devices.write_memory(BUFFER, record));
    let first = (record.len() / 2) as u32;
    for (index, (offset, len, next)) in
        [(0, first, 1_u16), (u64::from(first), record.len() as u32 - first, 0)].into_iter().enumerate()
    {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(BUFFER + offset).to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&next.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        assert!(devices.write_memory(TABLE + 16 * index as u64, &bytes));
    }
    assert!(devices.write_memory(RING + 4 + 2 * u64::from(*sent % 16), &[0; 2]));
    *sent = sent.wrapping_add(1);
    assert!(devices.write_memory(RING + 2, &sent.to_le_bytes()));
    devices.serve(Which::Control);
    let mut used = [0; 2];
    assert!(devices.read_memory(USED + 2, &mut used));
    assert_eq!(u16::from_le_bytes(used), *sent, "chains that came back");
}
