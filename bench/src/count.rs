//! Instructions, by callgrind: a program counts its own work by running itself under valgrind.
//!
//! A benchmark gives the work a name. To count it, the program starts itself again with `count NAME`. There, the
//! instructions inside [`counted`] are counted.

use std::env;
use std::process::Command;

/// Runs `work`. Under valgrind its instructions are counted.
#[inline(never)]
pub fn counted<R>(work: impl FnOnce() -> R) -> R {
    std::hint::black_box(work())
}

/// The name of the work, if this process was started to count one.
#[must_use]
pub fn wanted() -> Option<String> {
    let mut arguments = env::args().skip(1);
    (arguments.next()? == "count").then(|| arguments.next())?
}

/// Instructions of the work called `name`.
///
/// # Errors
/// There is no valgrind, or it does not run the work; the text has its last message.
pub fn instructions(name: &str) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| format!("this program has no name: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*count::counted*"])
        .arg(program)
        .args(["count", name])
        .output()
        .map_err(|error| format!("valgrind cannot be run: {error} (Debian's package is valgrind)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.starts_with("==")).unwrap_or("valgrind gave no reason");
    let count = said.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok());
    count.filter(|_| output.status.success()).ok_or_else(|| format!("not counted: {last}"))
}
