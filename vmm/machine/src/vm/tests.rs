//! VMs that run a few instructions each, on /dev/kvm.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidevm_abi::{Op, Size};
use vm_memory::{Bytes, GuestAddress};

use super::{End, Vm};
use crate::config::{Config, ConsoleMode, HotplugConfig};
use crate::confine::Confinement;
use crate::death::{Death, DeathKind};
use crate::error::StartError;
use crate::memory::fake::at;
use crate::memory::layout::HOLE_END;

mod console;
mod disk;
mod embedder;
mod look;
mod pause;
mod ports;
mod raised;
mod refused;
mod reset;
mod save;
mod start;
mod threads;
mod unplug_all;
mod unplugged;

const LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// The end of a guest that was not asked.
const FORCED: End = End::Forced { asked: false, vcpus: Vec::new() };

/// A kernel in a file. Dropping the value removes the file.
struct Kernel(PathBuf);

impl Drop for Kernel {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

impl Kernel {
    /// An ELF file whose PVH entry point is `code`, 32-bit instructions.
    fn new(code: &[u8]) -> Self {
        const LOAD: u64 = 0x10_0000;
        const NOTE: u64 = 64 + 2 * 56;
        const CODE: u64 = NOTE + 20;
        let entry = LOAD + CODE;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half =
            |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
        let word =
            |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
        let long =
            |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
        half(&mut file, &[2, 62]);
        word(&mut file, &[1]);
        long(&mut file, &[entry, 64, 0]);
        word(&mut file, &[0]);
        half(&mut file, &[64, 56, 2, 64, 0, 0]);
        let size = CODE + code.len() as u64;
        for (kind, offset, size) in [(1, 0, size), (4, NOTE, 20)] {
            word(&mut file, &[kind, 7]);
            long(&mut file, &[offset, LOAD + offset, LOAD + offset, size, size, 4]);
        }
        word(&mut file, &[4, 4, 18]);
        file.extend(b"Xen\0");
        word(&mut file, &[entry as u32]);
        file.extend(code);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidevm-test-{}-{number}.elf", std::process::id()));
        std::fs::write(&path, file).unwrap();
        Self(path)
    }

    fn config(&self) -> Config {
        Config {
            kernel: Some(self.0.clone()),
            memory: Size::mib(32),
            console: ConsoleMode::Off,
            hotplug: vec![HotplugConfig::new(Size::gib(1))],
            ..Config::default()
        }
    }
}

/// Whether /dev/kvm can be used. If not, the test reports loudly that it is skipped.
fn kvm() -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            // Not with a macro: the test harness captures the output of macros.
            let name = std::thread::current().name().unwrap_or("?").to_owned();
            writeln!(std::io::stderr(), "SKIP {name}: /dev/kvm: {error}").unwrap();
            false
        }
    }
}

/// Starts a VM that is locked in as `tidevm` does it. The calling thread is not: a thread that ends starts the VM.
fn start(config: Config) -> Result<Vm, StartError> {
    locked_in(config, |vm| vm)
}

/// Starts a VM and passes it to `session`, in a thread that is locked in with the VM.
fn locked_in<T: Send>(config: Config, session: impl FnOnce(Vm) -> T + Send) -> Result<T, StartError> {
    Vm::apart(Config { confinement: Confinement::STRICT, ..config }, session)
}

/// Runs `code` until the guest ends by itself. The thread that waits is locked in, too.
fn run(code: &[u8]) -> Option<End> {
    if !kvm() {
        return None;
    }
    let kernel = Kernel::new(code);
    let session = locked_in(kernel.config(), |vm| {
        let ended = vm.wait(LIMIT, "the end", |state| state.ended().then_some(()));
        (ended, vm.stop(LIMIT))
    });
    let (ended, end) = session.unwrap();
    ended.unwrap();
    Some(end)
}

fn died(code: &[u8]) -> Option<(DeathKind, String)> {
    run(code).map(|end| match end {
        End::Died(death) => (death.kind, death.text),
        other => panic!("{other:?}"),
    })
}

/// mov al, 0; out 0xf4, al; hlt
const POWER_OFF: [u8; 5] = [0xb0, 0, 0xe6, 0xf4, 0xf4];

/// wait: mov dx, 0x3fd; in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al
const ECHO: [u8; 15] =
    [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee];

/// ud2, without a handler
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];

