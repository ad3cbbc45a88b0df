//! `blocks` and `readd`: the guest's memory blocks.

use tidevm_abi::{Answer, BLOCK_RUNS, Failure, MAX_PHYS_ADDR, MEMORY_BLOCK_SIZE, Op, Size};

use super::failure::{Done, StepError, StepFailure, unfit};
use super::workload::patience;
use super::{ANSWER_DEADLINE, Machine, Observer, Session};

/// As many as it takes when no two memory blocks are alike.
const MOST_ANSWERS: u64 = MAX_PHYS_ADDR / MEMORY_BLOCK_SIZE / BLOCK_RUNS as u64;

impl<M: Machine, O: Observer> Session<'_, M, O> {
    /// Lists memory blocks, those that are alike together.
    pub(super) fn blocks(&self) -> Done {
        let deadline = self.machine.now() + ANSWER_DEADLINE;
        let mut lines = Vec::new();
        let mut from = 0;
        for _ in 0..MOST_ANSWERS {
            let left = deadline.saturating_duration_since(self.machine.now());
            match self.ask(Op::Blocks { from }, left)? {
                Answer::Blocks { runs, next } => {
                    lines.extend(runs.iter().flatten().map(ToString::to_string));
                    match next {
                        Some(next) if next > from => from = next,
                        Some(_) => break,
                        None => return Ok(Some(lines.join("; "))),
                    }
                }
                other => return Err(unfit(other)),
            }
        }
        Err(StepError::Fatal(StepFailure::EndlessBlocks))
    }

    /// Takes memory blocks away and brings them back.
    pub(super) fn readd(&self, size: Size, addr: u64) -> Done {
        match self.ask(Op::Readd { addr, size: size.0 }, patience(size.pages()))? {
            Answer::Done => Ok(None),
            Answer::Failed(failure @ Failure::NotBlocks) => {
                let text = format!("{size} at {} is {failure}", Size(addr));
                Err(StepError::Failed(StepFailure::Refused { failure, text }))
            }
            Answer::Failed(failure @ (Failure::Granularity | Failure::Mixed | Failure::Stuck { .. })) => {
                Err(StepError::refused(failure))
            }
            other => Err(unfit(other)),
        }
    }
}
