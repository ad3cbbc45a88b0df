//! Pages about sessions: made by the program, refused for what is no session, and looked at by a browser.
//!
//! The browser's pictures are left in `target/artifacts`, for people to look at.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Test, assert_status, lines, path, program, scratch, small, text, tidevm, utf8, with_input};

pub const HOSTED: &[Test] = &[("what_is_no_session_has_no_page", what_is_no_session_has_no_page)];

pub const TESTS: &[Test] = &[
    ("a_session_has_a_page", a_session_has_a_page),
    ("a_page_is_legible", a_page_is_legible),
    ("a_page_is_written_in_every_case", a_page_is_written_in_every_case),
];

/// Where pictures are left.
pub fn artifact(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("artifacts");
    fs::create_dir_all(&folder).expect("the target folder is writable");
    folder.join(name)
}

/// The page that is written beside the table, and the one that is made of the JSON lines of the same session.
fn a_session_has_a_page() {
    let (beside, after, lines) = (path("beside.html"), path("after.html"), path("session.jsonl"));
    let script = "plug 128M\nhog 2M movable as data\nplug 256M\nresize 0\n";
    let output = with_input(&small(&["--json", "--report", utf8(&beside), "--script", "-"]), script);
    let out = assert_status(&output, 1, "");
    lines::events(&out);
    fs::write(&lines, &out).expect("it can be written");
    assert_eq!(assert_status(&tidevm(&["report", utf8(&lines), "-o", utf8(&after)]), 0, ""), "");
    let read = |path: &Path| fs::read_to_string(path).expect("a page");
    assert_eq!(read(&beside), read(&after));
    let page = read(&after);
    for part in
        ["<code>plug 128M</code>", "does not fit into the region of 256M", "class=\"movable q4\"", "kernel "]
    {
        assert!(page.contains(part), "no `{part}`:\n{page}");
    }
    assert_eq!(assert_status(&with_input(&["report", "-"], &out), 0, ""), page, "from one pipe into another");
    // The table is what it is without a page.
    let output = with_input(&small(&["--report", utf8(&beside), "--script", "-"]), "plug 128M\n");
    assert!(assert_status(&output, 0, "").contains("1 step done"), "{}", text(&output.stdout));
    assert!(read(&beside).contains("<span class=\"badge good\">done</span>"));
}

fn a_page_is_written_in_every_case() {
    let page = path("refused.html");
    let wrong = scratch("page.script", "grow 2M\n");
    let output = tidevm(&small(&["--report", utf8(&page), "--script", utf8(&wrong)]));
    assert_status(&output, 2, "expected a command");
    let text = fs::read_to_string(&page).expect("a page");
    assert!(text.contains("not started") && text.contains("expected a command"), "{text}");
    let output = with_input(&small(&["--report", "no/such/folder/x.html"]), "");
    assert_status(&output, 2, "cannot write --report no/such/folder/x.html: No such file or directory");
    let output = with_input(&small(&["--report", "/dev/full", "--script", "-"]), "stats\n");
    assert_status(&output, 3, "cannot write --report /dev/full: No space left on device");
}

fn what_is_no_session_has_no_page() {
    let refused = |name: &str, content: &[u8], part: &str| {
        let (file, page) = (path(name), path("never.html"));
        fs::write(&file, content).expect("it can be written");
        let output = tidevm(&["report", utf8(&file), "-o", utf8(&page)]);
        assert_status(&output, 2, &format!("{name}: {part}"));
        assert!(!page.exists(), "{name}");
    };
    refused("empty.jsonl", b"", "line 1: nothing is there; give the lines of one `tidevm run --json`");
    refused("table.jsonl", b"step   time  requested\n", "line 1: no JSON object");
    refused("bytes.jsonl", b"\xff\xfe\n", "line 1: byte 1 is no UTF-8");
    let refused_run = tidevm(&["run", "--json", "--memory", "1M"]);
    let session = assert_status(&refused_run, 2, "");
    refused(
        "cut.jsonl",
        &session.as_bytes()[..session.len() - 9],
        "line 2: no JSON object: EOF while parsing",
    );
    refused("twice.jsonl", format!("{session}{session}").as_bytes(), "line 3: `start` after `end`");
    let later = session.replace("\"format_version\":1", "\"format_version\":9");
    refused(
        "later.jsonl",
        later.as_bytes(),
        "line 1: the format's version is 9, and must be 1; use the tidevm that wrote it",
    );
    assert_status(&tidevm(&["report", "no/such/session"]), 2, "cannot read the session no/such/session");
    // One line without an end, as long as a disk is large.
    let huge = path("huge.jsonl");
    fs::File::create(&huge).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    assert_status(&tidevm(&["report", utf8(&huge)]), 2, "line 1: longer than 8 MiB");
    drop(fs::remove_file(huge));
}

/// A browser without a window. Debian's package is `chromium`.
const BROWSER: &str = "chromium";

