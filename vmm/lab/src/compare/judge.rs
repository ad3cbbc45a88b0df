//! Compares the counters of two guests after each phase.
//!
//! The Movable zone is compared as it is. The other zones are boot memory. They are compared as one zone,
//! because Linux has a zone for the first 16 MiB and tidevm has none: at boot by their counters, and after
//! each phase by the change since boot.
//!
//! Linux takes the memmap of a new memory block from boot memory, tidevm from the memory block itself (its
//! altmap). So tidevm has fewer managed and free pages in Movable, and more free pages in boot memory, by
//! the pages of its memmap per memory block. Every other [`Difference`] must have a [`Reason`].

use std::{array, fmt};

use tidevm_abi::{MEMORY_BLOCK_SIZE, Size, ZoneName};

use super::{BOOT, MEMMAP_PAGES, Measurement, Phase, PlannedPhase, phases};
use crate::zoneinfo::Zone;

/// The compared counters, in pages.
pub const COUNTERS: [&str; 4] = ["spanned", "present", "managed", "free"];
const SPANNED: usize = 0;
const PRESENT: usize = 1;
const MANAGED: usize = 2;
const FREE: usize = 3;

/// The counters of a zone, in the order of [`COUNTERS`].
pub type Counters = [i64; 4];

/// Pages that a kernel may take or give back for itself during a session: 1 MiB.
const OWN: i64 = 256;
/// A kernel may take one page for itself per so many pages of data.
const HELD_BY_ONE: i64 = 256;
/// Boot memory divided by this may belong to the kernel from the start.
const BOOT_PART: i64 = 16;
/// Pages below the border between two zones of boot memory: 4 GiB.
const BORDER: i64 = 1 << 20;

/// Two guests after a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The phase's name.
    pub phase: String,
    /// Which zones.
    pub zones: Zones,
    /// Linux's counters.
    pub linux: Counters,
    /// tidevm's counters.
    pub tidevm: Counters,
    /// Pages of memmap in the plugged memory blocks.
    pub altmap: i64,
    /// Differences that altmap does not explain.
    pub differences: Vec<Difference>,
}

/// Which zones are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zones {
    /// The Movable zone.
    Movable,
    /// All others together.
    Boot,
    /// The same, since boot.
    BootChange,
}

impl fmt::Display for Zones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Movable => ZoneName::Movable.as_str(),
            Self::Boot => "others",
            Self::BootChange => "others, change",
        })
    }
}

/// A difference that altmap does not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Index in [`COUNTERS`].
    pub counter: usize,
    /// Pages that tidevm has more.
    pub pages: i64,
    /// `None` if nothing explains it.
    pub reason: Option<Reason>,
}

/// Why counters may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Linux's processes live in Movable as well.
    Processes,
    /// A kernel's own pages come and go.
    Own,
    /// Two kernels boot.
    Boot,
    /// In Linux, a zone ends where the next one begins.
    Border,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Processes, Self::Own, Self::Boot, Self::Border];

    /// A letter for the table.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Processes => 'a',
            Self::Own => 'b',
            Self::Boot => 'c',
            Self::Border => 'd',
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => {
                "Linux's processes have pages of Movable, too, and it counts free pages to within a \
                 threshold for each CPU; at most 1 MiB"
            }
            Self::Own => {
                "a kernel's own pages come and go: page tables, slab, lists of the pages that hold data; \
                 at most 1 MiB, and 1/256 of the data"
            }
            Self::Boot => {
                "two kernels boot: their images, their first memmap, what they leave of the firmware's \
                 map; at most 1/16 of boot memory"
            }
            Self::Border => {
                "at boot, Linux has a zone span all up to 4 GiB when there is memory above, tidevm up to \
                 its last page"
            }
        })
    }
}

/// Two sessions on one host, phase by phase, as far as both went.
#[must_use]
pub fn compare(linux: &Measurement, tidevm: &Measurement) -> Vec<Row> {
    let mut both = linux.phases.iter().zip(&tidevm.phases);
    let Some((linux_boot, tidevm_boot)) = both.next() else { return Vec::new() };
    let boot = |phase| counters(phase, |zone| !is_movable(zone));
    let mut rows = vec![row(BOOT, Zones::Boot, [boot(linux_boot), boot(tidevm_boot)], Size(0), Size(0))];
    for ((linux, tidevm), PlannedPhase { name, plugged, data, .. }) in both.zip(&phases()) {
        let movable = [linux, tidevm].map(|phase| counters(phase, is_movable));
        rows.push(row(name, Zones::Movable, movable, *plugged, *data));
        let change = [(linux, linux_boot), (tidevm, tidevm_boot)]
            .map(|(now, then)| array::from_fn(|counter| boot(now)[counter] - boot(then)[counter]));
        rows.push(row(name, Zones::BootChange, change, *plugged, *data));
    }
    rows
}

