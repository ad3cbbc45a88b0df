//! Landlock: which files a thread may still open. After a VM has started, the answer is none, and neither network nor
//! signals nor sockets lead out of the process. Descriptors that are open stay usable.
//!
//! Best effort: a kernel without Landlock, or with an older version, enforces less, and the log says so. seccomp
//! forbids the same calls by their numbers.

use std::io;
use std::path::Path;
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version of Landlock whose rights this file names.
pub const NEWEST: ABI = ABI::V7;

/// Why files were not put out of reach.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Landlock's error.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// A path that stays reachable cannot be opened.
    #[error(transparent)]
    Path(#[from] landlock::PathFdError),
}

/// Puts all files but `readable` and `writable`, and what is below these, out of reach of this thread and of those
/// that it starts.
///
/// # Errors
/// [`ReachError`]. A kernel without Landlock is not an error.
pub fn restrict_files(readable: &[&Path], writable: &[&Path]) -> Result<(), ReachError> {
    match restrict(readable, writable)?.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            log::info!("Landlock of this kernel is older than version 7: it forbids less than it could");
        }
        RulesetStatus::NotEnforced => {
            log::info!("this kernel has no Landlock: only seccomp keeps the process from opening files");
        }
    }
    Ok(())
}

/// What the kernel's Landlock does for a thread, which ends.
///
/// # Errors
/// There is no such thread, or it cannot be restricted.
pub fn try_on_a_thread() -> io::Result<LandlockStatus> {
    let thread = thread::Builder::new().name("landlock".to_owned()).spawn(|| restrict(&[], &[]))?;
    let status = thread.join().map_err(|_| io::Error::other("its thread panicked"))?;
    Ok(status.map_err(io::Error::other)?.landlock)
}

fn restrict(readable: &[&Path], writable: &[&Path]) -> Result<RestrictionStatus, ReachError> {
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (paths, access) in
        [(readable, AccessFs::from_read(NEWEST) & !AccessFs::Execute), (writable, all & !AccessFs::Execute)]
    {
        for path in paths {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
    }
    Ok(rules.restrict_self()?)
}
