//! `blocks` and `readd`: the guest's memory blocks.

use tidevm_abi::{Answer, BLOCK_RUNS, Failure, MAX_PHYS_ADDR, MEMORY_BLOCK_SIZE, Op};
use tidevm_machine::Size;

use super::workload::{PAGE_SIZE, patience};
use super::{ANSWER_DEADLINE, Done, Machine, Observer, Session, Trouble, unfit};

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
                other => return Err(unfit(&other)),
            }
        }
        Err(Trouble::Fatal("the guest tells of memory blocks again and again".to_owned()))
    }

    /// Takes memory blocks away and brings them back.
    pub(super) fn readd(&self, size: u64, addr: u64) -> Done {
        match self.ask(Op::Readd { addr, size }, patience(size / PAGE_SIZE))? {
            Answer::Done => Ok(None),
            Answer::Failed(failure) => Err(Trouble::Failed(match failure {
                Failure::NotBlocks => {
                    let (size, addr) = (Size(size), Size(addr));
                    format!("{size} at {addr} is not made of whole memory blocks that were added and are online")
                }
                Failure::Granularity => {
                    "refused: memory blocks that hold their own memmap are removed one at a time, as they were \
                     added"
                        .to_owned()
                }
                Failure::Mixed => {
                    "refused: some of the memory blocks hold their own memmap, and some do not".to_owned()
                }
                Failure::Stuck { addr, pages } => {
                    format!("blocked: {pages} pages of the memory block at {} cannot move", Size(addr))
                }
                _ => return Err(unfit(&Answer::Failed(failure))),
            })),
            other => Err(unfit(&other)),
        }
    }
}
