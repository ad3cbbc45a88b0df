//! Fuzz targets. Each is a function `check(data: &[u8])` that builds a scene from any bytes and compares what
//! the real code does with a model or with bounds. It panics when they differ.
//!
//! | target | what the bytes are | oracle |
//! | --- | --- | --- |
//! | [`device`] | requests and resizes of a virtio-mem device | a model: the set of plugged device blocks, answers |
//! | [`registers`] | accesses of a vCPU to virtio-mmio registers | a model of the registers |
//! | [`chains`] | guest memory with queues, device turns | bounds: what is written, what is read, work, reachable memory |
//! | [`records`] | records of the guest on the control channel | a model of the state; records print bounded text |
//! | [`script`] | the text of a script | it prints as text that parses to the same; errors are bounded |
//! | [`http`] | bytes of an API client | the same requests however they are split; what is accepted is what JSON says |
//! | [`kernel`] | a kernel file and an initrd | segments lie where the file says; memory is bounded |
//! | [`mm`] | operations on the guest's memory management | `Mm::check`, owners and content of pages, no page is lost |
//!
//! The fuzzers in `bin/` call these functions, and so does the test `replay`, which needs no fuzzer. `cargo xtask
//! fuzz` builds and runs the fuzzers; `docs/fuzz.md` has the results.
//!
//! Invariant: `check` depends on its bytes alone, so that a finding can be replayed.

pub mod chains;
pub mod device;
mod heap;
pub mod http;
mod input;
pub mod kernel;
pub mod mm;
pub mod records;
pub mod registers;
pub mod script;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its fuzzer and of the folder of its corpus.
    pub name: &'static str,
    /// Builds the scene and compares.
    pub check: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "device", check: device::check },
    Target { name: "registers", check: registers::check },
    Target { name: "chains", check: chains::check },
    Target { name: "records", check: records::check },
    Target { name: "script", check: script::check },
    Target { name: "http", check: http::check },
    Target { name: "kernel", check: kernel::check },
    Target { name: "mm", check: mm::check },
];
