//! The grammar of scripts and shells: text parses to the command that it was made from, and errors say where.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::{option, sample};

use super::fault::FAULT_STEPS;
use super::{
    Churn, Command, Comparison, ConsoleText, Corrupt, Executor, Expect, ExpectConsole, Fails, Hog, Item,
    Pmem, PmemHold, PmemMap, REPETITION, Race, Resize, Target, VERBS, Verb,
};
use crate::words::Words;
use crate::{CorruptPart, HogKind, MAX_RACE_CYCLES, Metric, Name, Op, PmemOp, ProbedWait, Size, metric};

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![0..200_000_u64, (0..5_000_u64).prop_map(|s| s * 1_000)].prop_map(Duration::from_millis)
}

fn sizes() -> impl Strategy<Value = Size> {
    prop_oneof![1..u64::MAX, (1..5_000_u64).prop_map(|m| m << 20), (1..64_u64).prop_map(|g| g << 30)]
        .prop_map(Size)
}

fn whole_pages() -> impl Strategy<Value = Size> {
    (1..u64::MAX >> 12).prop_map(|pages| Size(pages << 12))
}

/// `boot` is no name of a churn.
fn names() -> impl Strategy<Value = Name> {
    "[A-Za-z][A-Za-z0-9_-]{0,8}"
        .prop_filter("boot", |text| text != "boot")
        .prop_map(|text| Name::new(&text).unwrap())
}

fn console_texts() -> impl Strategy<Value = Command> {
    let text = prop_oneof![
        "[^\"\\pC]{0,20}[a-z#{}/]".prop_map(ConsoleText::Contains),
        // An escape is one character with its backslash.
        "([^/\\\\\\pC]|\\\\[/.#\"]){0,20}[a-z#{}\" ][a-z]".prop_map(ConsoleText::Matches),
    ];
    (any::<bool>(), text, option::of(durations())).prop_map(|(absent, text, within)| {
        let within = within.filter(|_| !absent);
        Command::ExpectConsole(ExpectConsole { absent, text, within })
    })
}

fn metrics() -> impl Strategy<Value = Metric> {
    sample::select(metric::tests::all())
}

fn resizes() -> impl Strategy<Value = Command> {
    let target = prop_oneof![
        any::<u64>().prop_map(|bytes| Target::To(Size(bytes))),
        sizes().prop_map(Target::Plug),
        sizes().prop_map(Target::Unplug)
    ];
    (target, 0..3_usize, option::of(durations()))
        .prop_map(|(target, device, within)| Command::Resize(Resize { target, device, within }))
}

fn hogs() -> impl Strategy<Value = Command> {
    let kinds =
        sample::select(vec![HogKind::Movable, HogKind::Unmovable, HogKind::Pinned, HogKind::Contiguous]);
    (whole_pages(), any::<bool>(), kinds, any::<bool>(), any::<bool>(), names()).prop_map(
        |(size, partial, kind, scattered, full, name)| {
            let scattered = scattered && kind != HogKind::Contiguous;
            Command::Hog(Hog { size, partial, kind, scattered, full, name })
        },
    )
}

fn expects() -> impl Strategy<Value = Command> {
    let comparisons = sample::select(vec![
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::AtMost,
        Comparison::AtLeast,
        Comparison::Below,
        Comparison::Above,
    ]);
    (metrics(), comparisons, any::<u64>(), option::of(0..3_usize), option::of(durations())).prop_map(
        |(metric, comparison, value, device, within)| {
            let device = device.filter(|_| metric.is_of_devices());
            Command::Expect(Expect { metric, comparison, value, device, within })
        },
    )
}

fn pmem() -> impl Strategy<Value = Command> {
    let altmap = option::of((0..9_u64).prop_map(|pages| Size(pages << 12)));
    let map = (1..=u8::MAX, altmap, option::of(1..9_u32))
        .prop_map(|(devices, altmap, cpus)| Pmem::Map(PmemMap { devices, altmap, cpus }));
    let hold = (whole_pages(), any::<bool>(), 0..8_u8, names())
        .prop_map(|(size, partial, device, name)| Pmem::Hold(PmemHold { size, partial, device, name }));
    prop_oneof![Just(Pmem::List), map, (0..8_u8).prop_map(Pmem::Unmap), hold].prop_map(Command::Pmem)
}

fn commands() -> impl Strategy<Value = Command> {
    let step = "[^\"\\pC]{0,20}[a-z#{}/]".prop_map(Command::Step);
    let fails = (plain(), "[^\"\\pC]{1,20}[a-z#{}]")
        .prop_map(|(command, because)| Command::Fails(Fails { command: Box::new(command), because }));
    prop_oneof![4 => plain(), 1 => fails, 1 => step]
}

