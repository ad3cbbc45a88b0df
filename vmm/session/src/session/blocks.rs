//! `blocks`, `readd` and `rebind`: the guest's memory blocks, and the driver that brings them.

use std::time::Duration;

use tidevm_abi::{Answer, BLOCK_RUNS, BlockRun, Failure, MAX_PHYS_ADDR, MEMORY_BLOCK_SIZE, Op, Size};

use super::failure::{Done, StepError, StepFailure, unfit};
use super::{ANSWER_DEADLINE, Blocks, Observer, Session, VmControl, Work};

/// The number of answers when no two neighbouring memory blocks are alike.
const MOST_ANSWERS: u64 = MAX_PHYS_ADDR / MEMORY_BLOCK_SIZE / BLOCK_RUNS as u64;

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    /// Lists memory blocks.
    pub(super) fn blocks(&self) -> Done {
        let Blocks { runs, .. } = self.list_blocks(ANSWER_DEADLINE, usize::MAX)?;
        let lines: Vec<String> = runs.iter().map(ToString::to_string).collect();
        self.listed.replace(Some(runs));
        Ok(Some(lines.join("; ")))
    }

    /// The first memory blocks, at most about `most` entries. The guest may take `limit` to tell them.
    pub(super) fn list_blocks(&self, limit: Duration, most: usize) -> Result<Blocks, StepError> {
        let deadline = self.vm.now() + limit;
        let mut listed = Vec::new();
        let mut from = 0;
        for _ in 0..MOST_ANSWERS {
            let left = deadline.saturating_duration_since(self.vm.now());
            match self.ask(Op::Blocks { from }, left)? {
                Answer::Blocks { runs, next } if runs.iter().flatten().all(exists) => {
                    listed.extend(runs.iter().flatten());
                    match next {
                        None => return Ok(Blocks { runs: listed, complete: true }),
                        Some(_) if listed.len() >= most => {
                            return Ok(Blocks { runs: listed, complete: false });
                        }
                        Some(next) if next > from => from = next,
                        Some(_) => break,
                    }
                }
                other => return Err(unfit(other)),
            }
        }
        Err(StepError::Fatal(StepFailure::EndlessBlocks))
    }

    /// Lets the guest bind the driver of a device again. All memory of the device moves.
    pub(super) fn rebind(&self, device: u8) -> Done {
        let plugged = self.vm.state().mem.iter().map(|mem| mem.plugged.0).sum();
        match self.ask(Op::Rebind { device }, self.limit_of(Work::Move, Size(plugged)))? {
            Answer::Done => Ok(None),
            Answer::Failed(failure @ (Failure::NoDriver | Failure::Stuck { .. })) => {
                Err(StepError::refused(failure))
            }
            other => Err(unfit(other)),
        }
    }

    /// Lets the guest remove memory blocks and add them again.
    pub(super) fn readd(&self, size: Size, addr: u64) -> Done {
        match self.ask(Op::Readd { addr, size }, self.limit_of(Work::Move, size))? {
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

/// Whether memory blocks can be where the guest says that they are.
fn exists(run: &BlockRun) -> bool {
    let size = run.count.checked_mul(run.size.0);
    size.and_then(|size| run.addr.checked_add(size)).is_some_and(|end| end <= MAX_PHYS_ADDR)
}
