//! A VM and its session in a thread of their own, for a process that goes on after them: what a VM gives away, its
//! thread gives away for good.

use std::panic::resume_unwind;
use std::thread;

use super::{Companion, Vm};
use crate::config::Config;
use crate::error::{StartError, host};
use crate::process::BlockedSignals;

impl Vm {
    /// Starts a VM in a new thread, runs `session` on it there, and returns what `session` returned. With
    /// [`Config::confinement`] the new thread is locked in and this one is not. Termination signals act on the VM
    /// meanwhile, as [`Vm`] says.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn apart<T: Send>(config: Config, session: impl FnOnce(Vm) -> T + Send) -> Result<T, StartError> {
        Self::apart_with(config, Vec::new(), session)
    }

    /// [`Vm::apart`], with `companions` as in [`Vm::start_with`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn apart_with<T: Send>(
        config: Config,
        companions: Vec<Companion>,
        session: impl FnOnce(Vm) -> T + Send,
    ) -> Result<T, StartError> {
        config.confinement.prepare_heap();
        // A signal would act in this thread otherwise, instead of waiting for the VM to read it.
        let blocked = BlockedSignals::block().map_err(host("take over signals"))?;
        thread::scope(|scope| {
            let run = || {
                blocked.share();
                Vm::start_with(config, companions).map(session)
            };
            let thread = thread::Builder::new().name("session".to_owned()).spawn_scoped(scope, run);
            let thread = thread.map_err(host("start the thread of a session"))?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