/// Commands that can fail, and are not expected to.
fn plain() -> impl Strategy<Value = Command> {
    let steps = sample::select(FAULT_STEPS.iter().map(|(_, step)| *step).collect::<Vec<_>>());
    let parts = sample::select(vec![CorruptPart::Content, CorruptPart::Memmap]);
    let waits = sample::select(vec![
        ProbedWait::GracePeriod,
        ProbedWait::TlbFlush,
        ProbedWait::PageCopy,
        ProbedWait::Release,
        ProbedWait::Churn,
    ]);
    prop_oneof![
        resizes(),
        hogs(),
        expects(),
        pmem(),
        (1..9_u32, 1..100_000_u64, names()).prop_map(|(threads, millis, name)| {
            Command::Churn(Churn { threads, time: Duration::from_millis(millis), name })
        }),
        names().prop_map(Command::Verify),
        names().prop_map(Command::Release),
        names().prop_map(Command::Wait),
        option::of(durations()).prop_map(|within| Command::WaitBoot { within }),
        console_texts(),
        Just(Command::Stats),
        Just(Command::Check),
        Just(Command::Blocks),
        (1..u64::MAX, any::<u64>()).prop_map(|(size, addr)| Command::Readd { size: Size(size), addr }),
        any::<u8>().prop_map(|device| Command::Rebind { device }),
        option::of(durations()).prop_map(|within| Command::Reset { within }),
        durations().prop_map(Command::Sleep),
        (1..=MAX_RACE_CYCLES, any::<bool>()).prop_map(|(cycles, held)| Command::Race(Race { cycles, held })),
        (names(), any::<u32>(), parts)
            .prop_map(|(name, page, part)| { Command::Corrupt(Corrupt { name, page, part }) }),
        waits.prop_map(Command::Probe),
        (steps, 0..9_u32).prop_map(|(step, after)| Command::Inject { step, after }),
    ]
}

proptest! {
    #[test]
    fn text_parses_to_the_command_it_was_made_from(command in commands()) {
        let text = command.to_string();
        assert_eq!(text.parse(), Ok(command), "{text}");
    }

    #[test]
    fn no_line_makes_the_parser_panic(line in "\\PC{0,60}") {
        if let Err(error) = line.parse::<Command>() {
            assert!(error.column <= line.chars().count() + 1, "{error:?}");
        }
    }

    #[test]
    fn no_row_of_words_makes_the_parser_panic(
        words in proptest::collection::vec(sample::select(WORDS), 0..12)
    ) {
        let line = words.join(" ");
        if let Ok(command) = line.parse::<Command>() {
            assert_eq!(command.to_string().parse(), Ok(command));
        }
    }
}

const WORDS: &[&str] = &[
    "resize",
    "plug",
    "hog",
    "churn",
    "expect",
    "2G",
    "4097",
    "0",
    "movable",
    "pinned",
    "scattered",
    "full",
    "G",
    "s",
    "pages",
    "up",
    "to",
    "as",
    "a",
    "2",
    "threads",
    "for",
    "within",
    "device",
    "5s",
    "plugged",
    "zone.Movable.free",
    "node.1.zone.Movable.free",
    "node.0.init.remote",
    "==",
    "<",
    "fails",
    "check",
    "because",
    "console",
    "no",
    "contains",
    "matches",
    "/a\\/b/",
    "/",
    "wait",
    "boot",
    "step",
    "\"late\"",
    "\"",
    "reset",
    "sleep",
    "inject",
    "readd",
    "rebind",
    "at",
    "migrate",
    "after",
    "{",
    "}",
    "#",
    "18446744073709551616",
];

