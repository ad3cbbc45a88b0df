//! The facts of a `start`: this program, how it was called, and the host that it runs on.

use std::env;
use std::fs;
use std::time::SystemTime;

use tidevm_events::{FORMAT_VERSION, Kvm, Machine, Region, Start};
use tidevm_machine::Config;

/// What `start` says now, of a session on `config` if there is one.
pub fn start(config: Option<&Config>) -> Start {
    let (version, commit) = version();
    Start {
        format_version: FORMAT_VERSION,
        version,
        commit,
        command_line: env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        date: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        host: line("/proc/sys/kernel/hostname"),
        kernel: line("/proc/sys/kernel/osrelease"),
        kvm: kvm(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        machine: config.map(machine),
    }
}

/// The version and the commit that `tidevm --version` says.
fn version() -> (String, Option<String>) {
    let whole = env!("TIDEVM_VERSION");
    match whole.split_once(" (") {
        Some((version, commit)) => (version.to_owned(), Some(commit.trim_end_matches(')').to_owned())),
        None => (whole.to_owned(), None),
    }
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// By the flags of the first CPU, as Linux lists them.
fn kvm(cpuinfo: &str) -> Kvm {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    match () {
        () if has("vmx") => Kvm::Vmx,
        () if has("svm") => Kvm::Svm,
        () => Kvm::None,
    }
}

fn machine(config: &Config) -> Machine {
    let regions = config.hotplug.iter().map(|region| Region {
        size: region.size.0,
        block_size: region.device_block.0,
        requested: region.requested.0,
        node: region.node,
    });
    Machine {
        cpus: config.cpus,
        memory: config.memory.0,
        regions: regions.collect(),
        pmem: config.pmem.iter().map(|size| size.0).collect(),
        guest_kernel: config.kernel.as_ref().map(|path| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::kvm;
    use tidevm_events::Kvm;

    #[test]
    fn the_flags_of_a_cpu_tell_the_kind_of_kvm() {
        assert_eq!(kvm("processor\t: 0\nflags\t\t: fpu vmx sse\nflags\t\t: fpu\n"), Kvm::Vmx);
        assert_eq!(kvm("vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm"), Kvm::Svm);
        assert_eq!(kvm("flags\t\t: fpu svmx xvmx\nvmx flags\t: vmx svm"), Kvm::None);
        assert_eq!(kvm(""), Kvm::None);
    }
}
