//! Operations on the guest's memory management, on the simulated machine, with `Mm::check` after each one.
//!
//! A model beside it knows each memory block and its plugged pageblocks, the owner of each page, and the content of
//! each page. So an operation that fails has changed nothing, data moves with its page, and at the end of an input,
//! when everything was given back, every zone has the free buddy blocks that it had at the start.
//!
//! A simulated machine lives as long as the process, so one machine per kind serves all inputs of a thread.

use std::collections::BTreeMap;

use tidevm_mm::{
    FaultStep, Gfp, InitPolicy, MemoryContent, MhpFlags, Mm, NodeId, OfflineError, Options, Order,
    PageblockSet, PcpPolicy, Pfn, RemovalPolicy, SectionNr, SectionRange, SectionState, ZoneId, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::input::Input;
use owner::Owner;

mod owner;

/// Most operations of one input.
const OPERATIONS: usize = 40;
/// The sections that an input adds and removes.
const FIRST: u32 = 32;
const SECTIONS: u32 = 4;
/// Most pages in separate ownership.
const SLOTS: usize = 256;

/// A memory block: its sections, what is plugged of each, whether it is online.
#[derive(Clone, Debug)]
struct Block {
    plugged: Vec<PageblockSet>,
    online: bool,
}

/// Pages that the input holds: the first one, their order, their content.
type Held = (Pfn, Order, u64);

struct Machine {
    mm: &'static Mm<Sim>,
    owner: &'static Owner,
    start: Start,
}

/// What a machine has at the start and at the end of each input.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    free: Vec<[u32; Order::COUNT]>,
    counts: Vec<[u64; 4]>,
}

struct Play<'m> {
    machine: &'m Machine,
    content: MemoryContent,
    blocks: BTreeMap<u32, Block>,
    held: Vec<Held>,
    words: u64,
}

thread_local! {
    static MACHINES: std::cell::RefCell<BTreeMap<u8, Machine>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

/// The options of the machine of one kind, of which there are [`KINDS`].
fn options(kind: u8) -> Options {
    let (init, content) = [
        (InitPolicy::Eager, MemoryContent::Unknown),
        (InitPolicy::Lazy, MemoryContent::Zero),
        (InitPolicy::Lazy, MemoryContent::Unknown),
    ][usize::from(kind % 3)];
    let pcp = if kind / 3 % 4 == 3 { PcpPolicy::DrainAgain } else { PcpPolicy::Disable };
    let removal = if kind / 3 == 2 { RemovalPolicy::Range } else { RemovalPolicy::PerBlock };
    let options = SimMachine::OPTIONS.with_init(init).with_content(content).with_pcp(pcp);
    options.with_memmap_on_memory((kind / 3).is_multiple_of(2)).with_removal(removal)
}

const KINDS: u8 = 12;

fn machine(kind: u8) -> Machine {
    let options = options(kind);
    let memory = [(0, 8 * 1024)].into();
    let mm =
        SimMachine { memory, page_tables: kind.is_multiple_of(2), options, ..SimMachine::default() }.boot();
    let owner = Owner::new(mm, SLOTS);
    Machine { mm, owner, start: Start::of(mm) }
}

fn zones() -> impl Iterator<Item = ZoneId> {
    ZoneType::ALL.map(|zone| NodeId::FIRST.zone(zone)).into_iter()
}

impl Start {
    fn of(mm: &Mm<Sim>) -> Self {
        // Empties the lists of each CPU, so that all free pages are in buddy blocks.
        zones().for_each(|zone| drop(mm.zone_pcp_disable(zone)));
        mm.check();
        let free = zones().map(|zone| mm.free_blocks(zone).map(|types| types.iter().sum())).collect();
        let counts =
            mm.stats().zones.iter().map(|zone| [zone.present, zone.managed, zone.free, zone.pcp]).collect();
        Self { free, counts }
    }
}

/// Plays one list of operations.
///
/// # Panics
/// When the memory management differs from the model.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte() % KINDS;
    MACHINES.with_borrow_mut(|machines| {
        let machine = machines.entry(kind).or_insert_with(|| machine(kind));
        let content = options(kind).content;
        let mut play = Play { machine, content, blocks: BTreeMap::new(), held: Vec::new(), words: 1 };
        for _ in 0..OPERATIONS {
            if input.is_empty() {
                break;
            }
            play.act(&mut input);
            machine.mm.check();
            play.compare();
        }
        play.end();
    });
}

