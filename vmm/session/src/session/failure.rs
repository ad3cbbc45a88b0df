//! Why a step failed, as facts: a judge matches on [`StepFailure`], and its `Display` is for people.
//!
//! The guest knows workloads by handles. A failure that may name one carries the finished text beside the
//! guest's own words, because only the session knows the names of the script.

use std::cmp::Ordering;
use std::io;
use std::time::Duration;

use tidevm_abi::command::{ConsoleText, NoTarget};
use tidevm_abi::{Answer, BadWord, Counted, Failure, Metric, Name, ResizeState, ShowDuration, Size, either};
use tidevm_machine::{CONSOLE_KEPT, CallsUnread, ResetRefused, ResizeError, WaitError};

use crate::script::ScriptErrors;

/// Why a step did not do what its text says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepFailure {
    /// The device refuses the new size.
    #[error("refused: {0}")]
    SizeRefused(ResizeError),
    /// The machine was not made to be reset.
    #[error("refused: {0}")]
    ResetRefused(ResetRefused),
    /// `plug`, `unplug`: there is no such size.
    #[error("refused: {0}")]
    NoTarget(NoTarget),
    /// The VM has no such hotplug device.
    #[error("there is no hotplug device {0}")]
    NoDevice(usize),
    /// The guest has no driver for this hotplug device.
    #[error("driver absent: the guest drives no device {0}")]
    NoDriver(usize),
    /// A resize did not reach its target.
    #[error("{0}")]
    Stopped(Box<Stopped>),
    /// The guest refused a call, or could not carry it out.
    #[error("{text}")]
    Refused {
        /// The guest's reason.
        failure: Failure,
        /// The reason, with names of workloads.
        text: String,
    },
    /// The guest's answer does not belong to the call.
    #[error("the guest gave an answer to another question: {0:?}")]
    WrongAnswer(Box<Answer>),
    /// The guest lists memory blocks without an end.
    #[error("the guest tells of memory blocks again and again")]
    EndlessBlocks,
    /// `expect`: the number is not as expected.
    #[error("{metric} is {}", metric.show(*.value))]
    Unexpected {
        /// The number that was looked at.
        metric: Metric,
        /// Its value.
        value: u64,
    },
    /// `expect`: the guest has no such node or zone.
    #[error("the guest has no `{0}`")]
    NoMetric(Metric),
    /// `expect console`: what was looked for is not there.
    #[error("{}", not_on_console(.text, *.within, *.lost, .last))]
    NotOnConsole {
        /// What was looked for.
        text: ConsoleText,
        /// How long.
        within: Option<Duration>,
        /// Bytes that were not looked at.
        lost: u64,
        /// The last line of the console, or its start.
        last: String,
    },
    /// `expect no console`: it is there.
    #[error("the console has `{line}`")]
    OnConsole {
        /// The line, or its start.
        line: String,
    },
    /// `expect no console`: so many bytes at the start of the console are not kept any more, so that nothing is known of them.
    #[error("{}", console_lost(*.0))]
    ConsoleLost(u64),
    /// `expect console`: the text between the slashes is no pattern.
    #[error("{0}")]
    BadPattern(String),
    /// The guest's kernel told of trouble of its own.
    #[error("{}", alarms(.lines, *.more, .failure.as_deref()))]
    Alarmed {
        /// The first lines.
        lines: Vec<String>,
        /// How many more there were.
        more: u64,
        /// Why the step failed besides.
        failure: Option<Box<StepFailure>>,
    },
    /// `wait boot`: a kernel without an agent and without a device whose driver could show that it is up.
    #[error(
        "nothing tells when this kernel is up: it has no agent, and there is no --hotplug whose driver could show it; wait for \
         a line instead: expect console contains \"TEXT\" within 60s"
    )]
    NoSignOfBoot,
    /// `fails`: the command did what its text says.
    #[error("it did not fail")]
    DidNotFail,
    /// `fails`: the command failed for another reason than the expected one.
    #[error("it failed, but not because \"{because}\": {failure}")]
    FailedOtherwise {
        /// The expected part of the failure's text.
        because: String,
        /// The failure.
        failure: Box<StepFailure>,
    },
    /// The host does not tell how much memory a region holds.
    #[error("the host does not say what it holds: {0}")]
    HostSilent(String),
    /// Pages of a workload have a wrong content.
    #[error(
        "{corrupt} of {} of `{name}` {} corrupt{}",
        Counted(*.pages, "page"),
        either(*.corrupt, "is", "are"),
        first_word(*.first)
    )]
    Corrupt {
        /// The workload.
        name: Name,
        /// Pages that were checked.
        pages: u64,
        /// Pages whose content is wrong.
        corrupt: u64,
        /// The first wrong word, if the guest tells it.
        first: Option<BadWord>,
    },
    /// A workload has another number of pages than it had.
    #[error("`{name}` held {}, and now has {seen}", Counted(*.held, "page"))]
    PagesLost {
        /// The workload.
        name: Name,
        /// Its pages when it started.
        held: u64,
        /// Its pages now.
        seen: u64,
    },
    /// `race`: cycles failed, or pages were stranded on per-CPU lists.
    #[error("{}", Answer::Raced { cycles: *.cycles, failures: *.failures, stranded: *.stranded })]
    RaceLost {
        /// Cycles that were run.
        cycles: u32,
        /// Cycles in which the pageblock could not be taken.
        failures: u32,
        /// Pages that were stranded.
        stranded: u64,
    },
    /// No workload has this name now.
    #[error("nothing is called `{0}` here")]
    UnknownName(Name),
    /// The workload ended with a reset of the guest.
    #[error("`{0}` is gone: the guest was reset")]
    WorkloadReset(Name),
    /// `wait` for a workload that does not end by itself.
    #[error("`{0}` does not end by itself")]
    Endless(Name),
    /// The guest has no agent that carries this out.
    #[error("this needs an agent in the guest: tidevm's own guest has one, and Linux gets one by --agent")]
    NoAgent,
    /// The guest's agent is that of another tidevm.
    #[error(
        "the guest's agent speaks version {version} of the records, and this tidevm version {own}: the initrd has an agent of \
         another tidevm"
    )]
    ForeignAgent {
        /// Its version.
        version: u32,
        /// The version of this tidevm.
        own: u32,
    },
    /// The guest does not read its calls.
    #[error(transparent)]
    CallsUnread(CallsUnread),
    /// Nothing came within the deadline.
    #[error("{what}: not within {}", ShowDuration(*.after))]
    TooLate {
        /// The event that was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A person cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The guest died, powered off or was reset, or a signal came.
    #[error("{}", end(.0))]
    Ended(WaitError),
    /// It failed, and the guest was reset meanwhile.
    #[error("{0}; the guest was reset")]
    WithReset(Box<StepFailure>),
}

