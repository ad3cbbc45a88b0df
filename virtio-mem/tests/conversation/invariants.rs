//! Invariants of a conversation, checked at every step. Identifiers are rows of the tables in
//! `tests/conformance`.

use virtio_mem::{Action, BlockRange, Idle, Request, RequestKind};

use super::world::{Shape, World};

impl World {
    /// Checks before `action` that the driver's view of the device blocks is true. Only reading, asking and
    /// waiting are allowed while it may be wrong.
    pub fn check_beliefs(&mut self, action: Action) {
        let asks = |request: Request| matches!(request.kind, RequestKind::State | RequestKind::UnplugAll);
        match action {
            Action::ReadConfig | Action::Idle(Idle::Retry { .. } | Idle::Blocked(_)) => {}
            Action::Send(request) if asks(request) => {}
            _ => self.in_doubt = false,
        }
        if action == Action::Idle(Idle::Reached) && !self.interrupt {
            assert_eq!(self.driver.plugged_size(), self.device.requested_size());
            self.is_foreign = false;
        }
        if self.in_doubt {
            return;
        }
        let believed: Vec<_> = self.driver.plugged().flat_map(|run| run.first()..run.end()).collect();
        let plugged: Vec<_> = self.device.plugged().runs().flat_map(|run| run.first()..run.end()).collect();
        assert_eq!(believed, plugged, "what the driver believes is plugged");
        assert_eq!(self.driver.plugged_size(), self.device.plugged_size());
    }

    /// Checks the invariants of device and guest.
    pub fn check(&mut self) {
        let Shape { block_size, region_size, .. } = self.shape;
        let config = self.device.config();
        let plugged = self.device.plugged();
        assert_eq!(config.plugged_size, plugged.count() * block_size, "D3");
        assert!(plugged.runs().eq(self.host.backed.runs()), "what the device calls plugged is backed");
        assert!(config.usable_region_size >= config.requested_size, "D4");
        for size in [config.usable_region_size, config.plugged_size, config.requested_size] {
            assert!(size.is_multiple_of(block_size) && size <= region_size, "D6");
        }
        assert!(config.usable_region_size >= self.usable, "D8");
        self.usable = config.usable_region_size;

        let is_plugged = |first| plugged.count_in(BlockRange::new(first, 1)) == 1;
        for (addr, online) in self.guest.added() {
            assert!(online.iter().all(|block| is_plugged(*block)), "the guest uses an unplugged block");
            assert!(online.is_superset(&self.guest.memmap(*addr)), "a memory block without memmap");
            assert!(!online.is_empty(), "a memory block without a device block");
        }
        if self.in_doubt {
            return;
        }
        let end = (self.shape.start() + config.region_size - self.driver.unusable_size() - self.shape.addr)
            / block_size;
        let start = (self.shape.start() - self.shape.addr) / block_size;
        if self.is_foreign {
            return;
        }
        for first in (start..end).step_by(self.guest.per_memory_block() as usize) {
            let within = |count: u64| BlockRange::new(first, count.min(end - first));
            let memmap_blocks = self.guest.memmap_blocks();
            let of_memmap = plugged.count_in(within(memmap_blocks));
            let waits = plugged.count_in(within(self.guest.per_memory_block())) == of_memmap;
            assert!(
                of_memmap == memmap_blocks || waits,
                "plugged before or after the memmap at block {first}"
            );
        }
    }
}
