//! Rows on drivers that break the rules of queues (virtio 1.3, section 2.7): T31 to T43.
//!
//! No rule says what a device does then. It may answer, give the chain back empty, want a reset, or do nothing. It must not
//! end its machine, must not hang, and must work after a reset.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Row;
use crate::judge::answer::{Answer, Came, STATE, Stop, fail, reject};
use crate::judge::line::wait;
use crate::judge::queue::{Descriptor, INDIRECT, MOST_ENTRIES, NEXT, WRITE};
use crate::judge::registers::{INACCESSIBLE, INDIRECT_DESC, NEEDS_RESET, VERSION_1};
use crate::judge::rig::{Rig, SILENCE, request};

pub const ROWS: &[Row] = &[
    Row { id: "T31", sent: "a chain that leads back to itself", run: circle },
    Row { id: "T32", sent: "a descriptor whose next one the table does not have", run: next_outside },
    Row {
        id: "T33",
        sent: "a chain that begins at a descriptor that the table does not have",
        run: head_outside,
    },
    Row { id: "T34", sent: "an index of the driver's ring that is 1000 ahead", run: index_ahead },
    Row { id: "T35", sent: "a table of indirect descriptors", run: indirect },
    Row { id: "T36", sent: "a request in unplugged memory", run: |rig| elsewhere(rig, true, Rig::unplugged) },
    Row {
        id: "T37",
        sent: "an answer in unplugged memory",
        run: |rig| elsewhere(rig, false, Rig::unplugged),
    },
    Row { id: "T38", sent: "a request and an answer in registers of the local APIC", run: in_registers },
    Row { id: "T39", sent: "a request behind all memory, and one across 2^64", run: nowhere },
    Row { id: "T40", sent: "a request buffer of 4 GiB less one byte", run: huge },
    Row { id: "T41", sent: "the buffer for the answer before that of the request", run: wrong_order },
    Row { id: "T42", sent: "queues of 17 entries, and of more than there can be", run: bad_sizes },
    Row { id: "T43", sent: "rings at 0, misaligned, in unplugged memory, behind all memory", run: bad_rings },
];

/// The registers of the local APIC.
const LOCAL_APIC: u64 = 0xfee0_0000;
/// Behind the memory of any machine that the judge starts.
const NOWHERE: u64 = 1 << 45;

impl Rig {
    /// An address in memory that is not plugged.
    fn unplugged(&self) -> u64 {
        self.address(3) + 0x1000
    }

    /// The descriptors of STATE of block 0: of the request, and of its answer.
    fn descriptors(&self) -> [Descriptor; 2] {
        let addr = self.queue.put_request(0, &request(STATE, self.address(0), 1));
        let answer = self.queue.clear_response(0);
        [
            Descriptor { addr, len: 24, flags: NEXT, next: 1 },
            Descriptor { addr: answer, len: 10, flags: WRITE, next: 0 },
        ]
    }
}

/// Sends the chain that begins at `head`, and sees whether the device survives it.
fn send(rig: &mut Rig, head: u16) -> Came {
    rig.queue.offer(head);
    rig.notify();
    survived(rig)
}

/// Waits for what comes of what was sent last, and has the device work after a reset.
fn survived(rig: &mut Rig) -> Came {
    let queue = &rig.queue;
    wait(2 * SILENCE, || queue.used() == queue.offered());
    let (is_back, status) = (queue.used() == queue.offered(), rig.registers.status());
    let written = queue.used_entry(queue.used().wrapping_sub(1)).1;
    let answer = if is_back { Answer::of(&queue.response(0), written) } else { Answer::Nothing };
    rig.must_live()?;
    match answer {
        _ if status & NEEDS_RESET != 0 => reject!("DEVICE_NEEDS_RESET, and the device works after a reset"),
        Answer::Nothing => reject!("nothing comes back, and the device works after a reset"),
        Answer::Empty => reject!("the chain comes back empty, and the device goes on"),
        Answer::Error => reject!("ERROR, and the device goes on"),
        answer => Ok(format!("{answer}")),
    }
}

fn circle(rig: &mut Rig) -> Came {
    let [request, answer] = rig.descriptors();
    rig.queue.describe(0, Descriptor { next: 0, ..request });
    rig.queue.describe(1, answer);
    send(rig, 0)
}

fn next_outside(rig: &mut Rig) -> Came {
    let [request, _] = rig.descriptors();
    rig.queue.describe(0, Descriptor { next: u16::MAX, ..request });
    send(rig, 0)
}

fn head_outside(rig: &mut Rig) -> Came {
    send(rig, MOST_ENTRIES)
}

fn index_ahead(rig: &mut Rig) -> Came {
    let index = rig.queue.offered().wrapping_add(1000);
    rig.queue.set_available(index);
    rig.notify();
    survived(rig)
}

