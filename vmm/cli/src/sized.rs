//! `--auto`: whether a machine can be sized automatically, and what does it.

use anyhow::{Context, bail};
use tidevm_machine::Config;
use tidevm_sizer::{Pace, Sizer, Wish};

/// What sizes the machine `config`: from its start on if there is a wish, and otherwise when a client of the API says so.
pub fn sizer(config: &Config, wish: Option<Wish>) -> anyhow::Result<Sizer> {
    let bounds = match wish {
        Some(_) if config.kernel.is_some() => {
            bail!("--auto: only the built-in guest tells how much memory it needs, and there is --kernel")
        }
        Some(wish) => Some(wish.bounds(config).with_context(|| format!("--auto {wish}"))?),
        None => None,
    };
    Sizer::new(Pace::DEFAULT, bounds).context("a descriptor for automatic sizing")
}