/// The browser's picture of the upper part of a page.
fn picture(page: &Path, name: &str, (width, height): (u32, u32), dark: bool) -> Result<PathBuf, String> {
    let picture = artifact(name);
    drop(fs::remove_file(&picture));
    let profile = path("browser");
    let mut command = Command::new(BROWSER);
    // A container has no namespaces for the browser's own confinement. The page is ours.
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ]);
    command.arg(format!("--user-data-dir={}", profile.display()));
    command.arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)));
    command.arg(format!("--window-size={width},{height}")).arg(format!("--screenshot={}", picture.display()));
    command.arg(format!("file://{}", page.display())).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{BROWSER}: {error}"))?;
    drop(fs::remove_dir_all(profile));
    if picture.exists() { Ok(picture) } else { Err(text(&output.stderr)) }
}

/// Width and height of a PNG, by its header.
fn dimensions(png: &Path) -> (u32, u32) {
    let bytes = fs::read(png).expect("a picture");
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

/// What the browser has made of a page, after a script of this test has measured it: the widths of the page and of what is
/// wider than the window, and labels that overlap.
const MEASURE: &str = r#"<script>
const wide = [...document.querySelectorAll("main *")].filter(e => !e.closest("svg, .steps") &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
const overlaps = [];
for (const axis of document.querySelectorAll(".x, .y, .numbers, .bars")) {
  const boxes = [...axis.querySelectorAll("span, b, em")].filter(e => !e.children.length && e.textContent)
    .map(e => { const r = document.createRange(); r.selectNodeContents(e); return [e.textContent, r.getBoundingClientRect()]; })
    .filter(([, box]) => box.width > 0);
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1) overlaps.push(a + " and " + b);
  }));
}
const small = [...document.querySelectorAll("main *")].filter(e => !e.children.length && e.textContent.trim() &&
  parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.textContent.slice(0, 40));
parent.document.title = JSON.stringify({ width: document.documentElement.scrollWidth, window: innerWidth, wide, overlaps, small });
</script>"#;

/// What [`MEASURE`] finds in a page in a window that is so wide. A browser's own window has a least width, so that the
/// page is in a frame.
fn measured(page: &str, width: u32) -> serde_json::Value {
    let page =
        page.replace("</body>", &format!("{MEASURE}</body>")).replace('&', "&amp;").replace('"', "&quot;");
    let frame =
        format!("<iframe style=\"border: 0; width: {width}px; height: 2400px\" srcdoc=\"{page}\"></iframe>");
    let file = scratch("measured.html", &format!("<!DOCTYPE html><title></title>{frame}"));
    let profile = path("browser");
    let mut command = Command::new(BROWSER);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", profile.display())).arg("--window-size=1400,2400");
    let output = command.arg(format!("file://{}", file.display())).output().expect("it ran before");
    drop(fs::remove_dir_all(profile));
    let dom = text(&output.stdout);
    let title =
        dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).expect("a title").0;
    serde_json::from_str(
        &title.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"),
    )
    .unwrap_or_else(|error| panic!("{error}: {title}"))
}

/// On a telephone and on a desk, light and dark.
fn a_page_is_legible() {
    let page = artifact("session.html");
    let script = "plug 512M\nhog 8M movable scattered as data\nplug 512M\nhog 2M unmovable as pins\nresize 384M\nverify data\n\
                  resize 2G\nresize 768M within 200ms\nrelease data\nplug 9G\nresize 256M\nreset\nexpect plugged == 256M within 30s\n\
                  blocks\nresize 0\ncheck\nexpect plugged == 2M\n";
    let mut command = program();
    command.arg0("tidevm").current_dir(artifact(""));
    command.args(["run", "--cpus", "2", "--memory", "256M", "--hotplug", "size=4G", "--console", "off"]);
    command.args(["--report", "session.html", "--script", "session.script"]);
    fs::write(artifact("session.script"), script).expect("it can be written");
    assert_status(&command.output().expect("the program runs"), 1, "");
    match picture(&page, "report-1200.png", (1200, 2400), false) {
        Ok(wide) => assert_eq!(dimensions(&wide), (1200, 2400)),
        Err(why) => return eprintln!("SKIP a_page_is_legible: no picture without {BROWSER}: {why}"),
    }
    picture(&page, "report-1200-dark.png", (1200, 2400), true).expect("a dark one");
    assert_ne!(fs::read(artifact("report-1200.png")).ok(), fs::read(artifact("report-1200-dark.png")).ok());
    picture(&page, "report-420.png", (420, 4000), false).expect("a narrow one");
    let text = fs::read_to_string(&page).expect("a page");
    // The one in docs/scripts.md: without the facts of the host, which are others everywhere.
    let short = scratch("short.html", &text.replace("<header>", "<header hidden>"));
    picture(&short, "report.png", (1000, 1130), false).expect("a short one");
    for width in [420, 1200] {
        let found = measured(&text, width);
        assert_eq!(found["window"], width, "{found}");
        assert_eq!(
            (&found["width"], &found["wide"]),
            (&width.into(), &serde_json::json!([])),
            "{width}: {found}"
        );
        assert_eq!(
            (&found["overlaps"], &found["small"]),
            (&serde_json::json!([]), &serde_json::json!([])),
            "{width}: {found}"
        );
    }
}
