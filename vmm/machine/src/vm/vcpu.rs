//! One thread per vCPU: runs the guest, takes its exits to the devices, and records a death when the guest
//! cannot go on.
//!
//! A vCPU that asks for a reset only stops itself. The event loop stops the other vCPUs and starts all of them
//! again, because no vCPU thread can wait for its own vCPU's end.
//!
//! A vCPU thread is stopped by a flag and a signal. The thread reads the flag before every `KVM_RUN`. A
//! signal between the read and the entry is lost, so [`Vcpus::stop`] repeats it until the vCPU has stopped.
//! An idle vCPU halts inside KVM: its thread sleeps.
//!
//! A guest that touches unplugged memory dies. KVM reports the access in two ways: as EFAULT where the memory
//! has a memslot, as an MMIO exit where it has none. What KVM does not report at all, [`unplugged`] finds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};
use tidevm_abi::ExitCode;
use vm_memory::GuestAddress;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exits::{ExitCounters, count};
use super::kvm_run::{port_access, suberror};
use super::look::LookResult;
use super::shared::VmShared;
use super::sipi::SipiWait;
use crate::bus::Access;
use crate::clock;
use crate::confine::rules::Kind;
use crate::confine::thread::spawn;
use crate::death::unplugged::{self, Unplugged, VmMemory};
use crate::death::{Death, DeathKind, text};
use crate::error::{StartError, host};
use crate::memory::View;
use crate::process::room_for_threads;
use crate::state::State;

/// How long a vCPU may take to leave the guest. It normally takes microseconds; a host that needs longer than
/// this limit is broken or unusably overloaded.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The vCPU threads of a VM. They live as long as the VM: a reset hands them other vCPUs, because a thread that is
/// locked in starts no other thread.
#[derive(Debug)]
pub(super) struct Vcpus {
    shared: Arc<VmShared>,
    threads: Vec<VcpuThread>,
}

/// A thread that runs one vCPU after another.
#[derive(Debug)]
struct VcpuThread {
    thread: JoinHandle<()>,
    /// The vCPU to run next.
    next: SyncSender<VcpuFd>,
    /// Set by the starter; cleared by the thread when it has let go of the vCPU.
    running: Arc<AtomicBool>,
}

impl VcpuThread {
    fn is_running(&self) -> bool {
        // A thread that panicked on its way out cleared nothing.
        self.running.load(Ordering::Acquire) && !self.thread.is_finished()
    }

    /// Brings the thread out of a system call.
    fn kick(&self) {
        if let Err(error) = self.thread.kill(SIGRTMIN()) {
            log::debug!("kick: {error}");
        }
    }
}

/// vCPUs that are still in the guest, or blocked on the way out.
#[derive(Debug, thiserror::Error)]
#[error("waited {limit:?} for {names} to leave the guest")]
pub(super) struct StillRunning {
    names: String,
    limit: Duration,
}

impl Vcpus {
    /// `shared` has no threads for vCPUs yet.
    pub(super) fn new(shared: Arc<VmShared>) -> Self {
        Self { shared, threads: Vec::new() }
    }

