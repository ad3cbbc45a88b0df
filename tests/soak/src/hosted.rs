//! Cycles without KVM. Each sets a target and lets the driver work until it is there or has paused often.

use tidevm_machine::hosted::{HostCall, fail};
use virtio_mem::{Action, Idle, Outcome};

use crate::guest::Guest;
use crate::stack::{BLOCK, DeviceAndDriver, REGION_SIZE};
use crate::{Random, Tally};

/// Actions of one cycle at most.
const ACTIONS: u32 = 4000;
/// Pauses of the driver before a target is given up.
const PAUSES: u32 = 12;
/// Cycles between two accounts of all pages.
const ACCOUNT: u64 = 100;
/// Cycles between two looks at every invariant.
const CHECK: u64 = 10;
/// Cycles with one simulated machine, whose memory the process keeps.
const MACHINE: u64 = 5000;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Cycles to run.
    pub cycles: u64,
    /// What decides everything.
    pub seed: u64,
    /// Whether the guest has memory management.
    pub guest: bool,
}

struct Run {
    stack: DeviceAndDriver,
    guest: Option<Guest>,
    random: Random,
    tally: Tally,
    migrated_before: u64,
}

/// Runs the cycles. `progress` is told of the figures now and then.
///
/// # Panics
/// When an invariant does not hold. Lost and corrupt pages are counted instead.
pub fn run(plan: Plan, mut progress: impl FnMut(&Tally)) -> Tally {
    HostCall::ALL.iter().for_each(|&call| fail(call, None));
    let mut random = Random::new(plan.seed);
    let guest = plan.guest.then(|| Guest::new(&mut random));
    let stack = DeviceAndDriver::new(guest.as_ref().map_or(0, Guest::memmap_size));
    let mut run = Run { stack, guest, random, tally: Tally::new(), migrated_before: 0 };
    for cycle in 1..=plan.cycles {
        run.cycle();
        if cycle.is_multiple_of(ACCOUNT) || cycle == plan.cycles {
            run.account();
            run.next_guest(cycle);
        }
        if cycle.is_multiple_of(10 * ACCOUNT) {
            progress(&run.tally);
        }
    }
    run.tally
}

impl Run {
    fn cycle(&mut self) {
        HostCall::ALL.iter().for_each(|&call| fail(call, None));
        if self.random.chance(30) {
            fail(self.random.pick(&HostCall::ALL), Some(self.random.below(2) as u32));
        }
        if let Some(guest) = &mut self.guest {
            guest.churn(&mut self.random);
            if self.random.chance(20) {
                guest.inject(&mut self.random);
            }
        }
        let blocks = REGION_SIZE / BLOCK;
        let target = match self.random.below(10) {
            0 => 0,
            1 => blocks,
            _ => self.random.below(blocks + 1),
        };
        self.stack.resize(target * BLOCK);
        self.tally.cycles += 1;
        self.tally.reached += u64::from(self.work());
        if let Some(guest) = &self.guest {
            let (pages, corrupt) = guest.verify();
            (self.tally.verified, self.tally.corrupt) =
                (self.tally.verified + pages, self.tally.corrupt + corrupt);
            if self.tally.cycles.is_multiple_of(CHECK) {
                guest.check();
            }
        }
    }

    /// Lets the driver work. Returns whether it reached the target.
    fn work(&mut self) -> bool {
        let mut pauses = 0;
        for _ in 0..ACTIONS {
            self.stack.take_interrupt();
            let outcome = match self.stack.driver.next() {
                Action::Idle(Idle::Reached) => return true,
                Action::Idle(_) if pauses == PAUSES => return false,
                Action::Idle(_) => {
                    pauses += 1;
                    if let Some(guest) = &mut self.guest {
                        guest.churn(&mut self.random);
                    }
                    self.stack.retry();
                    continue;
                }
                Action::ReadConfig => self.stack.read_config(),
                Action::Send(request) => self.stack.send(request),
                action => match &mut self.guest {
                    Some(guest) => guest.carry_out(action, &mut self.random),
                    None => Outcome::Done,
                },
            };
            let failed = matches!(outcome, Outcome::Failed(_) | Outcome::Part { failed: Some(_), .. });
            if let Some(guest) = self.guest.as_mut().filter(|_| failed) {
                self.tally.guest_failures += 1;
                if self.random.chance(10) {
                    guest.churn(&mut self.random);
                }
            }
            self.stack.driver.complete(outcome);
        }
        panic!("the driver does not come to rest in {ACTIONS} actions: {:?}", self.stack.driver);
    }

    /// Gives everything back and counts what is missing.
    fn account(&mut self) {
        HostCall::ALL.iter().for_each(|&call| fail(call, None));
        if let Some(guest) = &mut self.guest {
            guest.disarm();
            guest.release_all();
        }
        self.stack.resize(0);
        // A removal that failed before is tried again after the next pause.
        let empty = (0..3).any(|_| {
            self.stack.retry();
            self.work() && self.stack.plugged() == 0
        });
        assert!(empty, "{:#x} bytes stay plugged: {:?}", self.stack.plugged(), self.stack.driver);
        if let Some(guest) = &mut self.guest {
            guest.empty();
            self.tally.lost += guest.lost();
            self.tally.migrated = self.migrated_before + guest.migrated();
        }
        self.tally.lost += self.stack.not_zero;
        self.stack.not_zero = 0;
        self.tally.count_host_failures();
        self.stack.restart();
    }

    /// Ends the guest in one of the ways in which guests end, with memory plugged.
    fn next_guest(&mut self, cycle: u64) {
        self.stack.resize(self.random.below(REGION_SIZE / BLOCK + 1) * BLOCK);
        self.work();
        if let Some(guest) = &mut self.guest {
            guest.churn(&mut self.random);
            guest.empty();
            self.tally.lost += guest.lost();
        }
        if self.random.chance(70) {
            self.stack.reset();
            self.tally.resets += 1;
        } else {
            self.stack.restart();
        }
        if cycle.is_multiple_of(MACHINE) && self.guest.is_some() {
            let guest = Guest::new(&mut self.random);
            self.migrated_before = self.tally.migrated;
            self.stack = DeviceAndDriver::new(guest.memmap_size());
            self.guest = Some(guest);
        }
    }
}