fn indirect(rig: &mut Rig) -> Came {
    let offered = rig.registers.features() & INDIRECT_DESC != 0;
    if offered {
        rig.start_with(VERSION_1 | INACCESSIBLE | INDIRECT_DESC, MOST_ENTRIES)?;
    }
    let descriptors = rig.descriptors();
    let table = rig.queue.describe_indirect(1, descriptors);
    rig.queue.describe(0, Descriptor { addr: table, len: 32, flags: INDIRECT, next: 0 });
    if !offered {
        return send(rig, 0);
    }
    rig.queue.offer(0);
    rig.notify();
    let (answer, _) = rig.take(0);
    rig.must_be(answer, Answer::Ack, || "STATE in an indirect table, which is offered".into())?;
    Ok("the feature is offered, and ACK".into())
}

/// Sends STATE whose request, or else whose answer, lies at `place`.
fn elsewhere(rig: &mut Rig, is_request: bool, place: impl Fn(&Rig) -> u64) -> Came {
    let addr = place(rig);
    let [request, answer] = rig.descriptors();
    let (request, answer) = if is_request {
        (Descriptor { addr, ..request }, answer)
    } else {
        (request, Descriptor { addr, ..answer })
    };
    rig.queue.describe(0, request);
    rig.queue.describe(1, answer);
    send(rig, 0)
}

/// The same, where no answer can be right.
fn must_refuse(rig: &mut Rig, is_request: bool, place: u64) -> Came {
    match elsewhere(rig, is_request, |_| place) {
        Ok(answer) if is_request && answer == "ACK" => fail!("ACK"),
        came => came,
    }
}

fn in_registers(rig: &mut Rig) -> Came {
    // The answer would be written over a register that can be read only: the APIC's version.
    let request = must_refuse(rig, true, LOCAL_APIC);
    let answer = elsewhere(rig, false, |_| LOCAL_APIC + 0x30);
    all([request, answer])
}

fn nowhere(rig: &mut Rig) -> Came {
    let behind = must_refuse(rig, true, NOWHERE);
    let across = must_refuse(rig, true, u64::MAX - 8);
    all([behind, across])
}

fn huge(rig: &mut Rig) -> Came {
    let [request, answer] = rig.descriptors();
    rig.queue.describe(0, Descriptor { len: u32::MAX, ..request });
    rig.queue.describe(1, answer);
    send(rig, 0)
}

fn wrong_order(rig: &mut Rig) -> Came {
    let [request, answer] = rig.descriptors();
    rig.queue.describe(0, Descriptor { flags: WRITE | NEXT, next: 1, ..answer });
    rig.queue.describe(1, Descriptor { flags: 0, next: 0, ..request });
    send(rig, 0)
}

/// Starts the device with a queue of `entries` entries and rings at `rings`, and sends STATE.
fn with_queue(rig: &mut Rig, entries: u16, rings: [u64; 3]) -> Came {
    rig.negotiate(VERSION_1 | INACCESSIBLE)?;
    rig.queue.restart(entries.clamp(1, MOST_ENTRIES));
    rig.registers.select(0);
    rig.registers.set_entries(entries);
    rig.registers.set_rings(rings);
    rig.registers.set_ready();
    let ready = rig.registers.is_ready();
    rig.go();
    for (index, descriptor) in (0..).zip(rig.descriptors()) {
        rig.queue.describe(index, descriptor);
    }
    match send(rig, 0) {
        Err(Stop::Reject(_)) if !ready => {
            reject!("the queue does not become ready, and the device works after a reset")
        }
        came => came,
    }
}

/// What came of several cases: the first failure, or else each different thing. A refusal is one as a whole only if there was
/// no answer.
fn all(cases: impl IntoIterator<Item = Came>) -> Came {
    let mut texts: Vec<String> = Vec::new();
    let mut refused = true;
    for came in cases {
        let text = match came {
            Ok(text) => {
                refused = false;
                text
            }
            Err(Stop::Reject(text)) => text,
            stop @ Err(_) => return stop,
        };
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let text = texts.join("; or ");
    if refused { Err(Stop::Reject(text)) } else { Ok(text) }
}

fn bad_sizes(rig: &mut Rig) -> Came {
    rig.registers.select(0);
    let (rings, most) = (rig.queue.rings(), rig.registers.most_entries());
    let more = u16::try_from(most * 2).unwrap_or(u16::MAX);
    all([17, 0, more].map(|entries| with_queue(rig, entries, rings)))
}

fn bad_rings(rig: &mut Rig) -> Came {
    let ([table, driver, device], unplugged) = (rig.queue.rings(), rig.unplugged());
    let places = [
        [0, driver, device],
        [table, driver, 0],
        [table + 8, driver, device],
        [table, driver + 1, device],
        [table, driver, device + 2],
        [table, driver, unplugged],
        [unplugged, driver, device],
        [table, unplugged, device],
        [table, driver, NOWHERE],
    ];
    all(places.map(|rings| with_queue(rig, 16, rings)))
}
