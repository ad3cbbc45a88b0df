//! Levels and limits of zones of sizes that no simulated machine has. The expected values were worked out by hand
//! from the formulas of Linux 6.12 (`init_per_zone_wmark_min`, `__setup_per_zone_wmarks`, `setup_per_zone_lowmem_reserve`,
//! `zone_batchsize`, `zone_highsize`).

use crate::addr::{Pfn, PfnRange};
use crate::hotplug::HotplugHeld;
use crate::node::{ZoneId, ZoneType};
use crate::zone::{PcpLimits, Watermark, Zone, setup_watermarks};

/// Lets an empty zone span so many pages.
fn span(zone: &Zone, pages: u64) {
    if let Ok(pages @ 1..) = u32::try_from(pages) {
        zone.grow_span(PfnRange::new(Pfn::new(0), pages), &HotplugHeld::without_mm());
    }
}

/// Zones of the first node with this many managed pages; the other nodes have no memory.
fn zones(managed: [u64; 3]) -> [Zone; ZoneId::COUNT] {
    let (zones, held) = (Zone::all(), HotplugHeld::without_mm());
    for (zone, pages) in zones.iter().zip(managed) {
        span(zone, pages);
        zone.add_present(pages, &held);
        zone.add_managed(pages, &held);
    }
    setup_watermarks(&zones, &held);
    zones
}

fn marks(zone: &Zone) -> [u64; 2] {
    [Watermark::Min, Watermark::Low].map(|mark| zone.watermark(mark))
}

/// The machine's least free memory is the root of 16 times its size in KiB, and 128 KiB to 256 MiB. The low
/// watermark is a quarter higher, or a thousandth of the zone.
#[test]
fn watermarks_of_kernel_zones() {
    const GIB: u64 = 1 << 18;
    for (pages, min, low) in [
        (100, 32, 40),
        (GIB / 4, 512, 640),
        (GIB, 1024, 1286),
        (16 * GIB, 4096, 8290),
        (8192 * GIB, 65_536, 65_536 + 2_147_483),
    ] {
        assert_eq!(marks(&zones([0, pages, 0])[1]), [min, low], "{pages} pages");
    }
    // The high watermark is as far above the low one as that above the minimum.
    assert_eq!(zones([0, 1 << 18, 0])[1].watermark(Watermark::High), 1286 + 262);
    // Two zones share it by size. Movable is not counted.
    for movable in [0, 64 * GIB] {
        let zones = zones([GIB, 3 * GIB, movable]);
        assert_eq!([0, 1].map(|zone| marks(&zones[zone])), [[512, 774], [1536, 2322]]);
    }
}

/// In Movable the min watermark is 32 to 128 pages, whatever the kernel's zones are. A zone without pages has none.
#[test]
fn watermarks_of_movable() {
    for (pages, min, low) in
        [(0, 0, 0), (1024, 32, 33), (1 << 16, 64, 129), (1 << 17, 128, 259), (1 << 20, 128, 1176)]
    {
        assert_eq!(marks(&zones([1 << 20, 0, pages])[2]), [min, low], "{pages} pages");
    }
    // Where the share of the machine's least free memory is large, a quarter of it is the step.
    assert_eq!(marks(&zones([0, 1 << 10, 1 << 16])[2]), [64, 64 + 1024]);
    assert_eq!(marks(&zones([1 << 20, 0, 1 << 20])[1]), [0, 0]);
}

/// Dma32 keeps 1/256 of all higher zones that the request may use, Normal 1/32.
#[test]
fn reserves_of_lower_zones() {
    let zones = zones([1 << 18, 1 << 20, 1 << 19]);
    let reserves = |zone: usize| ZoneType::ALL.map(|highest| zones[zone].lowmem_reserve(highest));
    assert_eq!(reserves(0), [0, (1 << 20) / 256, ((1 << 20) + (1 << 19)) / 256]);
    assert_eq!(reserves(1), [0, 0, (1 << 19) / 32]);
    assert_eq!(reserves(2), [0; 3]);
}

/// A batch is a power of two less one, at most 63; a list keeps its share of the low watermark, at least four
/// batches and at most 256 pages. All CPUs together keep a 64th of a zone's pageblocks, and a CPU keeps 8 at most, and none when its share is
/// below 4.
#[test]
fn limits_of_lists() {
    const GIB: u64 = 1 << 18;
    for (pages, cpus, (high, batch, large)) in [
        (0, 1, (0, 1, 0)),
        (1000, 1, (78, 1, 0)),
        (GIB / 8, 1, (256, 7, 0)),
        (GIB / 2, 1, (256, 31, 4)),
        (GIB, 1, (256, 63, 8)),
        (GIB, 2, (256, 63, 4)),
        (GIB, 4, (256, 63, 0)),
        (GIB, 64, (252, 63, 0)),
        (64 * GIB, 1, (256, 63, 8)),
        (64 * GIB, 64, (256, 63, 8)),
    ] {
        let limits = PcpLimits { high, batch, large };
        assert_eq!(PcpLimits::of(&zones([0, pages, 0])[1], cpus), limits, "{pages} pages, {cpus} CPUs");
        assert_eq!(PcpLimits::unpacked(limits.packed()), limits);
    }
    assert_eq!(PcpLimits::OFF.packed(), 0);
    // All of its pages hold memmap.
    let (zone, held) = (&Zone::all()[0], HotplugHeld::without_mm());
    span(zone, 512);
    zone.add_present(512, &held);
    assert_eq!(PcpLimits::of(zone, 1), PcpLimits { high: 4, batch: 1, large: 0 });
}
