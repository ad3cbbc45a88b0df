//! Options of a subcommand that are described when the subcommand is used.
//!
//! `clap` describes all options of all subcommands before it looks at a word, in memory that stays with the process.
//! Differs from its derived code in that alone.

use std::ops::Deref;

use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// The options `T` of a subcommand.
#[derive(Debug)]
pub struct Later<T>(pub T);

impl<T> Deref for Later<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> FromArgMatches for Later<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Later<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| {
            // The words of the subcommand, which those of the options' type would replace.
            let (about, long) = (command.get_about().cloned(), command.get_long_about().cloned());
            let described = T::augment_args(command).about(None).long_about(None);
            let described = about.into_iter().fold(described, Command::about);
            long.into_iter().fold(described, Command::long_about)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::cli::Cli;

    #[test]
    fn only_the_options_of_the_subcommand_in_use_are_described() {
        let mut command = Cli::command();
        command.try_get_matches_from_mut(["tidevm", "demo"]).unwrap();
        let described: Vec<_> = command
            .get_subcommands()
            .filter(|subcommand| subcommand.get_arguments().any(|option| !option.is_global_set()))
            .map(|subcommand| subcommand.get_name().to_owned())
            .collect();
        // `help` is made by clap.
        assert_eq!(described, ["demo", "help"]);
    }
}
