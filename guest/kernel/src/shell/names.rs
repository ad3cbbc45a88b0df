//! Names of the workloads that were started at the console. A call names a workload by a handle; the shell
//! chooses it.
//!
//! Invariants:
//! - No two workloads have the same name, and no handle is used twice.
//! - The handles are not those of the VMM: they begin at [`SHELL_HANDLES`].
//! - The table does not grow. So a name needs no memory while a workload holds all of it.

use arrayvec::ArrayVec;
use spin::Mutex;
use tidevm_abi::{Handle, Name, SHELL_HANDLES};

/// Most names at a time: at least as many as the agent has workloads.
const MAX_NAMES: usize = 128;

struct Names {
    known: ArrayVec<(Name, Handle), MAX_NAMES>,
    next_handle: Handle,
}

static NAMES: Mutex<Names> = Mutex::new(Names { known: ArrayVec::new_const(), next_handle: SHELL_HANDLES });

/// Gives `name` to a workload that is about to start, and returns its handle.
///
/// # Errors
/// Another workload has the name, or the table is full.
pub fn add(name: Name) -> Result<Handle, &'static str> {
    let names = &mut *NAMES.lock();
    if names.known.iter().any(|(known, _)| *known == name) {
        return Err("there is a workload of this name");
    }
    let handle = names.next_handle;
    names.known.try_push((name, handle)).map_err(|_| "there are too many workloads")?;
    names.next_handle += 1;
    Ok(handle)
}

/// The handle of the workload that is called `name`.
///
/// # Errors
/// There is no such workload.
pub fn handle_of(name: &Name) -> Result<Handle, &'static str> {
    let names = NAMES.lock();
    let found = names.known.iter().find(|(known, _)| known == name);
    found.map(|(_, handle)| *handle).ok_or("no workload has this name")
}

/// The name of the workload with this handle.
pub fn name_of(handle: Handle) -> Option<Name> {
    NAMES.lock().known.iter().find(|(_, known)| *known == handle).map(|(name, _)| name.clone())
}

/// Forgets a workload that has ended or did not start.
pub fn forget(handle: Handle) {
    NAMES.lock().known.retain(|(_, known)| *known != handle);
}
