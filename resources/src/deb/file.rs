//! One `.deb`: what is in it, and how it is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::files::{Files, put};
use crate::{build, cache, lifetime};

/// The version of all packages: that of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Whom the packages are from: nobody in person.
const MAINTAINER: &str = "The vmgenie developers <vmgenie@localhost>";
/// The one architecture that there is.
const ARCHITECTURE: &str = "amd64";

/// What is in a package.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: &'static str,
    /// One line.
    pub(crate) summary: &'static str,
    /// More lines, of at most 78 characters each.
    pub(crate) description: String,
    /// Fields of relations, such as `Depends: kmod`.
    pub(crate) relations: Vec<String>,
    /// All files. Those in `etc` are their owner's to change.
    pub(crate) files: Files,
    /// The maintainer's scripts: name and text.
    pub(crate) scripts: Vec<(&'static str, String)>,
}

impl Package {
    /// The name of the file.
    pub(crate) fn file_name(&self) -> String {
        format!("{}_{VERSION}_{ARCHITECTURE}.deb", self.name)
    }

    /// Another package is another digest.
    pub(crate) fn digest(&self) -> String {
        let mut all = Sha256::new();
        all.update(BUILD);
        all.update(self.control());
        all.update(self.conffiles());
        all.update(self.files.digest());
        for (name, text) in &self.scripts {
            all.update(format!("{name} {} {text}", text.len()));
        }
        cache::hex(&all.finalize())
    }

    /// Writes the package into the directory `dir` and returns its path.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        let scratch = tempfile::tempdir_in(dir).context("could not make a directory")?;
        let tree = scratch.path().join("tree");
        self.files.write_to(&tree)?;
        let control = tree.join("DEBIAN");
        put(&control.join("control"), self.control().as_bytes(), 0o644)?;
        put(
            &control.join("conffiles"),
            self.conffiles().as_bytes(),
            0o644,
        )?;
        for (name, text) in &self.scripts {
            put(&control.join(name), text.as_bytes(), 0o755)?;
        }
        let path = dir.join(self.file_name());
        let mut command = Command::new("sh");
        command
            .args(["-ec", BUILD, "sh"])
            .args([&tree, &path])
            .env("SOURCE_DATE_EPOCH", date()?);
        let output = lifetime::bind(&mut command)
            .output()
            .context("could not run dpkg-deb")?;
        ensure!(
            output.status.success(),
            "dpkg-deb could not make {}: {}",
            self.file_name(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(path)
    }

    fn control(&self) -> String {
        let mut text = format!(
            "Package: {}\nVersion: {VERSION}\nArchitecture: {ARCHITECTURE}\n\
             Maintainer: {MAINTAINER}\nSection: admin\nPriority: optional\n\
             Installed-Size: {}\n",
            self.name,
            self.installed_kib()
        );
        for relation in &self.relations {
            text += relation;
            text += "\n";
        }
        text += &format!("Description: {}\n", self.summary);
        for line in self.description.lines() {
            let line = if line.is_empty() { "." } else { line };
            text += &format!(" {line}\n");
        }
        text
    }

    fn installed_kib(&self) -> usize {
        let sizes = self.files.iter().map(|(_, contents, _)| contents.len());
        sizes.map(|size| size.div_ceil(1024)).sum()
    }

    fn conffiles(&self) -> String {
        let places = self.files.iter().map(|(place, ..)| place);
        places
            .filter(|place| place.starts_with("etc"))
            .map(|place| format!("/{}\n", place.display()))
            .collect()
    }
}

/// Directories have the modes that the caller's umask gave them.
const BUILD: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
find "$1" -type d -exec chmod 755 {} +
dpkg-deb --root-owner-group --build "$1" "$2"
"#;

/// The time of all files: that of the last commit, so that the same sources make the same package.
fn date() -> Result<String> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(given);
    }
    let mut command = Command::new("git");
    command
        .args(["log", "-1", "--format=%ct"])
        .current_dir(build::workspace());
    let known = lifetime::bind(&mut command).output();
    let known = known.ok().filter(|output| output.status.success());
    match known {
        Some(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        // Not a checkout of git, but an archive.
        None => {
            let manifest = fs::metadata(build::workspace().join("Cargo.toml"));
            let time = manifest.and_then(|manifest| manifest.modified());
            let time = time.context("could not look at Cargo.toml")?;
            let since = time.duration_since(std::time::UNIX_EPOCH);
            Ok(since.unwrap_or_default().as_secs().to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Package {
        let mut files = Files::default();
        files.push("usr/bin/a", vec![0; 1500], 0o755);
        files.push("etc/a.d/b", b"x".to_vec(), 0o644);
        Package {
            name: "a",
            summary: "does it",
            description: "One line.\n\nAnother.".to_owned(),
            relations: vec!["Depends: kmod".to_owned()],
            files,
            scripts: vec![("postinst", "#!/bin/sh\n".to_owned())],
        }
    }

    fn query(path: &Path, what: &str) -> String {
        let output = Command::new("dpkg-deb")
            .arg(what)
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_package_says_what_it_is_and_has_root_s_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = package().write(dir.path()).unwrap();
        assert_eq!(
            path.file_name().unwrap().to_str(),
            Some(&*package().file_name())
        );
        let said = query(&path, "--field");
        for line in [
            "Package: a",
            "Depends: kmod",
            "Installed-Size: 3",
            "Description: does it",
            " One line.",
            " .",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        let listed = query(&path, "--contents");
        assert!(listed.contains("-rwxr-xr-x root/root"), "{listed}");
        assert!(listed.contains("./etc/a.d/b"), "{listed}");
        let conffiles = Command::new("dpkg-deb")
            .arg("--info")
            .arg(&path)
            .arg("conffiles")
            .output()
            .unwrap();
        assert_eq!(conffiles.stdout, b"/etc/a.d/b\n");
    }

    #[test]
    fn the_same_sources_make_the_same_package() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let bytes = dirs.each_ref().map(|dir| {
            let path = package().write(dir.path()).unwrap();
            fs::read(path).unwrap()
        });
        assert!(bytes[0] == bytes[1]);
    }

    #[test]
    fn another_script_or_file_is_another_digest() {
        let mut other = package();
        assert_eq!(other.digest(), package().digest());
        other.scripts[0].1 += "exit 0\n";
        assert_ne!(other.digest(), package().digest());
        let mut more = package();
        more.files.push("usr/bin/c", Vec::new(), 0o755);
        assert_ne!(more.digest(), package().digest());
    }
}
