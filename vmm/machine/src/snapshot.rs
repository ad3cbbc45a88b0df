//! A machine in a folder: everything that it takes to go on from there, in this process or in another one.
//!
//! Mirrors Firecracker's full snapshots (`docs/snapshotting/` there) and QEMU's `savevm`. Differs on purpose: both files have
//! checksums, the machine's description is part of the snapshot, and a folder is a snapshot when it is complete or not at all.
//! `docs/snapshots.md` is about all of it for people.
//!
//! | file | is | does not know |
//! | --- | --- | --- |
//! | `folder` | the files of a save, and the moment at which they are a snapshot | what is in them |
//! | `opened` | the files of a snapshot that was opened; why it cannot be restored | what is in them |
//! | `format` | the bytes around the state | what the state is |
//! | `description` | what machine it is, and in what another one differs | KVM |
//! | `cpuid` | whether a host can give the CPU that the guest has seen | vCPUs |
//! | `vcpu` | the state of one vCPU | the machine |
//! | `machine` | the state of the whole machine | files |
//! | `write`, `read` | from the machine to the files, and back | when and in which order |
//!
//! Invariant: nothing that a file says is believed before its checksum and its place were looked at. A snapshot is not a secret kept
//! from its owner: who can write a snapshot can write the machine that comes from it, as with a kernel's file.

mod cpuid;
pub(crate) mod description;
pub(crate) mod folder;
mod format;
pub(crate) mod machine;
pub(crate) mod opened;
pub(crate) mod read;
pub(crate) mod vcpu;
pub(crate) mod write;
