//! `pmem`: lists, maps, unmaps and uses device memory in the guest.

use tidevm_abi::command::{Pmem, PmemHold, PmemMap};
use tidevm_abi::{Answer, Failure, MAX_PMEM, Op, PmemFailure, PmemOp, Size};

use super::failure::{Done, StepError, unfit};
use super::{ANSWER_DEADLINE, Observer, Session, VmControl, Work};

impl<V: VmControl, O: Observer> Session<'_, V, O> {
    pub(super) fn pmem(&mut self, pmem: &Pmem) -> Done {
        match pmem {
            Pmem::List => self.pmem_list(),
            Pmem::Map(map) => self.pmem_map(*map),
            Pmem::Unmap(device) => self.pmem_unmap(*device),
            Pmem::Hold(hold) => self.pmem_hold(hold),
        }
    }

    fn pmem_list(&self) -> Done {
        let mut lines = Vec::new();
        for device in 0..MAX_PMEM as u8 {
            match self.ask(Op::Pmem(PmemOp::Look { device }), ANSWER_DEADLINE)? {
                Answer::Pmem(pmem) => lines.push(format!("pmem {device}: {pmem}")),
                Answer::Failed(Failure::Pmem(PmemFailure::NoDevice)) => break,
                other => return Err(unfit(other)),
            }
        }
        Ok(Some(if lines.is_empty() { "no device memory".to_owned() } else { lines.join("\n") }))
    }

    fn pmem_map(&self, map: PmemMap) -> Done {
        let all = Size(self.vm.device_memory());
        match self.ask(map.op(), self.limit_of(Work::Initialise, all))? {
            answer @ Answer::PmemMapped(mapped) if mapped.pages <= all.pages() => {
                Ok(Some(answer.to_string()))
            }
            other => Err(self.pmem_unfit(other)),
        }
    }

    fn pmem_unmap(&self, device: u8) -> Done {
        let all = Size(self.vm.device_memory());
        match self.ask(Op::Pmem(PmemOp::Unmap { device }), self.limit_of(Work::Initialise, all))? {
            answer @ Answer::PmemUnmapped { pages } if pages <= all.pages() => Ok(Some(answer.to_string())),
            other => Err(self.pmem_unfit(other)),
        }
    }

    fn pmem_hold(&mut self, hold: &PmemHold) -> Done {
        self.hold(hold.size, hold.partial, &hold.name, |handle| hold.op(handle))
    }

    fn pmem_unfit(&self, answer: Answer) -> StepError {
        match answer {
            Answer::Failed(failure @ Failure::Pmem(_)) => self.pmem_refused(failure),
            other => unfit(other),
        }
    }
}
