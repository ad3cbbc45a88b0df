//! Boots the embedded guest and resizes its memory while it is in use, by the library alone.
//!
//! ```text
//! cargo run --release -p tidevm-machine --example resize
//! ```
//!
//! A [`Config`] describes the VM; here it has one vCPU, 256 MiB of boot memory, and a region of 512 MiB in
//! which a virtio-mem device plugs and unplugs memory. [`Vm::start`] returns as soon as the vCPU runs. From
//! then on everything is asynchronous, as it is between a host and its guest: [`Vm::resize`] sets a target
//! and [`Vm::call`] sends a question; [`Vm::wait`] and [`Vm::answer`] wait for the result. Each wait has a
//! limit, and ends early when the guest dies or powers off, or when a signal comes.

use std::error::Error;
use std::time::Duration;

use tidevm_abi::{Answer, HogKind, Op, ResizeState};
use tidevm_machine::{Config, ConsoleMode, End, HotplugConfig, Size, Vm};

const LIMIT: Duration = Duration::from_secs(60);

/// The VM has one device. Devices are numbered in the order of [`Config::hotplug`].
const DEVICE: usize = 0;

/// The embedder's number for the pages that the guest allocates.
const HANDLE: u32 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let vm = Vm::start(Config {
        memory: Size::mib(256),
        hotplug: vec![HotplugConfig::new(Size::mib(512))],
        console: ConsoleMode::Off,
        ..Config::default()
    })?;
    let ready = vm.wait(LIMIT, "the guest's first report", |state| state.ready)?;
    println!("up after {:.1?} with {} CPU", ready.after, ready.cpus);

    resize(&vm, Size::mib(512))?;

    // Movable pages, scattered over all plugged memory.
    let pages = Size::mib(64).pages();
    let hog = Op::Hog {
        handle: HANDLE,
        pages,
        partial: false,
        kind: HogKind::Movable,
        scattered: true,
        full: false,
    };
    println!("allocate: {:?}", ask(&vm, hog)?);

    // The guest migrates the pages out of the upper half of the region before it gives that half up.
    resize(&vm, Size::mib(256))?;
    println!("verify: {:?}", ask(&vm, Op::Verify { handle: HANDLE })?);
    println!("release: {:?}", ask(&vm, Op::Release { handle: HANDLE })?);

    resize(&vm, Size::mib(0))?;
    match vm.stop(LIMIT) {
        End::PoweredOff => Ok(()),
        end => Err(format!("the guest did not power off: {end:?}").into()),
    }
}

/// Sets the device's target and waits until the guest has reached it.
fn resize(vm: &Vm, size: Size) -> Result<(), Box<dyn Error>> {
    vm.resize(DEVICE, size)?;
    // A driver that stopped for any other reason goes on when the reason goes away.
    let reached = vm.wait(LIMIT, "the resize", |state| {
        (state.mem[DEVICE].stopped(size) == Some(ResizeState::Reached)).then_some(())
    });
    reached.map_err(|error| format!("{error}; the driver reports: {:?}", vm.state().mem[DEVICE].report))?;
    println!("plugged {size}, of which the host holds {}", vm.held(DEVICE)?);
    Ok(())
}

/// Calls the guest and waits for its answer.
fn ask(vm: &Vm, op: Op) -> Result<Answer, Box<dyn Error>> {
    let call = vm.call(op)?;
    Ok(vm.answer(call, LIMIT, "the guest's answer")?)
}
