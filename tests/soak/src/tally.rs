//! The figures of a run.

use std::fmt;

use tidevm_machine::hosted::{HostCall, failed};

/// The host's calls that fail on demand, with their names in the table.
const CALLS: [(&str, HostCall); 5] = [
    ("mprotect (open)", HostCall::Open),
    ("mprotect (close)", HostCall::Close),
    ("madvise", HostCall::Discard),
    ("memslot added", HostCall::AddSlot),
    ("memslot removed", HostCall::RemoveSlot),
];

/// The figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// New targets.
    pub cycles: u64,
    /// Targets that were reached; the others were given up for the next one, with memory in use in the way.
    pub reached: u64,
    /// System resets.
    pub resets: u64,
    /// Failures of the guest's steps: of steps that failed (hosted), of injected failures that met a step (booted).
    pub guest_failures: u64,
    /// Pages that moved.
    pub migrated: u64,
    /// Pages whose content was checked.
    pub verified: u64,
    /// Pages that were not there when everything was given back.
    pub lost: u64,
    /// Pages with wrong content.
    pub corrupt: u64,
    /// In booted guests: steps that failed, counters that differ, and sessions that ended early.
    pub faults: u64,
    host_failures: [u64; 5],
    before: [u64; 5],
}

impl Tally {
    /// Begins to count the failures of the host.
    #[must_use]
    pub fn new() -> Self {
        Self { before: CALLS.map(|(_, call)| failed(call)), ..Self::default() }
    }

    /// Takes over the failures of the host so far.
    pub fn count_host_failures(&mut self) {
        for (index, (_, call)) in CALLS.iter().enumerate() {
            self.host_failures[index] = failed(*call) - self.before[index];
        }
    }

    /// How often each of the host's calls failed.
    #[must_use]
    pub fn host_failures(&self) -> [(&'static str, u64); 5] {
        std::array::from_fn(|index| (CALLS[index].0, self.host_failures[index]))
    }

    /// Whether nothing was lost or wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        (self.lost, self.corrupt, self.faults) == (0, 0, 0)
    }

    /// The cells of the record, for `docs/soak.md`.
    #[must_use]
    pub fn cells(&self) -> String {
        let [open, close, discard, add, remove] = self.host_failures;
        format!(
            "{} | {} | {} | {} | {open} / {close} / {discard} / {add} / {remove} | {} | {} | {} | {} | {}",
            self.cycles,
            self.reached,
            self.resets,
            self.guest_failures,
            self.migrated,
            self.verified,
            self.lost,
            self.corrupt,
            self.faults
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: u64| writeln!(f, "{name:32}{value:>12}");
        row("cycles", self.cycles)?;
        row("targets reached", self.reached)?;
        row("resets", self.resets)?;
        row("failures of the guest's steps", self.guest_failures)?;
        for (name, count) in self.host_failures() {
            row(&format!("failures of {name}"), count)?;
        }
        row("pages migrated", self.migrated)?;
        row("pages verified", self.verified)?;
        row("pages lost", self.lost)?;
        row("pages corrupt", self.corrupt)?;
        row("other faults", self.faults)
    }
}
