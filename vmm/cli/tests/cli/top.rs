//! `tidevm top` on a terminal of its own, at a real machine.
//!
//! What is on the terminal is left in `target/artifacts`, as text and as a picture, for people to look at.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Child, Stdio};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::api::Api;
use super::endings::{end, kill, until};
use super::report::artifact;
use super::{Test, assert_status, program, tidevm};

pub const HOSTED: &[Test] = &[("top_needs_a_terminal_and_a_machine", top_needs_a_terminal_and_a_machine)];

pub const TESTS: &[Test] = &[
    ("top_shows_a_machine_to_its_end", top_shows_a_machine_to_its_end),
    ("top_gives_the_terminal_back", top_gives_the_terminal_back),
];

/// A terminal in which the program runs. Its screen is read all the time.
struct Terminal {
    keys: File,
    program: File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn new(rows: u16, columns: u16) -> Self {
        let (mut person, mut program) = (0, 0);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let (name, state) = (ptr::null_mut(), ptr::null());
        // SAFETY: the call writes to the two descriptors and reads `size`; the other pointers may be null.
        assert_eq!(unsafe { libc::openpty(&mut person, &mut program, name, state, &size) }, 0);
        // SAFETY: openpty has just made the descriptors, and no other value owns them.
        let (keys, program) = unsafe { (File::from_raw_fd(person), File::from_raw_fd(program)) };
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (mut output, shown) = (keys.try_clone().expect("a descriptor"), Arc::clone(&screen));
        // Ends when the last descriptor of the program's side is closed.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(size @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..size]);
            }
        });
        Self { keys, program, screen }
    }

    fn top(&self, api: &Api) -> Child {
        let stream = || Stdio::from(self.program.try_clone().expect("a descriptor"));
        let mut command = program();
        command
            .arg("top")
            .arg("--api-sock")
            .arg(&api.path)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR");
        command.stdin(stream()).stdout(stream()).stderr(Stdio::piped());
        command.spawn().expect("the program runs")
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: `self.program` keeps the descriptor open, and the call reads `size`.
        assert_eq!(unsafe { libc::ioctl(self.program.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen_mut().set_size(rows, columns);
    }

    /// The settings that a program can change.
    fn settings(&self) -> (u32, u32, u32, u32) {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `self.program` keeps the descriptor open, and `settings` has room for one termios.
        assert_eq!(unsafe { libc::tcgetattr(self.program.as_raw_fd(), settings.as_mut_ptr()) }, 0);
        // SAFETY: tcgetattr succeeded, so it filled `settings`.
        let settings = unsafe { settings.assume_init() };
        (settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag)
    }

    fn look<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    fn text(&self) -> String {
        self.look(|screen| screen.contents())
    }

    #[track_caller]
    fn await_text(&self, part: &str) {
        until(part, || self.text().contains(part));
    }
}

/// The screen as a picture. Runs of characters that look alike are one text, which is as wide as its columns.
fn picture(screen: &vt100::Screen) -> String {
    const CELL: (f64, f64) = (8.4, 17.0);
    let (rows, columns) = screen.size();
    let (width, height) = (f64::from(columns) * CELL.0 + 24.0, f64::from(rows) * CELL.1 + 24.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#14181d\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, monospace\" font-size=\"14\" xml:space=\"preserve\">\n"
    );
    let style = |cell: &vt100::Cell| (cell.fgcolor(), cell.bold(), cell.dim(), cell.inverse());
    for row in 0..rows {
        let mut column = 0;
        while let Some(first) = screen.cell(row, column) {
            let mut text = String::new();
            let from = column;
            while let Some(cell) = screen.cell(row, column).filter(|cell| style(cell) == style(first)) {
                text.push_str(if cell.has_contents() { cell.contents() } else { " " });
                column += 1;
            }
            if text.trim().is_empty() {
                continue;
            }
            let (color, bold, dim, inverse) = style(first);
            let (x, y) = (f64::from(from) * CELL.0 + 12.0, f64::from(row + 1) * CELL.1 + 8.0);
            let wide = f64::from(column - from) * CELL.0;
            if inverse {
                let top = y - 13.0;
                writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"17\" fill=\"#d8dee4\"/>"
                )
                .expect("a string");
            }
            let fill = if inverse { "#14181d" } else { fill(color) };
            let weight = if bold { " font-weight=\"bold\"" } else { "" };
            let opacity = if dim { " opacity=\".62\"" } else { "" };
            writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{wide:.1}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{fill}\"{weight}{opacity}>{}</text>",
                tidevm_report::Escaped(text)
            )
            .expect("a string");
        }
    }
    svg + "</g>\n</svg>\n"
}

