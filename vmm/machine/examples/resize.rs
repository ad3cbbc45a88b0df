//! Boots the embedded guest and resizes its memory while it is in use, by the library alone.
//!
//! ```text
//! cargo run --release -p tidevm-machine --example resize
//! ```
//!
//! A [`Config`] says what the machine is made of; here it is one vCPU, 256 MiB of boot memory, and a region
//! of 512 MiB in which a virtio-mem device plugs and unplugs memory. [`Vm::start`] returns as soon as the vCPU
//! runs. Everything that follows is asynchronous, as it is between a host and its guest: [`Vm::resize`] sets
//! a target, [`Vm::call`] sends a question, and [`Vm::wait`] and [`Vm::answer`] wait for what becomes of
//! them. Each wait has a limit, and ends early when the guest dies, powers off, or a signal comes.

use std::error::Error;
use std::time::Duration;

use tidevm_abi::{Answer, HogKind, Op, ResizeState};
use tidevm_machine::{Config, ConsoleMode, End, HotplugConfig, Vm};

const LIMIT: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// The machine has one device; devices are numbered in the order of [`Config::hotplug`].
const DEVICE: usize = 0;

/// The embedder's name for the pages that the guest holds.
const HANDLE: u32 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let config = Config {
        memory: 256 * MIB,
        hotplug: vec![HotplugConfig::new(512 * MIB)],
        console: ConsoleMode::Off,
        ..Config::default()
    };
    let vm = Vm::start(config)?;
    let ready = vm.wait(LIMIT, "the guest's first report", |state| state.ready)?;
    println!("up after {:.1?} with {} CPU", ready.after, ready.cpus);

    resize(&vm, 512 * MIB)?;

    // Movable data lies in plugged memory, as long as there is some. This is spread over all of it.
    let pages = 64 * MIB / 4096;
    let hog = Op::Hog { handle: HANDLE, pages, kind: HogKind::Movable, scattered: true, full: false };
    println!("allocate: {:?}", ask(&vm, hog)?);

    // The upper half of the region goes. The guest first migrates the data out of it.
    resize(&vm, 256 * MIB)?;
    println!("verify: {:?}", ask(&vm, Op::Verify { handle: HANDLE })?);
    println!("release: {:?}", ask(&vm, Op::Release { handle: HANDLE })?);

    resize(&vm, 0)?;
    match vm.stop(LIMIT) {
        End::PoweredOff => Ok(()),
        end => Err(format!("the machine ended otherwise: {end:?}").into()),
    }
}

/// Sets the device's target and waits until the guest is there.
fn resize(vm: &Vm, size: u64) -> Result<(), Box<dyn Error>> {
    vm.resize(DEVICE, size)?;
    let reached = vm.wait(LIMIT, "the resize", |state| {
        // Any other reason to stop may go away, so it is waited out.
        (state.mem[DEVICE].stopped(size) == Some(ResizeState::Reached)).then_some(())
    });
    reached.map_err(|error| format!("{error}; the driver says: {:?}", vm.state().mem[DEVICE].report))?;
    let held = vm.held(DEVICE)? / MIB;
    println!("plugged {} MiB, of which the host holds {held} MiB", size / MIB);
    Ok(())
}

/// Calls the guest and waits for its answer.
fn ask(vm: &Vm, op: Op) -> Result<Answer, Box<dyn Error>> {
    let call = vm.call(op)?;
    Ok(vm.answer(call, LIMIT, "the guest's answer")?)
}
