//! The simulated machine as the platform of `mm`: each method checks its caller, and then does what hardware would.
#![expect(unsafe_code, reason = "stands for the machine, whose contract is unsafe")]

use core::cell::Cell;
use core::sync::atomic::{Ordering::SeqCst, fence};

use tidevm_mm::hosted::{MODELLED, with_cpu, yield_now};
use tidevm_mm::{
    FaultStep, MemmapFrames, NoPageTable, Order, Pfn, PfnRange, Platform, SectionNr, SectionRange,
    SectionState,
};

use super::tables::{direct_map, memmaps};
use super::watch::PlatformCall;
use super::{LOST, Sim, pageblocks_of};

// SAFETY: `map_memmap` makes nothing readable that is not, because the window is one allocation
// that is always mapped; results and mappings agree. `this_cpu` is a thread's own.
// `synchronize` waits for steps only: nothing is ever unmapped, and a look that comes too late finds garbage. The use of
// per-CPU lists is a step.
unsafe impl Platform for Sim {
    const MIGRATES: bool = true;

    fn this_cpu(&self) -> usize {
        with_cpu(Cell::get)
    }

    fn get_cpu(&self) -> usize {
        let cpu = self.this_cpu();
        self.steps[cpu].begin();
        cpu
    }

    fn put_cpu(&self) {
        self.steps[self.this_cpu()].end();
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        self.tell(PlatformCall::CopyPages(pages.len()));
        for &(to, from) in pages {
            self.write(to, self.read(from));
        }
    }

    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapMemmap(section));
        assert!(backing.is_aligned(Order::PAGEBLOCK), "2 MiB page at {backing:?}");
        self.take_table(memmaps(section, 1))?;
        self.settled.store(false, SeqCst);
        self.map_frames(section, vec![backing]);
        Ok(())
    }

    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn) {
        assert!(backing.is_aligned(Order::PAGEBLOCK), "2 MiB page at {backing:?}");
        assert!(self.prepared[section.get() as usize].swap(false, SeqCst), "{section:?} is not prepared");
        self.map_frames(section, vec![backing]);
    }

    fn unmap_memmap(&self, section: SectionNr) {
        self.tell(PlatformCall::UnmapMemmap(section));
        assert_eq!(self.unmap_frames(section).len(), 1, "{section:?} is not mapped by a large page");
    }

    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapMemmap(section));
        self.take_table(memmaps(section, 1))?;
        self.settled.store(false, SeqCst);
        self.map_frames(section, frames.to_vec());
        Ok(())
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        self.tell(PlatformCall::UnmapMemmap(section));
        self.unmap_frames(section).try_into().expect("it is mapped by small pages")
    }

    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapDirect(range));
        self.assert_unused(range);
        self.settled.store(false, SeqCst);
        self.take_table(direct_map(range))?;
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(!block.swap(true, SeqCst), "block {index} of {range:?} is mapped");
        }
        Ok(())
    }

    fn prepare(&self, range: SectionRange) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::Prepare(range));
        let (first, count, direct) = (range.first(), range.len(), direct_map(range.frames()));
        self.take_table(direct.clone())?;
        if self.take_table(memmaps(first, count)).is_err() {
            self.give_tables_back(&direct);
            return Err(NoPageTable);
        }
        self.set_prepared(range, true);
        Ok(())
    }

    fn map_prepared_direct(&self, range: PfnRange) {
        for pageblock in &self.prepared_direct[pageblocks_of(range)] {
            assert!(pageblock.swap(false, SeqCst), "a pageblock of {range:?} is not prepared");
        }
        self.assert_unused(range);
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(!block.swap(true, SeqCst), "block {index} of {range:?} is mapped");
        }
    }

    fn release(&self, range: SectionRange) {
        self.tell(PlatformCall::Release(range));
        self.set_prepared(range, false);
        self.give_tables_back(&direct_map(range.frames()));
        self.give_tables_back(&memmaps(range.first(), range.len()));
    }

    fn unmap_direct(&self, range: PfnRange) {
        self.tell(PlatformCall::UnmapDirect(range));
        self.assert_unused(range);
        self.settled.store(false, SeqCst);
        let memmaps = self.memmaps.lock().expect("no panic holds it");
        let holds =
            memmaps.iter().flatten().flat_map(|mapped| &mapped.frames).any(|&pfn| range.contains(pfn));
        assert!(!holds, "{range:?} holds a memmap");
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(block.swap(false, SeqCst), "block {index} of {range:?} is not mapped");
        }
        let content = self.section_content(range.start().section());
        for word in &content[range.start().in_section()..][..range.pages() as usize] {
            // Most pages were never written. A store by SeqCst costs far more than a load.
            if word.load(SeqCst) != LOST {
                word.store(LOST, SeqCst);
            }
        }
        drop(memmaps);
        self.give_tables_back(&direct_map(range));
    }

    fn synchronize(&self) {
        self.tell(PlatformCall::Synchronize);
        for (unseen, nr) in self.unseen.iter().zip((0..).map(SectionNr::new)) {
            unseen.store(self.mm().section_state(nr) == SectionState::Absent, SeqCst);
        }
        self.grace_periods.fetch_add(1, SeqCst);
        // What the caller has published is seen before the steps are looked at.
        fence(SeqCst);
        assert!(self.steps[self.this_cpu()].are_own(), "two threads are one CPU");
        let others = self.steps.iter().enumerate().filter(|&(cpu, _)| cpu != self.this_cpu());
        others.for_each(|(_, steps)| steps.synchronize());
        self.settled.store(true, SeqCst);
        // Time for the other CPUs to come in between.
        if !MODELLED && self.cpus > 1 {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    fn relax(&self) {
        self.steps[self.this_cpu()].pass();
        yield_now();
    }

    fn drained(&self) {}

    fn clock(&self) -> u64 {
        self.tell(PlatformCall::Clock);
        self.started.elapsed().as_nanos() as u64
    }

    fn fault(&self, step: FaultStep) -> bool {
        self.tell(PlatformCall::Fault(step));
        let step = step as usize;
        self.attempts[step].fetch_add(1, SeqCst);
        if self.lasting[step].load(SeqCst) {
            return true;
        }
        // Counts down to -1 and stays there.
        self.faults[step].fetch_update(SeqCst, SeqCst, |left| (left >= 0).then(|| left - 1)) == Ok(0)
    }
}
