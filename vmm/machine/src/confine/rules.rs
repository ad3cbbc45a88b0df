//! Which system calls each kind of thread makes, and why: the data behind the filters and behind the tables of
//! `docs/confinement.md`, which a test compares with it.
//!
//! A rule may also check arguments where that is cheap: the request of an `ioctl`, the advice of a `madvise`, that
//! memory is never made executable. What a thread needs only while it starts is not here, because a filter is
//! installed after that. The list is the union over the C libraries glibc and musl.
//!
//! Invariant: no rule opens a file, makes a socket that leads out of the process, starts a program or a thread, or changes an identity, except those
//! of [`Kind::Starter`].

use std::fmt;

use kvm_bindings::{
    kvm_cpuid2, kvm_ioeventfd, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_translation, kvm_userspace_memory_region, kvm_vcpu_events,
};
use syscalls::Sysno;

mod saves;
mod starter;

use saves::{SESSION_SAVES, VCPU_SAVES};
use starter::STARTER;

/// What a thread is for. Each kind has a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs a vCPU.
    Vcpu {
        /// [`crate::Config::save`] is given.
        saves: bool,
    },
    /// The event loop. A VM that can be reset makes machines of KVM there.
    Events {
        /// [`crate::Config::reboot`] or [`crate::Config::resets`].
        resets: bool,
    },
    /// Serves a disk, whose file is open.
    Disk,
    /// Waits for termination signals.
    Signals,
    /// Waits for the end of the grace after a signal.
    Grace,
    /// The thread that started the VM, from then on.
    Session {
        /// [`crate::Config::save`] is given.
        saves: bool,
    },
    /// Answers the clients of a control plane, whose listening socket is open.
    Api,
    /// Sizes the VM by what its guest uses.
    Sizer,
    /// Reads the lines of a script or a prompt from standard input.
    Input,
    /// A thread that starts VMs one after another, each in a thread of its own, and runs none itself.
    Starter,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::Vcpu { saves: false },
        Self::Vcpu { saves: true },
        Self::Events { resets: false },
        Self::Events { resets: true },
        Self::Disk,
        Self::Signals,
        Self::Grace,
        Self::Session { saves: false },
        Self::Session { saves: true },
        Self::Api,
        Self::Sizer,
        Self::Input,
        Self::Starter,
    ];

    /// The rules of this kind beside [`EVERY`], in groups.
    #[must_use]
    pub const fn own(self) -> &'static [&'static [Rule]] {
        match self {
            Self::Vcpu { saves: false } => &[VCPU],
            Self::Vcpu { saves: true } => &[VCPU, VCPU_SAVES],
            Self::Events { resets: false } => &[EVENTS],
            Self::Events { resets: true } => &[EVENTS, RESETS],
            Self::Disk => &[DISK],
            Self::Signals => &[SIGNALS],
            Self::Grace => &[GRACE],
            Self::Session { saves: false } => &[SESSION],
            Self::Session { saves: true } => &[SESSION, SESSION_SAVES],
            Self::Api => &[API],
            Self::Sizer => &[SIZER],
            Self::Input => &[INPUT],
            Self::Starter => &[VCPU, EVENTS, RESETS, SESSION, STARTER],
        }
    }

    /// All rules of this kind. A call may have several: each of them allows it.
    pub fn rules(self) -> impl Iterator<Item = &'static Rule> {
        EVERY.iter().chain(self.own().iter().copied().flatten())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpu { saves: false } => "vcpu",
            Self::Vcpu { saves: true } => "vcpu with saves",
            Self::Events { resets: false } => "events",
            Self::Events { resets: true } => "events with resets",
            Self::Disk => "disk",
            Self::Signals => "signals",
            Self::Grace => "grace",
            Self::Session { saves: false } => "session",
            Self::Session { saves: true } => "session with saves",
            Self::Api => "api",
            Self::Sizer => "sizer",
            Self::Input => "input",
            Self::Starter => "starter",
        })
    }
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The call.
    pub call: Sysno,
    /// With which arguments.
    pub check: Check,
    /// What it is needed for.
    pub why: &'static str,
}

