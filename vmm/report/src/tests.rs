//! The page of a whole session, of hostile ones, and of long ones, whose size has a bound.

use std::collections::BTreeMap;

use tidevm_events::{
    Block, Blocks, Device, End, Event, FORMAT_VERSION, Guest, Line, Machine, Outcome, Ready, Region, Sampled,
    Start, Step,
};

use super::Report;
use super::region::{Cell, MAX_COLUMNS, MAX_REGIONS, MAX_ROWS, State};
use super::series::{MAX_POINTS, Point, Series};
use super::steps::{FIRST, LAST, cut};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BASE: u64 = 4 * GIB;

fn line(at_seconds: f64, event: Event) -> Line {
    Line { event, at_seconds, unix_ms: 1_795_946_006_102 }
}

fn start(command_line: &[&str]) -> Line {
    let region = Region { size: 8 * GIB, block_size: 2 * MIB, ..Region::default() };
    let machine = Machine { cpus: 2, memory: 256 * MIB, regions: vec![region], ..Machine::default() };
    let start = Start {
        format_version: FORMAT_VERSION,
        version: "0.1.0".to_owned(),
        commit: Some("0123456789ab".to_owned()),
        command_line: command_line.iter().map(|word| (*word).to_owned()).collect(),
        date: "2026-11-29T13:35:51.457Z".to_owned(),
        host: Some("vm".to_owned()),
        machine: Some(machine),
        ..Start::default()
    };
    line(0.0, Event::Start(Box::new(start)))
}

fn run(address: u64, count: u64, plugged: u64) -> Block {
    Block {
        address,
        count,
        size: 128 * MIB,
        state: "online".to_owned(),
        zone: Some("Movable".to_owned()),
        plugged: Some(plugged),
        memmap_pages: Some(512),
        memmap_on_memory: Some(true),
        ..Block::default()
    }
}

fn sampled(requested: u64, plugged: u64) -> Sampled {
    let device = Device {
        address: BASE,
        region_size: 8 * GIB,
        requested,
        plugged,
        guest_usable: Some(plugged),
        held: Some(plugged / 2),
        requests: Default::default(),
    };
    let movable = BTreeMap::from([("managed".to_owned(), plugged >> 12), ("free".to_owned(), plugged >> 14)]);
    let guest = Guest { zones: BTreeMap::from([("Movable".to_owned(), movable)]), ..Guest::default() };
    let runs =
        if plugged < 128 * MIB { Vec::new() } else { vec![run(BASE, plugged / (128 * MIB), 128 * MIB)] };
    Sampled {
        devices: vec![device],
        guest: Some(guest),
        blocks: Some(Blocks { runs, complete: true }),
        resets: 0,
    }
}

fn step(command: &str, at: f64, took: f64, sampled: Sampled) -> Line {
    let step = Step {
        line: 1,
        column: 1,
        command: command.to_owned(),
        start_seconds: at,
        seconds: took,
        ok: true,
        sampled,
        ..Step::default()
    };
    line(at + took, Event::Step(Box::new(step)))
}

fn failed(command: &str, at: f64, reason: &str, sampled: Sampled) -> Line {
    let mut line = step(command, at, 0.5, sampled);
    if let Event::Step(step) = &mut line.event {
        (step.ok, step.reason) = (false, Some(reason.to_owned()));
    }
    line
}

fn end(at: f64, outcome: Outcome, reason: Option<&str>) -> Line {
    let end = End { status: 1, outcome, reason: reason.map(str::to_owned), seconds: at, ..End::default() };
    line(at, Event::End(Box::new(end)))
}

fn ready(at: f64) -> Line {
    let ready = Ready { seconds: Some(at), sampled: sampled(0, 0), ..Ready::default() };
    line(at, Event::Ready(Box::new(ready)))
}

fn report(lines: impl IntoIterator<Item = Line>) -> Report {
    let mut report = Report::default();
    lines.into_iter().for_each(|line| report.take(&line));
    report
}

