//! How the text of an option becomes its value, with an error that says what would be right.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tidevm_abi::cmdline::INIT_POLICIES;
use tidevm_abi::{Size, parse_duration};
use tidevm_machine::{ConsoleMode, HotplugConfig, InitPolicy, NodeConfig};

/// The name of a machine that was given none, as in Firecracker.
pub(super) const DEFAULT_ID: &str = "anonymous-instance";

pub(super) fn id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("not 1 to 64 letters, digits and hyphens".to_owned())
    }
}

pub(super) fn init_policy(text: &str) -> Result<InitPolicy, String> {
    tidevm_abi::value_of(INIT_POLICIES, text).ok_or_else(|| {
        let words: Vec<_> = INIT_POLICIES.iter().map(|(word, _)| *word).collect();
        format!("unknown; the policies are: {}", words.join(", "))
    })
}

pub(super) fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let port = || text.parse().ok().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    text.parse()
        .ok()
        .or_else(port)
        .ok_or_else(|| "not a port, or an address and a port such as 127.0.0.1:9100".to_owned())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let above_zero = parse_duration(text).filter(|time| !time.is_zero());
    above_zero.ok_or_else(|| "not a duration above 0 such as 200ms, 5s or 2m".to_owned())
}

pub(super) fn size(text: &str) -> Result<Size, String> {
    text.parse::<Size>().map_err(|error| error.to_string())
}

pub(super) fn hotplug(text: &str) -> Result<HotplugConfig, String> {
    let mut config = HotplugConfig::new(Size(0));
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        let read = || size(value).map_err(|error| format!("{key}={value}: {error}"));
        match key {
            "size" => config.size = read()?,
            "block" => config.device_block = read()?,
            "requested" => config.requested = read()?,
            "extent" => config.extent = read()?,
            "offset" => config.offset = read()?,
            "node" => {
                let node = value.parse().map_err(|error| format!("node={value}: {error}"))?;
                config.node = Some(node);
            }
            _ => {
                return Err(format!(
                    "unknown key `{key}`; the keys are size, block, requested, node, extent and offset"
                ));
            }
        }
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
    }
    if seen.contains(&"size") { Ok(config) } else { Err("size=SIZE is missing".to_owned()) }
}

pub(super) fn node(text: &str) -> Result<NodeConfig, String> {
    let mut config = NodeConfig::default();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        match key {
            "memory" => config.memory = size(value).map_err(|error| format!("memory={value}: {error}"))?,
            "cpus" => config.cpus = value.parse().map_err(|error| format!("cpus={value}: {error}"))?,
            _ => return Err(format!("unknown key `{key}`; the keys are memory and cpus")),
        }
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
    }
    if seen.contains(&"memory") { Ok(config) } else { Err("memory=SIZE is missing (0 for none)".to_owned()) }
}

pub(super) fn pmem(text: &str) -> Result<Size, String> {
    let value = text.strip_prefix("size=").ok_or_else(|| format!("`{text}` is not size=SIZE"))?;
    size(value).map_err(|error| format!("size={value}: {error}"))
}

pub(super) fn console(text: &str) -> Result<ConsoleMode, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleMode::File(PathBuf::from(path))),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleMode::Socket(PathBuf::from(path))),
        Some(("connect", path)) if !path.is_empty() => Ok(ConsoleMode::Connect(PathBuf::from(path))),
        None if text == "off" => Ok(ConsoleMode::Off),
        None if text == "stderr" => Ok(ConsoleMode::Stderr),
        None if text == "stdio" => Ok(ConsoleMode::Stdio),
        _ => Err("not one of off, stderr, stdio, file:PATH, socket:PATH, connect:PATH".to_owned()),
    }
}
