//! What this host can do for a VM, as findings for people: what there is, what is missing, and what helps.
//!
//! Mirrors `virt-host-validate` of libvirt. Differs on purpose: a finding is tried rather than read where a trial changes
//! nothing. A machine is made, a thread is locked in.
//!
//! Invariants: nothing outlives a survey, and a file that cannot be read gives a finding, not an error.

mod kernel;
mod kvm;
mod limits;

/// What a finding means for VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearing {
    /// VMs run.
    Good,
    /// VMs run, but slower, smaller, fewer or less locked in.
    Limited,
    /// No VM runs with the default options.
    Missing,
}

/// One thing that VMs use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing.
    pub what: &'static str,
    /// What its state means.
    pub bearing: Bearing,
    /// Its state on this host.
    pub found: String,
    /// What would help, where something is known to help.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, bearing: Bearing::Good, found: found.into(), remedy: None }
    }

    fn limited(what: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { what, bearing: Bearing::Limited, found: found.into(), remedy: some(remedy) }
    }

    fn missing(what: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { what, bearing: Bearing::Missing, found: found.into(), remedy: some(remedy) }
    }
}

/// A hint is the end of an error message: `. Do this`. Alone it is `Do this`.
fn some(hint: &str) -> Option<String> {
    let remedy = hint.trim_start_matches(['.', ' ']);
    (!remedy.is_empty()).then(|| remedy.to_owned())
}

/// Looks at this host, as this process sees it.
#[must_use]
pub fn survey() -> Vec<Finding> {
    [kvm::findings(), kernel::findings(), limits::findings()].concat()
}