    /// Makes one thread for each vCPU of the VM, locked in and idle.
    ///
    /// # Errors
    /// The host provides no thread, or one cannot be locked in. The threads that were made end with this value.
    pub(super) fn prepare(&mut self) -> Result<(), StartError> {
        const WHAT: &str = "start a vCPU thread";
        let count = self.shared.config.cpus;
        // Without a handler the signal would end the process; with one it ends a system call.
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|error| host(WHAT)(std::io::Error::from_raw_os_error(error.errno())))?;
        room_for_threads(count.into()).map_err(host(WHAT))?;
        for index in 0..usize::from(count) {
            let (next, vcpus) = sync_channel(1);
            let running = Arc::<AtomicBool>::default();
            let (shared, is_running) = (Arc::clone(&self.shared), Arc::clone(&running));
            let name = format!("vcpu{index}");
            let kind = Kind::Vcpu { saves: self.shared.saver.is_some() };
            let thread = spawn(WHAT, name, self.shared.config.confinement, kind, move |gate| {
                if gate.pass() {
                    serve(&vcpus, index, &shared, &is_running);
                }
            })?;
            self.threads.push(VcpuThread { thread, next, running });
        }
        Ok(())
    }

    /// Lets the threads run `vcpus`, one each. None runs now.
    ///
    /// # Panics
    /// When there are not as many vCPUs as threads.
    pub(super) fn start(&mut self, vcpus: Vec<VcpuFd>) {
        assert_eq!(vcpus.len(), self.threads.len(), "vCPUs and threads");
        self.shared.stop.store(false, Ordering::Relaxed);
        for (vcpu, thread) in vcpus.into_iter().zip(&self.threads) {
            thread.running.store(true, Ordering::Relaxed);
            // Fails only when the thread has ended by a panic, which ended the VM.
            drop(thread.next.send(vcpu));
        }
    }

    /// Brings all vCPUs out of the guest. Their descriptors are closed then.
    ///
    /// # Errors
    /// Some threads did not leave the guest within `limit`.
    pub(super) fn stop(&mut self, limit: Duration) -> Result<(), StillRunning> {
        // Pairs with the load before each KVM_RUN; the signal brings a running vCPU there.
        self.shared.stop.store(true, Ordering::Release);
        let start = clock::now();
        loop {
            let running: Vec<_> = self.threads.iter().filter(|thread| thread.is_running()).collect();
            if running.is_empty() {
                return Ok(());
            }
            if clock::now() - start > limit {
                let names: Vec<_> =
                    running.iter().filter_map(|running| running.thread.thread().name()).collect();
                return Err(StillRunning { names: names.join(", "), limit });
            }
            running.into_iter().for_each(VcpuThread::kick);
            self.shared.pause.look_up();
            clock::sleep(Duration::from_micros(200));
        }
    }

    /// As [`Vcpus::stop`], and ends the threads. Those that did not leave the guest are abandoned.
    pub(super) fn end(&mut self, limit: Duration) -> Result<(), StillRunning> {
        let stopped = self.stop(limit);
        for VcpuThread { thread, next, running } in self.threads.drain(..) {
            drop(next);
            if !running.load(Ordering::Acquire) || thread.is_finished() {
                // Panics were caught and reported in the thread itself.
                drop(thread.join());
            }
        }
        stopped
    }

    /// Brings all vCPUs out of a guest that is to stand still, and returns whether none is left in it.
    pub(super) fn park(&self) -> bool {
        let in_guest = |(index, thread): &(usize, &VcpuThread)| {
            thread.is_running() && !self.shared.pause.is_parked(*index)
        };
        let mut parked = true;
        for (_, thread) in self.threads.iter().enumerate().filter(in_guest) {
            thread.kick();
            parked = false;
        }
        parked
    }

    /// Looks at all vCPUs.
    pub(super) fn look(&self) -> Vec<LookResult> {
        self.shared.looks.look(self.threads.len(), |index| {
            let thread = &self.threads[index];
            let ended = !thread.is_running();
            if !ended {
                thread.kick();
                self.shared.pause.look_up();
            }
            ended
        })
    }
}

/// Runs `vcpus` one after another, until no further one can come.
fn serve(vcpus: &Receiver<VcpuFd>, index: usize, shared: &VmShared, running: &AtomicBool) {
    while let Ok(vcpu) = vcpus.recv() {
        run_to_end(vcpu, index, shared);
        running.store(false, Ordering::Release);
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run_to_end(mut vcpu: VcpuFd, index: usize, shared: &VmShared) {
    let end = catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, index, shared)));
    let kind = match end {
        Ok(End::Stopped) => return,
        Ok(End::PoweredOff) => {
            shared.state.change(State::power_off);
            return;
        }
        Ok(End::Reset) => {
            shared.reset_due.store(true, Ordering::Release);
            shared.tell_of_reset();
            return;
        }
        Ok(End::Died(kind)) => kind,
        Err(_) => DeathKind::VmmPanic,
    };
    let serial_tail = shared.bus.serial_tail();
    let image = shared.kernel.bytes();
    let view = shared.memory.view();
    let unplugged = unplugged(&vcpu, shared, &view);
    let kind = with_cause(kind, &unplugged);
    let text = text::of_vcpu(&vcpu, index, &view, &unplugged, image, &serial_tail);
    drop(view);
    shared.state.change(|state| state.died(Death { kind, text }));
}

/// The addresses of a vCPU that lead to memory that is not plugged.
fn unplugged(vcpu: &VcpuFd, shared: &VmShared, view: &View) -> Vec<Unplugged> {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            unplugged::find(regs.rip, regs.rsp, &sregs, &VmMemory { memory: &shared.memory, view })
        }
        _ => Vec::new(),
    }
}

/// The kind of a death, after a look at the vCPU's addresses: KVM does not say that it could not fetch an instruction.
fn with_cause(kind: DeathKind, unplugged: &[Unplugged]) -> DeathKind {
    let fetch = unplugged.iter().find(|address| address.is_fetch());
    match (kind, fetch) {
        (
            DeathKind::InternalError(KVM_INTERNAL_ERROR_EMULATION) | DeathKind::UnpluggedMemory(None),
            Some(fetch),
        ) => DeathKind::UnpluggedMemory(Some(fetch.physical)),
        (kind, _) => kind,
    }
}

/// Why a vCPU's run ended.
enum End {
    Stopped,
    PoweredOff,
    Reset,
    Died(DeathKind),
}

