//! The machine that is configured before it starts, and what is told of it afterwards.
//!
//! Mirrors Firecracker's `VmResources`: its defaults, checks and texts. Differs on purpose: a value that tidevm cannot give is
//! refused where it is set, instead of being ignored.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use tidevm_abi::Size;
use tidevm_machine::{Config, HotplugConfig};

use crate::LogTarget;
use crate::balloon;
use crate::body::{
    BUILTIN, Balloon, BootSource, CpuTemplate, FullConfig, HugePages, LoggerConfig, MIN_BLOCK_MIB,
    MIN_SLOT_MIB, MachineConfig, MachineUpdate, MemoryConfig, MetricsConfig,
};
use crate::metrics::open_to_append;

/// Most vCPUs that Firecracker allows.
const MOST_VCPUS: u8 = 32;

/// Largest device block of tidevm.
const MOST_BLOCK_MIB: u32 = 128;

/// A machine in Firecracker's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    machine: MachineConfig,
    boot: Option<BootSource>,
    memory: Option<MemoryConfig>,
    balloon: Option<Balloon>,
    /// Where the log goes from the start, as a file or the command line says.
    pub logger: Option<LoggerConfig>,
    /// Where metrics go from the start.
    pub metrics: Option<MetricsConfig>,
    /// Something of the machine was set. No snapshot can be loaded any more.
    pub touched: bool,
}

/// The fault of a second file for metrics.
pub const METRICS_TWICE: &str = "Metrics error: Cannot initialize the metrics system due to bad user input: \
                                 Reinitialization of metrics not allowed.";

/// The fault of a wish that Firecracker could fulfil and tidevm cannot.
pub fn not_supported(what: &str) -> String {
    format!("The requested operation is not supported: {what}")
}

