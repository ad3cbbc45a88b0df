//! What a process that runs a guest can do without: new privileges, capabilities, core dumps and debuggers.
//!
//! `no_new_privs` and capabilities belong to a thread, and the threads that it starts inherit them. Whether a process
//! can be dumped, and the size of its core dumps, belong to the process.
#![expect(unsafe_code, reason = "capset, prctl and setrlimit are system calls without a safe wrapper here")]

use std::io;
use std::ptr;

/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities, in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Capabilities that there can be.
const CAPABILITIES: libc::c_ulong = 64;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// This thread, and those that it starts, get no privileges from a program that they execute.
///
/// # Errors
/// The system's error.
pub fn forbid_new() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// No debugger without privileges attaches to the process, its files in `/proc` belong to root, and it dumps no core:
/// memory of a guest stays out of files.
///
/// # Errors
/// The system's error.
pub fn forbid_dumps() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is initialised and outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) })
}

/// Drops all capabilities of this thread. With `CAP_SETPCAP` it also empties the bounding set, so that no program that
/// the thread executes has any.
///
/// # Errors
/// The system's error.
pub fn drop_capabilities() -> io::Result<()> {
    for capability in 0..CAPABILITIES {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // Without CAP_SETPCAP it stays. The thread has no capability to lose then that no_new_privs would not keep
            // from it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            // The kernel has fewer.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    let ambient = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong);
    ambient.or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) })?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [CapabilityHalf::default(); 2];
    // SAFETY: the header and the two halves, which this version has, are initialised and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), none.as_ptr()) };
    check(result as libc::c_int)
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: none of the options of this file takes a pointer.
    check(unsafe { libc::prctl(option, value, none, none, none) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
