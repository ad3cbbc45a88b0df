//! `expect`: a number of the machine against what it should be, now or within a time.

use tidevm_abi::ZoneStats;

use super::{Done, Machine, Observer, POLL, Session, Trouble};
use crate::command::{Expect, Metric, ZoneCounter};

impl<M: Machine, O: Observer> Session<'_, M, O> {
    pub(super) fn expect(&mut self, expect: &Expect) -> Done {
        let deadline = self.machine.now() + expect.within.unwrap_or_default();
        loop {
            let value = self.metric(expect.metric, expect.device)?;
            if expect.comparison.holds(value, expect.value) {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(self.machine.now());
            if left.is_zero() {
                return Err(Trouble::Fatal(format!("{} is {}", expect.metric, expect.metric.show(value))));
            }
            self.pause(left.min(POLL))?;
        }
    }

    fn metric(&self, metric: Metric, device: usize) -> Result<u64, Trouble> {
        match metric {
            Metric::Plugged => Ok(self.mem(device)?.plugged),
            Metric::Requested => Ok(self.mem(device)?.requested),
            Metric::Resets => Ok(self.machine.state().resets),
            Metric::HostHeld => self
                .machine
                .held(device)
                .map_err(|error| Trouble::Fatal(format!("the host does not say what it holds: {error}"))),
            Metric::Zone(name, counter) => {
                let zones = self.guest_stats()?.zones.into_iter().filter(|zone| zone.name == name);
                // A guest may say anything of itself.
                Ok(zones.map(|zone| zone_counter(counter, &zone)).fold(0, u64::saturating_add))
            }
            Metric::NodeZone(node, name, counter) => {
                let zones = self.guest_stats()?.nodes[node.index()].zones.into_iter();
                let zones = zones.filter(|zone| zone.name == name);
                Ok(zones.map(|zone| zone_counter(counter, &zone)).fold(0, u64::saturating_add))
            }
            Metric::InitLocal(node) => Ok(self.guest_stats()?.nodes[node.index()].init_local),
            Metric::InitRemote(node) => Ok(self.guest_stats()?.nodes[node.index()].init_remote),
            Metric::MemmapBootPages => Ok(self.guest_stats()?.memmap_boot_pages),
            Metric::MemmapAltmapPages => Ok(self.guest_stats()?.memmap_altmap_pages),
            Metric::Migrated => Ok(self.guest_stats()?.pages_migrated),
            Metric::BlocksOnline => Ok(self.guest_stats()?.blocks_online),
            Metric::DeviceSpanned => Ok(self.guest_stats()?.device_spanned),
            Metric::DevicePages => Ok(self.guest_stats()?.device_pages),
            Metric::DeviceRefs => Ok(self.guest_stats()?.device_refs),
            Metric::PcpDrains => Ok(self.guest_stats()?.pcp_drains),
            Metric::PcpStranded => Ok(self.guest_stats()?.pcp_stranded),
        }
    }
}

fn zone_counter(counter: ZoneCounter, zone: &ZoneStats) -> u64 {
    match counter {
        ZoneCounter::Spanned => zone.spanned,
        ZoneCounter::Present => zone.present,
        ZoneCounter::Managed => zone.managed,
        ZoneCounter::Free => zone.free,
    }
}