impl Draft {
    /// A running machine that was described by `config`.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let machine = MachineConfig {
            vcpu_count: config.cpus,
            mem_size_mib: usize::try_from(config.memory.0 >> 20).unwrap_or(usize::MAX),
            ..MachineConfig::default()
        };
        let path = |path: &PathBuf| path.display().to_string();
        let boot = BootSource {
            kernel_image_path: config.kernel.as_ref().map_or_else(|| BUILTIN.to_owned(), path),
            initrd_path: config.initrd.as_ref().map(path),
            boot_args: config.cmdline.clone(),
        };
        let memory = config.hotplug.first().map(|hotplug| MemoryConfig {
            total_size_mib: mib(hotplug.size),
            block_size_mib: mib(hotplug.device_block),
            slot_size_mib: MIN_SLOT_MIB,
        });
        let balloon = config.balloon.map(balloon::of);
        Self { machine, boot: Some(boot), memory, balloon, touched: true, ..Self::default() }
    }

    /// A machine from the text of a `--config-file`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, String> {
        // Editors on Windows write a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file: FullConfig =
            serde_json::from_str(text).map_err(|error| format!("Invalid JSON: {error}"))?;
        let absent = [
            (!file.drives.is_empty(), "drives"),
            (file.cpu_config.is_some(), "CPU templates"),
            (file.mmds_config.is_some(), "a metadata service"),
            (!file.network_interfaces.is_empty(), "network interfaces"),
            (file.vsock.is_some(), "vsock"),
            (file.entropy.is_some(), "an entropy device"),
            (!file.pmem.is_empty(), "drives behind device memory"),
        ];
        if let Some((_, device)) = absent.iter().find(|(asked, _)| *asked) {
            return Err(not_supported(&format!("tidevm does not have {device}")));
        }
        let mut draft = Self::default();
        if let Some(machine) = file.machine_config {
            draft.set_machine(&machine.into())?;
        }
        draft.set_boot(file.boot_source)?;
        if let Some(memory) = file.memory_hotplug {
            draft.set_memory(memory)?;
        }
        if let Some(balloon) = file.balloon {
            draft.set_balloon(balloon)?;
        }
        (draft.logger, draft.metrics) = (file.logger, file.metrics);
        Ok(draft)
    }

    /// Adds what the command line says of logs and metrics. Of a log's fields those of the file win, as in Firecracker, which
    /// reads the file later.
    ///
    /// # Errors
    /// Both have a file for metrics.
    pub fn add_command_line(
        &mut self,
        logger: Option<LoggerConfig>,
        metrics: Option<MetricsConfig>,
    ) -> Result<(), String> {
        if self.metrics.is_some() && metrics.is_some() {
            return Err(METRICS_TWICE.to_owned());
        }
        self.metrics = self.metrics.take().or(metrics);
        self.logger = match (self.logger.take(), logger) {
            (Some(file), Some(line)) => Some(LoggerConfig {
                log_path: file.log_path.or(line.log_path),
                level: file.level.or(line.level),
                show_level: file.show_level.or(line.show_level),
                show_log_origin: file.show_log_origin.or(line.show_log_origin),
                module: file.module.or(line.module),
            }),
            (file, line) => file.or(line),
        };
        Ok(())
    }

    /// Has the log go where it is to go.
    ///
    /// # Errors
    /// The text of the fault: the file cannot be opened.
    pub fn start_log(&self, log: LogTarget) -> Result<(), String> {
        self.logger.as_ref().map_or(Ok(()), |config| set_log(config, log))
    }

    /// The answer of `GET /machine-config`.
    #[must_use]
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// The first hotplug region's memslots as they were configured.
    #[must_use]
    pub fn slot_size_mib(&self) -> u32 {
        self.memory.map_or(MIN_SLOT_MIB, |memory| memory.slot_size_mib)
    }

    /// The answer of `GET /vm/config`.
    #[must_use]
    pub fn full(&self) -> FullConfig {
        FullConfig {
            balloon: self.balloon,
            drives: Vec::new(),
            boot_source: self.boot.clone().unwrap_or_default(),
            cpu_config: None,
            // Firecracker tells neither, whatever was set.
            logger: None,
            machine_config: Some(self.machine),
            metrics: None,
            mmds_config: None,
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            pmem: Vec::new(),
            memory_hotplug: self.memory,
        }
    }

    /// `PUT` and `PATCH /machine-config`.
    ///
    /// # Errors
    /// The text of the fault; nothing changed.
    pub fn set_machine(&mut self, update: &MachineUpdate) -> Result<(), String> {
        self.touched = true;
        let old = self.machine;
        let new = MachineConfig {
            vcpu_count: update.vcpu_count.unwrap_or(old.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(old.mem_size_mib),
            smt: update.smt.unwrap_or(old.smt),
            cpu_template: None,
            track_dirty_pages: update.track_dirty_pages.unwrap_or(old.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(old.huge_pages),
        };
        let count = new.vcpu_count;
        if count == 0 || count > MOST_VCPUS || (new.smt && count > 1 && !count.is_multiple_of(2)) {
            return Err("Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 \
                        or an even number if SMT is enabled."
                .to_owned());
        }
        let unit = if new.huge_pages == HugePages::None { 1 } else { 2 };
        if new.mem_size_mib == 0 || !new.mem_size_mib.is_multiple_of(unit) {
            return Err("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured \
                        page size."
                .to_owned());
        }
        let asked = [
            (new.smt, "smt: true"),
            (new.track_dirty_pages, "track_dirty_pages: true"),
            (new.huge_pages == HugePages::Hugetlbfs2M, "huge_pages: 2M"),
            (!matches!(update.cpu_template, None | Some(CpuTemplate::None)), "cpu_template"),
        ];
        if let Some((_, what)) = asked.iter().find(|(asked, _)| *asked) {
            return Err(not_supported(what));
        }
        self.machine = new;
        Ok(())
    }

    /// `PUT /boot-source`.
    ///
    /// # Errors
    /// The text of the fault; nothing changed.
    pub fn set_boot(&mut self, boot: BootSource) -> Result<(), String> {
        self.touched = true;
        if boot.kernel_image_path != BUILTIN {
            can_be_read(&boot.kernel_image_path)
                .map_err(|error| format!("Boot source error: The kernel file cannot be opened: {error}"))?;
        } else if boot.initrd_path.is_some() {
            return Err(not_supported("an initrd for the built-in guest"));
        }
        if let Some(path) = &boot.initrd_path {
            can_be_read(path).map_err(|error| {
                format!(
                    "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. \
                     {error}"
                )
            })?;
        }
        let args = boot.boot_args.as_deref().unwrap_or_default();
        if let Some(position) = args.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
            return Err(format!(
                "Boot source error: The kernel command line is invalid: byte {position} is not printable ASCII"
            ));
        }
        self.boot = Some(boot);
        Ok(())
    }

    /// `PUT /hotplug/memory`.
    ///
    /// # Errors
    /// The text of the fault; nothing changed.
    pub fn set_memory(&mut self, memory: MemoryConfig) -> Result<(), String> {
        self.touched = true;
        let MemoryConfig { total_size_mib: total, block_size_mib: block, slot_size_mib: slot } = memory;
        let fault = if block < MIN_BLOCK_MIB {
            format!("Block size must not be lower than {MIN_BLOCK_MIB} MiB")
        } else if !block.is_power_of_two() {
            "Block size must be a power of 2".to_owned()
        } else if slot < MIN_SLOT_MIB {
            format!("Slot size must not be lower than {MIN_SLOT_MIB} MiB")
        } else if !slot.is_multiple_of(block) {
            format!("Slot size must be a multiple of block size ({block} MiB)")
        } else if total < slot {
            format!("Total size must not be lower than slot size ({slot} MiB)")
        } else if !total.is_multiple_of(slot) {
            format!("Total size must be a multiple of slot size ({slot} MiB)")
        } else if block > MOST_BLOCK_MIB {
            return Err(not_supported(&format!("a block size of more than {MOST_BLOCK_MIB} MiB")));
        } else if !total.is_multiple_of(MOST_BLOCK_MIB) {
            return Err(not_supported(&format!("a total size that is no multiple of {MOST_BLOCK_MIB} MiB")));
        } else {
            self.memory = Some(memory);
            return Ok(());
        };
        Err(format!("Memory hotplug config error: {fault}"))
    }

    /// `PUT /balloon`.
    ///
    /// # Errors
    /// The text of the fault; nothing changed.
    pub fn set_balloon(&mut self, balloon: Balloon) -> Result<(), String> {
        self.touched = true;
        if let Some(what) = balloon::missing(&balloon) {
            return Err(not_supported(what));
        }
        self.balloon = Some(balloon);
        Ok(())
    }

    /// The balloon as it was configured.
    #[must_use]
    pub fn balloon(&self) -> Option<Balloon> {
        self.balloon
    }

    /// The machine to start; `base` has everything that Firecracker's interface does not name.
    ///
    /// # Errors
    /// The text of the fault: no kernel was named.
    pub fn config(&self, base: &Config) -> Result<Config, String> {
        let Some(boot) = &self.boot else {
            return Err("Start microvm error: Cannot start microvm without kernel configuration.".to_owned());
        };
        let kernel = Some(PathBuf::from(&boot.kernel_image_path));
        let hotplug = self.memory.map(|memory| HotplugConfig {
            device_block: Size::mib(memory.block_size_mib.into()),
            ..HotplugConfig::new(Size::mib(memory.total_size_mib.into()))
        });
        Ok(Config {
            cpus: self.machine.vcpu_count,
            memory: Size((self.machine.mem_size_mib as u64).saturating_mul(1 << 20)),
            hotplug: hotplug.into_iter().collect(),
            balloon: self.balloon.and_then(|balloon| balloon::config(&balloon)),
            kernel: kernel.filter(|_| boot.kernel_image_path != BUILTIN),
            initrd: boot.initrd_path.as_ref().map(PathBuf::from),
            cmdline: boot.boot_args.clone(),
            ..base.clone()
        })
    }
}

/// Has the log go where `config` says.
///
/// # Errors
/// The text of the fault: the file cannot be opened.
pub fn set_log(config: &LoggerConfig, log: LogTarget) -> Result<(), String> {
    let file = config.log_path.as_deref().map(open_to_append).transpose();
    let file = file.map_err(|error| format!("Logger error: Failed to open target file: {error}"))?;
    log(file, config.level);
    Ok(())
}

/// Checks that there is a file to read. A named pipe would make the start wait for its writer.
fn can_be_read(path: &str) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(()) } else { Err(io::Error::other("it is no regular file")) }
}

/// Whole MiB, at most what Firecracker's fields hold.
pub fn mib(size: Size) -> u32 {
    u32::try_from(size.0 >> 20).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