/// A colour of a usual terminal.
fn fill(color: vt100::Color) -> &'static str {
    match color {
        vt100::Color::Idx(1 | 9) => "#ff7b72",
        vt100::Color::Idx(2 | 10) => "#4ac26b",
        vt100::Color::Idx(3 | 11) => "#e3a94b",
        vt100::Color::Idx(4 | 12) => "#5aa2f0",
        vt100::Color::Idx(5 | 13) => "#b48cf2",
        vt100::Color::Idx(8) => "#9aa4ae",
        _ => "#e6e9ec",
    }
}

fn top_needs_a_terminal_and_a_machine() {
    let output = tidevm(&["top", "--api-sock", "no/such/socket"]);
    assert_status(
        &output,
        2,
        "top needs a terminal for input and output; `tidevm ctl --api-sock PATH watch`",
    );
    let terminal = Terminal::new(24, 80);
    let before = terminal.settings();
    let stream = || Stdio::from(terminal.program.try_clone().expect("a descriptor"));
    let mut command = program();
    command
        .args(["top", "--api-sock", "no/such/socket"])
        .stdin(stream())
        .stdout(stream())
        .stderr(Stdio::piped());
    let output = command.spawn().and_then(Child::wait_with_output).expect("the program runs");
    assert_status(&output, 3, "cannot connect to no/such/socket: No such file or directory");
    assert_eq!(terminal.settings(), before);
    assert!(!terminal.look(vt100::Screen::alternate_screen), "the error stands where the shell does");
}

fn top_shows_a_machine_to_its_end() {
    let api = Api::run("top");
    let terminal = Terminal::new(38, 110);
    let mut top = terminal.top(&api);
    terminal.await_text("at its target");
    api.done("PATCH", "/hotplug/memory", "{\"requested_size_mib\":640}");
    terminal.await_text("0     640M      640M");
    api.done("PATCH", "/hotplug/memory", "{\"requested_size_mib\":300}");
    terminal.await_text("0     300M      300M");
    terminal.await_text("device 0: 300M, at its target");
    // Three memory blocks, of which a part of the last one is plugged.
    terminal.await_text("\u{2588}\u{2588}\u{2592}\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}");
    api.done("PATCH", "/vm", "{\"state\":\"Paused\"}");
    api.done("PATCH", "/hotplug/memory", "{\"requested_size_mib\":1024}");
    terminal.await_text("Paused");
    terminal.await_text("device 0: the guest is still at it");
    fs::write(artifact("top.txt"), terminal.text()).expect("it can be written");
    fs::write(artifact("top.svg"), terminal.look(picture)).expect("it can be written");
    terminal.resize(10, 60);
    until("a small picture", || {
        let text = terminal.text();
        !text.contains("counters") && text.contains("1G") && text.contains("still at it")
    });
    terminal.resize(38, 110);
    terminal.await_text("counters");
    api.done("PATCH", "/vm", "{\"state\":\"Resumed\"}");
    terminal.await_text("device 0: 1G, at its target");
    api.done("PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}");
    assert_eq!(end(&mut top).code(), Some(0));
    let mut said = String::new();
    top.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(said == "tidevm: the guest powered off\n" || said == "tidevm: the machine has ended\n", "{said}");
    assert!(!terminal.look(vt100::Screen::alternate_screen));
}

fn top_gives_the_terminal_back() {
    let api = Api::run("top-back");
    let ends: [(&str, fn(&mut Terminal, &Child), i32); 3] = [
        ("q", |terminal, _| terminal.keys.write_all(b"q").expect("a key"), 0),
        ("Ctrl-C", |terminal, _| terminal.keys.write_all(b"\x03").expect("a key"), 0),
        ("SIGTERM", |_, child| kill("-TERM", child), 143),
    ];
    for (name, how, status) in ends {
        let mut terminal = Terminal::new(24, 80);
        let before = terminal.settings();
        let mut top = terminal.top(&api);
        terminal.await_text("at its target");
        assert_ne!(terminal.settings(), before, "{name}");
        how(&mut terminal, &top);
        assert_eq!(end(&mut top).code(), Some(status), "{name}");
        assert_eq!(terminal.settings(), before, "{name}");
        assert!(
            !terminal.look(vt100::Screen::alternate_screen) && !terminal.look(vt100::Screen::hide_cursor),
            "{name}"
        );
    }
}
