//! What `GET /stats` tells: the counters of the guest's memory management, by the keys of the ABI's tables.
//!
//! Pure: the guest's answer in, JSON out. The keys are those of `tidevm run --json`.

use serde_json::Value;
use tidevm_abi::{ByKey, Stats};

/// The counters of a guest.
#[must_use]
pub fn stats(stats: &Stats) -> Value {
    serde_json::to_value(ByKey(stats)).expect("numbers below texts")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidevm_abi::Stats;

    use super::stats;

    #[test]
    fn each_counter_of_the_tables_is_told() {
        let mut guest = Stats { nr_nodes: 2, blocks_online: 7, ..Stats::default() };
        guest.zones[2].free = 5;
        guest.nodes[1].init_remote = 3;
        let told = stats(&guest);
        assert_eq!(told["blocks_online"], json!(7));
        assert_eq!(told["zones"]["Movable"]["free"], json!(5));
        assert_eq!(told["nodes"].as_array().unwrap().len(), 2, "nodes that do not exist are not told");
        assert_eq!(told["nodes"][1]["init_remote"], json!(3));
        assert!(Stats::COUNTERS.iter().all(|counter| told.get(counter.key).is_some()), "{told}");
    }
}