#[test]
fn lines_of_the_manual_are_commands() {
    let lines = [
        ("resize 2G within 10s", "resize 2G within 10s"),
        ("  plug   512MiB # more", "plug 512M"),
        ("unplug 1048576", "unplug 1M"),
        ("resize 0 within 2m device 1", "resize 0 device 1 within 2m"),
        ("hog 300M movable scattered full as a", "hog 300M movable scattered full as a"),
        ("hog up to 307200K movable as a", "hog up to 300M movable as a"),
        ("pmem hold up to 4K of 0 as a", "pmem hold up to 4K of 0 as a"),
        ("churn 1 threads for 1500ms as c", "churn 1 thread for 1500ms as c"),
        ("expect plugged>=2G", "expect plugged >= 2G"),
        ("expect plugged >= 2G device 0", "expect plugged >= 2G device 0"),
        ("expect zone.DMA32.free != 7 within 0s", "expect zone.DMA32.free != 7 within 0s"),
        ("reset # as the button does", "reset"),
        ("reset within 2000ms", "reset within 2s"),
        ("resize 2 G within 10 s", "resize 2G within 10s"),
        ("plug 512 MiB device 0 within 200 ms", "plug 512M within 200ms"),
        ("hog 1 page movable as s", "hog 4K movable as s"),
        ("hog up to 256 pages movable as page", "hog up to 1M movable as page"),
        ("hog 2pages movable as a", "hog 8K movable as a"),
        ("expect plugged == 0 within 0 s", "expect plugged == 0 within 0s"),
        ("churn 2 threads for 5 s as s", "churn 2 threads for 5s as s"),
        ("readd 1 G at 4 G", "readd 1G at 4G"),
        ("rebind 1 # the second", "rebind 1"),
        ("sleep 2 m", "sleep 2m"),
        ("resize 5000 B", "resize 5000"),
        ("fails resize 0 because \"cannot move\"", "fails resize 0 because \"cannot move\""),
        ("fails check because\"1 # {2} \"# three", "fails check because \"1 # {2} \""),
        ("inject map-direct after 0", "inject map-direct"),
        ("blocks # of the guest", "blocks"),
        ("readd 1024M at 4GiB", "readd 1G at 4G"),
        ("race 10000 cycles held", "race 10000 cycles held"),
        ("corrupt data", "corrupt data"),
        ("corrupt data page 0 # the first", "corrupt data"),
        ("corrupt memmap page 4294967295 memmap", "corrupt memmap page 4294967295 memmap"),
        ("probe tlb-flush", "probe tlb-flush"),
        ("wait load # then", "wait load"),
        ("wait boot within 90 s", "wait boot within 90s"),
        ("step \"grow # it\" # a comment", "step \"grow # it\""),
        ("expect console contains \"login: \" within 30s", "expect console contains \"login: \" within 30s"),
        ("expect console matches   /a{2} # \\/ \"b\"/# c", "expect console matches /a{2} # \\/ \"b\"/"),
        ("expect no console matches /BUG|\\\\/", "expect no console matches /BUG|\\\\/"),
        ("expect no console contains \"/\"", "expect no console contains \"/\""),
    ];
    for (line, shown) in lines {
        assert_eq!(
            line.parse::<Command>().map(|command| command.to_string()).as_deref(),
            Ok(shown),
            "{line}"
        );
    }
}

