//! A workload as the agent knows it: a process, the socket to it, and the calls that it has to answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use tidevm_abi::{Call, Failure, Handle, MAX_RECORD, Op, Report, decode, encode};

use crate::{NAME, WORK};

/// A workload.
pub struct Workload {
    /// Its handle.
    pub handle: Handle,
    process: Child,
    socket: OwnedFd,
    /// Ids of the calls that were not answered yet.
    open: Vec<u32>,
    /// It is about to give its pages back.
    releasing: bool,
}

/// What came from a workload.
pub enum Said {
    /// The bytes of a report, for the VMM.
    Report(Vec<u8>),
    /// Its process has ended, and left these calls unanswered.
    Ended(Vec<u32>),
}

impl Workload {
    /// Starts a workload by `call`, which it answers.
    ///
    /// # Errors
    /// The kernel makes no process.
    pub fn start(handle: Handle, call: &Call) -> io::Result<Self> {
        let (socket, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // It waits in the socket until the process reads it.
        let record = record(call);
        send(&socket, &record, SendFlags::NOSIGNAL)?;
        // The program of this process, wherever its file has gone.
        let process = Command::new("self/exe").arg0(NAME).arg(WORK).stdin(Stdio::from(other)).spawn()?;
        Ok(Self { handle, process, socket, open: vec![call.id], releasing: false })
    }

    /// Has the workload carry out `call`, which it answers.
    ///
    /// # Errors
    /// It gives its pages back, or it has too many calls to answer.
    pub fn call(&mut self, call: &Call) -> Result<(), Failure> {
        if self.releasing {
            return Err(Failure::WorkloadBusy);
        }
        // It does not wait: a workload that is at work reads nothing.
        send(&self.socket, &record(call), SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .map_err(|_| Failure::WorkloadBusy)?;
        self.open.push(call.id);
        self.releasing = matches!(call.op, Op::Release { .. });
        Ok(())
    }

    /// What the workload says, which [`poll`](rustix::event::poll) has told of.
    pub fn listen(&mut self) -> Said {
        let mut buffer = vec![0; MAX_RECORD];
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, size @ 1..)) if let Some(id) = self.answered(&buffer[..size]) => {
                self.open.retain(|open| *open != id);
                buffer.truncate(size);
                Said::Report(buffer)
            }
            Err(Errno::INTR) => self.listen(),
            _ => {
                // Its memory is free when its process has been waited for.
                drop(self.process.kill());
                drop(self.process.wait());
                Said::Ended(std::mem::take(&mut self.open))
            }
        }
    }

    /// The call that a record answers, if this workload has it to answer.
    fn answered(&self, record: &[u8]) -> Option<u32> {
        match decode(record) {
            Ok(Report::Done { id, .. }) => Some(id).filter(|id| self.open.contains(id)),
            _ => None,
        }
    }
}

impl AsFd for Workload {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The bytes of a call.
fn record(call: &Call) -> Vec<u8> {
    let mut buffer = [0; MAX_RECORD];
    encode(call, &mut buffer).expect("every record fits into MAX_RECORD").to_vec()
}