/// A resize that did not reach its target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}stopped at {plugged}, {}: {why}",
    not_within(*.within),
    distance(*.plugged, *.target)
)]
pub struct Stopped {
    /// The deadline, if it passed.
    pub within: Option<Duration>,
    /// Bytes that are plugged.
    pub plugged: Size,
    /// The target.
    pub target: Size,
    /// The driver's state, if it reported one for this target.
    pub state: Option<ResizeState>,
    /// The obstacle, with names of workloads.
    pub why: String,
}

fn first_word(first: Option<BadWord>) -> String {
    first.map_or_else(String::new, |first| format!(", the first is {first}"))
}

fn not_on_console(text: &ConsoleText, within: Option<Duration>, lost: u64, last: &str) -> String {
    let last =
        if last.is_empty() { "nothing else is there".to_owned() } else { format!("the last is `{last}`") };
    format!("{}no new line of the console {text}; {last}{}", not_within(within), but_lost(lost))
}

/// What a reader has to know beside a result, if `lost` bytes were not looked at.
pub(super) fn but_lost(lost: u64) -> String {
    match lost {
        0 => String::new(),
        bytes => format!(
            "; {bytes} bytes before that were not looked at, because the guest wrote too much at once"
        ),
    }
}

fn console_lost(bytes: u64) -> String {
    let kept = CONSOLE_KEPT >> 20;
    format!(
        "it is not known: the first {bytes} bytes of the console are gone, because the guest wrote too much (the last {kept} MiB are \
         kept)"
    )
}

