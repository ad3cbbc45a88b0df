//! A look at every vCPU of a running guest: its registers, whether it is halted, and the interrupts that wait.
//!
//! KVM gives the state of a vCPU only while the vCPU is out of the guest. So a look asks for the state and kicks the
//! vCPU threads; each thread reads its own vCPU before it enters the guest again. Nothing of the guest changes.
//!
//! A vCPU thread that is blocked on console output never reaches that point. So a look has a deadline:
//! [`LOOK_LIMIT`]. The thread may answer later, so each look has a number, and an answer carries the number of the
//! look that it belongs to.
//!
//! Invariant: a look reports only states that were read after it began.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    kvm_lapic_state,
};
use kvm_ioctls::VcpuFd;

use crate::clock::{self, Nap};
use crate::death::unplugged::{self, VmMemory};
use crate::memory::Memory;
use crate::registers::{self, Register};
use crate::symbols;
use crate::sync::lock;

/// Longest time that a look waits for the vCPUs to leave the guest, which takes microseconds.
pub const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// The time between two kicks. A kick is lost if it comes after the thread read the
/// request and before it enters the guest, so kicks are repeated.
const KICK: Duration = Duration::from_millis(1);

/// The flag of `rflags` that allows interrupts.
const INTERRUPTS: u64 = 1 << 9;

/// Offsets in the local APIC's registers: which interrupts are served, and which are requested.
const ISR: usize = 0x100;
const IRR: usize = 0x200;

/// What a look found of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuReport {
    /// Index of the vCPU.
    pub vcpu: usize,
    /// Its state.
    pub seen: LookResult,
}

/// Whether a vCPU could be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookResult {
    /// Yes.
    State(Box<VcpuState>),
    /// It has no run: the guest powered off, died, or asked for a reset.
    Ended,
    /// It did not leave the guest within [`LOOK_LIMIT`].
    Silent,
    /// The machine is being reset.
    Reset,
    /// KVM does not give its state; the text has the reason.
    Unreadable(String),
}

/// The state of a vCPU, between two instructions of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// What it does.
    pub activity: Activity,
    /// The guest's flag that allows interrupts.
    pub interrupts: bool,
    /// Where it is.
    pub rip: u64,
    /// The function of the kernel there, if the kernel's file tells it.
    pub symbol: Option<String>,
    /// Its other registers.
    pub registers: Vec<Register>,
    /// Vectors that its local APIC has requested and not delivered (IRR), in ascending order.
    pub requested: Vec<u8>,
    /// Vectors that its local APIC delivered and the guest has not acknowledged (ISR), in ascending order.
    pub in_service: Vec<u8>,
    /// The vector of an exception that is to be delivered.
    pub exception: Option<u8>,
    /// The vector of an interrupt that is to be delivered, and is not in the local APIC any more.
    pub interrupt: Option<u8>,
    /// A non-maskable interrupt is to be delivered.
    pub nmi: bool,
    /// Descriptions of the addresses that it uses whose memory is not plugged. KVM can try such an access
    /// again and again.
    pub unplugged: Vec<String>,
}

/// What a vCPU does (`KVM_GET_MP_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs instructions.
    Running,
    /// It waits for an interrupt, after `hlt`.
    Halted,
    /// It waits for its first INIT and SIPI.
    Waiting,
    /// It waits for a SIPI after an INIT.
    WaitingForSipi,
    /// Another state, by KVM's number.
    Other(u32),
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.pad("running"),
            Self::Halted => f.pad("halted"),
            Self::Waiting => f.pad("waits for INIT"),
            Self::WaitingForSipi => f.pad("waits for SIPI"),
            Self::Other(state) => f.pad(&format!("mp_state {state}")),
        }
    }
}

impl VcpuState {
    fn of(vcpu: &VcpuFd, memory: &Memory) -> Result<Self, kvm_ioctls::Error> {
        let (regs, sregs) = (vcpu.get_regs()?, vcpu.get_sregs()?);
        let (events, lapic) = (vcpu.get_vcpu_events()?, vcpu.get_lapic()?);
        let activity = match vcpu.get_mp_state()?.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Running,
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED => Activity::Waiting,
            KVM_MP_STATE_INIT_RECEIVED => Activity::WaitingForSipi,
            state => Activity::Other(state),
        };
        let view = memory.view();
        let unplugged = unplugged::find(regs.rip, regs.rsp, &sregs, &VmMemory { memory, view: &view });
        let exception = events.exception.injected != 0 || events.exception.pending != 0;
        Ok(Self {
            activity,
            interrupts: regs.rflags & INTERRUPTS != 0,
            rip: regs.rip,
            symbol: None,
            registers: registers::named(&regs, &sregs),
            requested: vectors(&lapic, IRR),
            in_service: vectors(&lapic, ISR),
            exception: exception.then_some(events.exception.nr),
            interrupt: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
            nmi: events.nmi.injected != 0 || events.nmi.pending != 0,
            unplugged: unplugged.iter().map(ToString::to_string).collect(),
        })
    }
}

