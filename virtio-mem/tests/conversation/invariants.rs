//! What must hold at every moment of a conversation.

use virtio_mem::{Action, BlockRange, Request, RequestKind, Rest};

use super::guest::memory_block;
use super::world::{REGION, Shape, World};

impl World {
    /// Whatever the driver does to blocks, it knows what is true of them.
    pub fn check_beliefs(&mut self, action: Action) {
        let asks = |request: Request| matches!(request.kind, RequestKind::State | RequestKind::UnplugAll);
        match action {
            Action::ReadConfig | Action::Rest(Rest::Retry { .. } | Rest::Blocked(_)) => {}
            Action::Send(request) if asks(request) => {}
            _ => self.in_doubt = false,
        }
        if action == Action::Rest(Rest::Reached) && !self.interrupt {
            assert_eq!(self.driver.plugged_size(), self.device.requested_size());
        }
        if self.in_doubt {
            return;
        }
        let mut believed = Vec::new();
        for (addr, sub_blocks) in self.driver.plugged() {
            let first = (addr - REGION) / self.shape.block_size;
            believed.extend(sub_blocks.runs().flatten().map(|sub_block| first + u64::from(sub_block)));
        }
        let plugged: Vec<_> = self.device.plugged().runs().flat_map(|run| run.first..run.end()).collect();
        assert_eq!(believed, plugged, "what the driver believes is plugged");
        assert_eq!(self.driver.plugged_size(), self.device.plugged_size());
    }

    /// What must hold after every step.
    pub fn check(&mut self) {
        let Shape { block_size, region_size, memmap_inside, .. } = self.shape;
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

        let is_plugged = |first| plugged.count_in(BlockRange { first, count: 1 }) == 1;
        for (addr, online) in self.guest.added() {
            assert!(online.iter().all(|block| is_plugged(*block)), "the guest uses an unplugged block");
            let memmap = (addr - REGION) / block_size;
            assert!(!memmap_inside || online.contains(&memmap), "a memory block without memmap");
        }
        if memmap_inside && !self.in_doubt {
            for block in plugged.runs().flat_map(|run| run.first..run.end()) {
                let memmap = (memory_block(REGION + block * block_size) - REGION) / block_size;
                assert!(is_plugged(memmap), "block {block} is plugged before or after its memmap");
            }
        }
    }
}