fn run(vcpu: &mut VcpuFd, index: usize, shared: &VmShared) -> End {
    let counters: &ExitCounters = &shared.exits[index];
    let mut wait = SipiWait::of(vcpu);
    let (mut last_look, mut last_save) = (0, 0);
    // Whether KVM has completed the last exit. A guest that stands still has no access half done, which could not be saved.
    let mut settled = false;
    while !shared.stop.load(Ordering::Acquire) {
        shared.looks.answer(index, vcpu, &shared.memory, &mut last_look);
        if let Some(saver) = &shared.saver {
            saver.answer(index, vcpu, &mut last_save);
        }
        if settled && shared.pause.hold(index) {
            continue;
        }
        let settling = !settled && shared.pause.is_wanted();
        vcpu.set_kvm_immediate_exit(settling.into());
        settled = false;
        let step = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) => {
                let (width, data) = port_access(vcpu);
                (&counters.io, shared.bus.io_write(port, width, data), None)
            }
            Ok(VcpuExit::IoIn(port, _)) => {
                let (width, data) = port_access(vcpu);
                (&counters.io, shared.bus.io_read(port, width, data), None)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                (&counters.mmio, shared.bus.mmio_read(address, data), Some(address))
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                (&counters.mmio, shared.bus.mmio_write(address, data), Some(address))
            }
            // Nothing to do: KVM only wants to be entered again.
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_)) => {
                (&counters.other, Access::Done, None)
            }
            Ok(VcpuExit::Intr) => (&counters.interrupted, Access::Done, None),
            Err(error) if error.errno() == libc::EINTR => {
                // KVM completes the last exit before it obeys the wish not to enter, or asks for another access first.
                settled = settling;
                (&counters.interrupted, Access::Done, None)
            }
            Err(error) if error.errno() == libc::EAGAIN => {
                if !wait.explains_eagain_of(vcpu) {
                    count(&counters.other);
                    return End::Died(DeathKind::TaskLimit);
                }
                (&counters.other, Access::Done, None)
            }
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
                if shared.memory.regions().iter().any(|region| region.contains(GuestAddress(address))) {
                    return End::Died(DeathKind::UnpluggedMemory(Some(address)));
                }
                stray(shared, address);
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
            Access::Panic => {
                count(counter);
                return End::Died(DeathKind::KernelPanic);
            }
        }
    }
    End::Stopped
}

fn exit(code: u8) -> End {
    const POWER_OFF: u8 = ExitCode::PowerOff as u8;
    const PANIC: u8 = ExitCode::Panic as u8;
    const OUT_OF_MEMORY: u8 = ExitCode::OutOfMemory as u8;
    const SUCCESS: u8 = ExitCode::Success as u8;
    const FAILURE: u8 = ExitCode::Failure as u8;
    match code {
        POWER_OFF | SUCCESS => End::PoweredOff,
        FAILURE => End::Died(DeathKind::ReportedFailure),
        PANIC => End::Died(DeathKind::GuestPanic),
        OUT_OF_MEMORY => End::Died(DeathKind::OutOfMemory),
        code => End::Died(DeathKind::UnknownExitCode(code)),
    }
}

/// Counts an access to an address without a device, and logs the first one.
fn stray(shared: &VmShared, address: u64) {
    let before = shared.state.change(|state| {
        state.stray_accesses += 1;
        state.stray_accesses - 1
    });
    if before == 0 {
        log::warn!("the guest accesses {address:#x}: no device; further such accesses are only counted");
    }
}

/// The death that follows from this end of `KVM_RUN`.
fn fatal(exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> DeathKind {
    match exit {
        Ok(VcpuExit::Shutdown) => DeathKind::TripleFault,
        Ok(VcpuExit::InternalError) => DeathKind::InternalError(0),
        Ok(VcpuExit::FailEntry(reason, _)) => DeathKind::FailEntry(*reason),
        Ok(VcpuExit::MemoryFault { gpa, .. }) => DeathKind::UnpluggedMemory(Some(*gpa)),
        Ok(_) => DeathKind::UnexpectedExit,
        // The only guest memory that KVM cannot reach is memory that this process closed.
        Err(error) if error.errno() == libc::EFAULT => DeathKind::UnpluggedMemory(None),
        Err(error) => DeathKind::RunFailed(error.errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::{DeathKind, KVM_INTERNAL_ERROR_EMULATION, Unplugged, with_cause};

    #[test]
    fn a_fetch_from_memory_that_is_not_plugged_is_told_from_other_failures() {
        let at = |what| Unplugged { what, linear: 1 << 40, physical: 1 << 32, table: false };
        let fetch = [at("the instruction at")];
        assert!(fetch[0].is_fetch());
        let emulation = DeathKind::InternalError(KVM_INTERNAL_ERROR_EMULATION);
        for kind in [emulation, DeathKind::UnpluggedMemory(None)] {
            assert_eq!(with_cause(kind, &fetch), DeathKind::UnpluggedMemory(Some(1 << 32)));
            assert_eq!(with_cause(kind, &[at("the stack below")]), kind);
        }
        assert_eq!(with_cause(DeathKind::GuestPanic, &fetch), DeathKind::GuestPanic);
    }

    #[test]
    fn a_limit_of_tasks_is_named() {
        let text = DeathKind::TaskLimit.to_string();
        assert!(text.contains("ulimit -u") && text.contains("pids.max"), "{text}");
    }
}
