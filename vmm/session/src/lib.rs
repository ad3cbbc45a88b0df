//! Sessions: a script's steps on a running machine, and how what they told is shown.
//!
//! [`Script::parse`](script::Script::parse) reads a script, [`run`] runs it on a machine, and an
//! [`Observer`] is told of each step.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | `session` | a script's steps on a running machine | how anything is shown |
//! | [`script`], [`command`] | text to steps, every error with its place | machines |
//! | [`table`], [`json`] | what a session tells, for people and for programs | machines |

pub mod command;
pub mod json;
pub mod script;
mod session;
pub mod table;

pub use session::{
    ANSWER_DEADLINE, BOOT_DEADLINE, BOOT_DEADLINE_PER_GIB, BootReport, DeviceSample, Ended, Machine,
    Observer, POWER_OFF_DEADLINE, RESIZE_DEADLINE, Rate, Record, Sample, StepReport, Summary, Verdict,
    record, run, stay,
};
