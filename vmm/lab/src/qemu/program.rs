//! QEMU's program on this host: whether it is there, and what it can do.

use std::process::Command;

/// The program's name.
pub const QEMU: &str = "qemu-system-x86_64";

/// The first version whose virtio-mem device has the feature that unplugged memory is inaccessible.
const OLDEST: (u32, u32) = (7, 0);

/// Why this host cannot run a machine, or `None`.
pub fn missing() -> Option<String> {
    match Command::new(QEMU).arg("--version").output() {
        Ok(output) => too_old(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => Some(format!("{QEMU} cannot be run: {error} (Debian's package is qemu-system-x86)")),
    }
}

/// Whether `device` of this host's QEMU has the property `name`.
///
/// # Panics
/// When QEMU cannot be run, see [`missing`].
#[must_use]
pub fn has_property(device: &str, name: &str) -> bool {
    let output = Command::new(QEMU).args(["-device", &format!("{device},help")]).output();
    let text = output.unwrap_or_else(|error| panic!("cannot run {QEMU}: {error}")).stdout;
    String::from_utf8_lossy(&text).lines().any(|line| line.trim_start().starts_with(&format!("{name}=")))
}

/// Why the QEMU that prints `text` about its version is too old, or `None`.
fn too_old(text: &str) -> Option<String> {
    let version = text.split_whitespace().skip_while(|&word| word != "version").nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = OLDEST;
    match (numbers.next(), numbers.next()) {
        (Some(Ok(has_major)), Some(Ok(has_minor))) if (has_major, has_minor) >= OLDEST => None,
        (Some(Ok(_)), Some(Ok(_))) => {
            Some(format!("{QEMU} has version {version}; version {major}.{minor} is needed"))
        }
        _ => Some(format!("{QEMU} does not tell its version; version {major}.{minor} is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::too_old;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(too_old("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), None);
        assert_eq!(too_old("QEMU emulator version 10.0.0\n"), None);
        let old = too_old("QEMU emulator version 6.2.0\n").unwrap();
        assert_eq!(old, "qemu-system-x86_64 has version 6.2.0; version 7.0 is needed");
        assert!(too_old("").is_some());
    }
}
