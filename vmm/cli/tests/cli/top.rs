//! `tidevm top` on a terminal of its own, at a real machine.
//!
//! What is on the terminal is left in `target/artifacts`, as text and as a picture, for people to look at.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::api::Api;
use super::endings::{end, kill, until};
use super::report::artifact;
use super::{Test, assert_status, program, scratch, tidevm};

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
        let keys = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        rustix::pty::grantpt(&keys).and_then(|()| rustix::pty::unlockpt(&keys)).expect("a terminal");
        let name = rustix::pty::ptsname(&keys, Vec::new()).expect("its name");
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let program = options.open(OsStr::from_bytes(name.as_bytes())).expect("its other side");
        set_size(&program, rows, columns);
        let keys = File::from(keys);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(cells(rows), cells(columns), 0)));
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
        set_size(&self.program, rows, columns);
        self.screen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .screen_mut()
            .set_size(cells(rows), cells(columns));
    }

    /// The settings that a program can change.
    fn settings(&self) -> (u32, u32, u32, u32) {
        let settings = rustix::termios::tcgetattr(&self.program).expect("a terminal");
        let (input, output) = (settings.input_modes.bits(), settings.output_modes.bits());
        (input, output, settings.control_modes.bits(), settings.local_modes.bits())
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

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).expect("a terminal");
}

fn cells(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("a screen has cells")
}

/// The screen as a picture. Runs of characters that look alike are one text, which is as wide as its columns.
fn picture(screen: &vt100::Screen) -> String {
    const CELL: (f64, f64) = (8.4, 17.0);
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
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
            // Spaces are kept by their kind, which also HTML around the picture respects.
            let text = text.trim_end().replace(' ', "\u{a0}");
            let (color, bold, dim, inverse) = style(first);
            let (x, y) = (f64::from(from) * CELL.0 + 12.0, f64::from(row + 1) * CELL.1 + 8.0);
            let wide = if inverse { f64::from(column - from) } else { text.chars().count() as f64 } * CELL.0;
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

/// On the way, it leaves the picture of docs/api.md.
fn top_shows_a_machine_to_its_end() {
    let script = scratch("top.script", "plug 640M\nhog 4M movable as data\nsleep 30m\n");
    let machine = ["run", "--memory", "128M", "--hotplug", "size=4G", "--console", "off"];
    let more = ["--id", "vm-1", "--script", script.to_str().expect("UTF-8")];
    let api = Api::start("top", &machine, &more);
    api.await_guest();
    let terminal = Terminal::new(38, 110);
    let mut top = terminal.top(&api);
    for part in ["0     640M      640M       4G       640M", "at its target", "blocks_online"] {
        terminal.await_text(part);
    }
    // Some of its pages are those of per-CPU lists.
    until("what the guest uses", || {
        let text = terminal.text();
        let used = text.split_once("used ").and_then(|(_, after)| after.split_whitespace().next());
        used.is_some_and(|used| used.ends_with('M'))
    });
    let resize = |mib: u32| {
        api.done("PATCH", "/hotplug/memory", &format!("{{\"requested_size_mib\":{mib}}}"));
    };
    for mib in [1536, 832] {
        resize(mib);
        terminal.await_text(&format!("device 0: {mib}M, at its target"));
    }
    // Six memory blocks, and half of one.
    terminal.await_text(&format!("{}\u{2592}{}", "\u{2588}".repeat(6), "\u{b7}".repeat(25)));
    api.done("PATCH", "/vm", "{\"state\":\"Paused\"}");
    resize(2048);
    for part in ["Paused", "device 0: the guest is still at it", "on its way", "memory blocks, as last told"]
    {
        terminal.await_text(part);
    }
    fs::write(artifact("top.txt"), terminal.text()).expect("it can be written");
    fs::write(artifact("top.svg"), terminal.look(picture)).expect("it can be written");
    terminal.resize(10, 60);
    until("a small picture", || {
        let text = terminal.text();
        !text.contains("counters") && text.contains("2G") && text.contains("still at it")
    });
    terminal.resize(38, 110);
    terminal.await_text("counters");
    api.done("PATCH", "/vm", "{\"state\":\"Resumed\"}");
    terminal.await_text("device 0: 2G, at its target");
    api.done("PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}");
    assert_eq!(end(&mut top).code(), Some(0));
    let mut said = String::new();
    top.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(said == "tidevm: the guest powered off\n" || said == "tidevm: the machine has ended\n", "{said}");
    until("the shell's screen", || !terminal.look(vt100::Screen::alternate_screen));
}

fn top_gives_the_terminal_back() {
    let api = Api::run("top-back");
    /// What ends it.
    type End = fn(&mut Terminal, &Child);
    let ends: [(&str, End, i32); 3] = [
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
        until("the shell's screen", || {
            terminal.look(|screen| !screen.alternate_screen() && !screen.hide_cursor())
        });
    }
}
