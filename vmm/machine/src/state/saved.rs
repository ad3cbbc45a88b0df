//! What is known about a guest, on its way to another process.
//!
//! Counters of a process stay behind, as does everything that the devices tell anew.

use super::{Ready, SharedState};
use crate::snapshot::machine::GuestState;
use crate::sync::lock;

impl SharedState {
    /// What is known now. The next call of the VM has the id `next_call`.
    pub(crate) fn guest(&self, next_call: u32) -> GuestState {
        let inner = lock(&self.inner);
        let ready = inner.state.ready.map(|ready| (ready.cpus, ready.mem_devices, ready.after));
        let reports = inner.state.mem.iter().map(|mem| mem.report).collect();
        let open = inner.answers.iter().filter(|(_, answer)| answer.is_none());
        GuestState { ready, reports, next_call, open_calls: open.map(|(id, _)| *id).collect() }
    }

    /// Takes on what was known of a guest that goes on here.
    pub(crate) fn restore_guest(&self, guest: &GuestState) {
        self.learn(|inner| {
            let ready = guest.ready.map(|(cpus, mem_devices, after)| Ready { cpus, mem_devices, after });
            inner.state.ready = ready;
            for (mem, report) in inner.state.mem.iter_mut().zip(&guest.reports) {
                mem.report = *report;
            }
            inner.answers.extend(guest.open_calls.iter().map(|id| (*id, None)));
        });
    }

    /// The termination signal that came first.
    pub(crate) fn signal(&self) -> Option<i32> {
        lock(&self.inner).state.signal
    }
}
