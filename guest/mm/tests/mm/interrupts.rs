//! A kernel whose interrupt handlers allocate and free pages. An interrupt comes wherever interrupts are on and the platform
//! sees it: at each call of the platform, and directly before and after interrupts were off.
//!
//! Between two such points nothing is changed that a handler could find half done: that is what
//! `tidevm_mm::irq::tests` looks at, step by step.
#![expect(unsafe_code, reason = "implements the platform, whose contract is unsafe")]

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

use tidevm_mm::{
    FaultStep, Gfp, InitPolicy, MemoryContent, Mm, MovableOwner, NodeId, Options, Order, OwnerId, Pfn,
    PfnRange, Platform, SectionNr, SectionRange, ZoneType,
};

use crate::window::{self, Window};

/// The first section of the memory that comes.
const REGION: u32 = 4;

thread_local! {
    static CPU: Cpu = const { Cpu { off: Cell::new(0), interrupts: Cell::new(0), held: RefCell::new(Vec::new()) } };
}

/// The state of the only CPU of a test.
struct Cpu {
    /// How often interrupts were turned off and not on again. The handler runs with interrupts off.
    off: Cell<usize>,
    interrupts: Cell<u64>,
    /// Pages that the handler holds.
    held: RefCell<Vec<Pfn>>,
}

struct Interrupted {
    window: Window,
    mm: OnceLock<&'static Mm<Interrupted>>,
}

impl Interrupted {
    /// An interrupt comes if it can.
    fn interrupt(&self) {
        let Some(mm) = self.mm.get() else { return };
        CPU.with(|cpu| {
            if cpu.off.get() > 0 {
                return;
            }
            cpu.off.set(1);
            cpu.interrupts.set(cpu.interrupts.get() + 1);
            for (order, gfp) in [(Order::PAGE, Gfp::Movable), (Order::PAGEBLOCK, Gfp::Movable)] {
                mm.alloc_pages(order, gfp).into_iter().for_each(|pfn| mm.free_pages(pfn, order));
            }
            // Pages of the kernel stay for a while, so that lists and zones differ after an interrupt.
            let mut held = cpu.held.borrow_mut();
            held.extend(mm.alloc_pages(Order::PAGE, Gfp::Kernel));
            if held.len() > 100 {
                held.drain(..60).for_each(|page| mm.free_pages(page, Order::PAGE));
            }
            cpu.off.set(0);
        });
    }
}

// SAFETY: the whole window is readable and writable at all times. There is one CPU.
unsafe impl Platform for Interrupted {
    const MIGRATES: bool = true;

    fn this_cpu(&self) -> usize {
        self.interrupt();
        0
    }

    fn get_cpu(&self) -> usize {
        assert!(CPU.with(|cpu| cpu.off.get()) > 0, "a CPU is at its lists with interrupts on");
        0
    }

    fn irq_save(&self) -> usize {
        self.interrupt();
        CPU.with(|cpu| cpu.off.replace(cpu.off.get() + 1))
    }

    fn irq_restore(&self, flags: usize) {
        let off = CPU.with(|cpu| cpu.off.replace(flags));
        assert_eq!(off, flags + 1, "interrupts are restored in the reverse order");
        self.interrupt();
    }

    fn copy_pages(&self, _: &[(Pfn, Pfn)]) {
        self.interrupt();
    }

    fn map_prepared_memmap(&self, section: SectionNr, _: Pfn) {
        self.interrupt();
        self.window.scribble(section);
    }

    fn unmap_memmap(&self, section: SectionNr) {
        self.window.scribble(section);
        self.interrupt();
    }

    fn map_prepared_direct(&self, _: PfnRange) {
        self.interrupt();
    }

    fn unmap_direct(&self, _: PfnRange) {
        self.interrupt();
    }

    fn synchronize(&self) {
        self.interrupt();
    }

    fn fault(&self, _: FaultStep) -> bool {
        self.interrupt();
        false
    }
}

/// Lets all pages move. Its pages are those of the test, by their place in it.
struct Owner;

thread_local! {
    static PAGES: RefCell<Vec<Pfn>> = const { RefCell::new(Vec::new()) };
}

impl MovableOwner for Owner {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        PAGES.with(|pages| pages.borrow()[index as usize] == pfn)
    }

    fn hand_over(&self, _: Pfn, to: Pfn, index: u64) -> bool {
        PAGES.with(|pages| pages.borrow_mut()[index as usize] = to);
        true
    }

    fn put_back(&self, _: Pfn, _: u64) {}
}

fn machine(options: Options) -> &'static Mm<Interrupted> {
    let window = Window::new();
    let mm = window::machine(Interrupted { window, mm: OnceLock::new() }, window);
    window::boot(mm, options);
    // Handlers allocate from now on.
    mm.platform().mm.set(mm).ok().expect("a new machine");
    mm
}

/// Growing, shrinking with pages in use, and all that allocations do, with an interrupt at every turn.
#[test]
fn interrupt_handlers_allocate_and_free_at_any_time() {
    for init in [InitPolicy::Eager, InitPolicy::Deferred, InitPolicy::Lazy] {
        let mm = machine(Options::DEFAULT.with_init(init));
        mm.register_owner(OwnerId(0), &Owner);
        let region = SectionRange::new(SectionNr::new(REGION), 4).unwrap();
        for _ in 0..2 {
            let (node, zone, content) = (NodeId::FIRST, ZoneType::Movable, MemoryContent::Unknown);
            let end = mm.hotplug().add_and_online_memory(node, region, 1, zone, content, || true);
            assert_eq!(end, Ok(region.end()));
            for index in 0..6000 {
                let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("four memory blocks have more");
                PAGES.with(|pages| pages.borrow_mut().push(page));
                mm.set_owner(page, OwnerId(0), index);
            }
            let free_from = |first| {
                PAGES.with(|pages| {
                    pages.borrow_mut().drain(first..).for_each(|page| mm.free_pages(page, Order::PAGE));
                })
            };
            free_from(3000);
            // Those that are left move to boot memory.
            mm.hotplug().offline_and_remove_from_end(region, || true).expect("all pages can move");
            free_from(0);
            mm.check();
        }
        CPU.with(|cpu| {
            // No interrupt comes any more, until the next machine is there.
            cpu.off.set(1);
            cpu.held.take().into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
            mm.check();
            cpu.off.set(0);
            let count = cpu.interrupts.take();
            assert!(count > 20_000, "{init:?}: {count} interrupts");
        });
    }
}
