//! `src/pcplist.rs`, `src/pcplist/guard.rs`: a page is freed, or taken by a refill, while its pageblock is
//! isolated.
//!
//! There is one pageblock of three pages. CPU 0 frees and allocates, CPU 1 takes the pageblock away, as
//! `take_pageblocks` does. These must hold:
//! - I1: while lists are disabled, a list whose lock is free is empty;
//! - I2: once the pageblock is isolated, none of its pages can be allocated;
//! - I3: no page is lost;
//! - I4: after the last page in use was freed, the first look finds all of them free.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;

use crate::{Witness, breaks, holds};

const HIDES: &str = "a page hides on a per-CPU list";
const REUSED: &str = "a page of an isolated pageblock can be allocated";
const LOST: &str = "pages are lost";
const LIMITS: &str = "limits are not as they were before";

/// High and batch.
type Limits = (usize, usize);
const PCP_OFF: Limits = (0, 1);
const ZONE: Limits = (4, 2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum MigrateType {
    Movable = 0,
    Isolate = 1,
}

/// When a drain reads the number of pages of a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// Under the list's lock.
    Forced,
    /// Under the list's lock, but a list that looks empty without the lock is skipped.
    SkipsEmpty,
    /// Before it takes the list's lock (Linux 6.0 to 6.10).
    CountsBefore,
}

/// The rules that the proof relies on; `CORRECT` is `pcplist.rs`.
#[derive(Clone, Copy)]
struct Rules {
    disables: bool,
    drain: Drain,
    flush_reads_type_again: bool,
    enable_restores_before_unlock: bool,
    updates_take_the_lock: bool,
    publishes_to_all_cpus: bool,
}

const CORRECT: Rules = Rules {
    disables: true,
    drain: Drain::Forced,
    flush_reads_type_again: true,
    enable_restores_before_unlock: true,
    updates_take_the_lock: true,
    publishes_to_all_cpus: true,
};

struct PcpZone {
    high: AtomicUsize,
    batch: AtomicUsize,
    /// Number of pages on the lists, written under their lock. It is outside of the lock because two
    /// variants read it without.
    count: AtomicUsize,
    /// Pages, with the type that they had when they were freed.
    lists: Mutex<Vec<(usize, MigrateType)>>,
    online: AtomicBool,
}

impl PcpZone {
    fn new(online: bool) -> Self {
        Self {
            high: AtomicUsize::new(ZONE.0),
            batch: AtomicUsize::new(ZONE.1),
            count: AtomicUsize::new(0),
            lists: Mutex::new(Vec::new()),
            online: AtomicBool::new(online),
        }
    }

    fn limits(&self) -> Limits {
        (self.high.load(Relaxed), self.batch.load(Relaxed))
    }

    fn set_limits(&self, (high, batch): Limits) {
        self.batch.store(batch, Relaxed);
        self.high.store(high, Relaxed);
    }

    fn count(&self) -> usize {
        self.count.load(Relaxed)
    }
}

struct FreeLists {
    /// Free pages that can be allocated, and isolated ones.
    free: [Vec<usize>; 2],
}

struct Mm {
    rules: Rules,
    cpus: Vec<PcpZone>,
    /// The zone lock, and the lists that it guards.
    buddy: Mutex<FreeLists>,
    isolated: AtomicBool,
    pcp_disable: Mutex<()>,
    /// All pages, free or not.
    pages: usize,
}

type Lists<'m> = MutexGuard<'m, Vec<(usize, MigrateType)>>;

impl Mm {
    /// Page 0 is in use, and the pages from 1 on are free. `online` says for each CPU whether it runs.
    fn new(rules: Rules, pages: usize, online: &[bool]) -> Arc<Self> {
        Arc::new(Self {
            rules,
            cpus: online.iter().map(|&online| PcpZone::new(online)).collect(),
            buddy: Mutex::new(FreeLists { free: [(1..pages).collect(), Vec::new()] }),
            isolated: AtomicBool::new(false),
            pcp_disable: Mutex::new(()),
            pages,
        })
    }

    fn migrate_type(&self) -> MigrateType {
        if self.isolated.load(Relaxed) { MigrateType::Isolate } else { MigrateType::Movable }
    }

    fn free_pages(&self, cpu: usize, page: usize) {
        // Read without a lock: it may be stale by the next line.
        let mt = self.migrate_type();
        if mt == MigrateType::Isolate || !self.free_to_pcp(cpu, page, mt) {
            let mut buddy = self.buddy.lock().unwrap();
            buddy.free[self.migrate_type() as usize].push(page);
        }
    }

    /// `Mm::free_to_pcp`, `PcpGuard::free`.
    fn free_to_pcp(&self, cpu: usize, page: usize, mt: MigrateType) -> bool {
        let pcp = &self.cpus[cpu];
        let Ok(mut lists) = pcp.lists.try_lock() else { return false };
        lists.push((page, mt));
        pcp.count.store(lists.len(), Relaxed);
        let high = pcp.high.load(Relaxed);
        if lists.len() >= high {
            let batch = pcp.batch.load(Relaxed);
            self.flush(pcp, &mut lists, if high < batch { 1 } else { batch });
        }
        true
    }

