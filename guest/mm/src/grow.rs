//! How an allocation gets more of a zone: it initialises deferred memory when the zone has too little.
//!
//! Takes the place of the call of `deferred_grow_zone` in Linux `get_page_from_freelist`. Differs from
//! Linux on purpose: the allocator does not call the code that initialises it. It says here
//! which calls it needs, and `deferred` implements it, so that no lower layer calls a higher one.
//!
//! Invariant: a zone that a request may use refuses it for lack of memory only when none of its memory is
//! deferred, unless growing is switched off.

use crate::node::ZoneId;

/// Zones that can get more memory while an allocation runs.
pub(crate) trait GrowZone {
    /// Memory blocks of `zone` that are deferred or on their way.
    fn deferred_blocks_left(&self, zone: ZoneId) -> u32;

    /// Makes more of `zone` available to an allocation that found too little when
    /// [`deferred_blocks_left`](Self::deferred_blocks_left) was `before`. `true` when it may find more now;
    /// `false` when nothing is deferred.
    fn grow_zone(&self, zone: ZoneId, before: u32) -> bool;

    /// Retries `take`, initialising one more deferred memory block of `zone` after each failure, until
    /// nothing is deferred or `may` refuses. Deferred memory counts as free memory, so watermarks that
    /// refuse now would also refuse after it is initialised.
    fn take_growing<T>(
        &self,
        zone: ZoneId,
        take: impl Fn() -> Option<T>,
        may: impl Fn() -> bool,
    ) -> Option<T> {
        loop {
            let left = self.deferred_blocks_left(zone);
            if let Some(found) = take() {
                return Some(found);
            }
            if !may() || !self.grow_zone(zone, left) {
                return None;
            }
        }
    }
}
