//! Why a host could not do what a request asks for.
//!
//! QEMU's device answers BUSY and forgets the cause. Here it comes with the answer, so that a VMM can show it.

use core::error::Error;
use core::fmt;

/// The host cannot do it at the moment. The device answers BUSY, and the driver tries again after a pause. A
/// config notification makes the driver try at once: see [`Device::retry_after_ms`](super::Device::retry_after_ms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// What failed, such as the name of a system call; empty when nothing is known.
    pub cause: &'static str,
    /// The host's number of the error; 0 when it has none.
    pub errno: i32,
}

impl Busy {
    /// Because of `cause`, in words.
    #[must_use]
    pub const fn because(cause: &'static str) -> Busy {
        Busy { cause, errno: 0 }
    }

    /// Because the call named `call` failed with the error number `errno`.
    #[must_use]
    pub const fn call(call: &'static str, errno: i32) -> Busy {
        Busy { cause: call, errno }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host cannot do it now")?;
        if !self.cause.is_empty() {
            write!(f, ": {}", self.cause)?;
        }
        if self.errno != 0 {
            write!(f, ": error {}", self.errno)?;
        }
        Ok(())
    }
}

impl Error for Busy {}