fn row(phase: &str, zones: Zones, [linux, tidevm]: [Counters; 2], plugged: Size, data: Size) -> Row {
    let altmap = pages(plugged.0 / MEMORY_BLOCK_SIZE * MEMMAP_PAGES);
    let mut differences = Vec::new();
    for counter in 0..COUNTERS.len() {
        let explained = match (zones, counter) {
            (Zones::Movable, MANAGED | FREE) => -altmap,
            (Zones::BootChange, FREE) => altmap,
            _ => 0,
        };
        let (reason, most) = match (zones, counter) {
            (Zones::Movable, FREE) => (Some(Reason::Processes), OWN),
            (Zones::BootChange, FREE) => (Some(Reason::Own), OWN + pages(data.pages()) / HELD_BY_ONE),
            (Zones::Boot, SPANNED) => (Some(Reason::Border), BORDER),
            (Zones::Boot, _) => (Some(Reason::Boot), linux[PRESENT] / BOOT_PART),
            _ => (None, 0),
        };
        let rest = tidevm[counter] - linux[counter] - explained;
        if rest != 0 {
            differences.push(Difference {
                counter,
                pages: rest,
                reason: reason.filter(|_| rest.abs() <= most),
            });
        }
    }
    Row { phase: phase.to_owned(), zones, linux, tidevm, altmap, differences }
}

/// Pages of boot memory that a plug of `plugged` took for memmap: the loss of free pages between two
/// phases, rounded to whole memmaps of all memory blocks. The remainder belongs to the kernel itself.
#[must_use]
pub fn memmap_in_boot(before: &Phase, after: &Phase, plugged: Size) -> i64 {
    let free = |phase| counters(phase, |zone| !is_movable(zone))[FREE];
    let memmap = pages(plugged.0 / MEMORY_BLOCK_SIZE * MEMMAP_PAGES);
    let taken = free(before) - free(after);
    (taken + memmap / 2).div_euclid(memmap) * memmap
}

fn is_movable(zone: &Zone) -> bool {
    zone.name == ZoneName::Movable.as_str()
}

/// The sum over the `wanted` zones.
fn counters(phase: &Phase, wanted: impl Fn(&Zone) -> bool) -> Counters {
    let of = |zone: &Zone| [zone.spanned, zone.present, zone.managed, zone.free].map(pages);
    let zones = phase.zones.iter().filter(|zone| wanted(zone));
    zones.map(of).fold([0; 4], |sum, zone| array::from_fn(|counter| sum[counter] + zone[counter]))
}

/// A count as a signed number, for differences.
fn pages(count: u64) -> i64 {
    i64::try_from(count).expect("fewer pages than there are addresses")
}

#[cfg(test)]
mod tests {
    use tidevm_abi::Size;

    use super::{BOOT, COUNTERS, Reason, compare, memmap_in_boot};
    use crate::compare::{Guest, Host, Measurement, Phase};
    use crate::zoneinfo::Zone;

    fn phase(name: &str, boot_free: u64, movable: [u64; 4]) -> Phase {
        let zone = |name: &str, [spanned, present, managed, free]: [u64; 4]| Zone {
            node: 0,
            name: name.to_owned(),
            spanned,
            present,
            managed,
            free,
        };
        let boot = zone("DMA32", [786_432, 786_300, 760_000, boot_free]);
        let zones = vec![boot, zone("Movable", movable)];
        Phase { name: name.to_owned(), seconds: 0.0, instructions: None, zones }
    }

    fn measurement(guest: Guest, boot_free: [u64; 2], movable: [u64; 4]) -> Measurement {
        let phases = vec![phase(BOOT, boot_free[0], [0; 4]), phase("plug 1 GiB", boot_free[1], movable)];
        Measurement { host: Host::Qemu, guest, phases, error: None }
    }

    /// All differences: counter, pages and reason.
    fn differences(tidevm: &Measurement) -> Vec<(&'static str, i64, Option<Reason>)> {
        let linux = measurement(Guest::Linux, [700_000, 695_800], [262_144, 262_144, 262_144, 262_100]);
        let rows = compare(&linux, tidevm);
        let differences = rows.iter().flat_map(|row| &row.differences);
        differences.map(|rest| (COUNTERS[rest.counter], rest.pages, rest.reason)).collect()
    }

    #[test]
    fn altmap_explains_what_it_takes() {
        let tidevm = measurement(Guest::Tidevm, [700_000, 699_990], [262_144, 262_144, 258_048, 258_048]);
        let expected = [("free", 44, Some(Reason::Processes)), ("free", 94, Some(Reason::Own))];
        assert_eq!(differences(&tidevm), expected);
        let [linux_took, tidevm_took] = [[700_000, 695_800], [700_000, 699_990]].map(|free| {
            let measurement = measurement(Guest::Linux, free, [0; 4]);
            memmap_in_boot(&measurement.phases[0], &measurement.phases[1], Size::gib(1))
        });
        assert_eq!((linux_took, tidevm_took), (4096, 0));
    }

    #[test]
    fn what_nothing_explains_is_seen() {
        let tidevm = measurement(Guest::Tidevm, [700_000, 690_000], [262_144, 262_143, 258_049, 240_000]);
        let expected =
            [("present", -1, None), ("managed", 1, None), ("free", -18_004, None), ("free", -9896, None)];
        assert_eq!(differences(&tidevm), expected);
    }
}