#[test]
fn wrong_lines_say_where_and_what() {
    let lines = [
        ("", 1, "a command"),
        ("grow 2G", 1, "a command (resize, plug"),
        ("resize", 7, "a size such as 2G, found the end of the line"),
        ("resize  2X", 9, "a size such as 2G, found `2X`"),
        ("resize -1", 8, "a size"),
        ("resize 99999999T", 8, "a size"),
        ("plug 0", 6, "a size above 0"),
        ("resize 2G within", 17, "a duration"),
        ("resize 2G within 10", 18, "a duration"),
        ("resize 2G within 1s within 2s", 21, "the end of the line, found `within`"),
        ("resize 2G device x", 18, "the number of a device, from 0 to 15"),
        ("expect plugged == 0 device 0 device 1", 30, "the end of the line, found `device`"),
        ("expect plugged == 0 device 16", 28, "the number of a device, from 0 to 15"),
        ("hog 5000 movable as a", 5, "whole pages"),
        ("hog 1.5 pages movable as a", 5, "whole pages"),
        ("hog pages movable as a", 5, "whole pages"),
        ("hog 2 page pages movable as a", 12, "a kind of pages"),
        ("hog 4503599627370497 pages movable as a", 5, "whole pages"),
        ("resize 2G G", 11, "the end of the line, found `G`"),
        ("resize 2 X", 10, "the end of the line, found `X`"),
        ("resize 2 0", 10, "the end of the line, found `0`"),
        ("hog up 4M movable as a", 8, "`to`, found `4M`"),
        ("hog upto 4M movable as a", 5, "whole pages"),
        (
            "hog 4M moveable as a",
            8,
            "a kind of pages (movable, unmovable, pinned, contiguous), found `moveable`",
        ),
        ("hog 4M contiguous scattered as a", 19, "`as`, found `scattered`"),
        ("hog 4M movable full scattered as a", 21, "`as`, found `scattered`"),
        ("hog 4M movable as 1a", 19, "a name"),
        ("churn 2 threads for 1s as boot", 27, "another name: `wait boot` waits for the guest"),
        ("wait", 5, "a name"),
        ("wait boot 5s", 11, "the end of the line, found `5s`"),
        ("wait load within 5s", 11, "the end of the line, found `within`"),
        ("step grow", 6, "a name in quotes, at most 200 characters, found `grow`"),
        ("step \"\"", 6, "a name in quotes"),
        ("fails step \"a\" because \"b\"", 7, "a command that may fail, found `step`"),
        ("expect no", 10, "`console`, found the end"),
        ("expect no plugged == 0", 11, "`console`, found `plugged`"),
        ("expect console", 15, "`contains` or `matches`, found the end"),
        ("expect console has \"a\"", 16, "`contains` or `matches`, found `has`"),
        ("expect console contains login", 25, "a text in quotes, at most 200 characters, found `login`"),
        ("expect console matches \"a\"", 24, "a regular expression between slashes, at most 200 characters"),
        ("expect console matches /a", 24, "between slashes"),
        ("expect console matches /a\\/", 24, "between slashes"),
        ("expect console matches /", 24, "between slashes"),
        ("expect console matches //", 24, "between slashes"),
        ("expect no console matches /a/ within 5s", 31, "looks at what is there; put a `sleep` before it"),
        ("churn 0 threads for 1s as c", 7, "at least 1"),
        ("churn 2 threads for 0s as c", 21, "above 0"),
        ("expect memmap.boot_pages == 2M", 29, "a number (memmap.boot_pages is no size)"),
        ("expect zone.Device.free == 2", 8, "a metric"),
        ("expect node.4.zone.Movable.free == 2", 8, "a metric"),
        ("expect node.1.init == 2", 8, "a metric"),
        ("expect plugged => 2G", 16, "a comparison (==, !="),
        ("expect resets == 0 device 0", 20, "no `device`: resets is of no device"),
        ("expect migrated == 0 within 1s device 0", 32, "migrated is of no device"),
        ("sleep 1.5s", 7, "a duration"),
        ("reset within", 13, "a duration"),
        ("reset within 1s within 1s", 17, "the end of the line, found `within`"),
        ("reset device 0", 7, "the end of the line, found `device`"),
        ("fails", 6, "a command, found the end"),
        ("fails grow 2G because \"x\"", 7, "a command (resize"),
        ("fails fails check because \"x\"", 7, "a command that may fail, found `fails`"),
        ("fails check", 12, "`because`, found the end"),
        ("fails check because late", 21, "in quotes, at most 200 characters, found `late`"),
        ("fails check because \"late", 21, "in quotes, at most 200 characters, found `\\\"late`"),
        ("fails check because \" \"", 21, "in quotes"),
        ("fails check because \"a\u{1b}b\"", 21, "in quotes"),
        ("fails check because \"a\" \"b\"", 25, "the end of the line, found"),
        ("stats now", 7, "the end of the line, found `now`"),
        ("inject boot", 8, "a step (map-direct"),
        ("race 0 cycles", 6, "a number of cycles, from 1 to 10000"),
        ("race 4294967295 cycles", 6, "a number of cycles, from 1 to 10000"),
        ("race 2 cycles fast", 15, "the end of the line, found `fast`"),
        ("corrupt", 8, "a name"),
        ("corrupt data page", 18, "the number of a page, from 0"),
        ("corrupt data page -1", 19, "the number of a page, from 0"),
        ("corrupt data memmap page 1", 21, "the end of the line, found `page`"),
        ("probe", 6, "a wait (grace-period, tlb-flush, page-copy, release, churn)"),
        ("größe", 1, "a command"),
        ("resize größe", 8, "found `größe`"),
    ];
    for (line, column, message) in lines {
        let error = line.parse::<Command>().expect_err(line);
        assert_eq!(error.column, column, "{line}: {error}");
        assert!(error.message.contains(message), "{line}: {error}");
    }
}

#[test]
fn comparisons_hold_as_written() {
    let truth = [
        (Comparison::Equal, [false, true, false]),
        (Comparison::NotEqual, [true, false, true]),
        (Comparison::AtMost, [true, true, false]),
        (Comparison::AtLeast, [false, true, true]),
        (Comparison::Below, [true, false, false]),
        (Comparison::Above, [false, false, true]),
    ];
    for (comparison, expected) in truth {
        assert_eq!([1, 2, 3].map(|left| comparison.holds(left, 2)), expected, "{comparison:?}");
    }
}