/// The content of a page without its style, in which words of states stand, too.
fn body(report: &Report) -> String {
    let page = report.page();
    let (_, body) = page.split_once("<body>").expect("a body");
    body.replace('\u{a0}', " ")
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

fn session() -> Vec<Line> {
    let mut reset = sampled(GIB, 0);
    reset.resets = 1;
    vec![
        start(&["tidevm", "run", "--script", "a b.script"]),
        line(0.1, Event::Sample(Box::new(Sampled { guest: None, blocks: None, ..sampled(0, 0) }))),
        ready(0.5),
        step("plug 1G", 1.0, 0.25, sampled(GIB, GIB)),
        failed("resize 0", 2.0, "2 pages cannot move", sampled(0, GIB / 2)),
        step("reset", 3.0, 0.5, reset),
        end(4.0, Outcome::Failed, None),
    ]
}

#[test]
fn a_page_tells_who_ran_what_and_how_it_ended() {
    let page = body(&report(session()));
    assert_has(
        &page,
        &[
            "<span class=\"badge bad\">failed</span>",
            "guest ready after 500 ms, 3 steps, 1 failed, 4.00 s in all, status 1",
            "2026-11-29 13:35:51.457 UTC",
            "0.1.0, commit 0123456789ab",
            "2 CPUs, 256 MiB, 8 GiB to plug in 2 MiB, tidevm&#39;s guest",
            "<code>tidevm run --script &#39;a b.script&#39;</code>",
            "no VMX or SVM",
        ],
    );
    let open = body(&report(session().into_iter().take(4)));
    assert_has(&open, &["no end", "the events end after 1.25 s: tidevm was still running, or was killed"]);
}

#[test]
fn a_timeline_has_the_curves_and_what_went_wrong() {
    let page = body(&report(session()));
    // 4 s are 1000 units, and the axis ends at 1 GiB, which is at the top.
    assert_has(
        &page,
        &[
            "<path class=\"requested\" d=\"M25.0 100.00H125.0V100.00H312.5V0.00H625.0V100.00H875.0V0.00\"/>",
            "<path class=\"plugged\" d=\"M25.0 100.00L125.0 100.00L312.5 0.00L625.0 50.00L875.0 100.00\"/>",
            "<path class=\"held\" d=\"M25.0 100.00L125.0 100.00L312.5 50.00",
            "<path class=\"used\" d=\"M125.0 100.00L312.5 25.00",
            "<path class=\"mark failure\" d=\"M625.0 0V100\"/>",
            "<path class=\"mark reset\" d=\"M875.0 0V100\"/>",
            "resize 0: 2 pages cannot move",
            "the guest was reset",
            "style=\"left:25.00%;width:6.25%\">plug 1G</span>",
        ],
    );
    let died =
        body(&report([start(&[]), ready(0.5), end(2.0, Outcome::Died, Some("triple fault\nrip 0x10"))]));
    assert_has(
        &died,
        &["<path class=\"mark death\" d=\"M1000.0 0V100\"/>", "the guest died: triple fault\nrip 0x10"],
    );
}

/// What the page has of marks, in their order.
fn marks(report: &Report) -> Vec<&str> {
    report.marks.all().iter().map(|mark| mark.text.as_str()).collect()
}

#[test]
fn what_happened_once_is_marked_once() {
    let after = |resets| {
        let mut sampled = sampled(0, 0);
        sampled.resets = resets;
        line(1.0, Event::Sample(Box::new(sampled)))
    };
    let lines = [0, 1, 1, 3, 3].map(after);
    assert_eq!(marks(&report(lines)), ["the guest was reset", "the guest was reset, for the 3. time"]);
    // An end that the steps explain needs no mark.
    for (outcome, reason, expected) in [
        (Outcome::Done, None, &[][..]),
        (Outcome::Failed, None, &[]),
        (Outcome::Failed, Some("too many"), &["ended early: too many"]),
        (Outcome::Signal, Some("15"), &["ended by a signal: 15"]),
    ] {
        assert_eq!(marks(&report([ready(0.5), end(1.0, outcome, reason)])), expected, "{outcome:?}");
    }
}

#[test]
fn a_point_is_of_all_devices() {
    let mut both = sampled(GIB, GIB / 2);
    both.devices.push(both.devices[0]);
    let zones = &mut both.guest.as_mut().expect("a guest").zones;
    let counters =
        [("managed", 1000), ("free", 300), ("pcp", 50)].map(|(key, pages)| (key.to_owned(), pages));
    zones.insert("Movable".to_owned(), counters.into());
    let point = Point::new(1.0, &both);
    let expected =
        Point { at: 1.0, requested: 2 * GIB, plugged: GIB, used: Some(650 << 12), held: Some(GIB / 2) };
    assert_eq!(point, expected);
    both.devices[1].held = None;
    assert_eq!(Point::new(1.0, &both).held, None, "a part is not the sum");
}

#[test]
fn many_points_are_spread_over_the_whole_time() {
    for count in [MAX_POINTS, MAX_POINTS + 1, 5 * MAX_POINTS - 1, 21 * MAX_POINTS / 2] {
        let mut series = Series::default();
        (0..count).for_each(|at| series.take(Point { at: at as f64, ..Point::default() }));
        let points = series.points();
        let last = count as f64 - 1.0;
        assert!(points.first().is_some_and(|point| point.at == 0.0));
        assert!(points.last().is_some_and(|point| point.at == last), "{count}: the end is drawn");
        let early = points.iter().filter(|point| point.at < last / 2.0).count() as f64;
        let part = early / points.len() as f64;
        assert!((0.49..0.51).contains(&part), "{count}: {part} of the points are in the first half");
    }
}

#[test]
fn the_axes_have_room_for_all_that_is_drawn() {
    let mut peak = vec![start(&[]), ready(0.5), step("plug 4G", 1.0, 0.5, sampled(4 * GIB, 4 * GIB))];
    peak.push(step("resize 1G", 2.0, 1.0, sampled(GIB, GIB)));
    // The last line is no sample.
    peak.push(end(4.0, Outcome::Done, None));
    assert_has(
        &body(&report(peak)),
        &["<path class=\"plugged\" d=\"M125.0 100.00L375.0 0.00L750.0 75.00\"/>", ">4 GiB</span>"],
    );
    let mut silent = sampled(GIB, GIB);
    silent.devices[0].held = None;
    silent.guest = None;
    let page = body(&report([step("a", 1.0, 1.0, silent)]));
    assert!(!page.contains("held by the host") && !page.contains("used by the guest"), "{page}");
}

#[test]
fn a_reason_comes_before_a_note_and_both_have_a_bound() {
    let mut line = failed("a", 1.0, "the reason", sampled(0, 0));
    if let Event::Step(step) = &mut line.event {
        step.note = Some("the note".to_owned());
    }
    let page = body(&report([line]));
    assert!(
        page.contains("<span class=\"note bad\">the reason</span>") && !page.contains("the note"),
        "{page}"
    );
    assert_eq!(cut("kurz"), "kurz");
    // Characters of several bytes.
    assert_eq!(cut(&"\u{e4}".repeat(100_000)), "\u{e4}".repeat(2000) + " ...");
}

#[test]
fn steps_are_told_by_what_they_did_to_memory() {
    let report = report(session());
    let counts = (report.latencies.plug.count, report.latencies.unplug.count, report.latencies.other.count);
    assert_eq!(counts, (1, 2, 0));
    assert_has(
        &body(&report),
        &["<b>Plugging</b> 1 step, 250 ms", "<b>Unplugging</b> 2 steps, 500 ms to 500 ms"],
    );
}

#[test]
fn a_map_has_the_state_of_each_memory_block() {
    let mut sampled = sampled(GIB, GIB);
    let offline = Block {
        state: "offline".to_owned(),
        zone: None,
        memmap_on_memory: Some(false),
        ..run(BASE + 640 * MIB, 1, 32 * MIB)
    };
    let kernel = Block { zone: Some("Normal".to_owned()), ..run(BASE + 512 * MIB, 1, 128 * MIB) };
    // Boot memory, another region, and a run that leaves the region.
    let boot = Block { boot: true, ..run(BASE, 64, 128 * MIB) };
    let runs = vec![
        boot,
        run(0, 2, 0),
        run(BASE, 4, 128 * MIB),
        kernel,
        offline,
        run(BASE + 8 * GIB - 128 * MIB, u64::MAX, MIB),
    ];
    sampled.blocks = Some(Blocks { runs, complete: true });
    let report = report([start(&[]), ready(0.5), step("a", 1.0, 0.5, sampled)]);
    let region = &report.regions.all()[0];
    assert_eq!((region.rows(), region.row, region.columns().len()), (64, 128 * MIB, 2));
    let cell = |state, quarters, memmap| Cell { state, quarters, memmap };
    let column = &region.columns()[1].cells;
    assert_eq!(column[..4], [cell(State::Movable, 4, true); 4]);
    assert_eq!(column[4..7], [cell(State::Kernel, 4, true), cell(State::Offline, 1, false), Cell::default()]);
    assert_eq!(column[63], cell(State::Movable, 1, true));
    let page = body(&report);
    assert_has(
        &page,
        &[
            "<rect class=\"movable q4\" x=\"1\" y=\"63\" width=\"1\" height=\"1\"/>",
            "zone of the kernel",
            "plugged in part",
        ],
    );
}

#[test]
fn a_row_shows_the_memory_block_that_a_reader_looks_for() {
    let cells = |region_size, runs: Vec<Block>| {
        let mut first = ready(0.5);
        if let Event::Ready(ready) = &mut first.event {
            ready.sampled.devices[0].region_size = region_size;
            ready.sampled.blocks = Some(Blocks { runs, complete: true });
        }
        report([first]).regions.all()[0].columns()[0].cells.clone()
    };
    // Two memory blocks in a row.
    let offline = |address| Block { state: "offline".to_owned(), zone: None, ..run(address, 1, 0) };
    let (low, high) = (BASE, BASE + 128 * MIB);
    for runs in [vec![offline(low), run(high, 1, 128 * MIB)], vec![run(low, 1, 128 * MIB), offline(high)]] {
        let cell = cells(16 * GIB, runs)[0];
        assert_eq!((cell.state, cell.quarters), (State::Offline, 2));
    }
    // The region ends in the middle of a row, and the run goes on.
    let last = cells(192 * MIB, vec![run(BASE, 2, 128 * MIB)])[1];
    assert_eq!((last.state, last.quarters), (State::Movable, 2));
    // Runs without memory are nowhere.
    for nothing in [Block { size: 0, ..run(BASE, 9, MIB) }, run(BASE, 0, MIB)] {
        assert_eq!(cells(GIB, vec![nothing])[0], Cell::default());
    }
}

#[test]
fn a_map_that_is_not_whole_is_said_to_be() {
    let page = |complete| {
        let mut first = ready(0.5);
        if let Event::Ready(ready) = &mut first.event {
            ready.sampled.blocks = Some(Blocks { runs: vec![run(BASE, 1, MIB)], complete });
        }
        body(&report([first]))
    };
    assert!(page(false).contains("too fragmented") && !page(true).contains("too fragmented"));
}

#[test]
fn a_large_region_has_several_memory_blocks_in_a_row() {
    let mut first = ready(0.5);
    if let Event::Ready(ready) = &mut first.event {
        ready.sampled.devices[0].region_size = 1 << 40;
    }
    let region = &report([first]).regions.all()[0].clone();
    assert_eq!((region.row, region.rows()), (16 * GIB, MAX_ROWS));
}

/// Every text of a session, and words that would leave their place in HTML.
#[test]
fn no_text_of_a_session_becomes_markup() {
    const HOSTILE: &str = "</code></title></style><script>alert(1)</script>\" onload='x' \u{202e}\0&lt;";
    let mut lines = vec![start(&["tidevm", HOSTILE])];
    if let Event::Start(start) = &mut lines[0].event {
        for text in [&mut start.version, &mut start.date] {
            *text = HOSTILE.to_owned();
        }
        for text in [&mut start.commit, &mut start.host, &mut start.kernel] {
            *text = Some(HOSTILE.to_owned());
        }
        start.machine.as_mut().expect("a machine").guest_kernel = Some(HOSTILE.to_owned());
    }
    let mut hostile = sampled(GIB, GIB);
    let run = Block { state: HOSTILE.to_owned(), zone: Some(HOSTILE.to_owned()), ..run(BASE, 1, MIB) };
    hostile.blocks = Some(Blocks { runs: vec![run], complete: false });
    lines.extend([ready(0.5), failed(HOSTILE, 1.0, HOSTILE, hostile.clone())]);
    let mut noted = step(HOSTILE, 2.0, 1.0, hostile);
    if let Event::Step(step) = &mut noted.event {
        step.note = Some(HOSTILE.to_owned());
    }
    lines.extend([noted, end(4.0, Outcome::Failed, Some(HOSTILE))]);
    let page = report(lines).page();
    assert!(page.contains("&lt;script&gt;alert(1)"), "it is shown as text");
    for part in ["<script", "onload='", "onload=\"", "\" onload", "\0", "\u{202e}"] {
        assert!(!page.contains(part), "{part:?} in:\n{page}");
    }
    assert_eq!((page.matches("</style>").count(), page.matches("</title>").count() > 0), (1, true));
}

/// All numbers that JSON has.
#[test]
fn absurd_numbers_give_a_page() {
    let sizes = [0, 1, MIB, u64::MAX / 2, u64::MAX];
    let times = [0.0, -1.0, 1e-300, 1.0, 1e300, f64::MAX, f64::MIN];
    for size in sizes {
        for time in times {
            let mut absurd = sampled(size, size);
            absurd.resets = size;
            let device = &mut absurd.devices[0];
            (device.region_size, device.address, device.held) = (size, size, Some(size));
            absurd.devices.extend(vec![absurd.devices[0]; 20]);
            let blocks = absurd.blocks.as_mut().expect("blocks");
            for count in sizes {
                blocks.runs.push(Block { size, count, plugged: Some(count), ..run(size, count, size) });
            }
            let mut first = ready(time);
            if let Event::Ready(ready) = &mut first.event {
                ready.sampled = absurd.clone();
            }
            let lines = [
                first,
                step("a", time, time, absurd.clone()),
                step("b", -time, time, absurd),
                end(time, Outcome::Done, None),
            ];
            let report = report(lines);
            assert!(report.regions.all().len() <= MAX_REGIONS);
            let page = report.page();
            assert!(!page.contains("NaN") && !page.contains("inf"), "{size} {time}");
        }
    }
    assert_has(&body(&Report::default()), &["Nothing was measured", "No step was run."]);
}

#[test]
fn a_long_session_has_a_page_of_bounded_size() {
    let report_of = |steps: u32| {
        let mut report = report([start(&[]), ready(0.5)]);
        for number in 0..steps {
            let at = 1.0 + f64::from(number);
            let size = u64::from(number % 60) * 128 * MIB;
            report.take(&line(at, Event::Sample(Box::new(Sampled { blocks: None, ..sampled(size, size) }))));
            let command = format!("step {number}");
            report.take(&if number % 3 == 0 {
                failed(&command, at, "no", sampled(size, size))
            } else {
                step(&command, at, 0.5, sampled(size, size))
            });
        }
        report.take(&end(f64::from(steps), Outcome::Died, Some("at last")));
        report
    };
    let long = report_of(30_000);
    assert!(long.series.points().len() <= MAX_POINTS + 1);
    assert!(long.regions.all()[0].columns().len() <= MAX_COLUMNS);
    assert_eq!(long.steps.rows().count(), FIRST + LAST);
    let (page, longer) = (long.page(), report_of(60_000).page());
    assert_has(
        &page,
        &[
            "29000 steps are not shown",
            "step 29999",
            "the guest died: at last",
            "9900 more are not shown",
            "60001 samples were measured; some of them are drawn",
        ],
    );
    assert_eq!(page.matches("<span class=\"step").count(), 400, "bars below the timeline");
    // The first hundred failures are as close as one number is wide.
    assert_eq!(page.matches("<b class=\"failure\" style").count(), 1);
    assert!(longer.len() < page.len() * 3 / 2, "{} and {}", page.len(), longer.len());
}

#[test]
fn a_page_needs_no_other_file_and_no_script() {
    let page = report(session()).page();
    for part in ["<script", "http:", "https:", "src=", "@import", "url(", "<link"] {
        assert!(!page.contains(part), "{part}");
    }
    assert_has(&page, &["prefers-color-scheme: dark", "content=\"width=device-width, initial-scale=1\""]);
}
