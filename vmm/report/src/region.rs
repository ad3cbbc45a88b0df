//! The memory blocks of hotplug regions after each step: a map with a column per step and a row per memory block.
//!
//! Columns that are alike are one wide column. A region with many memory blocks has several of them in a row.

use tidevm_events::{Block, Blocks, Device, Sampled};

use crate::steps::cut;
use crate::thinned::Thinned;

/// Most columns that are kept.
pub const MAX_COLUMNS: usize = 200;

/// Most rows of a region.
pub const MAX_ROWS: usize = 64;

/// Most regions that are shown.
pub const MAX_REGIONS: usize = 8;

/// The unit of a row in a region whose guest has told no memory block.
const USUAL_BLOCK: u64 = 128 << 20;

/// The state of most of a row's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No memory block was added.
    #[default]
    Absent,
    /// In the zone Movable.
    Movable,
    /// In another zone.
    Kernel,
    /// In no zone.
    Offline,
    /// Online, and its struct pages are not written.
    Deferred,
}

/// A row in a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub state: State,
    /// How much is plugged, in quarters, rounded up.
    pub quarters: u8,
    /// Whether a memmap lies there.
    pub memmap: bool,
}

/// A region after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub at: f64,
    pub command: String,
    /// From the start of the region on.
    pub cells: Vec<Cell>,
    /// The guest told all of its memory blocks.
    pub complete: bool,
}

/// A region over time.
#[derive(Clone, Debug)]
pub struct Region {
    pub address: u64,
    pub size: u64,
    /// Bytes of a row.
    pub row: u64,
    columns: Thinned<Column>,
}

/// All regions over time.
#[derive(Clone, Debug, Default)]
pub struct Regions(Vec<Region>);

impl Regions {
    pub fn take(&mut self, at: f64, command: &str, sampled: &Sampled) {
        let Some(blocks) = &sampled.blocks else { return };
        if self.0.is_empty() {
            self.0 =
                sampled.devices.iter().take(MAX_REGIONS).map(|device| Region::new(device, blocks)).collect();
        }
        for region in &mut self.0 {
            region.take(at, command, blocks);
        }
    }

    pub fn all(&self) -> &[Region] {
        &self.0
    }
}

impl Region {
    fn new(device: &Device, blocks: &Blocks) -> Self {
        // Every memory block has the same size, boot memory excepted.
        let inside = |run: &&Block| !run.boot && run.size >= USUAL_BLOCK;
        let block = blocks.runs.iter().find(inside).map_or(USUAL_BLOCK, |run| run.size);
        let most = u64::try_from(MAX_ROWS).unwrap_or(u64::MAX);
        let row =
            block.max(device.region_size.div_ceil(most).checked_next_power_of_two().unwrap_or(u64::MAX));
        let columns = Thinned::at_most(MAX_COLUMNS);
        Self { address: device.address, size: device.region_size, row, columns }
    }

    pub fn rows(&self) -> usize {
        usize::try_from(self.size.div_ceil(self.row)).unwrap_or(MAX_ROWS).min(MAX_ROWS)
    }

    /// What is drawn, in the order of time.
    pub fn columns(&self) -> &[Column] {
        self.columns.kept()
    }

    fn take(&mut self, at: f64, command: &str, blocks: &Blocks) {
        if self.columns.comes() {
            let (command, cells) = (cut(command), self.cells(&blocks.runs));
            self.columns.keep(Column { at, command, cells, complete: blocks.complete });
        }
    }

    fn cells(&self, runs: &[Block]) -> Vec<Cell> {
        let rows = self.rows();
        let mut plugged = vec![0_u64; rows];
        let mut cells = vec![Cell::default(); rows];
        let end = self.address.saturating_add(self.size);
        for run in runs.iter().filter(|run| !run.boot) {
            let from = run.address.max(self.address);
            let to = run.address.saturating_add(run.count.saturating_mul(run.size)).min(end);
            // Outside, or a run of nothing: what is behind divides by its size.
            if from >= to {
                continue;
            }
            let row_of = |address: u64| usize::try_from((address - self.address) / self.row).unwrap_or(rows);
            for row in row_of(from)..=row_of(to - 1).min(rows - 1) {
                let start = self.address + row as u64 * self.row;
                let part = to.min(start.saturating_add(self.row)).saturating_sub(from.max(start));
                // Of each memory block the same share is plugged.
                // A guest that does not tell it has it all, as far as is known.
                let plugged_each = run.plugged.unwrap_or(run.size).min(run.size);
                let share = u128::from(part) * u128::from(plugged_each) / u128::from(run.size);
                plugged[row] = plugged[row].saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
                let cell = &mut cells[row];
                cell.state = cell.state.with(state(run));
                cell.memmap |=
                    run.memmap_on_memory == Some(true) && run.memmap_pages.is_some_and(|pages| pages > 0);
            }
        }
        for (cell, plugged) in cells.iter_mut().zip(plugged) {
            let quarters = (u128::from(plugged) * 4).div_ceil(u128::from(self.row)).min(4);
            cell.quarters = u8::try_from(quarters).unwrap_or(4);
        }
        cells
    }
}

fn state(run: &Block) -> State {
    match (run.state.as_str(), run.zone.as_deref()) {
        ("online", Some("Movable")) => State::Movable,
        ("online", _) => State::Kernel,
        ("deferred", _) => State::Deferred,
        _ => State::Offline,
    }
}

impl State {
    /// The state of a row that has memory blocks in both: the one that a reader looks for.
    fn with(self, other: Self) -> Self {
        let rank = |state| match state {
            Self::Absent => 0,
            Self::Movable => 1,
            Self::Deferred => 2,
            Self::Kernel => 3,
            Self::Offline => 4,
        };
        if rank(other) > rank(self) { other } else { self }
    }

    /// A class of the page's style.
    pub fn class(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Movable => "movable",
            Self::Kernel => "kernel",
            Self::Offline => "offline",
            Self::Deferred => "deferred",
        }
    }
}
