//! The thread for termination signals.
//!
//! Signals have an event loop of their own, because the other one serves requests of the guest and performs
//! resets. Each of those can take as long as the host wants, and a signal has to act meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::events::{EventLoop, listen};
use crate::confine::Confinement;
use crate::confine::rules::Kind;
use crate::error::StartError;
use crate::process::{self, Signals, Terminal};
use crate::state::SharedState;

/// What a wish that the VM ends does, from a signal or a key. The first one is recorded in the state, and the embedder ends
/// the VM. The next one, or the end of the grace time, ends the process.
#[derive(Clone)]
pub(super) struct Ending {
    state: Arc<SharedState>,
    /// Restored when the process has to end; the VM owns it.
    terminal: Weak<Terminal>,
    came: Arc<AtomicBool>,
}

impl Ending {
    pub(super) fn new(state: Arc<SharedState>, terminal: Weak<Terminal>) -> Self {
        Self { state, terminal, came: Arc::default() }
    }

    /// A wish by `signal`, or by what is as good as it.
    pub(super) fn wish(&self, signal: i32) {
        if self.came.swap(true, Ordering::AcqRel) {
            process::exit(signal, &self.terminal);
        }
        self.state.change(|state| state.signal = Some(signal));
        if let Err(error) = process::exit_after_grace(signal, Weak::clone(&self.terminal)) {
            log::warn!("only another signal will end a session that is stuck: {error}");
        }
    }

    fn came(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }
}

/// Starts the thread, in which signals bring about the `ending`.
///
/// # Errors
/// The host provides no thread or descriptor, or the thread cannot be locked in.
pub(super) fn start(
    confinement: Confinement,
    signals: Signals,
    ending: Ending,
) -> Result<EventLoop, StartError> {
    let state = Arc::clone(&ending.state);
    let termination = Termination { signals, ending };
    EventLoop::start("signals", confinement, Kind::Signals, state, vec![Box::new(termination)])
}

/// Termination signals. An interrupt of a person at a prompt is counted; others are wishes that the VM ends.
struct Termination {
    signals: Signals,
    ending: Ending,
}

impl MutEventSubscriber for Termination {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.signals, 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(signal) = self.signals.next() {
            if self.signals.is_interrupt(signal) && !self.ending.came() {
                self.ending.state.change(|state| state.interrupts += 1);
            } else {
                self.ending.wish(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use event_manager::EventOps;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// Serves an event that takes for ever.
    struct Stuck {
        event: EventFd,
        entered: mpsc::Sender<()>,
    }

    impl MutEventSubscriber for Stuck {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            listen(ops, &self.event, 0);
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.entered.send(()).unwrap();
            loop {
                std::thread::park();
            }
        }
    }

    /// The first signal is recorded and the second one ends the process. Both happen in a process of their own.
    #[test]
    fn signals_act_while_the_event_loop_is_busy() {
        let name = "vm::signals::tests::a_process_with_a_busy_event_loop";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + libc::SIGTERM), "{text}");
    }

    #[test]
    #[ignore = "ends its process; signals_act_while_the_event_loop_is_busy starts it"]
    fn a_process_with_a_busy_event_loop() {
        let state = Arc::new(SharedState::new(Instant::now(), Vec::new()));
        let (entered, is_entered) = mpsc::channel();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (off, kind) = (Confinement::default(), Kind::Events { resets: false });
        let stuck = Stuck { event: event.try_clone().unwrap(), entered };
        let _events =
            EventLoop::start("events", off, kind, Arc::clone(&state), vec![Box::new(stuck)]).unwrap();
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let signals = Signals::from_test(File::from(OwnedFd::from(receiver)));
        let ending = Ending::new(Arc::clone(&state), Weak::new());
        let _signals = start(off, signals, ending).unwrap();
        event.write(1).unwrap();
        is_entered.recv().unwrap();
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        record[..4].copy_from_slice(&libc::SIGTERM.to_ne_bytes());
        sender.write_all(&record).unwrap();
        let waited = state.wait(Duration::from_secs(15), "a signal", |_| None::<()>);
        if waited != Err(crate::state::WaitError::Signal(libc::SIGTERM)) {
            // Dropping the loops would wait for the one that is stuck.
            eprintln!("{waited:?}");
            std::process::exit(1);
        }
        // The same signal at once would be the same wish.
        std::thread::sleep(process::ONE_WISH);
        sender.write_all(&record).unwrap();
        std::thread::sleep(Duration::from_secs(15));
        std::process::exit(2);
    }
}