    fn flush(&self, pcp: &PcpZone, lists: &mut Lists<'_>, pages: usize) {
        let mut buddy = self.buddy.lock().unwrap();
        for _ in 0..pages {
            let Some((page, stale)) = lists.pop() else { break };
            let mt = if self.rules.flush_reads_type_again { self.migrate_type() } else { stale };
            buddy.free[mt as usize].push(page);
        }
        pcp.count.store(lists.len(), Relaxed);
    }

    /// `Mm::alloc_page_in`, `PcpGuard::refill`.
    fn alloc_page(&self, cpu: usize) -> Option<usize> {
        let pcp = &self.cpus[cpu];
        let Ok(mut lists) = pcp.lists.try_lock() else {
            return self.buddy.lock().unwrap().free[0].pop();
        };
        if lists.is_empty() {
            let (high, batch) = pcp.limits();
            let mut buddy = self.buddy.lock().unwrap();
            for _ in 0..if high < batch { 1 } else { batch } {
                let Some(page) = buddy.free[0].pop() else { break };
                lists.push((page, MigrateType::Movable));
            }
            drop(buddy);
            // As in Linux 6.0 to 6.10: the count is written after all pages are on the list.
            pcp.count.store(lists.len(), Relaxed);
        }
        let page = lists.pop();
        pcp.count.store(lists.len(), Relaxed);
        page.map(|(page, _)| page)
    }

    fn published(&self) -> impl Iterator<Item = &PcpZone> {
        self.cpus.iter().filter(|pcp| self.rules.publishes_to_all_cpus || pcp.online.load(Relaxed))
    }

    /// `Mm::drain_pcp`, `PcpGuard::drain_some`.
    fn drain_pcp(&self) {
        for pcp in self.published() {
            if self.rules.drain == Drain::SkipsEmpty && pcp.count() == 0 {
                continue;
            }
            loop {
                let before = pcp.count();
                let mut lists = pcp.lists.lock().unwrap();
                let count = if self.rules.drain == Drain::CountsBefore { before } else { pcp.count() };
                if count == 0 {
                    break;
                }
                self.flush(pcp, &mut lists, count);
            }
        }
    }

    fn zone_pcp_disable(&self) -> MutexGuard<'_, ()> {
        let lock = self.pcp_disable.lock().unwrap();
        self.published().for_each(|pcp| pcp.set_limits(PCP_OFF));
        self.drain_pcp();
        lock
    }

    /// `PcpDisabled::drop`.
    fn zone_pcp_enable(&self, lock: MutexGuard<'_, ()>) {
        let restore = || self.published().for_each(|pcp| pcp.set_limits(ZONE));
        if self.rules.enable_restores_before_unlock {
            restore();
            drop(lock);
        } else {
            drop(lock);
            restore();
        }
    }

    fn update_pcp_limits(&self) {
        let lock = self.rules.updates_take_the_lock.then(|| self.pcp_disable.lock().unwrap());
        self.published().for_each(|pcp| pcp.set_limits(ZONE));
        drop(lock);
    }

    fn start_isolate(&self) {
        let mut buddy = self.buddy.lock().unwrap();
        self.isolated.store(true, Relaxed);
        let free = std::mem::take(&mut buddy.free[0]);
        buddy.free[1].extend(free);
    }

    /// I1 and, once the pageblock is isolated, I2.
    fn look(&self, witness: &Witness) {
        for pcp in &self.cpus {
            witness.expect(pcp.lists.lock().unwrap().is_empty(), HIDES);
        }
        let buddy = self.buddy.lock().unwrap();
        witness.expect(!self.isolated.load(Relaxed) || buddy.free[0].is_empty(), REUSED);
    }

    /// `take_pageblocks` up to the point where it waits for pages in use.
    fn isolate(&self, witness: &Witness) -> Option<MutexGuard<'_, ()>> {
        if !self.rules.disables {
            self.start_isolate();
            self.drain_pcp();
            return None;
        }
        let disabled = self.zone_pcp_disable();
        self.look(witness);
        self.start_isolate();
        self.look(witness);
        Some(disabled)
    }

    /// All other CPUs are done and hold no page: checks I2, I3 and I4, then enables the lists again.
    fn end(&self, witness: &Witness, disabled: Option<MutexGuard<'_, ()>>) {
        self.look(witness);
        let listed: usize = self.cpus.iter().map(|pcp| pcp.lists.lock().unwrap().len()).sum();
        {
            let buddy = self.buddy.lock().unwrap();
            let free: usize = buddy.free.iter().map(Vec::len).sum();
            witness.expect(free + listed == self.pages, LOST);
        }
        if let Some(lock) = disabled {
            self.zone_pcp_enable(lock);
            let restored = self.cpus.iter().all(|pcp| pcp.limits() == ZONE);
            witness.expect(restored, LIMITS);
        }
    }
}

