//! The head of a page: how the session ended, and who ran what, where and when.

use std::fmt::{self, Write};

use tidevm_events::{Kvm, Machine, Outcome, Start};

use super::number;
use crate::{Escaped, Report, show};

/// The title of the document.
pub fn title(report: &Report) -> String {
    match report.start.as_ref().and_then(|start| start.host.as_deref()) {
        Some(host) => format!("tidevm session on {host}"),
        None => "tidevm session".to_owned(),
    }
}

pub fn draw(page: &mut String, report: &Report) -> fmt::Result {
    let (class, outcome) = outcome(report);
    writeln!(page, "<header>\n<h1>tidevm session <span class=\"badge {class}\">{outcome}</span></h1>")?;
    writeln!(page, "<p class=\"lead\">{}</p>", Escaped(summary(report)))?;
    if let Some(reason) = report.end.as_ref().and_then(|end| end.reason.as_deref()) {
        let class = if class == "good" { "why" } else { "why bad" };
        writeln!(page, "<p class=\"{class}\">{}</p>", Escaped(crate::steps::cut(reason)))?;
    }
    if let Some(start) = &report.start {
        facts(page, start)?;
    }
    writeln!(page, "</header>")
}

fn outcome(report: &Report) -> (&'static str, &'static str) {
    let Some(end) = &report.end else { return ("open", "no end") };
    match end.outcome {
        Outcome::Done => ("good", "done"),
        Outcome::Failed => ("bad", "failed"),
        Outcome::Script => ("bad", "wrong script"),
        Outcome::Died => ("bad", "the guest died"),
        Outcome::TimedOut => ("bad", "out of time"),
        Outcome::Signal => ("open", "ended by a signal"),
        Outcome::NotStarted => ("bad", "not started"),
    }
}

fn summary(report: &Report) -> String {
    let mut parts = vec![number(report.steps.count(), "step")];
    if report.steps.failed() > 0 {
        parts.push(format!("{} failed", report.steps.failed()));
    }
    match &report.end {
        Some(end) => {
            parts.push(format!("{} in all", show::time(crate::seconds(end.seconds))));
            parts.push(format!("status {}", end.status));
        }
        None => parts.push(format!(
            "the events end after {}: tidevm was still running, or was killed",
            show::time(report.last)
        )),
    }
    if let Some(boot) = report.boot {
        parts.insert(0, format!("guest ready after {}", show::time(boot)));
    }
    parts.join(", ")
}

pub fn facts(page: &mut String, start: &Start) -> fmt::Result {
    let unknown = || "unknown".to_owned();
    let commit = start.commit.as_deref().map_or(String::new(), |commit| format!(", commit {commit}"));
    let kernel = start.kernel.as_deref().map_or(String::new(), |kernel| format!(", Linux {kernel}"));
    let kvm = match start.kvm {
        Kvm::Vmx => "Intel VMX",
        Kvm::Svm => "AMD SVM",
        Kvm::None => "no VMX or SVM: ring 0 of the guest is emulated",
    };
    let command = shlex::try_join(start.command_line.iter().map(String::as_str));
    let command = command.unwrap_or_else(|_| start.command_line.join(" "));
    writeln!(page, "<dl class=\"facts\">")?;
    let mut fact =
        |name: &str, value: &str| writeln!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(value));
    fact("Date", &start.date.replacen('T', " ", 1).replacen('Z', " UTC", 1))?;
    fact("Host", &format!("{}{kernel}", start.host.clone().unwrap_or_else(unknown)))?;
    fact("KVM", kvm)?;
    fact("tidevm", &format!("{}{commit}", start.version))?;
    if let Some(machine) = &start.machine {
        let machine = Escaped(describe(machine));
        writeln!(page, "<div class=\"wide\"><dt>Machine</dt><dd>{machine}</dd></div>")?;
    }
    let command = Escaped(command);
    writeln!(page, "<div class=\"wide\"><dt>Command</dt><dd><code>{command}</code></dd></div>")?;
    writeln!(page, "</dl>")
}

fn describe(machine: &Machine) -> String {
    let mut parts = vec![number(machine.cpus.into(), "CPU"), show::size(machine.memory)];
    for region in &machine.regions {
        let node = region.node.map_or(String::new(), |node| format!(" on node {node}"));
        let (size, block) = (show::size(region.size), show::size(region.block_size));
        parts.push(format!("{size} to plug in {block}{node}"));
    }
    for size in &machine.pmem {
        parts.push(format!("{} of device memory", show::size(*size)));
    }
    parts.push(
        machine.guest_kernel.as_ref().map_or("tidevm's guest".to_owned(), |file| format!("kernel {file}")),
    );
    parts.join(", ")
}
