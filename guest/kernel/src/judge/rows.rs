//! The rows that the guest can judge, by id. What each rule says is the host's knowledge (`vmm/judge`).
//!
//! Invariant: a row begins as [`Rig::prepare`](super::rig::Rig::prepare) leaves the device, and may leave it in any state.

mod beyond;
mod config;
mod content;
mod hostile;
mod plug;
mod races;
mod rings;
mod state;
mod status;
mod unplug;

use super::answer::Came;
use super::rig::Rig;

/// A row.
pub struct Row {
    /// Its id.
    pub id: &'static str,
    /// What it sends.
    pub sent: &'static str,
    /// Judges the device.
    pub run: fn(&mut Rig) -> Came,
}

const ALL: &[&[Row]] = &[
    config::ROWS,
    content::ROWS,
    plug::ROWS,
    unplug::ROWS,
    state::ROWS,
    beyond::ROWS,
    races::ROWS,
    status::ROWS,
    rings::ROWS,
    hostile::ROWS,
];

/// The row `id`.
pub fn find(id: &str) -> Option<&'static Row> {
    ALL.iter().flat_map(|rows| rows.iter()).find(|row| row.id == id)
}