/// A condition on the arguments of a call.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// None.
    Any,
    /// The argument with this index, as 32 bits, is one of these values.
    OneOf(u8, &'static [(u32, &'static str)]),
    /// The first argument is the id of this process.
    OwnProcess,
    /// The third argument, a protection, does not have `PROT_EXEC`.
    NoExec,
    /// [`Check::NoExec`], and the flags in the fourth argument have this bit.
    NoExecMap(u32, &'static str),
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::OneOf(_, values) => {
                let names: Vec<_> = values.iter().map(|(_, name)| *name).collect();
                f.write_str(&names.join(", "))
            }
            Self::OwnProcess => f.write_str("this process"),
            Self::NoExec => f.write_str("not PROT_EXEC"),
            Self::NoExecMap(_, name) => write!(f, "{name}, not PROT_EXEC"),
        }
    }
}

const fn any(call: Sysno, why: &'static str) -> Rule {
    Rule { call, check: Check::Any, why }
}

const fn rule(call: Sysno, check: Check, why: &'static str) -> Rule {
    Rule { call, check, why }
}

const fn ioctl(requests: &'static [(u32, &'static str)], why: &'static str) -> Rule {
    Rule { call: Sysno::ioctl, check: Check::OneOf(1, requests), why }
}

/// The number of a request of KVM, from its number, its direction and the size of its argument.
const fn kvm(number: u32, direction: u32, size: usize) -> u32 {
    const KVMIO: u32 = 0xae;
    direction << 30 | (size as u32) << 16 | KVMIO << 8 | number
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `TCGETS` of `struct termios2`, which newer C libraries use.
const TCGETS2: u32 = 0x802c_542a;

/// `TCSETS` of `struct termios2`.
const TCSETS2: u32 = 0x402c_542b;

/// `TCSETSW` of `struct termios2`.
const TCSETSW2: u32 = 0x402c_542c;

/// What every thread may do: use memory and locks, log, end, and report a forbidden call.
pub const EVERY: &[Rule] = &[
    any(Sysno::futex, "locks, channels, the wait for a thread"),
    any(Sysno::sched_yield, "a channel that is busy"),
    any(Sysno::clock_gettime, "clocks that the host has no fast path for"),
    any(Sysno::write, "eventfds, the console, warnings, reports"),
    any(Sysno::writev, "as write"),
    any(Sysno::close, "descriptors that are dropped"),
    rule(
        Sysno::fcntl,
        Check::OneOf(1, &[(libc::F_GETFD as u32, "F_GETFD")]),
        "before close, in builds with debug assertions",
    ),
    any(Sysno::brk, "the allocator"),
    rule(Sysno::mmap, Check::NoExecMap(libc::MAP_ANONYMOUS as u32, "MAP_ANONYMOUS"), "the allocator"),
    rule(Sysno::mprotect, Check::NoExec, "the allocator; opening and closing guest memory"),
    any(Sysno::mremap, "the allocator"),
    any(Sysno::munmap, "the allocator; memory of a VM that ends"),
    rule(
        Sysno::madvise,
        Check::OneOf(
            2,
            &[
                (libc::MADV_COLD as u32, "MADV_COLD"),
                (libc::MADV_DONTNEED as u32, "MADV_DONTNEED"),
                (libc::MADV_DONTNEED_LOCKED as u32, "MADV_DONTNEED_LOCKED"),
                (libc::MADV_FREE as u32, "MADV_FREE"),
                (libc::MADV_HUGEPAGE as u32, "MADV_HUGEPAGE"),
            ],
        ),
        "the allocator; guest memory that is given back; the stack of a thread that ends",
    ),
    any(Sysno::sched_getaffinity, "the allocator asks for the number of CPUs"),
    any(Sysno::getrandom, "seeds of hash maps"),
    any(Sysno::rt_sigprocmask, "a thread that ends or is signalled"),
    any(Sysno::rt_sigreturn, "the end of a signal handler"),
    any(Sysno::restart_syscall, "a wait that a stop of the process cut short"),
    any(Sysno::sigaltstack, "a thread that ends"),
    any(Sysno::gettid, "signals to a thread"),
    any(Sysno::getpid, "signals to a thread"),
    rule(Sysno::tgkill, Check::OwnProcess, "stopping vCPUs; abort"),
    rule(
        Sysno::rt_sigaction,
        Check::OneOf(0, &[(libc::SIGSEGV as u32, "SIGSEGV"), (libc::SIGBUS as u32, "SIGBUS")]),
        "a crash takes its default action after the message",
    ),
    any(Sysno::exit, "the end of a thread"),
    any(Sysno::exit_group, "the end of the process"),
    rule(
        Sysno::prctl,
        Check::OneOf(0, &[(libc::PR_GET_NAME as u32, "PR_GET_NAME")]),
        "the report of a forbidden call",
    ),
    any(Sysno::poll, "the report waits a moment for room on stderr"),
    ioctl(
        &[
            (libc::TCGETS as u32, "TCGETS"),
            (libc::TCSETS as u32, "TCSETS"),
            (TCGETS2, "TCGETS2"),
            (TCSETS2, "TCSETS2"),
        ],
        "the terminal is restored, whichever thread ends the process",
    ),
];

const VCPU: &[Rule] = &[
    ioctl(&[(kvm(0x80, NONE, 0), "KVM_RUN")], "running the guest"),
    ioctl(
        &[
            (kvm(0x81, READ, size_of::<kvm_regs>()), "KVM_GET_REGS"),
            (kvm(0x83, READ, size_of::<kvm_sregs>()), "KVM_GET_SREGS"),
            (kvm(0x85, READ | WRITE, size_of::<kvm_translation>()), "KVM_TRANSLATE"),
            (kvm(0x8e, READ, size_of::<kvm_lapic_state>()), "KVM_GET_LAPIC"),
            (kvm(0x9f, READ, size_of::<kvm_vcpu_events>()), "KVM_GET_VCPU_EVENTS"),
        ],
        "the text on a death; a look at a guest that does not answer",
    ),
    ioctl(&[(kvm(0x98, READ, size_of::<kvm_mp_state>()), "KVM_GET_MP_STATE")], "the wait for a SIPI"),
    any(Sysno::nanosleep, "the wait for a SIPI"),
    any(Sysno::clock_nanosleep, "the wait for a SIPI"),
];

const EVENTS: &[Rule] = &[
    any(Sysno::epoll_wait, "the wait of the loop"),
    any(Sysno::epoll_pwait, "the wait of the loop"),
    any(Sysno::epoll_ctl, "clients of the console; input that the guest has no room for is not listened to"),
    any(Sysno::accept4, "a client of the console, whose socket is open"),
    ioctl(&[(libc::FIONBIO as u32, "FIONBIO")], "a client of the console never makes a thread wait"),
    any(Sysno::read, "eventfds, timers, console input"),
    any(Sysno::pread64, "limits of the host, while a driver waits for it"),
    rule(Sysno::prlimit64, Check::OneOf(0, &[(0, "this process")]), "as pread64"),
    any(Sysno::timerfd_settime, "the retry of a driver, the pause between resets, the times of statistics"),
    ioctl(
        &[(kvm(0x46, WRITE, size_of::<kvm_userspace_memory_region>()), "KVM_SET_USER_MEMORY_REGION")],
        "memory that is plugged or unplugged",
    ),
];

const RESETS: &[Rule] = &[
    any(Sysno::nanosleep, "the wait for vCPUs that are told to stop"),
    any(Sysno::clock_nanosleep, "the wait for vCPUs that are told to stop"),
    ioctl(
        &[
            (kvm(0x01, NONE, 0), "KVM_CREATE_VM"),
            (kvm(0x04, NONE, 0), "KVM_GET_VCPU_MMAP_SIZE"),
            (kvm(0x41, NONE, 0), "KVM_CREATE_VCPU"),
            (kvm(0x47, NONE, 0), "KVM_SET_TSS_ADDR"),
            (kvm(0x60, NONE, 0), "KVM_CREATE_IRQCHIP"),
            (kvm(0x76, WRITE, size_of::<kvm_irqfd>()), "KVM_IRQFD"),
            (kvm(0x79, WRITE, size_of::<kvm_ioeventfd>()), "KVM_IOEVENTFD"),
        ],
        "the machine of KVM that a reset makes",
    ),
    ioctl(
        &[
            (kvm(0x81, READ, size_of::<kvm_regs>()), "KVM_GET_REGS"),
            (kvm(0x82, WRITE, size_of::<kvm_regs>()), "KVM_SET_REGS"),
            (kvm(0x83, READ, size_of::<kvm_sregs>()), "KVM_GET_SREGS"),
            (kvm(0x84, WRITE, size_of::<kvm_sregs>()), "KVM_SET_SREGS"),
            (kvm(0x90, WRITE, size_of::<kvm_cpuid2>()), "KVM_SET_CPUID2"),
            (kvm(0xa3, NONE, 0), "KVM_GET_TSC_KHZ"),
        ],
        "the vCPUs that a reset makes",
    ),
    rule(
        Sysno::mmap,
        Check::NoExecMap(libc::MAP_SHARED as u32, "MAP_SHARED"),
        "the page that KVM shares with a new vCPU",
    ),
];

const DISK: &[Rule] = &[
    any(Sysno::read, "the wait for requests"),
    any(Sysno::pread64, "sectors that the guest reads"),
    any(Sysno::pwrite64, "sectors that the guest writes"),
    any(Sysno::fdatasync, "a flush"),
];

const SIGNALS: &[Rule] = &[
    any(Sysno::epoll_wait, "the wait of the loop"),
    any(Sysno::epoll_pwait, "the wait of the loop"),
    any(Sysno::read, "the signals; the event that stops the loop"),
];

const GRACE: &[Rule] = &[
    any(Sysno::rt_sigtimedwait, "the grace, and the signal that ends it early"),
    any(Sysno::nanosleep, "the grace"),
    any(Sysno::clock_nanosleep, "the grace"),
];

const SESSION: &[Rule] = &[
    any(Sysno::pread64, "the memory that the host holds, from a descriptor on /proc/self/smaps"),
    any(Sysno::nanosleep, "the wait for vCPUs that are told to stop"),
    any(Sysno::clock_nanosleep, "the wait for vCPUs that are told to stop"),
];

const API: &[Rule] = &[
    any(Sysno::epoll_wait, "the wait of the loop"),
    any(Sysno::epoll_pwait, "the wait of the loop"),
    any(Sysno::epoll_ctl, "clients that come and go, and those that do not read their answers"),
    any(Sysno::accept4, "a client"),
    ioctl(&[(libc::FIONBIO as u32, "FIONBIO")], "a client never makes the thread wait"),
    any(Sysno::read, "requests, eventfds"),
    any(Sysno::recvfrom, "as read"),
    any(Sysno::sendto, "answers"),
    any(Sysno::pread64, "the memory that the host holds, from a descriptor on /proc/self/smaps"),
];

const SIZER: &[Rule] = &[
    any(Sysno::epoll_wait, "the wait for events, or for the next look"),
    any(Sysno::epoll_pwait, "the wait for events, or for the next look"),
    any(Sysno::epoll_ctl, "changes of the VM are not listened to while there is nothing to do"),
    any(Sysno::read, "eventfds"),
];

const INPUT: &[Rule] = &[
    any(Sysno::read, "a line, or a key"),
    rule(
        Sysno::socketpair,
        Check::OneOf(0, &[(libc::AF_UNIX as u32, "AF_UNIX")]),
        "the line editor hears of a new size of the window",
    ),
    rule(
        Sysno::rt_sigaction,
        Check::OneOf(0, &[(libc::SIGINT as u32, "SIGINT"), (libc::SIGWINCH as u32, "SIGWINCH")]),
        "the line editor hears of a new size of the window",
    ),
    ioctl(
        &[
            (libc::FIONBIO as u32, "FIONBIO"),
            (libc::TIOCGWINSZ as u32, "TIOCGWINSZ"),
            (libc::TCSETSW as u32, "TCSETSW"),
            (TCSETSW2, "TCSETSW2"),
        ],
        "the line editor sets the terminal and asks for its size",
    ),
];
