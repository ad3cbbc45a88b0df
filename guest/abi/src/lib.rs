//! What the VMM and its guest agree on beside virtio: the exit port, the command-line keys, the
//! records that travel on the control channel, and the language in which people talk to both.
//!
//! | room | holds |
//! | --- | --- |
//! | [`limits`] | ports, addresses and the most that there can be of something |
//! | [`cmdline`] | keys of the guest's command line, and the words of their values |
//! | [`record`] | calls and reports, and their bytes |
//! | [`answer`], [`failure`], `blocks`, `meminfo`, `pmem`, `pressure`, `resize`, `stats` | what records carry, and its text |
//! | [`command`], `words`, `size`, `duration`, `name` | the grammar of scripts and of the guest's shell |
//! | `counted` | numbers of things as text |
//! | [`pattern`], [`zoneinfo`] | what workloads write into their pages, and the text in which kernels tell their zones |
//! | [`kernel`] | the kernels that scripts run on, and what each of them can do |
//! | [`judge`] | the conversation of a judge and its guest on the serial line |
//! | [`metric`], `counter` | the counters by their names in scripts, tables and JSON |
//!
//! The control channel is a virtio-console device (virtio 1.3, section 5.3) without the multiport
//! feature (a Linux guest gets its port 0 with that feature): queue 0 carries [`Call`]s to the guest, queue 1 carries [`Report`]s to the VMM. One
//! buffer holds one record, so one message costs one exit. Text for people goes to the serial
//! port instead.
//!
//! Records are encoded by `postcard`. Neither side trusts the other's bytes: [`decode`] never
//! panics, allocates nothing and rejects records longer than [`MAX_RECORD`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod answer;
mod blocks;
mod by_key;
pub mod cmdline;
pub mod command;
mod counted;
mod counter;
mod duration;
pub mod failure;
pub mod judge;
pub mod kernel;
pub mod limits;
mod meminfo;
pub mod metric;
mod name;
pub mod pattern;
mod pmem;
mod pressure;
pub mod record;
mod resize;
mod size;
mod stats;
mod words;
pub mod zoneinfo;

pub use answer::{Answer, BadWord};
pub use blocks::{BLOCK_RUNS, BlockRun, BlockState, Memmap};
pub use by_key::ByKey;
pub use command::Command;
pub use counted::{Counted, either};
pub use counter::{Counter, Group, Label};
pub use duration::{ShowDuration, parse_duration};
pub use failure::{Disagreement, Failure, PmemFailure, ProbedWait};
pub use kernel::Kernel;
pub use limits::{
    E820_PMEM, E820_PRAM, EXIT_PORT, ExitCode, MAX_CPUS, MAX_MEM_DEVICES, MAX_MEMORY_BLOCK_SIZE, MAX_NODES,
    MAX_PHYS_ADDR, MAX_PMEM, MAX_RACE_CYCLES, MEMORY_BLOCK_SIZE, NOTE_NAME, PAGE_SIZE, SERIAL_PORT,
};
pub use meminfo::Meminfo;
pub use metric::Metric;
pub use name::{Handle, Name, Named, SHELL_HANDLES};
pub use pattern::PagePattern;
pub use pmem::{Pmem, PmemMapped, PmemOp, PmemUse};
pub use pressure::{Pressure, Watch};
pub use record::{BadRecord, Call, CorruptPart, FaultStep, HogKind, MAX_RECORD, Op, Report, decode, encode};
pub use resize::{Owner, Resize, ResizeState, UnmovablePage};
pub use size::{Size, SizeError};
pub use stats::{BootTimes, NR_ZONES, NodeStats, Stats, ZoneName, ZoneStats};
pub use words::{SyntaxError, Table, Word, Words, value_of, word_for};
