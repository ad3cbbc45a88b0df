//! Which functions there are on PCI: root buses, and the buses behind bridges.
//!
//! Mirrors Linux `pci_scan_child_bus`, and `pci_scan_slot`, which looks at functions other than the first one only where
//! there are several. Firmware has numbered the buses. Differs on purpose: where the root buses are not known, every bus is
//! one, so a bus is found without the bridge that leads to it.
//!
//! Invariant: a bus is looked at once, whatever bridges say.

use core::ops::RangeInclusive;

/// A set of bus numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusSet([u64; 4]);

impl BusSet {
    /// All buses.
    pub const ALL: Self = Self([u64::MAX; 4]);
    /// No bus.
    pub const NONE: Self = Self([0; 4]);

    /// One bus.
    #[must_use]
    pub fn of(bus: u8) -> Self {
        let mut set = Self::NONE;
        set.insert(bus);
        set
    }

    /// Adds a bus.
    pub fn insert(&mut self, bus: u8) {
        self.0[usize::from(bus / 64)] |= 1 << (bus % 64);
    }

    /// The buses of both sets.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
        self
    }

    /// Whether it has a bus.
    #[must_use]
    pub fn contains(&self, bus: u8) -> bool {
        self.0[usize::from(bus / 64)] & 1 << (bus % 64) != 0
    }

    /// Takes the lowest bus out.
    fn take_first(&mut self) -> Option<u8> {
        let (index, word) = self.0.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        Some((index as u32 * 64 + bit) as u8)
    }
}

/// A function: bus, device below 32, function below 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bus.
    pub bus: u8,
    /// The device on the bus.
    pub device: u8,
    /// The function of the device.
    pub function: u8,
}

/// What firmware says of the buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// The buses that there may be. None while firmware has named none: then all.
    within: Option<BusSet>,
    /// The root buses. None when they are not known.
    roots: Option<BusSet>,
}

impl Buses {
    /// Nothing is known: any bus may be there, and be a root bus.
    pub const UNKNOWN: Self = Self { within: None, roots: None };

    /// There may be these buses; without a call, all.
    pub fn may_be(&mut self, range: RangeInclusive<u8>) {
        let within = self.within.get_or_insert(BusSet::NONE);
        range.for_each(|bus| within.insert(bus));
    }

    /// These are all root buses.
    pub fn set_roots(&mut self, roots: BusSet) {
        self.roots = Some(roots);
    }

    /// Calls `found` with each function, and with its register 0: its vendor and its device. `read` returns the four bytes at
    /// an offset of a function's configuration space; all bits are set where there is none.
    pub fn each_function(&self, read: impl Fn(Place, u8) -> u32, mut found: impl FnMut(Place, u32)) {
        const HEADER: u8 = 0x0c;
        const BUS_NUMBERS: u8 = 0x18;
        const SEVERAL_FUNCTIONS: u8 = 1 << 7;
        const BRIDGE: u8 = 1;
        let within = self.within.unwrap_or(BusSet::ALL);
        let mut waiting = self.roots.unwrap_or(within);
        let mut seen = BusSet::NONE;
        while let Some(bus) = waiting.take_first() {
            if !within.contains(bus) || seen.contains(bus) {
                continue;
            }
            seen.insert(bus);
            for device in 0..32 {
                let mut last = 0;
                for function in 0..8 {
                    if function > last {
                        break;
                    }
                    let place = Place { bus, device, function };
                    let identity = read(place, 0);
                    if identity == u32::MAX {
                        continue;
                    }
                    let [_, _, header, _] = read(place, HEADER).to_le_bytes();
                    if function == 0 && header & SEVERAL_FUNCTIONS != 0 {
                        last = 7;
                    }
                    if header & !SEVERAL_FUNCTIONS == BRIDGE {
                        let [_, secondary, ..] = read(place, BUS_NUMBERS).to_le_bytes();
                        waiting.insert(secondary);
                    }
                    found(place, identity);
                }
            }
        }
    }
}
