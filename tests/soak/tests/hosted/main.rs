//! Short runs of the soak without KVM, with fixed seeds. One test, because failures of the host are the process's.

use tidevm_soak::hosted::{Plan, run};

/// Every kind of failure of the host has been met, and nothing is lost.
#[test]
fn some_hundred_cycles_lose_nothing() {
    for (guest, cycles) in [(false, 600), (true, 400)] {
        let tally = run(Plan { cycles, seed: 1, guest }, |_| ());
        println!("{tally}");
        assert!(tally.cycles == cycles && tally.is_good(), "{tally}");
        for (call, failures) in tally.host_failures() {
            assert!(failures > 0, "no failure of {call}");
        }
        assert!(tally.resets > 0 && tally.reached > cycles / 2, "{tally}");
        if guest {
            assert!(tally.guest_failures > 0 && tally.migrated > 0 && tally.verified > 0, "{tally}");
        }
    }
}
