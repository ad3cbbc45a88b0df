//! Calls that ask for a virtio-mem driver to be bound again, on their way from the agent to the driver's job.
//!
//! Takes the place of `unbind` and `bind` in Linux's `/sys/bus/virtio/drivers`. What the new driver finds is what a kernel
//! finds that was started without a reset of the machine: memory that is plugged.
//!
//! Invariant: each call is answered once, by the job that takes it.

use spin::Mutex;
use tidevm_abi::{Failure, MAX_MEM_DEVICES};

use crate::cpu::lapic;
use crate::mailbox::Requester;

/// Per device, by the order in which they were bound: whether there is a driver, and the call for it.
static CALLS: Mutex<[(bool, Option<Requester>); MAX_MEM_DEVICES]> =
    Mutex::new([(false, None); MAX_MEM_DEVICES]);

/// The driver of device `index` takes calls from now on.
pub fn announce(index: usize) {
    if let Some(place) = CALLS.lock().get_mut(index) {
        place.0 = true;
    }
}

/// Leaves a call of `requester` for the driver of device `index`, which answers it. The driver's job may have had its step in
/// this pass of the job loop, so the boot CPU, on which drivers run, is woken.
///
/// # Errors
/// There is no such driver, or a call waits for it.
pub fn ask(index: u8, requester: Requester) -> Result<(), Failure> {
    match CALLS.lock().get_mut(usize::from(index)) {
        Some((true, call @ None)) => {
            *call = Some(requester);
            lapic::wake(0);
            Ok(())
        }
        _ => Err(Failure::NoDriver),
    }
}

/// Takes the call for device `index`, if there is one.
pub fn take(index: usize) -> Option<Requester> {
    CALLS.lock().get_mut(index)?.1.take()
}