/// CPU 0 frees a page of the pageblock.
fn meets_free(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, 2, &[true]);
    let cpu0 = thread::spawn({
        let mm = mm.clone();
        move || mm.free_pages(0, 0)
    });
    let disabled = mm.isolate(witness);
    cpu0.join().unwrap();
    mm.end(witness, disabled);
}

/// CPU 0's list is empty. The CPU allocates a page, and later frees it and another one.
fn meets_refill(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, 3, &[true]);
    let cpu0 = thread::spawn({
        let mm = mm.clone();
        move || {
            if let Some(page) = mm.alloc_page(0) {
                mm.free_pages(0, page);
            }
            mm.free_pages(0, 0);
        }
    });
    let disabled = mm.isolate(witness);
    cpu0.join().unwrap();
    mm.end(witness, disabled);
}

/// CPU 1 starts while lists are being disabled, and frees a page.
fn meets_a_late_cpu(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, 2, &[true, false]);
    let cpu1 = thread::spawn({
        let mm = mm.clone();
        move || {
            mm.cpus[1].online.store(true, Relaxed);
            mm.free_pages(1, 0);
        }
    });
    let disabled = mm.isolate(witness);
    cpu1.join().unwrap();
    mm.look(witness);
    drop(disabled);
}

/// Another CPU disables and enables lists before or after this CPU does. A page is freed meanwhile.
fn meets_another_disabler(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, 2, &[true]);
    let other = thread::spawn({
        let mm = mm.clone();
        move || {
            let lock = mm.zone_pcp_disable();
            mm.zone_pcp_enable(lock);
        }
    });
    let disabled = mm.zone_pcp_disable();
    mm.free_pages(0, 0);
    mm.look(witness);
    mm.zone_pcp_enable(disabled);
    other.join().unwrap();
}

/// Limits are recomputed, and a page is freed meanwhile.
fn meets_an_update(witness: &Witness, rules: Rules) {
    let mm = Mm::new(rules, 2, &[true]);
    let other = thread::spawn({
        let mm = mm.clone();
        move || mm.update_pcp_limits()
    });
    let disabled = mm.zone_pcp_disable();
    mm.free_pages(0, 0);
    mm.look(witness);
    drop(disabled);
    other.join().unwrap();
}

/// V3, S3.1, S3.6.
#[test]
fn v3_disabled_and_drained_under_the_lock() {
    holds("V3, free", |witness| meets_free(witness, CORRECT));
    holds("V3, refill", |witness| meets_refill(witness, CORRECT));
}

/// V0: isolate, then drain once, as before 2020.
#[test]
fn v0_a_single_drain_leaves_a_page_behind() {
    const V0: Rules = Rules { disables: false, ..CORRECT };
    breaks("V0, free", HIDES, |witness| meets_free(witness, V0));
}

/// V1, S3.6: lists that look empty are not drained.
#[test]
fn v1_a_list_that_looks_empty_is_not() {
    const V1: Rules = Rules { drain: Drain::SkipsEmpty, ..CORRECT };
    breaks("V1, free", HIDES, |witness| meets_free(witness, V1));
}

/// V2, pitfall 3 of `docs/pitfalls.md`: the count is read before the lock is taken, while a refill runs.
#[test]
fn v2_a_count_read_before_the_lock_misses_a_refill() {
    const V2: Rules = Rules { drain: Drain::CountsBefore, ..CORRECT };
    breaks("V2, refill", HIDES, |witness| meets_refill(witness, V2));
}

/// V4: a flush uses the type that the free read.
#[test]
fn v4_a_stale_type_puts_a_page_back_into_use() {
    const V4: Rules = Rules { flush_reads_type_again: false, ..CORRECT };
    breaks("V4, free", REUSED, |witness| meets_free(witness, V4));
}

/// S3.15.
#[test]
fn a_cpu_that_starts_meanwhile_has_no_limits() {
    holds("late CPU", |witness| meets_a_late_cpu(witness, CORRECT));
    const ONLINE_ONLY: Rules = Rules { publishes_to_all_cpus: false, ..CORRECT };
    breaks("late CPU, published to running CPUs only", HIDES, |witness| {
        meets_a_late_cpu(witness, ONLINE_ONLY);
    });
}

/// S3.9.
#[test]
fn disablers_are_one_after_the_other() {
    holds("two disablers", |witness| meets_another_disabler(witness, CORRECT));
    const EARLY: Rules = Rules { enable_restores_before_unlock: false, ..CORRECT };
    breaks("limits restored after the lock was released", HIDES, |witness| {
        meets_another_disabler(witness, EARLY);
    });
}

/// S3.9: limits do not change while lists are disabled.
#[test]
fn limits_are_not_updated_while_disabled() {
    holds("update", |witness| meets_an_update(witness, CORRECT));
    const UNLOCKED: Rules = Rules { updates_take_the_lock: false, ..CORRECT };
    breaks("update without the lock", HIDES, |witness| meets_an_update(witness, UNLOCKED));
}
