//! Trials on whole VMs: experiments with the guest's mechanisms, and the comparison of the guest with Linux.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`experiment`] | sessions with a mechanism off and on, and a verdict | KVM |
//! | [`compare`] | one session on Linux and on tidevm's guest, side by side | experiments |
//! | [`qemu`] | VMs of QEMU's emulator | what is measured on them |
//! | [`console`] | the serial console of a guest that takes commands | which guest it is |
//! | [`zoneinfo`] | a guest's counters as text, in the form of Linux | where the text comes from |

pub mod compare;
pub mod console;
pub mod experiment;
pub mod qemu;
pub mod zoneinfo;
