//! The JSON bodies of automatic sizing, which Firecracker does not have.

use serde::Deserialize;

/// `PUT /hotplug/memory/auto`: the bounds of automatic sizing, of boot memory and hotplug memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoConfig {
    /// The smallest size.
    pub min_size_mib: u32,
    /// The largest size.
    pub max_size_mib: u32,
    /// Percent of the used memory that is kept free.
    #[serde(default = "default_headroom")]
    pub headroom_percent: u8,
}

fn default_headroom() -> u8 {
    tidevm_sizer::DEFAULT_HEADROOM
}

/// `PATCH /hotplug/memory/auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoUpdate {
    /// Whether the present target stays, whatever the guest needs.
    pub held: bool,
}
