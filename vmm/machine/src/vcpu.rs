//! One thread a vCPU: runs the guest, takes its exits to the devices, and ends with a report when
//! the guest cannot go on.
//!
//! A vCPU that resets the machine ends alone: what stops the others and starts all again must be none
//! of them. A vCPU thread is stopped by a flag and a signal. The flag is read before every `KVM_RUN`; a
//! signal between that and the entry is lost, so [`Vcpus::stop`] repeats it until the thread is
//! gone. An idle vCPU halts inside KVM: its thread sleeps.
//!
//! A guest that touches unplugged memory dies of it. KVM says so in two ways: EFAULT where the memory
//! has a slot, an MMIO exit where it has none.
#![expect(unsafe_code, reason = "reads the member of kvm_run's union that the exit reason names")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use tidevm_abi::ExitCode;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::boot::Image;
use crate::bus::{Access, Bus};
use crate::death;
use crate::memory::Memory;
use crate::state::{Death, DeathKind, SharedState, State};
use crate::symbols::Symbols;

/// How long a vCPU may take to leave the guest. It takes microseconds; a host that needs longer is
/// broken or overloaded beyond use.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What all vCPUs of a machine use.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) bus: Bus,
    pub(crate) memory: Arc<Memory>,
    pub(crate) shared: Arc<SharedState>,
    pub(crate) kernel: Image,
    /// Written when the guest resets the machine.
    pub(crate) reset: EventFd,
    /// vCPUs shall leave the guest.
    pub(crate) stop: Arc<AtomicBool>,
    /// The VMM ends the machine: a guest's reset does not start it again.
    pub(crate) over: AtomicBool,
    /// One entry a vCPU, over all resets.
    pub(crate) counters: Vec<Counters>,
}

impl Machine {
    /// Exits since the machine was first started, one entry a vCPU.
    pub(crate) fn exits(&self) -> Vec<ExitCounts> {
        self.counters.iter().map(Counters::read).collect()
    }
}

/// How often a vCPU came out of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Port reads and writes.
    pub io: u64,
    /// Reads and writes of device registers in memory space.
    pub mmio: u64,
    /// Accesses to addresses at which there is nothing.
    pub stray: u64,
    /// Interrupted by a signal.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

/// [`ExitCounts`] while they are counted. Only their own thread writes them; others read them at
/// any time, in no order with anything.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    io: AtomicU64,
    mmio: AtomicU64,
    stray: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    fn read(&self) -> ExitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            io: read(&self.io),
            mmio: read(&self.mmio),
            stray: read(&self.stray),
            interrupted: read(&self.interrupted),
            other: read(&self.other),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The vCPUs of a machine, running or not.
#[derive(Debug)]
pub(crate) struct Vcpus {
    machine: Arc<Machine>,
    threads: Vec<JoinHandle<()>>,
}

/// vCPUs that are still in the guest, or held up on the way out.
#[derive(Debug, thiserror::Error)]
#[error("waited {limit:?} for {names} to leave the guest")]
pub(crate) struct StillRunning {
    names: String,
    limit: Duration,
}

impl Vcpus {
    /// The vCPUs of `machine`, none of which runs.
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        Self { machine, threads: Vec::new() }
    }

    /// Starts one thread for each of `vcpus`; none runs now.
    ///
    /// # Errors
    /// The host gives no thread; those that were started have ended.
    pub(crate) fn start(&mut self, vcpus: Vec<VcpuFd>) -> std::io::Result<()> {
        // Without a handler the signal would end the process; with one it ends a system call.
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        self.machine.stop.store(false, Ordering::Relaxed);
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let machine = Arc::clone(&self.machine);
            let name = format!("vcpu{index}");
            let thread = thread::Builder::new().name(name).spawn(move || run_to_end(vcpu, index, &machine));
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    self.stop(STOP_LIMIT).unwrap_or_else(|running| log::error!("{running}"));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends all threads.
    ///
    /// # Errors
    /// Threads that are not out of the guest within `limit`; they are left behind.
    pub(crate) fn stop(&mut self, limit: Duration) -> Result<(), StillRunning> {
        // Pairs with the load before each KVM_RUN; the signal brings a running vCPU there.
        self.machine.stop.store(true, Ordering::Release);
        let deadline = Instant::now() + limit;
        let mut threads = std::mem::take(&mut self.threads);
        while !threads.is_empty() {
            for thread in &threads {
                if !thread.is_finished()
                    && let Err(error) = thread.kill(SIGRTMIN())
                {
                    log::debug!("kick: {error}");
                }
            }
            thread::sleep(Duration::from_micros(200));
            let (finished, running) = threads.into_iter().partition(JoinHandle::is_finished);
            threads = running;
            for thread in finished {
                // Panics were caught and reported in the thread itself.
                drop(thread.join());
            }
            if !threads.is_empty() && Instant::now() > deadline {
                let names: Vec<_> = threads.iter().filter_map(|thread| thread.thread().name()).collect();
                return Err(StillRunning { names: names.join(", "), limit });
            }
        }
        Ok(())
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run_to_end(mut vcpu: VcpuFd, index: usize, machine: &Machine) {
    let end = catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, machine, &machine.counters[index])));
    let kind = match end {
        Ok(End::Stopped) => return,
        Ok(End::PoweredOff) => {
            machine.shared.change(State::power_off);
            return;
        }
        Ok(End::Reset) => {
            // Fails only when the counter is full, and then the reset is on its way.
            if let Err(error) = machine.reset.write(1) {
                log::debug!("reset: {error}");
            }
            return;
        }
        Ok(End::Died(kind)) => kind,
        Err(_) => DeathKind::VmmPanic,
    };
    let serial_tail = machine.bus.serial_tail();
    let symbols = Symbols::of(machine.kernel.bytes());
    let report = death::report(&vcpu, index, &machine.memory.view(), &symbols, &serial_tail);
    machine.shared.change(|state| state.died(Death { kind, report }));
}