/// The vectors whose bits are set in eight registers from `offset` on. There are 16 bytes from one to the next.
fn vectors(lapic: &kvm_lapic_state, offset: usize) -> Vec<u8> {
    let byte = |vector: u8| {
        let vector = usize::from(vector);
        lapic.regs[offset + vector / 32 * 16 + vector % 32 / 8]
    };
    (0..=u8::MAX).filter(|&vector| byte(vector) as u8 >> (vector % 8) & 1 != 0).collect()
}

/// The first line says what the vCPU does and where, and the second one what waits for it. Registers come last.
impl fmt::Display for VcpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("vcpu{}", self.vcpu);
        let state = match &self.seen {
            LookResult::State(state) => state,
            LookResult::Ended => return write!(f, "{name:<6} has ended"),
            LookResult::Silent => {
                return write!(f, "{name:<6} did not leave the guest within {LOOK_LIMIT:?}");
            }
            LookResult::Reset => return write!(f, "{name:<6} is being reset"),
            LookResult::Unreadable(why) => return write!(f, "{name:<6} KVM does not give its state: {why}"),
        };
        let interrupts = if state.interrupts { "on" } else { "off" };
        write!(f, "{name:<6} {:<14}  interrupts {interrupts:<3}  rip {:016x}", state.activity, state.rip)?;
        if let Some(symbol) = &state.symbol {
            write!(f, " in {symbol}")?;
        }
        let one = |vector: Option<u8>| hex(&Vec::from_iter(vector));
        write!(f, "\n       irr {}  isr {}", hex(&state.requested), hex(&state.in_service))?;
        write!(f, "  exception {}  interrupt {}", one(state.exception), one(state.interrupt))?;
        write!(f, "  nmi {}", if state.nmi { "yes" } else { "no" })?;
        state.unplugged.iter().try_for_each(|address| write!(f, "\n       {address}"))?;
        f.write_str(&registers::rows(&state.registers, 3, 5))
    }
}

fn hex(vectors: &[u8]) -> String {
    if vectors.is_empty() {
        return "-".to_owned();
    }
    vectors.iter().map(|vector| format!("{vector:02x}")).collect::<Vec<_>>().join(" ")
}

/// Where vCPU threads leave the state of their vCPUs.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Held during a look or a pause, so that the next thread that makes one waits, and is not told of a reset.
    turn: Mutex<()>,
    /// The number of the last look, from 1.
    wanted: AtomicU64,
    answers: Mutex<Answers>,
    answered: Condvar,
}

/// The answers to one look.
#[derive(Debug, Default)]
struct Answers {
    /// The number of the look.
    look: u64,
    /// By vCPU. Empty when the look is over.
    seen: Vec<Option<LookResult>>,
}

impl Looks {
    /// The turn of the calling thread. The threads before it take at most [`LOOK_LIMIT`] each.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Called by the thread of `index` before each entry into the guest. `last` is the last look that it answered.
    pub(super) fn answer(&self, index: usize, vcpu: &VcpuFd, memory: &Memory, last: &mut u64) {
        // Pairs with the store of `look`: the table of that look is there already.
        let wanted = self.wanted.load(Ordering::Acquire);
        if std::mem::replace(last, wanted) == wanted {
            return;
        }
        let seen = match VcpuState::of(vcpu, memory) {
            Ok(state) => LookResult::State(Box::new(state)),
            Err(error) => LookResult::Unreadable(error.to_string()),
        };
        self.put(wanted, index, seen);
    }

    /// Leaves the answer of `index` to the look with the number `look`. That look may be over.
    fn put(&self, look: u64, index: usize, seen: LookResult) {
        let mut answers = lock(&self.answers);
        if answers.look == look
            && let Some(answer) = answers.seen.get_mut(index)
        {
            *answer = Some(seen);
        }
        self.answered.notify_all();
    }

    /// Looks at `count` vCPUs. `kick` brings the threads that are in the guest out of it, and says of each whether
    /// its thread has ended. Only one look is made at a time.
    pub(super) fn look(&self, count: usize, mut kick: impl FnMut(usize) -> bool) -> Vec<LookResult> {
        let mut answers = lock(&self.answers);
        let look = self.wanted.load(Ordering::Relaxed) + 1;
        *answers = Answers { look, seen: vec![None; count] };
        self.wanted.store(look, Ordering::Release);
        let start = clock::now();
        while clock::now() - start < LOOK_LIMIT && answers.seen.iter().any(Option::is_none) {
            // The nap begins before the kicks, so that a stop of the process in between is noticed, too.
            let nap = Nap::of(KICK);
            for (index, answer) in answers.seen.iter_mut().enumerate() {
                if answer.is_none() && kick(index) {
                    *answer = Some(LookResult::Ended);
                }
            }
            answers =
                self.answered.wait_timeout(answers, nap.time()).unwrap_or_else(PoisonError::into_inner).0;
            nap.end();
        }
        let seen = std::mem::take(&mut answers.seen);
        seen.into_iter().map(|answer| answer.unwrap_or(LookResult::Silent)).collect()
    }
}

