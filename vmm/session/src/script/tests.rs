//! Scripts: statements, repeats, and errors that show the line and the place.

use tidevm_machine::{Config, HotplugConfig, Size};

use super::{Script, Statement};

fn errors(text: &str) -> Vec<(usize, usize, String)> {
    match Script::parse("test", text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.into_iter().map(|error| (error.line, error.column, error.message)).collect(),
    }
}

#[track_caller]
fn assert_errors(text: &str, expected: &[(usize, usize, &str)]) {
    let found = errors(text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((line, column, message), (at_line, at_column, part)) in found.iter().zip(expected) {
        assert_eq!((line, column), (at_line, at_column), "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn steps_keep_their_places_and_repeats_count() {
    let text = "# a session\n\nplug 1G  # grow\r\nrepeat 3 {\n\trepeat 2 { check }\n  unplug 2M\n}\nstats";
    let script = Script::parse("test", text).unwrap();
    assert_eq!(script.steps(), 1 + 3 * (2 + 1) + 1);
    assert_eq!(script.longest_step(), "unplug 2M".len());
    let Statement::Repeat { times: 3, body } = &script.body[1] else { panic!("{:?}", script.body) };
    let Statement::Step(step) = &body[1] else { panic!("{body:?}") };
    assert_eq!((step.line, step.column), (6, 3));
}

#[test]
fn an_empty_script_has_no_steps() {
    assert_eq!(Script::parse("test", "# nothing\n\n").unwrap().steps(), 0);
}

#[test]
fn every_wrong_line_is_reported() {
    assert_errors("plug 1G\n  grow 2G\nplug\nverify a\n", &[(2, 3, "a command"), (3, 5, "a size above 0")]);
}

#[test]
fn a_wrong_pattern_is_shown_at_its_place() {
    assert_errors(
        "repeat 2 { expect no console matches /ö(a/ }\n\
         expect console contains \"/\" within 2s\n\
         \tfails expect console matches /a{3/ within 1s because \"/(/\"\n\
         expect console matches /[/]/",
        &[(1, 40, "unclosed group"), (3, 33, "unclosed counted"), (4, 25, "unclosed character class")],
    );
    assert_eq!(errors("expect console matches /[\\/{}#]+ \"/ within 2s # fine"), []);
    let script = Script::parse("test", "check\nrepeat 2 {\nstep \"a\"\ncheck }").unwrap();
    let lines: Vec<_> = script.each_step().iter().map(|step| step.line).collect();
    assert_eq!(lines, [1, 3, 4], "each step once");
}

#[test]
fn braces_have_to_match() {
    assert_errors("}", &[(1, 1, "without `repeat N {`")]);
    assert_errors("check\nrepeat 2 {\ncheck", &[(2, 1, "has no `}`")]);
    assert_errors("repeat 2\ncheck", &[(1, 9, "expected `{`")]);
    assert_errors("repeat 0 {\ncheck\n}", &[(1, 8, "at least 1")]);
    assert_errors("repeat x {\ncheck\n}", &[(1, 8, "a number of repetitions")]);
    assert_errors("repeat {\ncheck\n}", &[(1, 8, "at least 1, found `{`")]);
    assert_errors("check {\ncheck\n}", &[(1, 7, "the end of the line")]);
    assert_errors("{\n}", &[(1, 1, "a command")]);
    assert_errors("repeat 2 { check check }", &[(1, 18, "the end of the line")]);
    assert_errors("repeat 2 { check } check", &[(1, 20, "the end of the line")]);
    assert_eq!(errors("repeat 2 { repeat 2 { check } }"), []);
}

#[test]
fn deep_nesting_is_refused_whatever_its_depth() {
    assert_eq!(errors(&format!("{}check{}", "repeat 1 { ".repeat(8), " }".repeat(8))), []);
    let deep = format!("{}check\n{}", "repeat 1 {\n".repeat(100_000), "}\n".repeat(100_000));
    let found = errors(&deep);
    assert_eq!(found.len(), 100_000 - 8);
    assert!(found[0].2.contains("deeper than 8"), "{:?}", found[0]);
}

#[test]
fn names_are_checked_in_the_order_of_the_run() {
    assert_errors("verify a", &[(1, 1, "nothing is called `a`")]);
    assert_errors("hog 4M movable as a\nhog 4M pinned as a", &[(2, 1, "`a` is in use since line 1")]);
    assert_errors("hog 4M movable as a\nrelease a\nverify a", &[(3, 1, "nothing is called")]);
    assert_errors("corrupt a", &[(1, 1, "nothing is called `a`")]);
    assert_errors("churn 1 thread for 1s as c\ncorrupt c", &[(2, 1, "no content that stays")]);
    assert_errors("hog 4M movable as a\ncorrupt a page 1024", &[(2, 1, "of its 1024 pages is page 1023")]);
    assert_errors("pmem hold 4K of 0 as a\ncorrupt a memmap", &[(2, 1, "have no owner")]);
    assert_eq!(errors("pmem hold 4K of 0 as a\ncorrupt a"), []);
    assert_eq!(errors("hog 4M pinned as a\ncorrupt a page 1023 memmap"), []);
    assert_errors(
        "hog 4M movable as a\nreset\nverify a",
        &[(3, 1, "`a` is gone: line 2 resets the machine")],
    );
    assert_errors("churn 1 thread for 1s as c\nreset\nwait c", &[(3, 1, "`c` is gone: line 2 resets")]);
    assert_errors("repeat 2 { reset }\nverify a", &[(2, 1, "nothing is called `a`")]);
    assert_errors("hog 4M movable as a\nrepeat 2 {\nverify a\nreset\n}", &[(3, 1, "gone: line 4 resets")]);
    assert_eq!(errors("repeat 2 {\nhog 4M movable as a\nreset\n}\nhog 4M movable as a\nverify a"), []);
    assert_errors("hog 4M movable as a\nwait a", &[(2, 1, "does not end by itself")]);
    assert_errors("churn 1 thread for 1s as c\nverify c", &[(2, 1, "no content")]);
    assert_eq!(errors("churn 1 thread for 1s as c\nwait c\nhog 4M movable as c\nrelease c"), []);
    assert_eq!(errors("repeat 2 { check }\nrepeat 2 {\nhog 4M movable as a\nrelease a\n}"), []);
    assert_errors("repeat 2 {\nhog 4M movable as a\n}", &[(2, 1, "in use since line 2")]);
    assert_errors("hog 4M movable as a\nrepeat 2 { release a }", &[(2, 12, "nothing is called")]);
    assert_eq!(errors("hog 4M movable as a\nrepeat 1 { release a }"), []);
}

#[test]
fn a_command_that_is_to_fail_starts_nothing_and_ends_what_it_would_end() {
    let fails = |command: &str| format!("fails {command} because \"x\"\n");
    let hog = "hog 4M movable as a\n";
    assert_errors(&(fails("hog 4M movable as a") + "verify a"), &[(2, 1, "nothing is called `a`")]);
    assert_errors(&(fails("pmem hold 4K of 0 as a") + "verify a"), &[(2, 1, "nothing is called `a`")]);
    assert_errors(&(hog.to_owned() + &fails("hog 4M movable as a")), &[(2, 1, "in use since line 1")]);
    assert_errors(&fails("verify a"), &[(1, 1, "nothing is called `a`")]);
    assert_errors(&(hog.to_owned() + &fails("release a") + "verify a"), &[(3, 1, "nothing is called `a`")]);
    assert_eq!(errors(&(hog.to_owned() + &fails("verify a") + &fails("reset") + "release a")), []);
    let script = Script::parse("test", &fails("reset")).unwrap();
    assert!(script.resets(), "the machine has to be made for it all the same");
    assert_eq!(script.longest_step(), "fails reset because \"x\"".len());
}

#[test]
fn targets_fit_the_devices() {
    let fit = |text: &str, blocks: &[u64]| {
        let device = |&block| HotplugConfig { device_block: Size(block), ..HotplugConfig::new(Size::gib(1)) };
        let hotplug = blocks.iter().map(device).collect();
        let config = Config { hotplug, pmem: vec![Size::gib(1); 2], ..Config::default() };
        let fit = Script::parse("test", text).unwrap().fit(&config);
        fit.map_err(|errors| errors.0.into_iter().map(|error| error.message).collect::<Vec<_>>().join("; "))
    };
    let (small, large) = (2 << 20, 4 << 20);
    assert_eq!(fit("resize 999T\nexpect host.held == 5\ncheck", &[small]), Ok(()));
    assert_eq!(fit("expect migrated == 0", &[]), Ok(()));
    assert!(fit("fails plug 3M because \"x\"", &[small]).unwrap_err().contains("3M is not a multiple"));
    assert!(fit("expect host.held == 0 device 1", &[small]).unwrap_err().contains("there is no device 1"));
    assert_eq!(fit("expect host.held == 0 device 1", &[small, small]), Ok(()));
    assert_eq!(fit("expect node.0.init.local == 0", &[]), Ok(()));
    assert_eq!(
        fit("expect node.1.init.local == 0", &[]),
        Err("there is no node.1.init.local: the guest has 1 node; --numa gives it more".to_owned())
    );
    assert_eq!(
        fit("plug 3M", &[small]),
        Err("3M is not a multiple of the block size 2M of device 0".to_owned())
    );
    assert!(fit("plug 2M\nplug 2M device 1", &[small, large]).unwrap_err().contains("4M of device 1"));
    assert!(fit("plug 2M device 2", &[small, large]).unwrap_err().contains("the last of 2 is device 1"));
    assert!(fit("expect plugged == 0", &[]).unwrap_err().contains("no --hotplug was given"));
    assert_eq!(fit("pmem\npmem map 1 0\npmem hold 4K of 1 as a\npmem unmap 1", &[]), Ok(()));
    assert!(fit("probe page-copy", &[]).unwrap_err().contains("holds another CPU, and there is 1"));
    for line in ["pmem map 0 2", "pmem unmap 2", "pmem hold 4K of 2 as a"] {
        assert!(fit(line, &[]).unwrap_err().contains("no pmem 2: the last of 2 is pmem 1"), "{line}");
    }
}

#[test]
fn an_error_shows_the_line_and_points_at_the_place() {
    let error = Script::parse("a.tide", "check\n\tresize 2X # why\n").unwrap_err();
    let shown = "a.tide:2:9: expected a size such as 2G, found `2X`\n2 |  resize 2X # why\n  |         ^";
    assert_eq!(error.to_string(), shown);
}

#[test]
fn a_script_of_another_system_is_a_script() {
    let text = "# all\nrepeat 2 {\n  check\n}\nsleep 1 s\n";
    let plain = Script::parse("test", text).unwrap();
    let windows = Script::parse("test", &format!("\u{feff}{}", text.replace('\n', "\r\n"))).unwrap();
    assert_eq!(windows, plain);
    let error = Script::parse("test", "\u{feff}grow 2G\r\n").unwrap_err().to_string();
    assert!(error.starts_with("test:1:1: ") && error.ends_with("1 | grow 2G\n  | ^"), "{error}");
    // Anywhere else it is no space.
    assert_errors("check\n\u{feff}check", &[(2, 1, "a command")]);
}

#[test]
fn errors_do_not_grow_with_the_line() {
    // One error for the first brace, and one for each that is open behind it.
    let shown = |braces: usize| Script::parse("test", &"{ ".repeat(braces)).unwrap_err().to_string();
    let (short, long) = (shown(1000), shown(100_000));
    assert!(long.len() < short.len() + 1000, "{} and {}", short.len(), long.len());
    assert!(long.ends_with("more errors are not shown"), "{}", &long[long.len() - 100..]);
    assert_eq!(long.lines().filter(|line| line.starts_with("test:1:")).count(), super::MAX_SHOWN);
}

#[test]
fn an_error_shows_the_part_of_a_long_line_around_its_place() {
    let line = format!("{}resize 2X {}", " ".repeat(1000), "x".repeat(1000));
    let error = Script::parse("test", &line).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines[0].starts_with("test:1:1008: expected a size"), "{error}");
    assert!(lines[1].starts_with("1 | ...  ") && lines[1].ends_with("xx..."), "{error}");
    assert_eq!(lines[1].find("2X"), lines[2].find('^'));
    assert!(lines.iter().all(|line| line.len() < 200), "{error}");
}
