//! `--auto`: whether a machine can be sized automatically, and what does it.

use std::io;

use tidevm_machine::Config;
use tidevm_sizer::{Pace, Sizer, Wish, WishError};

/// Why a machine is not sized.
#[derive(Debug, thiserror::Error)]
pub enum SizedError {
    /// The machine does not have the room, or does not tell what it uses.
    #[error("--auto {wish}: {error}")]
    Bounds {
        /// The bounds as they were asked for.
        wish: Wish,
        /// What is wrong with them.
        error: WishError,
    },
    /// The host refuses.
    #[error("a descriptor for automatic sizing: {0}")]
    Host(#[from] io::Error),
}

/// What sizes the machine `config`: from its start on if there is a wish, and otherwise when a client of the API says so.
///
/// # Errors
/// [`SizedError`].
pub fn sizer(config: &Config, wish: Option<Wish>) -> Result<Sizer, SizedError> {
    let bounds = wish.map(|wish| wish.bounds(config).map_err(|error| SizedError::Bounds { wish, error }));
    Ok(Sizer::new(Pace::DEFAULT, bounds.transpose()?)?)
}
