//! Memory is taken away and given back while other CPUs allocate, use and free it.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use tidevm_mm::{
    InitPolicy, MemoryContent, Mm, NodeId, OfflineError, PageblockSet, PcpPolicy, SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{POLICIES, Random, Tenant};

const BLOCKS: u32 = 3;

fn blocks() -> impl Iterator<Item = SectionNr> {
    (32..32 + BLOCKS).map(SectionNr::new)
}

/// Fills and releases slots at random until told to stop.
fn churn(tenant: &Tenant, slots: std::ops::Range<usize>, random: &mut Random, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        let slot = slots.start + random.below(slots.len());
        if !tenant.release(slot) {
            // Running out of memory is expected here.
            let _ = tenant.fill(slot, random.next());
        }
    }
}

/// Stops the churn, also when the test panics: otherwise the scope would wait for the threads for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Repeats `operation` until it succeeds: a page that is being allocated or freed may belong to a thread that
/// the host does not run at the moment. With a lost page the operation would never succeed.
fn insist(mut operation: impl FnMut() -> Result<(), OfflineError>) {
    let start = Instant::now();
    while let Err(error) = operation() {
        assert!(matches!(error, OfflineError::Unmovable(_)), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "never succeeds: {error:?}");
    }
}

fn stress(pcp: PcpPolicy, cycles: usize) {
    for policy in POLICIES {
        for nodes in [1, 2] {
            stress_with(pcp, cycles / 2, policy, nodes);
        }
    }
}

/// CPUs and memory blocks are spread over `nodes` nodes in turn.
fn stress_with(pcp: PcpPolicy, cycles: usize, (init, content): (InitPolicy, MemoryContent), nodes: u32) {
    let name = format!("stress, {pcp:?}, {init:?}, {nodes} nodes");
    let mut random = Random::new(&name);
    let cpu_nodes = (0..3).map(|cpu| (cpu % nodes) as u8).collect();
    let machine = SimMachine {
        cpus: 3,
        cpu_nodes,
        options: SimMachine::OPTIONS.with_pcp(pcp).with_init(init).with_content(content),
        ..SimMachine::default()
    };
    let node_of = |nr: SectionNr| NodeId::new((nr.get() % nodes) as u8);
    let mm: &'static Mm<Sim> = machine.boot();
    for nr in blocks() {
        mm.hotplug().add_memory(node_of(nr), nr, PageblockSet::ALL, content).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    }
    let start = mm.stats();
    let tenant = Tenant::new(mm, 0, 16_000);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 1..3 {
            let (stop, mut random) = (&stop, random.fork());
            let slots = (cpu - 1) * 8000..cpu * 8000;
            scope.spawn(move || Sim::run_on(cpu, || churn(tenant, slots, &mut random, stop)));
        }
        let _stop = Stop(&stop);
        // On a busy host the other threads may not have run yet, and then no page has to move.
        let has_moved = || mm.stats().pages_migrated > 0;
        let limit = Instant::now() + Duration::from_secs(20);
        for cycle in (0..).take_while(|&cycle| cycle < cycles || !has_moved() && Instant::now() < limit) {
            let nr = SectionNr::new(32 + random.below(BLOCKS as usize) as u32);
            if random.chance(50) {
                insist(|| mm.hotplug().offline(nr));
                if random.chance(50) {
                    mm.hotplug().remove_memory(nr).unwrap();
                    mm.hotplug().add_memory(node_of(nr), nr, PageblockSet::ALL, content).unwrap();
                }
                mm.hotplug().online(nr, ZoneType::Movable).unwrap();
            } else {
                let first = random.below(62) as u32 + 1;
                let some = PageblockSet::range(first..64.min(first + 8));
                insist(|| mm.hotplug().offline_pageblocks(nr, some));
                mm.hotplug().online_pageblocks(nr, some).unwrap();
            }
            if cycle % 8 == 0 {
                mm.check();
            }
        }
    });
    tenant.verify_all();
    tenant.release_all();
    for nr in blocks() {
        mm.hotplug().offline(nr).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    }
    mm.check();
    for (now, before) in
        mm.stats().nodes.into_iter().zip(start.nodes).flat_map(|(now, before)| now.into_iter().zip(before))
    {
        let counts =
            |zone: tidevm_mm::ZoneStats| (zone.managed, zone.present, zone.spanned, zone.free + zone.pcp);
        assert_eq!(counts(now), counts(before), "no page of {:?} is lost", now.zone);
    }
    assert!(mm.stats().pages_migrated > 0, "no page had to move");
}

#[test]
fn with_lists_disabled() {
    stress(PcpPolicy::Disable, 60);
}

#[test]
fn with_repeated_drains() {
    stress(PcpPolicy::DrainAgain, 40);
}
