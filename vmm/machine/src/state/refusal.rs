//! What a virtio-mem device refused, and the host's part in it.

use std::{fmt, io};

use crate::memory::host_calls::FailedCall;

/// A request that a virtio-mem device did not answer with ACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The answer, the request and the reason.
    pub text: String,
    /// Of an answer BUSY, the host's call that failed.
    pub host: Option<HostFault>,
}

/// A call to the host that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// Its name: that of a system call, or of a request to KVM.
    pub call: &'static str,
    /// Linux's number of the error.
    pub errno: i32,
}

impl From<&FailedCall> for HostFault {
    fn from(failed: &FailedCall) -> Self {
        Self { call: failed.call, errno: failed.error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<String> for Refusal {
    /// A refusal in which the host has no part.
    fn from(text: String) -> Self {
        Self { text, host: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        let Some(HostFault { call, errno }) = self.host else { return Ok(()) };
        write!(f, ": {call}: {}", io::Error::from_raw_os_error(errno))
    }
}