/// A kernel that runs `code`, 64-bit instructions, with identity-mapped memory: the first 2 MiB, and 4 MiB
/// from the start of the hotplug region on, where `rbx` points.
fn long_mode(code: &[u8]) -> Vec<u8> {
    /// Address of the code behind the headers of [`Kernel::new`].
    const START: usize = 0x10_0000 + 196;
    const TABLES: usize = 0x10_1000;
    const ENTRY: usize = 0x10_0200;
    let mut kernel = vec![
        0x0f, 0x01, 0x15, 0x20, 0x50, 0x10, 0x00, // lgdt [0x105020]
        0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
        0xb8, 0x00, 0x10, 0x10, 0x00, 0x0f, 0x22, 0xd8, // mov eax, 0x101000; mov cr3, eax
        0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0xba, 0xe8, 0x08, 0x0f, 0x30, // EFER |= LME
        0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xe8, 0x1f, 0x0f, 0x22, 0xc0, // cr0 |= PG
        0xea, 0x00, 0x02, 0x10, 0x00, 0x08, 0x00, // jmp 8:0x100200
    ];
    kernel.resize(ENTRY - START, 0x90);
    kernel.extend([0x48, 0xbb, 0, 0, 0, 0, 1, 0, 0, 0]); // mov rbx, 0x100000000
    kernel.extend(code);
    let mut put = |address: usize, value: u64| {
        let offset = address - START;
        kernel.resize(kernel.len().max(offset + 8), 0);
        kernel[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    };
    let table = |index: usize| (TABLES + index * 0x1000) as u64;
    put(TABLES, table(1) | 3);
    put(TABLES + 0x1000, table(2) | 3);
    put(TABLES + 0x1000 + 4 * 8, table(3) | 3);
    put(TABLES + 0x2000, 0x83);
    put(TABLES + 0x3000, HOLE_END | 0x83);
    put(TABLES + 0x3000 + 8, (HOLE_END + 2 * MIB) | 0x83);
    // A descriptor table with one 64-bit code segment. Behind it is the operand of lgdt: limit and base.
    put(TABLES + 0x4008, 0x00af_9a00_0000_ffff);
    put(TABLES + 0x4020, 0x0010_5000_000f);
    kernel
}

#[test]
fn a_guest_can_power_off() {
    assert!(matches!(run(&POWER_OFF), None | Some(End::PoweredOff)));
}

#[test]
fn a_panic_is_reported_with_place_and_last_words() {
    // mov dx, 0x3f8; mov al, '!'; out dx, al; mov al, 1; out 0xf4, al
    let Some((kind, report)) = died(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xb0, 1, 0xe6, 0xf4]) else {
        return;
    };
    assert_eq!(kind, DeathKind::GuestPanic);
    assert!(report.contains("vcpu0 at rip 0x00000000001000"), "{report}");
    assert!(report.ends_with("last on the serial port:\n  | !"), "{report}");
}

#[test]
fn an_unknown_exit_code_is_no_power_off() {
    // mov al, 7; out 0xf4, al
    let end = died(&[0xb0, 7, 0xe6, 0xf4]);
    assert!(end.is_none_or(|(kind, _)| kind == DeathKind::UnknownExitCode(7)));
}

#[test]
fn a_triple_fault_is_reported_with_the_code() {
    let Some((kind, report)) = died(&TRIPLE_FAULT) else { return };
    assert_eq!(kind, DeathKind::TripleFault);
    assert!(report.contains("code at rip: 0f 0b 00 00"), "{report}");
}

#[test]
fn an_access_to_nothing_reads_all_ones() {
    // mov eax, [0xd8000000]; inc eax; jnz +16; mov [0xd8000000], eax
    let mut code = vec![0xa1, 0, 0, 0, 0xd8, 0x40, 0x75, 10, 0xa3, 0, 0, 0, 0xd8];
    code.extend(POWER_OFF);
    code.extend(TRIPLE_FAULT);
    assert!(matches!(run(&code), None | Some(End::PoweredOff)));
}