impl Play<'_> {
    fn mm(&self) -> &'static Mm<Sim> {
        self.machine.mm
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..40 => self.alloc(input),
            40..70 => self.free(input.u16().into()),
            70..80 => self.split(input),
            80..110 => self.own(input),
            110..120 => {
                self.machine.owner.release(input.below(SLOTS as u64) as usize);
            }
            120..150 => self.add(input),
            150..165 => self.online(input),
            165..180 => self.offline(input),
            180..190 => self.remove(input),
            190..205 => self.online_part(input),
            205..220 => self.offline_part(input),
            220..230 => self.offline_and_remove(input),
            230..240 => self.contiguous(input),
            240..244 => zones().for_each(|zone| drop(self.mm().zone_pcp_disable(zone))),
            244..248 => self.machine.owner.refuse(input.byte()),
            248..251 => self.fill(),
            _ => self.mm().platform().inject(input.pick(&FaultStep::ALL), input.below(6) as u32),
        }
    }

    fn word(&mut self) -> u64 {
        self.words = self.words.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.words
    }

    fn alloc(&mut self, input: &mut Input<'_>) {
        let order = Order::new(if input.byte() < 160 { 0 } else { input.below(Order::COUNT as u64) as u8 });
        let gfp = input.pick(&[Gfp::Kernel, Gfp::PageTable, Gfp::Movable, Gfp::Movable]);
        let Ok(pfn) = self.mm().alloc_pages(order, gfp) else { return };
        assert!(pfn.is_aligned(order), "{pfn:?} for {order:?}");
        let hot = pfn.section().get() >= FIRST;
        assert!(!hot || gfp == Gfp::Movable, "{gfp:?} got {pfn:?}, in Movable");
        let content = self.word();
        self.hold(pfn, order, content);
    }

    /// Takes all memory that there is, the largest buddy blocks first. Pages that have to move find little room then.
    fn fill(&mut self) {
        for order in (0..=Order::MAX.get()).rev().map(Order::new) {
            while let Ok(pfn) = self.mm().alloc_pages(order, Gfp::Movable) {
                let content = self.word();
                self.hold(pfn, order, content);
            }
        }
    }

    /// Takes pages into the model, which no one else has.
    fn hold(&mut self, pfn: Pfn, order: Order, content: u64) {
        let end = |(first, order, _): &Held| first.get() + order.pages();
        let mine = (pfn, order, content);
        let twice = self.held.iter().find(|held| held.0.get() < end(&mine) && pfn.get() < end(held));
        assert!(twice.is_none(), "{pfn:?} of {order:?} is held already: {twice:?}");
        assert!(!self.machine.owner.has(pfn, order.pages()), "{pfn:?} of {order:?} has an owner");
        for offset in 0..order.pages() {
            self.mm().platform().write(pfn.add(offset), content ^ u64::from(offset));
        }
        self.held.push(mine);
    }

    fn free(&mut self, index: usize) {
        if self.held.is_empty() {
            return;
        }
        let index = index % self.held.len();
        let (pfn, order, content) = self.held.swap_remove(index);
        for offset in 0..order.pages() {
            let found = self.mm().platform().read(pfn.add(offset));
            assert_eq!(found, content ^ u64::from(offset), "content of {:?}", pfn.add(offset));
        }
        self.mm().free_pages(pfn, order);
    }

    fn split(&mut self, input: &mut Input<'_>) {
        if self.held.is_empty() {
            return;
        }
        let index = usize::from(input.u16()) % self.held.len();
        let order = self.held[index].1.get();
        // Few parts, so that inputs stay short.
        let least = order.saturating_sub(4);
        let to = Order::new(least + input.below(u64::from(order - least) + 1) as u8);
        let (pfn, from, _) = self.held.swap_remove(index);
        self.mm().split_page_to(pfn, from, to);
        for start in (0..from.pages()).step_by(to.pages() as usize) {
            let content = self.word();
            self.hold(pfn.add(start), to, content);
        }
    }

    fn own(&mut self, input: &mut Input<'_>) {
        for _ in 0..=input.below(16) {
            let content = self.word();
            if !self.machine.owner.fill(input.below(SLOTS as u64) as usize, content) {
                break;
            }
        }
    }

    /// A few pageblocks of a section, mostly with the first ones, where the memmap lies.
    fn pageblocks(input: &mut Input<'_>) -> PageblockSet {
        match input.byte() {
            0..8 => PageblockSet::ALL,
            8..12 => PageblockSet::NONE,
            12..200 => PageblockSet::range(0..1 + input.byte() as u32 % 8),
            _ => {
                let first = u32::from(input.byte()) % 64;
                PageblockSet::range(first..64.min(first + 1 + u32::from(input.byte()) % 6))
            }
        }
    }

    /// One pageblock or a few, mostly of those that [`Self::pageblocks`] plugs, and mostly without the first one, which
    /// holds the memmap.
    fn part(input: &mut Input<'_>) -> PageblockSet {
        let choice = u32::from(input.byte());
        let first = if choice < 240 { 1 + choice % 11 } else { u32::from(input.byte()) % 64 };
        PageblockSet::range(first..64.min(first + input.pick(&[1, 1, 1, 2, 3, 6, 0])))
    }

    fn section(input: &mut Input<'_>) -> u32 {
        FIRST + input.below(u64::from(SECTIONS)) as u32
    }

    fn add(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let count = input.pick(&[1, 1, 1, 2, 4, 3, 0]);
        let plugged: Vec<_> = (0..count).map(|_| Self::pageblocks(input)).collect();
        let flags = MhpFlags::new(self.content).with_memmap_on_memory(input.byte() < 200);
        let added = self.mm().hotplug().add_memory(NodeId::FIRST, SectionNr::new(nr), &plugged, flags);
        let there = |nr: &u32| {
            self.blocks.iter().any(|(first, block)| (*first..first + block.plugged.len() as u32).contains(nr))
        };
        if added.is_ok() {
            let twice = (nr..nr + count).find(there);
            assert_eq!(twice, None, "added twice: {plugged:?} at {nr}");
            assert!(plugged.iter().any(|section| !section.is_empty()), "an empty memory block");
            self.blocks.insert(nr, Block { plugged, online: false });
        }
    }

    fn online(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let zone = input.pick(&[ZoneType::Movable, ZoneType::Movable, ZoneType::Movable, ZoneType::Dma32]);
        let result = self.mm().hotplug().online(SectionNr::new(nr), zone);
        if result.is_ok() {
            let block = self.blocks.get_mut(&nr).expect("a memory block that was added");
            assert!(!std::mem::replace(&mut block.online, true), "online twice");
            assert_eq!(zone, ZoneType::Movable, "memory above 4 GiB in {zone:?}");
        }
    }

    fn offline(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let result = self.mm().hotplug().offline(SectionNr::new(nr));
        if result.is_ok() {
            let block = self.blocks.get_mut(&nr).expect("a memory block that was added");
            assert!(std::mem::replace(&mut block.online, false), "offline twice");
            self.nothing_held_in(nr, self.blocks[&nr].plugged.len() as u32);
        } else if let Some(block) = self.blocks.get(&nr).filter(|block| block.online) {
            assert_ne!(result, Err(OfflineError::NotOnline), "{block:?} is online");
        }
    }

    fn held_in(&self, nr: u32, count: u32) -> bool {
        let sections = nr..nr + count;
        self.held.iter().any(|(pfn, ..)| sections.contains(&pfn.section().get()))
            || sections.clone().any(|nr| self.machine.owner.has(SectionNr::new(nr).start(), 32768))
    }

    fn nothing_held_in(&self, nr: u32, count: u32) {
        assert!(!self.held_in(nr, count), "pages of {count} sections from {nr} are in use");
    }

    fn remove(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        if self.mm().hotplug().remove_memory(SectionNr::new(nr)).is_ok() {
            let block = self.blocks.remove(&nr).expect("a memory block that was added");
            assert!(!block.online, "an online memory block was removed");
        }
    }

    fn online_part(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let part = Self::part(input);
        if self.mm().hotplug().online_pageblocks(SectionNr::new(nr), part).is_ok() {
            let plugged = self.plugged(nr).expect("a section of a memory block that is online");
            assert!(!plugged.intersects(part), "{part:?} is plugged");
            *plugged = plugged.union(part);
        }
    }

    /// What is plugged of section `nr`, of a memory block that is online.
    fn plugged(&mut self, nr: u32) -> Option<&mut PageblockSet> {
        let (first, block) = self.blocks.range_mut(..=nr).next_back()?;
        block.plugged.get_mut((nr - first) as usize).filter(|_| block.online)
    }

    fn offline_part(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let part = Self::part(input);
        if self.mm().hotplug().offline_pageblocks(SectionNr::new(nr), part).is_ok() {
            let plugged = self.plugged(nr).expect("a section of a memory block that is online");
            assert!(plugged.contains_all(part), "{part:?} is not plugged");
            *plugged = plugged.without(part);
            for (pfn, order) in part.runs().flat_map(|run| SectionNr::new(nr).pageblocks(&run).chunks()) {
                assert!(!self.machine.owner.has(pfn, order.pages()), "{pfn:?} has an owner");
                let inside = |held: &&Held| {
                    held.0.get() < pfn.get() + order.pages() && pfn.get() < held.0.get() + held.1.pages()
                };
                assert_eq!(self.held.iter().find(inside), None, "in use and offline");
            }
        }
    }

    fn offline_and_remove(&mut self, input: &mut Input<'_>) {
        let nr = Self::section(input);
        let count = input.pick(&[1, 2, 4]);
        let Some(range) = SectionRange::new(SectionNr::new(nr), count) else { return };
        if self.mm().hotplug().offline_and_remove_memory(range).is_ok() {
            self.nothing_held_in(nr, count);
            let gone: Vec<_> = self.blocks.range(nr..nr + count).map(|(first, _)| *first).collect();
            gone.iter().for_each(|first| drop(self.blocks.remove(first)));
        }
    }

    /// A pageblock as one, by the way of contiguous allocation.
    fn contiguous(&mut self, input: &mut Input<'_>) {
        let nr = SectionNr::new(Self::section(input));
        let choice = u32::from(input.byte());
        let pfn = nr.start().add(512 * (if choice < 240 { choice % 12 } else { choice % 64 }));
        if self.mm().hotplug().alloc_contig_pageblock(pfn).is_ok() {
            let content = self.word();
            self.hold(pfn, Order::PAGEBLOCK, content);
        }
    }

    /// The sections are as the model has them.
    fn compare(&self) {
        for nr in FIRST..FIRST + SECTIONS {
            let block = self.blocks.range(..=nr).next_back();
            let found =
                block.and_then(|(first, block)| Some((block, block.plugged.get((nr - first) as usize)?)));
            let (state, plugged) = match found {
                None => (SectionState::Absent, PageblockSet::NONE),
                Some((block, &plugged)) if block.online => (SectionState::Online, plugged),
                Some((_, &plugged)) => (SectionState::Present, plugged),
            };
            let nr = SectionNr::new(nr);
            assert_eq!((self.mm().section_state(nr), self.mm().plugged(nr)), (state, plugged), "{nr:?}");
            for pageblock in 0..64 {
                let mapped = self.mm().platform().is_mapped(nr.start().add(512 * pageblock));
                assert_eq!(
                    mapped,
                    plugged.contains(pageblock),
                    "pageblock {pageblock} of {nr:?} in the direct map"
                );
            }
        }
        self.machine.owner.verify();
    }

    /// Gives everything back. Nothing is lost.
    fn end(mut self) {
        for step in FaultStep::ALL {
            self.mm().platform().inject_always(step, false);
        }
        self.machine.owner.refuse(0);
        while !self.held.is_empty() {
            self.free(0);
        }
        for slot in 0..SLOTS {
            self.machine.owner.release(slot);
        }
        for (nr, block) in std::mem::take(&mut self.blocks) {
            let nr = SectionNr::new(nr);
            if block.online {
                self.mm().hotplug().offline(nr).expect("nothing is in use");
            }
            self.mm().hotplug().remove_memory(nr).expect("it is offline");
        }
        assert_eq!(Start::of(self.mm()), self.machine.start, "what is free at the end and at the start");
    }
}
