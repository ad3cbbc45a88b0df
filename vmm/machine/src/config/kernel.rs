//! What the kernel can take: the number of vCPUs and the command line. Another kernel may understand what the embedded
//! guest does not.

use tidevm_abi::cmdline::unknown_word;

use super::{Config, ConfigError};

/// Most characters of a wrong word that an error shows.
const MAX_SHOWN: usize = 64;

impl Config {
    /// Checks the number of vCPUs against what the kernel brings up.
    pub(crate) fn validate_cpus(&self, most: u8) -> Result<(), ConfigError> {
        if (1..=most).contains(&self.cpus) {
            Ok(())
        } else {
            Err(ConfigError::Cpus { given: self.cpus, most })
        }
    }

    pub(super) fn validate_cmdline(&self) -> Result<(), ConfigError> {
        let text = self.cmdline.as_deref().unwrap_or_default();
        if let Some(position) = text.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
            return Err(ConfigError::CmdlineText { position });
        }
        if self.kernel.is_some() {
            return Ok(());
        }
        if self.initrd.is_some() {
            return Err(ConfigError::Initrd);
        }
        if self.agent {
            return Err(ConfigError::Agent);
        }
        match unknown_word(text) {
            Some(word) => Err(ConfigError::CmdlineWord { word: word.chars().take(MAX_SHOWN).collect() }),
            None => Ok(()),
        }
    }
}
