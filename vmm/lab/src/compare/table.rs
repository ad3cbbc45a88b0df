//! Measurements and differences, as text for people.

use std::fmt::Write;

use tidevm_abi::Size;

use super::judge::{self, COUNTERS, Difference, Reason, Row};
use super::{Guest, Host, Measurement, Phase, PhaseKind, PlannedPhase, phases};

const GUESTS: [Guest; 2] = [Guest::Linux, Guest::Tidevm];

/// The whole text, and whether every session ended well and every difference has a reason.
#[must_use]
pub fn show(measurements: &[Measurement]) -> (String, bool) {
    let mut text = costs(measurements);
    let mut agree = true;
    for (host, name) in [
        (Host::Qemu, "QEMU's emulator and its virtio-mem-pci"),
        (Host::Tidevm, "tidevm and its virtio-mem, in the nested host"),
    ] {
        let [linux, tidevm] = GUESTS.map(|guest| find(measurements, host, guest));
        let rows = linux.zip(tidevm).map_or_else(Vec::new, |(linux, tidevm)| judge::compare(linux, tidevm));
        let _ = write!(text, "\nPages after each step: {name}\n\n{}", counters(&rows));
        agree &= rows.iter().flat_map(|row| &row.differences).all(|rest| rest.reason.is_some());
    }
    let _ = write!(text, "\n{}", reasons());
    for host in [Host::Qemu, Host::QemuCounting, Host::Tidevm] {
        for guest in GUESTS {
            let measurement = find(measurements, host, guest);
            let error = measurement.map_or(Some("was not run"), |measurement| measurement.error.as_deref());
            if let Some(error) = error {
                let first = error.lines().next().unwrap_or_default();
                let _ = writeln!(text, "UNFINISHED {guest:?} on {host:?}: {first}");
                agree = false;
            }
        }
    }
    (text, agree)
}

fn find(measurements: &[Measurement], host: Host, guest: Guest) -> Option<&Measurement> {
    measurements.iter().find(|measurement| (measurement.host, measurement.guest) == (host, guest))
}

/// A row of the costs: its name, its host, and a function that reads the cost from the phase before, the phase
/// itself, its kind and its GiB.
type Cost = (&'static str, Host, fn(&Phase, &Phase, PhaseKind, u64) -> Option<String>);

const COSTS: [Cost; 4] = [
    ("instructions", Host::QemuCounting, |_, phase, _, gib| Some(millions(phase.instructions? / gib))),
    ("time, QEMU", Host::Qemu, |_, phase, _, gib| Some(seconds(phase, gib))),
    ("time, nested host", Host::Tidevm, |_, phase, _, gib| Some(seconds(phase, gib))),
    ("memmap from boot memory", Host::Qemu, |before, phase, kind, gib| {
        let pages = judge::memmap_in_boot(before, phase, Size::gib(gib)) / gib.cast_signed();
        (kind == PhaseKind::Plug).then(|| format!("{pages} pages"))
    }),
];

/// The cost of plugging and unplugging.
fn costs(measurements: &[Measurement]) -> String {
    let mut rows = vec![["per GiB", "", "Linux", "tidevm"].map(str::to_owned).to_vec()];
    for (index, PlannedPhase { name, kind, costs, .. }) in phases().iter().enumerate() {
        let Some(gib) = *costs else { continue };
        for (what, host, read) in COSTS {
            let cell = |guest| {
                // The first of a measurement's phases is the boot.
                let [before, phase] = find(measurements, host, guest)?.phases.get(index..index + 2)? else {
                    return None;
                };
                read(before, phase, *kind, gib)
            };
            let cells = GUESTS.map(cell);
            if cells.iter().any(Option::is_some) {
                let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
                rows.push([name.clone(), what.to_owned()].into_iter().chain(cells).collect());
            }
        }
    }
    align(&rows, |column| column < 2)
}

fn seconds(phase: &Phase, gib: u64) -> String {
    format!("{:.3} s", phase.seconds / gib as f64)
}

fn millions(count: u64) -> String {
    format!("{:.2} M", count as f64 / 1e6)
}

fn counters(rows: &[Row]) -> String {
    let heads = ["", "", "Linux", "", "", "", "tidevm", "", "", "", "", ""];
    let names = ["step", "zones"].into_iter().chain(COUNTERS).chain(COUNTERS).chain(["altmap", "rest"]);
    let mut table = vec![heads.map(str::to_owned).to_vec(), names.map(str::to_owned).collect()];
    for row in rows {
        let words = [row.phase.clone(), row.zones.to_string()].into_iter();
        let numbers = row.linux.iter().chain(&row.tidevm).chain([&row.altmap]).map(ToString::to_string);
        let differences: Vec<String> = row.differences.iter().map(rest).collect();
        table.push(words.chain(numbers).chain([differences.join(", ")]).collect());
    }
    align(&table, |column| column < 2 || column == heads.len() - 1)
}

/// `free +15 (a)`.
fn rest(rest: &Difference) -> String {
    let name = COUNTERS[rest.counter];
    match rest.reason {
        Some(reason) => format!("{name} {:+} ({})", rest.pages, reason.letter()),
        None => format!("{name} {:+} UNEXPLAINED", rest.pages),
    }
}

fn reasons() -> String {
    let mut text = "\
altmap  pages of memmap, in the plugged blocks in tidevm and in boot memory in Linux: fewer are managed and
        free in Movable, more are free in the others
rest    what tidevm has more after that
"
    .to_owned();
    for reason in Reason::ALL {
        let _ = writeln!(text, "    ({}) {reason}", reason.letter());
    }
    text
}

/// Aligns columns: those that are `left` to the left, the others to the right.
fn align(rows: &[Vec<String>], left: impl Fn(usize) -> bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let lengths =
        |column| rows.iter().filter_map(move |row| row.get(column).map(|cell: &String| cell.chars().count()));
    let widths: Vec<usize> = (0..columns).map(|column| lengths(column).max().unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(
                |(column, (cell, &width))| {
                    if left(column) { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::show;
    use crate::compare::{BOOT, Guest, Host, Measurement, Phase};

    #[test]
    fn what_was_not_measured_is_told() {
        let boot = Phase { name: BOOT.to_owned(), seconds: 0.0, instructions: None, zones: Vec::new() };
        let measurement = |guest, error: Option<&str>| Measurement {
            host: Host::Qemu,
            guest,
            phases: vec![boot.clone()],
            error: error.map(str::to_owned),
        };
        let (text, agree) =
            show(&[measurement(Guest::Linux, None), measurement(Guest::Tidevm, Some("no QEMU\nmore"))]);
        assert!(!agree);
        assert!(text.contains("UNFINISHED Tidevm on Qemu: no QEMU\n"), "{text}");
        assert!(text.contains("UNFINISHED Linux on Tidevm: was not run\n"), "{text}");
        assert!(!text.contains("UNFINISHED Linux on Qemu:"), "{text}");
    }
}
