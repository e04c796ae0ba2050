//! A small repository with the files that the series touches, out of which git makes the mails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::series::Commit;
use crate::build;
use crate::lifetime;

/// Who a mail comes from where git knows nobody.
const NOBODY: (&str, &str) = ("Your Name", "you@example.org");

/// A name and an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    name: String,
    email: String,
}

impl Identity {
    /// The one that git has for commits in this workspace.
    pub(crate) fn of_git() -> Result<Option<Self>> {
        let output = lifetime::bind(
            Command::new("git")
                .args(["var", "GIT_AUTHOR_IDENT"])
                .current_dir(build::workspace()),
        )
        .output()
        .context("could not run git, which makes the mails: install the package git")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output
            .status
            .success()
            .then(|| Self::parse(&text))
            .flatten())
    }

    /// Stands for the sender.
    pub(crate) fn placeholder() -> Self {
        Self {
            name: NOBODY.0.to_owned(),
            email: NOBODY.1.to_owned(),
        }
    }

    /// Reads `NAME <EMAIL> TIME ZONE`.
    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once(" <")?;
        let (email, _) = rest.split_once('>')?;
        Some(Self {
            name: name.to_owned(),
            email: email.to_owned(),
        })
    }
}

/// A repository of the touched files alone.
pub(crate) struct Repository {
    dir: PathBuf,
    sender: Identity,
}

impl Repository {
    /// Makes it, with the files as the pristine source has them.
    pub(crate) fn new(
        dir: &Path,
        pristine: &Path,
        commits: &[Commit],
        sender: Identity,
    ) -> Result<Self> {
        let this = Self {
            dir: dir.to_path_buf(),
            sender,
        };
        this.git(&["init", "--quiet", "."])?;
        for path in commits.iter().flat_map(|commit| commit.files.keys()) {
            if let Ok(contents) = fs::read(pristine.join(path)) {
                write(&dir.join(path), &contents)?;
            }
        }
        this.git(&["add", "--all"])?;
        this.git(&["commit", "--quiet", "--message", "Linux"])?;
        this.git(&["tag", "base"])?;
        Ok(this)
    }

    /// Adds the commits, each file as it is.
    pub(crate) fn commit(&self, commits: &[Commit]) -> Result<()> {
        for commit in commits {
            for (path, text) in &commit.files {
                write(&self.dir.join(path), text.as_bytes())?;
            }
            self.git(&["add", "--all"])?;
            self.git(&["commit", "--quiet", "--message", &commit.message])?;
        }
        Ok(())
    }

    /// Writes the mails into a directory. Returns their files, the cover letter first.
    pub(crate) fn format(&self, to: &Path, cover: &str, sign_off: bool) -> Result<Vec<PathBuf>> {
        let to_text = to.to_str().context("the directory's name is no text")?;
        let mut arguments = vec![
            "format-patch",
            "--quiet",
            "--numbered",
            "--cover-letter",
            "--zero-commit",
            "--subject-prefix=RFC PATCH",
            "--output-directory",
            to_text,
        ];
        arguments.extend(sign_off.then_some("--signoff"));
        arguments.push("base..HEAD");
        self.git(&arguments)?;
        let mails = mails(to)?;
        let first = mails.first().context("git wrote no mail")?;
        let text = fs::read_to_string(first).context("could not read the cover letter")?;
        let (subject, body) = cover
            .split_once("\n\n")
            .context("the cover letter has no body")?;
        let text = text
            .replace("*** SUBJECT HERE ***", subject)
            .replace("*** BLURB HERE ***", body.trim_end());
        fs::write(first, text).context("could not write the cover letter")?;
        Ok(mails)
    }

    /// Applies the mails to the pristine files, without fuzz, and checks that the result is that of
    /// the commits.
    pub(crate) fn check(&self, mails: &[PathBuf]) -> Result<()> {
        self.git(&["branch", "made"])?;
        self.git(&["reset", "--quiet", "--hard", "base"])?;
        let mails = mails.iter().skip(1).map(|mail| mail.to_string_lossy());
        let mails: Vec<String> = mails.map(|mail| mail.into_owned()).collect();
        let mut arguments = vec!["am", "--quiet", "--whitespace=error-all"];
        arguments.extend(mails.iter().map(String::as_str));
        self.git(&arguments)
            .context("the series does not apply to the pristine source")?;
        let different = self.git(&["diff", "--name-only", "made"])?;
        ensure!(
            different.is_empty(),
            "applied to the pristine source the series makes something else of {different}"
        );
        Ok(())
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.dir);
        // What the user has configured for his own work would show in the mails.
        for (name, value) in [
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_AUTHOR_NAME", &self.sender.name),
            ("GIT_AUTHOR_EMAIL", &self.sender.email),
            ("GIT_COMMITTER_NAME", &self.sender.name),
            ("GIT_COMMITTER_EMAIL", &self.sender.email),
        ] {
            command.env(name, value);
        }
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        let output = lifetime::bind(&mut command)
            .output()
            .context("could not run git, which makes the mails: install the package git")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("git {} failed: {}", arguments[0], said.trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }
}

/// The mails in a directory, in their order.
pub(crate) fn mails(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("could not list {}", dir.display()))?;
    let mut mails: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        })
        .collect();
    mails.sort();
    Ok(mails)
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has no directory")?;
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, contents))
        .with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn commit(subject: &str, files: &[(&str, &str)]) -> Commit {
        let files = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), text.to_string()));
        Commit {
            message: format!("{subject}\n\nBody.\n"),
            files: files.collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn mails_are_made_and_apply_to_the_pristine_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (pristine, out) = (place("pristine"), place("out"));
        fs::write(pristine.join("f"), "one\ntwo\n").unwrap();
        let commits = [
            commit("f: change", &[("f", "one\n2\n")]),
            commit("g: add", &[("d/g", "new\n")]),
        ];
        let sender = Identity::placeholder();
        let repository = Repository::new(&place("a"), &pristine, &commits, sender.clone()).unwrap();
        repository.commit(&commits).unwrap();
        let mails = repository
            .format(&out, "A cover\n\nBlurb.\n", true)
            .unwrap();
        let cover = fs::read_to_string(&mails[0]).unwrap();
        assert!(
            cover.contains("Subject: [RFC PATCH 0/2] A cover"),
            "{cover}"
        );
        assert!(cover.contains("\nBlurb.\n"), "{cover}");
        let first = fs::read_to_string(&mails[1]).unwrap();
        assert!(
            first.contains("Subject: [RFC PATCH 1/2] f: change"),
            "{first}"
        );
        assert!(first.contains("Signed-off-by: Your Name <you@"), "{first}");
        repository.check(&mails).unwrap();
        fs::write(pristine.join("f"), "one\nother\n").unwrap();
        let other = Repository::new(&place("b"), &pristine, &commits, sender).unwrap();
        other.commit(&commits).unwrap();
        let error = format!("{:#}", other.check(&mails).unwrap_err());
        assert!(error.contains("does not apply"), "{error}");
    }

    #[test]
    fn an_identity_is_read_as_git_writes_it() {
        let identity = Identity::parse("A. B. <a@b> 1795852800 +0000\n").unwrap();
        assert_eq!(
            (identity.name.as_str(), identity.email.as_str()),
            ("A. B.", "a@b")
        );
        assert_eq!(Identity::parse(""), None);
    }
}
