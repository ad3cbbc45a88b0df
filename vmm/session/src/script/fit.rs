//! Whether the steps of a script fit a machine and its kernel: its devices, its nodes, its device memory, its vCPUs.
//!
//! What only the guest can tell is no error here: its step fails. Nor is a target beyond a region: the device refuses it, and
//! the session goes on.

use tidevm_abi::command::{Command, Pmem, PmemHold, Target};
use tidevm_abi::{Counted, Kernel, Metric, Size};
use tidevm_machine::Config;

use super::{Errors, Statement, each_step};

/// The steps of `body` that do not fit a machine of `config`.
pub(super) fn misfits(body: &[Statement], config: &Config) -> Errors {
    let mut errors = Vec::new();
    each_step(body, &mut |step| {
        if let Some(message) = misfit(step.command.carried_out(), config) {
            errors.push((step.line, step.column, message));
        }
    });
    errors.extend(refused(body, kernel_of(config)));
    errors
}

/// The steps of `body` that `kernel` cannot carry out.
pub(super) fn refused(body: &[Statement], kernel: Kernel) -> Errors {
    let mut errors = Vec::new();
    each_step(body, &mut |step| {
        if let Some(message) = step.command.refused_by(kernel) {
            errors.push((step.line, step.column, message));
        }
    });
    errors
}

/// The kernel that carries out the steps. Of one without an agent nothing is known before it is asked.
fn kernel_of(config: &Config) -> Kernel {
    if config.agent { Kernel::Linux } else { Kernel::Tidevm }
}

fn misfit(command: &Command, config: &Config) -> Option<String> {
    let (index, target) = match command {
        Command::Pmem(pmem) => return missing_pmem(pmem, config.pmem.len()),
        Command::Probe(_) if config.cpus < 2 => {
            return Some(format!("a probe holds another CPU, and there is {}: give --cpus 2", config.cpus));
        }
        Command::Resize(resize) => (resize.device, Some(resize.target)),
        Command::Rebind { device } => (usize::from(*device), None),
        Command::Expect(expect) if expect.metric.is_of_devices() => (expect.device.unwrap_or(0), None),
        Command::Expect(expect) => return missing_node(expect.metric, config),
        _ => return None,
    };
    let Some(device) = config.hotplug.get(index) else {
        return Some(match config.hotplug.len() {
            0 => "there is no hotplug device: no --hotplug was given".to_owned(),
            count => format!("there is no device {index}: the last of {count} is device {}", count - 1),
        });
    };
    let size = target.map_or(Size(0), Target::size);
    (!size.0.is_multiple_of(device.device_block.0)).then(|| {
        let block = device.device_block;
        format!("{size} is not a multiple of the block size {block} of device {index}")
    })
}

/// The error for a counter of a node that the guest cannot have.
fn missing_node(metric: Metric, config: &Config) -> Option<String> {
    let Metric::Guest(guest) = metric else { return None };
    let (node, nodes) = (guest.node()?.index(), config.nodes()?);
    (node >= nodes).then(|| {
        let nodes = Counted(nodes as u64, "node");
        format!("there is no {metric}: the guest has {nodes}; --numa gives it more")
    })
}

/// The error for a range of device memory that does not exist.
fn missing_pmem(pmem: &Pmem, count: usize) -> Option<String> {
    let index = match pmem {
        Pmem::List => return None,
        Pmem::Map(map) => map.devices().last()?,
        Pmem::Unmap(device) | Pmem::Hold(PmemHold { device, .. }) => *device,
    };
    match count {
        _ if usize::from(index) < count => None,
        0 => Some("there is no device memory: no --pmem was given".to_owned()),
        _ => Some(format!("there is no pmem {index}: the last of {count} is pmem {}", count - 1)),
    }
}