/// Why a vCPU runs no more.
enum End {
    Stopped,
    PoweredOff,
    Reset,
    Died(DeathKind),
}

fn run(vcpu: &mut VcpuFd, machine: &Machine, counters: &Counters) -> End {
    while !machine.stop.load(Ordering::Acquire) {
        let step = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => (&counters.io, machine.bus.io_write(port, data), None),
            Ok(VcpuExit::IoIn(port, data)) => (&counters.io, machine.bus.io_read(port, data), None),
            Ok(VcpuExit::MmioRead(address, data)) => {
                (&counters.mmio, machine.bus.mmio_read(address, data), Some(address))
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                (&counters.mmio, machine.bus.mmio_write(address, data), Some(address))
            }
            // Nothing to do; KVM wants the loop to come round.
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_)) => {
                (&counters.other, Access::Done, None)
            }
            Ok(VcpuExit::Intr) => (&counters.interrupted, Access::Done, None),
            Err(error) if error.errno() == libc::EINTR => (&counters.interrupted, Access::Done, None),
            // A vCPU that waited for its SIPI: it came.
            Err(error) if error.errno() == libc::EAGAIN => (&counters.other, Access::Done, None),
            other => {
                count(&counters.other);
                let death = fatal(&other);
                return End::Died(match death {
                    DeathKind::InternalError(_) => DeathKind::InternalError(suberror(vcpu)),
                    death => death,
                });
            }
        };
        let (counter, access, address) = step;
        match access {
            Access::Done => count(counter),
            Access::Stray => {
                count(&counters.stray);
                let address = address.unwrap_or(0);
                if machine.memory.regions().iter().any(|region| region.contains(&address)) {
                    return End::Died(DeathKind::UnpluggedMemory(Some(address)));
                }
                stray(machine, address);
            }
            Access::Exit(code) => {
                count(counter);
                return exit(code);
            }
            Access::PowerOff => {
                count(counter);
                return End::PoweredOff;
            }
            Access::Reset => {
                count(counter);
                return End::Reset;
            }
        }
    }
    End::Stopped
}

fn exit(code: u8) -> End {
    const POWER_OFF: u8 = ExitCode::PowerOff as u8;
    const PANIC: u8 = ExitCode::Panic as u8;
    match code {
        POWER_OFF => End::PoweredOff,
        PANIC => End::Died(DeathKind::GuestPanic),
        code => End::Died(DeathKind::UnknownExitCode(code)),
    }
}

/// Counts an access to nothing, and says so the first time.
fn stray(machine: &Machine, address: u64) {
    let before = machine.shared.change(|state| {
        state.stray_accesses += 1;
        state.stray_accesses - 1
    });
    if before == 0 {
        log::warn!("the guest accesses {address:#x}: no device; further such accesses are only counted");
    }
}

/// What the guest dies of when `KVM_RUN` ends like this.
fn fatal(exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> DeathKind {
    match exit {
        Ok(VcpuExit::Shutdown) => DeathKind::TripleFault,
        Ok(VcpuExit::InternalError) => DeathKind::InternalError(0),
        Ok(VcpuExit::FailEntry(reason, _)) => DeathKind::FailEntry(*reason),
        Ok(VcpuExit::MemoryFault { gpa, .. }) => DeathKind::UnpluggedMemory(Some(*gpa)),
        Ok(_) => DeathKind::UnexpectedExit,
        // Guest memory that KVM cannot reach is memory that this process closed.
        Err(error) if error.errno() == libc::EFAULT => DeathKind::UnpluggedMemory(None),
        Err(error) => DeathKind::RunFailed(error.errno()),
    }
}

fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: every member of the union is plain numbers, so any bytes are valid for it; that
    // they mean this one follows from the exit reason, KVM_EXIT_INTERNAL_ERROR, of the last run.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}