#[test]
fn one_and_many_are_both_accepted() {
    let lines = [
        ("churn 1 thread for 1s as c", "churn 1 thread for 1s as c"),
        ("churn 2 thread for 1s as c", "churn 2 threads for 1s as c"),
        ("race 1 cycle", "race 1 cycle"),
        ("race 1 cycles", "race 1 cycle"),
        ("pmem map 0 on 1 cpus", "pmem map 0 on 1 cpu"),
    ];
    for (line, shown) in lines {
        assert_eq!(line.parse::<Command>().map(|command| command.to_string()).as_deref(), Ok(shown));
    }
    for (line, message) in
        [("race 2", "`cycles`, found the end"), ("race 2 times", "`cycles`, found `times`")]
    {
        let error = line.parse::<Command>().unwrap_err();
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn every_verb_is_listed_with_its_usage() {
    let error = "grow 2G".parse::<Command>().unwrap_err();
    let listed = "expected a command (resize, plug, unplug, hog, churn, verify, release, wait, expect, fails, step, \
                  stats, check, blocks, meminfo, readd, rebind, reset, sleep, race, corrupt, probe, inject, pmem, repeat), found `grow`";
    assert_eq!(error.message, listed);
    for verb in VERBS {
        assert_eq!(verb.usage.split(' ').next(), Some(verb.word));
    }
    let vmm: Vec<_> = VERBS.iter().filter(|verb| verb.executor == Executor::Vmm).collect();
    let words: Vec<_> = vmm.iter().map(|verb| verb.word).collect();
    assert_eq!(
        words,
        ["resize", "plug", "unplug", "wait", "expect", "fails", "step", "reset", "sleep", "inject"]
    );
    assert!(Verb::new("zoneinfo").is_none());
}

#[test]
fn items_nest_commands() {
    let mut words = Words::new("repeat 2 { check }");
    let mut items = Vec::new();
    while words.peek().is_some() {
        items.push(Item::parse(&mut words).unwrap());
    }
    assert_eq!(items, [Item::Repeat(2), Item::Command(Command::Check), Item::End]);
    for (line, column, message) in [
        ("repeat 2", 9, "expected `{`"),
        ("repeat 0 {", 8, "at least 1"),
        ("{", 1, "a command (resize"),
        ("", 1, "a command"),
    ] {
        let error = Item::parse(&mut Words::new(line)).unwrap_err();
        assert_eq!(error.column, column, "{line}");
        assert!(error.message.contains(message), "{error}");
    }
    let error = "repeat 2 { check }".parse::<Command>().unwrap_err();
    assert!(error.message.contains("a command (resize"), "a repetition is no command: {error}");
}

#[test]
fn commands_become_calls() {
    let call = |line: &str| match line.parse().unwrap() {
        Command::Hog(hog) => hog.op(7),
        Command::Churn(churn) => churn.op(7),
        Command::Pmem(Pmem::Map(map)) => map.op(),
        Command::Pmem(Pmem::Hold(hold)) => hold.op(7),
        other => panic!("{other:?}"),
    };
    let hog = |partial| Op::Hog {
        handle: 7,
        pages: 256,
        partial,
        kind: HogKind::Pinned,
        scattered: true,
        full: false,
    };
    assert_eq!(call("hog 1M pinned scattered as a"), hog(false));
    assert_eq!(call("hog up to 1M pinned scattered as a"), hog(true));
    assert_eq!(call("churn 3 threads for 2s as a"), Op::Churn { handle: 7, threads: 3, millis: 2000 });
    let all = PmemOp::Map { devices: 0b101, altmap: false, reserve: 0, cpus: u32::MAX };
    assert_eq!(call("pmem map 2 0"), Op::Pmem(all));
    let some = PmemOp::Map { devices: 1, altmap: true, reserve: 512, cpus: 2 };
    assert_eq!(call("pmem map 0 altmap reserve 2M on 2 cpus"), Op::Pmem(some));
    let hold = |partial| Op::Pmem(PmemOp::Hold { handle: 7, device: 1, pages: 4096, partial });
    assert_eq!(call("pmem hold 16M of 1 as a"), hold(false));
    assert_eq!(call("pmem hold up to 16M of 1 as a"), hold(true));
}

#[test]
fn the_example_of_each_verb_is_such_a_command() {
    for verb in VERBS {
        let command: Command =
            verb.example.parse().unwrap_or_else(|error| panic!("{}: {error:?}", verb.example));
        assert_eq!(verb.example.split(' ').next(), Some(verb.word));
        assert_eq!(command.to_string(), verb.example, "as a table would show it");
    }
    let mut words = Words::new(REPETITION[2]);
    assert_eq!(Item::parse(&mut words), Ok(Item::Repeat(3)));
}