#[test]
fn halted_and_spinning_guests_are_stopped_at_once() {
    if !kvm() {
        return;
    }
    // hlt; jmp -3 | jmp -2
    for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
        let kernel = Kernel::new(code);
        let vm = start(Config { cpus: 2, ..kernel.config() }).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        assert_eq!(vm.stop(LIMIT), FORCED);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

/// An unused word of boot memory. Guests wait until it is not 0.
const GO: u64 = 0x18_0000;

/// mov eax, [GO]; test eax, eax; jz -11
const WAIT: [u8; 11] = [0x8b, 0x04, 0x25, 0x00, 0x00, 0x18, 0x00, 0x85, 0xc0, 0x74, 0xf5];

fn go(vm: &Vm) {
    vm.shared.memory.view().write_obj(1_u32, GuestAddress(GO)).unwrap();
}

/// Waits for the guest to die of touching unplugged memory. Whether KVM tells the address depends on whether
/// the memory has a slot.
fn wait_for_death(vm: &Vm) -> Option<u64> {
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    match vm.state().death.map(|death| death.kind) {
        Some(DeathKind::UnpluggedMemory(address)) => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unplugged_memory_without_a_slot_is_out_of_reach() {
    for access in [[0x8b, 0x03], [0x89, 0x03]] {
        // mov eax, [rbx] or mov [rbx], eax
        let mut code = access.to_vec();
        code.extend(POWER_OFF);
        let Some((kind, _)) = died(&long_mode(&code)) else { return };
        assert_eq!(kind, DeathKind::UnpluggedMemory(Some(HOLE_END)));
    }
}

#[test]
fn unplugged_memory_is_out_of_reach_down_to_the_block() {
    if !kvm() {
        return;
    }
    // Reads the second device block of the region, which is plugged, then the first one, which is not. They
    // share a slot.
    let mut code = WAIT.to_vec();
    code.extend([0x8b, 0x83, 0x00, 0x00, 0x20, 0x00, 0x85, 0xc0, 0x75, 7]); // mov eax, [rbx + 2M]; test eax, eax; jnz
    code.extend([0x8b, 0x03]); // mov eax, [rbx]
    code.extend(POWER_OFF);
    code.extend(TRIPLE_FAULT);
    let code = long_mode(&code);
    let kernel = Kernel::new(&code);
    let vm = start(kernel.config()).unwrap();
    vm.shared.memory.plug(0, at(HOLE_END + 2 * MIB..HOLE_END + 4 * MIB)).unwrap();
    go(&vm);
    assert!(wait_for_death(&vm).is_none_or(|address| address == HOLE_END));
}

/// A guest that writes without end to memory that is unplugged dies, and does not make the host hold it
/// again.
#[test]
fn a_writing_guest_cannot_hold_unplugged_memory() {
    if !kvm() {
        return;
    }
    let mut code = WAIT.to_vec();
    code.extend([0x89, 0x03, 0xeb, 0xfc]); // mov [rbx], eax; jmp -4
    let code = long_mode(&code);
    let kernel = Kernel::new(&code);
    let block = at(HOLE_END..HOLE_END + 2 * MIB);
    for round in 0..10 {
        let vm = start(kernel.config()).unwrap();
        vm.shared.memory.plug(0, block).unwrap();
        go(&vm);
        let start = Instant::now();
        while vm.held(0).unwrap() == Size(0) && start.elapsed() < LIMIT {
            std::thread::yield_now();
        }
        assert_ne!(vm.held(0).unwrap(), Size(0), "round {round}");
        vm.shared.memory.unplug(0, block).unwrap();
        assert!(wait_for_death(&vm).is_none_or(|address| address == HOLE_END), "round {round}");
        assert_eq!(vm.held(0).unwrap(), Size(0), "round {round}");
    }
}

/// Where KVM emulates this instruction, it can fail. Most hosts run it natively, with or without a fault.
#[test]
fn an_instruction_that_kvm_cannot_emulate_is_reported() {
    let mut code = vec![0x0f, 0x57, 0xc0]; // xorps xmm0, xmm0
    code.extend(POWER_OFF);
    match run(&code) {
        None | Some(End::PoweredOff) => {}
        Some(End::Died(death)) if death.kind == DeathKind::TripleFault => {}
        Some(End::Died(death)) => {
            assert!(matches!(death.kind, DeathKind::InternalError(_)), "{death}");
            assert!(death.text.contains("code at rip: 0f 57 c0 b0"), "{death}");
        }
        Some(End::Forced { .. }) => panic!("the guest did not end"),
    }
}

/// The guest uses id 0 in its answer to a call that it cannot read.
#[test]
fn no_call_is_call_0() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let vm = start(kernel.config()).unwrap();
    assert_eq!([vm.call(Op::Stats).unwrap(), vm.call(Op::Stats).unwrap()], [1, 2]);
}

#[test]
fn a_console_at_a_socket_goes_both_ways() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(&[ECHO.as_slice(), &POWER_OFF].concat());
    let path = kernel.0.with_extension("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let config = Config { console: ConsoleMode::Connect(path.clone()), ..kernel.config() };
    let vm = start(config.clone()).unwrap();
    let (mut console, _) = listener.accept().unwrap();
    console.set_read_timeout(Some(LIMIT)).unwrap();
    console.write_all(b"x").unwrap();
    let mut echo = [0];
    console.read_exact(&mut echo).unwrap();
    assert_eq!(echo, *b"x");
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
    drop(listener);
    let error = start(config).unwrap_err();
    assert!(error.to_string().contains("--console connect:") && !error.is_refusal(), "{error}");
    std::fs::remove_file(path).unwrap();
}
