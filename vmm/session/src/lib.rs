//! Sessions: runs the steps of a script on a running VM, and shows the results.
//!
//! [`Script::parse`](script::Script::parse) reads a script, [`run`] runs it on a VM, and an
//! [`Observer`] is told of each step. The grammar of a single command is [`tidevm_abi::command`].
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | `session` | runs the steps of a script on a running VM | how anything is shown |
//! | `pattern` | regular expressions of scripts | consoles |
//! | `remembered` | workloads in a snapshot | VMs |
//! | [`script`] | text to steps, every error with its line and column | VMs |
//! | [`table`], [`json`] | show a session, to people and to programs | VMs |

pub mod json;
mod pattern;
mod remembered;
pub mod script;
mod session;
pub mod table;

pub use remembered::Remembered;
pub use session::{
    ANSWER_DEADLINE, BOOT_DEADLINE, Blocks, Booted, Both, DeviceSample, Ended, Line, Lines, Manner, Observer,
    POWER_OFF_DEADLINE, RESIZE_DEADLINE, Rate, Record, Sample, StepFailure, StepRun, Stopped, Summary,
    VmControl, follow, record, resize_deadline, run, stay,
};