/// The reports of what was `seen`, with the names of the functions in the kernel's file.
pub(super) fn reports(seen: Vec<LookResult>, image: &[u8]) -> Vec<VcpuReport> {
    let report = |(vcpu, mut seen): (usize, LookResult)| {
        if let LookResult::State(state) = &mut seen {
            state.symbol = symbols::name_at(image, state.rip);
        }
        VcpuReport { vcpu, seen }
    };
    seen.into_iter().enumerate().map(report).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};
    use std::sync::atomic::Ordering;
    use std::{env, thread};

    use kvm_bindings::kvm_lapic_state;

    use super::{Activity, IRR, ISR, LOOK_LIMIT, LookResult, Looks, VcpuReport, VcpuState, vectors};

    #[test]
    fn a_vector_is_a_bit_of_a_register() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[IRR + 0x10] = 0b10;
        lapic.regs[IRR + 0x73] = i8::MIN;
        lapic.regs[ISR + 0x20] = 1;
        assert_eq!((vectors(&lapic, IRR), vectors(&lapic, ISR)), (vec![0x21, 0xff], vec![0x40]));
    }

    #[test]
    fn a_report_is_compact_and_aligned() {
        let state = VcpuState {
            activity: Activity::Halted,
            interrupts: false,
            rip: 0xffff_ffff_8000_1234,
            symbol: Some("tidevm::halt+0x2".to_owned()),
            registers: vec![("rax", 1), ("rbx", 2), ("rcx", 3), ("r10", 4)],
            requested: vec![0x31, 0xec],
            in_service: vec![],
            exception: None,
            interrupt: Some(0x20),
            nmi: false,
            unplugged: vec!["not plugged: the stack below 0x1000".to_owned()],
        };
        let report = VcpuReport { vcpu: 1, seen: LookResult::State(Box::new(state)) };
        let text = "\
vcpu1  halted          interrupts off  rip ffffffff80001234 in tidevm::halt+0x2
       irr 31 ec  isr -  exception -  interrupt 20  nmi no
       not plugged: the stack below 0x1000
      rax 0000000000000001   rbx 0000000000000002   rcx 0000000000000003
      r10 0000000000000004";
        assert_eq!(report.to_string(), text);
        assert!(text.lines().skip(1).all(|line| line.len() <= 76), "a row of the table is 80 wide");
        let silent = VcpuReport { vcpu: 12, seen: LookResult::Silent };
        assert_eq!(silent.to_string(), "vcpu12 did not leave the guest within 1s");
    }

    #[test]
    fn a_vcpu_that_does_not_leave_the_guest_is_not_waited_for() {
        let mut kicks = 0;
        let seen = Looks::default().look(2, |vcpu| {
            kicks += 1;
            vcpu == 1
        });
        assert_eq!(seen, [LookResult::Silent, LookResult::Ended]);
        assert!(kicks > 2, "a kick that is lost is repeated, for {LOOK_LIMIT:?}");
    }

    /// A vCPU thread read its vCPU for the first look, and comes with it in the second one.
    #[test]
    fn an_answer_to_an_earlier_look_is_not_one_to_the_next() {
        let looks = &Looks::default();
        assert_eq!(looks.look(1, |_| true), [LookResult::Ended]);
        let first = looks.wanted.load(Ordering::Acquire);
        let answer = |text: &str| LookResult::Unreadable(text.to_owned());
        let seen = thread::scope(|scope| {
            let mut late = None;
            looks.look(1, |_| {
                let late =
                    late.get_or_insert_with(|| scope.spawn(move || looks.put(first, 0, answer("late"))));
                if late.is_finished() {
                    let second = looks.wanted.load(Ordering::Acquire);
                    scope.spawn(move || looks.put(second, 0, answer("in time")));
                }
                false
            })
        });
        assert_eq!(seen, [answer("in time")]);
    }

    /// The process is stopped for two seconds, twice the limit, while the look waits for its first answer.
    #[test]
    fn a_stop_of_the_process_does_not_count() {
        const NAME: &str = "vm::look::tests::a_stop_of_the_process_does_not_count";
        const INNER: &str = "TIDEVM_TEST_STOPPED";
        if env::var_os(INNER).is_some() {
            let mut kicks = 0;
            let seen = Looks::default().look(1, |_| {
                kicks += 1;
                if kicks == 1 {
                    let stop = "kill -STOP $0; (sleep 2; kill -CONT $0) &";
                    let shell = Command::new("sh").args(["-c", stop, &process::id().to_string()]).status();
                    assert!(shell.unwrap().success());
                }
                kicks > 1
            });
            assert_eq!((seen, kicks), (vec![LookResult::Ended], 2));
            return;
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", NAME, "--test-threads=1"]).env(INNER, "");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
