//! What `GET /hotplug/memory` tells: Firecracker's fields of the first region, and what Firecracker lacks.
//!
//! Pure: the state of a guest in, JSON out.

use serde_json::{Map, Value, json};
use tidevm_abi::{BlockRun, Owner, ResizeState, Size};
use tidevm_machine::{ANSWERS, HostFault, MemStatus, Obstacle, REQUEST_KINDS, RequestCounts, Settled, State};

use crate::draft::mib;

/// The facts about a VM beside its guest's state.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether the guest reports.
    pub reports: bool,
    /// The memslots as the client configured them, in MiB.
    pub slot_size_mib: u32,
    /// The host memory that each region holds, if the host tells.
    pub held: Option<&'a [Size]>,
    /// What each device has counted.
    pub requests: &'a [RequestCounts],
}

/// Whether a region is at its target, as far as the guest says.
#[must_use]
pub fn converged(mem: &MemStatus, reports: bool) -> bool {
    if !mem.driver {
        // A device without a driver has nothing plugged and goes nowhere.
        return mem.plugged == mem.requested;
    }
    mem.settled(mem.requested, reports, true) == Some(Settled::AtTarget)
}

/// Why a region is not at its target.
#[must_use]
pub fn reason(mem: &MemStatus, reports: bool) -> Value {
    if converged(mem, reports) {
        return Value::Null;
    }
    let obstacle = mem.obstacle(mem.requested);
    let mut reason = json!({ "kind": obstacle.word(), "text": obstacle.to_string() });
    if let Obstacle::Guest { state, refused } = &obstacle {
        if let ResizeState::Unmovable { pages, first } = state {
            let first = first.iter().flatten();
            reason["pages"] = json!(pages);
            reason["first"] =
                first.map(|page| json!({ "pfn": page.pfn, "owner": owner(page.owner) })).collect();
        }
        if let Some(refused) = refused {
            reason["refused"] = json!(refused.to_string());
            if let Some(HostFault { call, errno }) = refused.host {
                (reason["call"], reason["errno"]) = (json!(call), json!(errno));
            }
        }
    }
    reason
}

/// The word for what holds a page.
fn owner(owner: Owner) -> String {
    match owner {
        Owner::Reserved => "reserved".to_owned(),
        Owner::Kernel => "kernel".to_owned(),
        Owner::PageTable => "page_table".to_owned(),
        Owner::Memmap => "memmap".to_owned(),
        Owner::Workload(handle) => format!("workload {handle}"),
    }
}

/// One region.
fn region(index: usize, mem: &MemStatus, facts: &Facts<'_>) -> Value {
    json!({
        "region": index,
        "address": mem.region,
        "block_size_mib": mib(mem.block_size),
        "total_size_mib": mib(mem.region_size),
        "slot_size_mib": facts.slot_size_mib,
        "plugged_size_mib": mib(mem.plugged),
        "requested_size_mib": mib(mem.requested),
        "driver": mem.driver,
        "generation": mem.targets,
        "converged": converged(mem, facts.reports),
        "reason": reason(mem, facts.reports),
        "usable": mem.usable.0,
        "guest_usable": mem.report.map(|report| report.plugged.0),
        "host_held": facts.held.and_then(|held| held.get(index)).map(|held| held.0),
        "requests": facts.requests.get(index).map(requests),
    })
}

/// What a device has counted since the start.
fn requests(counts: &RequestCounts) -> Value {
    let answers = |row: &[u64; 4]| -> Value { ANSWERS.into_iter().zip(row.map(Value::from)).collect() };
    let mut all: Map<String, Value> =
        REQUEST_KINDS.into_iter().map(str::to_owned).zip(counts.by.iter().map(answers)).collect();
    all.insert("refused_chains".to_owned(), counts.refused_chains.into());
    all.insert("plugged".to_owned(), counts.plugged.0.into());
    all.insert("unplugged".to_owned(), counts.unplugged.0.into());
    all.into()
}

/// The answer about all regions of `state`, or about `only` one. `None` when there is no such region.
#[must_use]
pub fn status(state: &State, only: Option<usize>, facts: &Facts<'_>) -> Option<Value> {
    let first = only.unwrap_or(0);
    let mut answer = region(first, state.mem.get(first)?, facts);
    if only.is_none() {
        let all = || state.mem.iter().enumerate();
        let regions: Vec<Value> = all().map(|(index, mem)| region(index, mem, facts)).collect();
        let answer: &mut Map<String, Value> = answer.as_object_mut()?;
        answer.remove("region");
        answer.insert("converged".to_owned(), all().all(|(_, mem)| converged(mem, facts.reports)).into());
        let mut reasons = all().map(|(_, mem)| reason(mem, facts.reports));
        answer.insert("reason".to_owned(), reasons.find(|reason| !reason.is_null()).unwrap_or(Value::Null));
        answer.insert("regions".to_owned(), regions.into());
    }
    Some(answer)
}

/// Memory blocks of the guest, neighbours that are alike together.
#[must_use]
pub fn blocks(runs: &[BlockRun]) -> Value {
    let run = |run: &BlockRun| {
        json!({
            "address": run.addr,
            "count": run.count,
            "size": run.size.0,
            "boot": run.boot,
            "state": run.state.as_str(),
            "zone": run.zone.map(|zone| zone.to_string()),
            "node": run.node,
            "plugged": run.plugged.map(|size| size.0),
        })
    };
    runs.iter().map(run).collect()
}

#[cfg(test)]
mod tests;
