//! What a reboot in the guest does, and what one of a restored machine may do.

use std::ffi::OsStr;

use clap::ValueEnum;
use clap::builder::{PossibleValue, TypedValueParser};

use vmgenie_machine::config;

/// What a reboot in the guest does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnReboot {
    /// The machine boots again.
    Restart,
    /// The process ends with status 0.
    #[default]
    Exit,
}

impl From<OnReboot> for config::OnReboot {
    fn from(choice: OnReboot) -> Self {
        match choice {
            OnReboot::Restart => Self::Restart,
            OnReboot::Exit => Self::Exit,
        }
    }
}

/// Takes what such a reboot can do, and tells of the rest why it cannot.
#[derive(Debug, Clone, Copy)]
pub(super) struct RebootOfRestored;

impl TypedValueParser for RebootOfRestored {
    type Value = OnReboot;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<OnReboot, clap::Error> {
        parse.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(OnReboot::Exit.to_possible_value().into_iter()))
    }
}

fn parse(text: &str) -> Result<OnReboot, String> {
    match OnReboot::from_str(text, false)? {
        OnReboot::Exit => Ok(OnReboot::Exit),
        OnReboot::Restart => Err(
            "a restored machine cannot boot again: its kernel, initrd and command line are not in the snapshot. With `exit` its process ends, and \
             whoever waits for that can start another one from the snapshot"
                .to_owned(),
        ),
    }
}
