//! Whether this machine is quiet enough for a figure of two CPUs.
//!
//! Two threads that seldom run at the same time make a lock look free. So such figures are taken only while the other
//! CPUs have nothing else to do.

use std::fs;
use std::thread;
use std::time::Duration;

/// Share of the time in which all CPUs were idle before a quiet moment.
const IDLE: f64 = 0.95;
const LOOK: Duration = Duration::from_millis(200);
/// Looks before the machine counts as busy.
const LOOKS: u32 = 20;

/// Waits for a quiet moment, a few seconds at most.
///
/// # Errors
/// Why there is none, to be shown instead of a figure.
pub fn wait() -> Result<(), String> {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Err("not measured: one CPU".to_owned());
    }
    let mut least: f64 = 0.0;
    for _ in 0..LOOKS {
        let before = times()?;
        thread::sleep(LOOK);
        let after = times()?;
        let [idle, all] = [0, 1].map(|at| after[at].saturating_sub(before[at]) as f64);
        let share = idle / all.max(1.0);
        if share >= IDLE {
            return Ok(());
        }
        least = least.max(share);
    }
    Err(format!("not measured: busy, {:.0} % idle at most", 100.0 * least))
}

/// Idle time and all time of all CPUs, in ticks.
fn times() -> Result<[u64; 2], String> {
    let stat =
        fs::read_to_string("/proc/stat").map_err(|error| format!("not measured: /proc/stat: {error}"))?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, ...
    match ticks[..] {
        [_, _, _, idle, iowait, ..] => Ok([idle + iowait, ticks.iter().take(8).sum()]),
        _ => Err("not measured: /proc/stat has no times".to_owned()),
    }
}
