//! Completions for shells, and man pages: both are clap's definitions of the command line in another form.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;

use crate::cli::{Cli, Shell};

/// Writes the completions for `shell` to standard output.
///
/// # Errors
/// Standard output is closed.
pub fn completions(shell: Shell) -> io::Result<()> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidevm", &mut text);
    io::stdout().write_all(&text)
}

/// Writes the man page of the program to standard output.
///
/// # Errors
/// Standard output is closed.
pub fn man() -> io::Result<()> {
    let mut page = Vec::new();
    // As `man_pages` writes it.
    clap_mangen::Man::new(Cli::command().disable_help_subcommand(true)).render(&mut page)?;
    io::stdout().write_all(&page)
}

/// Writes a man page of the program and one of each subcommand into `folder`, which must exist.
///
/// # Errors
/// A file cannot be written.
pub fn man_pages(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
}
