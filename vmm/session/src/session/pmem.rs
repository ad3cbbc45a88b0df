//! `pmem`: device memory in the guest.

use std::time::Duration;

use tidevm_abi::{Answer, Failure, MAX_PMEM, Op, Pmem as Device, PmemFailure, PmemMapped, PmemOp, PmemUse};
use tidevm_machine::Size;

use super::workload::{PAGE_SIZE, patience};
use super::{ANSWER_DEADLINE, Done, Machine, Observer, Session, Trouble, unfit};
use crate::command::{Pmem, PmemMap};

impl<M: Machine, O: Observer> Session<'_, M, O> {
    pub(super) fn pmem(&mut self, pmem: &Pmem) -> Done {
        match pmem {
            Pmem::List => self.pmem_list(),
            Pmem::Map(map) => self.pmem_map(*map),
            Pmem::Unmap(device) => {
                match self.ask(Op::Pmem(PmemOp::Unmap { device: *device }), ANSWER_DEADLINE)? {
                    Answer::PmemUnmapped { pages } => Ok(Some(format!("{pages} pages were usable"))),
                    other => Err(self.pmem_unfit(&other)),
                }
            }
            Pmem::Hold { size, device, name } => {
                let device = *device;
                self.hold(size / PAGE_SIZE, name, |handle, pages| {
                    Op::Pmem(PmemOp::Hold { handle, device, pages })
                })
            }
        }
    }

    fn pmem_list(&self) -> Done {
        let mut lines = Vec::new();
        for device in 0..MAX_PMEM as u8 {
            match self.ask(Op::Pmem(PmemOp::Look { device }), ANSWER_DEADLINE)? {
                Answer::Pmem(pmem) => lines.push(line(device, &pmem)),
                Answer::Failed(Failure::Pmem(PmemFailure::NoDevice)) => break,
                other => return Err(unfit(&other)),
            }
        }
        Ok(Some(if lines.is_empty() { "no device memory".to_owned() } else { lines.join("\n") }))
    }

    fn pmem_map(&self, map: PmemMap) -> Done {
        let op = PmemOp::Map {
            devices: map.devices,
            altmap: map.altmap.is_some(),
            reserve: map.altmap.map_or(0, |reserve| u32::try_from(reserve / PAGE_SIZE).unwrap_or(u32::MAX)),
            cpus: map.cpus.unwrap_or(u32::MAX),
        };
        match self.ask(Op::Pmem(op), patience(self.machine.device_memory() / PAGE_SIZE))? {
            Answer::PmemMapped(mapped) => Ok(Some(account(&mapped))),
            other => Err(self.pmem_unfit(&other)),
        }
    }

    fn pmem_unfit(&self, answer: &Answer) -> Trouble {
        match answer {
            Answer::Failed(Failure::Pmem(why)) => self.pmem_refused(*why),
            other => unfit(other),
        }
    }

    /// The guest did nothing, and says why.
    pub(super) fn pmem_refused(&self, why: PmemFailure) -> Trouble {
        let text = match why {
            PmemFailure::NoDevice => "the guest found no such device memory; --pmem size=SIZE makes it",
            PmemFailure::Mapped => "it is mapped already",
            PmemFailure::NotMapped => "it is not mapped",
            PmemFailure::Misaligned => {
                "misaligned: device memory is whole memory blocks of 128M, a reserve whole pageblocks of 2M"
            }
            PmemFailure::OutOfRange => {
                "it lies beyond the addresses that the guest can have struct pages for"
            }
            PmemFailure::Conflict => "there is other memory at its addresses",
            PmemFailure::AltmapTooLarge => "reserve and memmap leave nothing of it: make the reserve smaller",
            PmemFailure::TooMany => "too many ranges are mapped: unmap one",
            PmemFailure::NoPageTable => "the guest has no memory for page tables",
            PmemFailure::NoMemory => "the guest has no memory for its memmap; with `altmap` it needs none",
            PmemFailure::InUse { refs, first } => {
                let first = first.map_or_else(String::new, |(pfn, handle)| {
                    let user = self.workloads.name_of(handle).map(ToString::to_string);
                    format!(
                        ", the first is pfn {pfn:#x} ({})",
                        user.as_deref().unwrap_or("nobody known here")
                    )
                });
                return Trouble::Failed(format!("{refs} references to its pages are held{first}"));
            }
        };
        Trouble::Failed(text.to_owned())
    }
}

fn line(index: u8, device: &Device) -> String {
    let place = format!("pmem {index}: {} at {:#x}", Size(device.size), device.start);
    match device.mapped {
        None => format!("{place}, not mapped"),
        Some(PmemUse { pages, users, memmap_pages, altmap }) => {
            let whose = if altmap { "its own" } else { "the kernel's memory" };
            format!(
                "{place}, {pages} pages, {users} references by users, memmap in {memmap_pages} pages of {whose}"
            )
        }
    }
}

fn account(mapped: &PmemMapped) -> String {
    let PmemMapped { pages, locked_pages, locked_ns, total_ns, cpus } = *mapped;
    let time = |nanos| format!("{:.3} ms", Duration::from_nanos(nanos).as_secs_f64() * 1e3);
    let plural = if cpus == 1 { "" } else { "s" };
    format!(
        "{pages} pages to use after {} on {cpus} CPU{plural}; the hotplug lock was held for {}, and \
         {locked_pages} struct pages written under it",
        time(total_ns),
        time(locked_ns)
    )
}
