//! The signals by which a user or a supervisor ends a process.

/// Each of them ends a VM in good order, and the process if it comes again.
pub const TERMINATION: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
