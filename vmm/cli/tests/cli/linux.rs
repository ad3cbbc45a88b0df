//! `--agent` and `script check --guest linux`: what is wrong is told before a kernel boots.

use super::{Test, assert_status, scratch, tidevm};

pub const HOSTED: &[Test] = &[
    ("a_script_for_linux_is_checked_before_it_runs", a_script_for_linux_is_checked_before_it_runs),
    ("an_agent_is_for_another_kernel", an_agent_is_for_another_kernel),
    (
        "an_initrd_that_is_no_archive_is_refused_with_an_agent",
        an_initrd_that_is_no_archive_is_refused_with_an_agent,
    ),
];

const REFUSED: [&str; 3] = [
    "2:1: `readd` is for tidevm's own guest",
    "3:5: Linux tells no pcp.drains",
    "4:1: Linux gives a program no contiguous pages",
];

fn script() -> String {
    let text =
        "hog 1M movable as a\nreadd 128M at 4G\n    expect pcp.drains > 0\nhog 2M contiguous as b\ncheck\n";
    scratch("for-linux.tvm", text).display().to_string()
}

fn a_script_for_linux_is_checked_before_it_runs() {
    let script = script();
    let check = |guest: &str| tidevm(&["script", "check", "--guest", guest, &script]);
    assert_status(&check("tidevm"), 0, "");
    let run =
        tidevm(&["run", "--kernel", "/no/such/kernel", "--agent", "--console", "off", "--script", &script]);
    for output in [check("linux"), run] {
        for refused in REFUSED {
            assert_status(&output, 2, refused);
        }
    }
    assert_status(&check("bsd"), 2, "the guests are: tidevm, linux");
}

fn an_agent_is_for_another_kernel() {
    let output = tidevm(&["run", "--agent", "--console", "off"]);
    assert_status(&output, 2, "--agent: the built-in guest has its own; leave it out, or give --kernel too");
}

fn an_initrd_that_is_no_archive_is_refused_with_an_agent() {
    let kernel = super::kernel::write("for-an-agent", super::kernel::HALT).display().to_string();
    let initrd = scratch("no-archive", "#!/bin/sh\n").display().to_string();
    let run = ["run", "--kernel", &kernel, "--initrd", &initrd, "--agent", "--console", "off"];
    assert_status(&tidevm(&run), 2, "neither a cpio archive (newc) nor a compressed one");
}
