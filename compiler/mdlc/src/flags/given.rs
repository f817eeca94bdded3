//! Which flags a command line has, as opposed to those that have their defaults.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// Names of the flags that were given, here or by a file or a hardware preset. It adds no flag.
#[derive(Clone, Debug, Default)]
pub struct Given {
    names: Vec<String>,
}

impl Given {
    pub fn has(&self, flag: &str) -> bool {
        self.names.iter().any(|name| name == flag)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Given, Error> {
        let given = |id: &&clap::Id| {
            let source = matches.try_contains_id(id.as_str()).ok();
            source.and_then(|_| matches.value_source(id.as_str())) == Some(ValueSource::CommandLine)
        };
        let names = matches.ids().filter(given).map(|id| id.as_str().to_string()).collect();
        Ok(Given { names })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Given::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
