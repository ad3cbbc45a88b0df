//! The allocator of the C library, before system calls are given away.
//!
//! glibc gives each thread a heap of its own (an arena). When such a heap shrinks for the first time, glibc opens
//! `/proc/sys/vm/overcommit_memory`, and a guest decides when that is: it can have the event loop keep and then free
//! much. The filters allow no thread to open a file. The first heap, the process's own, shrinks by `brk`.
#![expect(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Has all threads that start from now on use the heap of the process. A thread of before keeps its own.
#[cfg(target_env = "gnu")]
pub fn use_one_heap() {
    // SAFETY: the call changes a number that the allocator reads when a thread allocates for the first time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Other C libraries open no file when memory is freed.
#[cfg(not(target_env = "gnu"))]
pub fn use_one_heap() {}
