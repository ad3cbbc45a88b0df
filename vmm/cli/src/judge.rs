//! `tidevm judge`: judges the virtio-mem device of a VMM, and shows each row as soon as it is judged.

use std::env;
use std::io::{self, Write};

use tidevm_judge::render::{Counts, Form};
use tidevm_judge::subject::{CloudHypervisor, Firecracker, Program, Qemu, Subject, SubjectError, Tidevm};
use tidevm_judge::{Limits, judge};
use tidevm_machine::GUEST_IMAGE;

use crate::cli::{Judge, JudgedVmm};

/// Why there is no trial.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The program cannot be judged.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// This program does not know where it lies.
    #[error("cannot find this program: {0}; name it by --binary")]
    Here(io::Error),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl JudgeError {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Output(_) => 1,
            Self::Subject(SubjectError::Stranger { .. } | SubjectError::Silent { .. }) => 2,
            Self::Subject(SubjectError::NotThere { .. }) | Self::Here(_) => 3,
        }
    }
}

/// Judges as the options say, and gives the exit status: 1 if a rule that binds is broken.
pub fn run(options: &Judge) -> Result<u8, JudgeError> {
    let form = match options {
        Judge { json: true, .. } => Form::Json,
        Judge { tap: true, .. } => Form::Tap,
        _ => Form::Table,
    };
    let mut subject = subject(options)?;
    let version = subject.version()?;
    let show = |text: &str| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    };
    show(&form.head(&version))?;
    let (mut counts, mut number) = (Counts::default(), 0);
    judge(subject.as_mut(), Limits::default(), |outcome| {
        number += 1;
        counts.add(outcome);
        show(&form.outcome(number, outcome))
    })?;
    show(&form.end(&counts))?;
    Ok(u8::from(counts.breaches > 0))
}

fn subject(options: &Judge) -> Result<Box<dyn Subject>, JudgeError> {
    let binary = options.binary.clone();
    Ok(match options.vmm {
        JudgedVmm::Tidevm => {
            let here = || env::current_exe().map_err(JudgeError::Here);
            let binary = binary.map_or_else(here, Ok)?;
            Box::new(Program::new(Tidevm, Some(binary), GUEST_IMAGE))
        }
        JudgedVmm::Qemu => Box::new(Program::new(Qemu, binary, GUEST_IMAGE)),
        JudgedVmm::CloudHypervisor => Box::new(Program::new(CloudHypervisor, binary, GUEST_IMAGE)),
        JudgedVmm::Firecracker => Box::new(Program::new(Firecracker, binary, GUEST_IMAGE)),
    })
}
