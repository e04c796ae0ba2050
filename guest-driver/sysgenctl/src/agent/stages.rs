//! Which directories the hooks of a stage are in, and in which order they are run.

use std::io;
use std::path::PathBuf;

use super::hooks::{self, Finding, HooksError};
use crate::args::AgentArgs;

/// When hooks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before a fork point.
    Quiesce,
    /// In a new generation, perhaps while programs are frozen.
    Identity,
    /// In a new generation, with programs that run.
    Service,
    /// After [`Stage::Quiesce`].
    Resume,
}

impl Stage {
    pub(super) const ALL: [Self; 4] = [Self::Quiesce, Self::Identity, Self::Service, Self::Resume];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Quiesce => "quiesce",
            Self::Identity => "identity",
            Self::Service => "service",
            Self::Resume => "resume",
        }
    }

    /// The directories whose hooks are run, one after another.
    fn directories(self, args: &AgentArgs) -> Vec<PathBuf> {
        let below = |name: &str| args.directory.join(name);
        match (self, &args.hooks) {
            (Self::Quiesce, _) => vec![below("quiesce.d")],
            (Self::Resume, _) => vec![below("resume.d")],
            (Self::Identity, Some(_)) => Vec::new(),
            (Self::Identity, None) => vec![below("adapt.d/identity")],
            (Self::Service, Some(hooks)) => vec![hooks.clone()],
            // The second is where all hooks were once.
            (Self::Service, None) => vec![below("adapt.d/service"), below("hooks.d")],
        }
    }

    /// The files of the stage in the order in which they are run: that of their names, and for
    /// [`Stage::Quiesce`] the reverse. What was started last is brought to rest first.
    ///
    /// # Errors
    /// When a directory cannot be read, or others could put files into it. That it is missing is no
    /// error, unless the command line names it.
    pub(super) fn find(self, args: &AgentArgs) -> Result<Vec<Finding>, HooksError> {
        let mut found = Vec::new();
        for directory in self.directories(args) {
            match hooks::find(&directory) {
                Err(HooksError::Read(_, error))
                    if error.kind() == io::ErrorKind::NotFound
                        && args.hooks.as_ref() != Some(&directory) => {}
                hooks => found.extend(hooks?),
            }
        }
        if self == Self::Quiesce {
            found.reverse();
        }
        Ok(found)
    }
}

/// Looks at all directories: what is wrong with them from the beginning is told then.
///
/// # Errors
/// As [`Stage::find`]; when the directory that the four are in is missing and no other is named.
pub(super) fn check(args: &AgentArgs) -> Result<(), HooksError> {
    if args.hooks.is_none() {
        hooks::find(&args.directory)?;
    }
    for stage in Stage::ALL {
        stage.find(args)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(options: &str, directory: &Path) -> AgentArgs {
        let line = format!(
            "sysgenctl agent --directory {} {options}",
            directory.display()
        );
        match Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        {
            Command::Agent(args) => *args,
            _ => panic!("not an agent"),
        }
    }

    fn directory(hooks: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for hook in hooks {
            let path = dir.path().join(hook);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    fn names(stage: Stage, args: &AgentArgs) -> Vec<String> {
        let name = |finding: &Finding| match finding {
            Finding::Hook(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
            other => panic!("{other:?}"),
        };
        stage.find(args).unwrap().iter().map(name).collect()
    }

    #[test]
    fn each_stage_has_its_directory_and_quiescing_goes_backwards() {
        let dir = directory(&[
            "quiesce.d/10-a",
            "quiesce.d/20-b",
            "quiesce.d/9-c",
            "adapt.d/identity/10-id",
            "adapt.d/service/30-dhcp",
            "adapt.d/service/90-last",
            "hooks.d/20-old",
            "resume.d/10-a",
            "resume.d/20-b",
        ]);
        let args = args("", dir.path());
        assert_eq!(names(Stage::Quiesce, &args), ["9-c", "20-b", "10-a"]);
        assert_eq!(names(Stage::Identity, &args), ["10-id"]);
        assert_eq!(
            names(Stage::Service, &args),
            ["30-dhcp", "90-last", "20-old"]
        );
        assert_eq!(names(Stage::Resume, &args), ["10-a", "20-b"]);
        check(&args).unwrap();
    }

    #[test]
    fn a_directory_of_the_command_line_takes_the_place_of_both_stages_of_adapting() {
        let dir = directory(&[
            "adapt.d/identity/1",
            "adapt.d/service/2",
            "flat/3",
            "quiesce.d/4",
        ]);
        let flat = dir.path().join("flat");
        let args = args(&format!("--hooks {}", flat.display()), dir.path());
        assert_eq!(names(Stage::Identity, &args), Vec::<String>::new());
        assert_eq!(names(Stage::Service, &args), ["3"]);
        assert_eq!(names(Stage::Quiesce, &args), ["4"]);
    }

    #[test]
    fn only_what_the_command_line_names_has_to_be_there() {
        let dir = directory(&[]);
        check(&args("", dir.path())).unwrap();
        let missing = dir.path().join("missing");
        assert!(check(&args("", &missing)).is_err());
        let options = format!("--hooks {}", missing.display());
        assert!(check(&args(&options, dir.path())).is_err());
        // As today: one directory is enough.
        let options = format!("--hooks {}", dir.path().display());
        check(&args(&options, &missing)).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_in_each_stage() {
        for name in [
            "quiesce.d",
            "adapt.d/identity",
            "adapt.d/service",
            "resume.d",
        ] {
            let dir = directory(&[&format!("{name}/1")]);
            let args = args("", dir.path());
            check(&args).unwrap();
            let mode = fs::Permissions::from_mode(0o777);
            fs::set_permissions(dir.path().join(name), mode).unwrap();
            assert!(
                matches!(check(&args), Err(HooksError::Refused(..))),
                "{name}"
            );
        }
    }
}