fn alarms(lines: &[String], more: u64, failure: Option<&StepFailure>) -> String {
    let mut text = failure.map_or_else(String::new, |failure| format!("{failure}; "));
    text += "the guest's kernel is in trouble: ";
    text += &lines.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {}", Counted(more, "more line"));
    }
    text
}

/// How far it is from `plugged` to `target`. A guest that is at work for an earlier target may pass by the target.
fn distance(plugged: Size, target: Size) -> String {
    let side = match plugged.cmp(&target) {
        Ordering::Less => "below",
        Ordering::Equal => return "not settled at the target".to_owned(),
        Ordering::Greater => "above",
    };
    format!("{} MiB {side} the target", plugged.0.abs_diff(target.0) >> 20)
}

fn not_within(limit: Option<Duration>) -> String {
    limit.map_or_else(String::new, |limit| format!("not within {}: ", ShowDuration(limit)))
}

/// One line: the text on a death stands in the summary, not in a step.
fn end(error: &WaitError) -> String {
    match error {
        WaitError::Died(death) => death.kind.to_string(),
        error => error.to_string(),
    }
}

/// A step that failed, and whether the session goes on.
#[derive(Debug)]
pub(super) enum StepError {
    /// The session goes on.
    Failed(StepFailure),
    /// The session ends: no later step makes sense.
    Fatal(StepFailure),
}

/// A step that is done may have a note for people.
pub(super) type Done = Result<Option<String>, StepError>;

/// Why a session ends before its script does.
pub(super) enum SessionError {
    /// A step failed for good, or the guest did not come up.
    Step(StepError),
    /// A line is wrong.
    Script(ScriptErrors),
    /// The observer cannot write.
    Output(io::Error),
}

impl StepError {
    /// The guest refused a call for `failure`, which names no workload.
    pub(super) fn refused(failure: Failure) -> Self {
        Self::Failed(StepFailure::Refused { failure, text: failure.to_string() })
    }

    pub(super) fn failure(&self) -> &StepFailure {
        match self {
            Self::Failed(failure) | Self::Fatal(failure) => failure,
        }
    }

    /// The same failure, which ends the session.
    pub(super) fn into_fatal(self) -> Self {
        let (Self::Failed(failure) | Self::Fatal(failure)) = self;
        Self::Fatal(failure)
    }

    /// The same, with a reset of the guest meanwhile. The reset adds nothing when the guest or the VM ended.
    pub(super) fn with_reset(self) -> Self {
        match self {
            Self::Fatal(StepFailure::Ended(_)) => self,
            Self::Failed(failure) => Self::Failed(StepFailure::WithReset(Box::new(failure))),
            Self::Fatal(failure) => Self::Fatal(StepFailure::WithReset(Box::new(failure))),
        }
    }
}

impl From<WaitError> for StepError {
    fn from(error: WaitError) -> Self {
        Self::Fatal(match error {
            WaitError::Deadline { what, after } => StepFailure::TooLate { what, after },
            error => StepFailure::Ended(error),
        })
    }
}

impl From<CallsUnread> for StepError {
    fn from(error: CallsUnread) -> Self {
        Self::Fatal(StepFailure::CallsUnread(error))
    }
}

impl From<StepError> for SessionError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

/// The error for an answer that the step has no use for: an answer to another question, or a refusal after
/// which no later step makes sense.
pub(super) fn unfit(answer: Answer) -> StepError {
    StepError::Fatal(match answer {
        Answer::Failed(
            failure @ (Failure::UnknownHandle
            | Failure::HandleInUse
            | Failure::NoMemory
            | Failure::Unfit
            | Failure::NoSuchPage
            | Failure::ProbeUnderWay
            | Failure::WorkloadBusy
            | Failure::Unsupported
            | Failure::Killed
            | Failure::BadRecord),
        ) => StepFailure::Refused { failure, text: failure.to_string() },
        answer => StepFailure::WrongAnswer(Box::new(answer)),
    })
}
