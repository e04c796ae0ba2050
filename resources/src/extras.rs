//! What only some tests have in their guests: the examples in both languages, the sample hooks and what
//! those renew, kernel modules of tests. One archive for both kernels, which goes behind a guest's initramfs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Archive;
use crate::build;
use crate::cache::{self, Cache};
use crate::chroot::Root;
use crate::libraries::libraries;
use crate::progress::Progress;
use sha2::{Digest, Sha256};

/// The archive's name in the guest directory.
const FILE: &str = "extras.cpio";

/// The sample hooks of both stages in the workspace, and where they are in the guest.
const HOOKS: [[&str; 2]; 2] = [
    ["guest-driver/hooks/identity", "/hooks/adapt.d/identity"],
    ["guest-driver/hooks/service", "/hooks/adapt.d/service"],
];

/// The C examples, and the header that they include.
const C_EXAMPLES: &str = "guest-driver/examples/c";
const C_HEADER: &str = "guest-driver/sysgenid/include/uapi/linux/sysgenid.h";

/// Where the examples' copy is mounted in the root.
const WORK: &str = "/mnt/examples";

/// The package with `ssh-keygen`.
const OPENSSH: &str = "openssh-client";
const SSH_KEYGEN: &str = "/usr/bin/ssh-keygen";

/// `ssh-keygen` asks who its user is.
const PASSWD: &str = "root:x:0:0:root:/tmp:/bin/sh\n";

/// The archive, and a digest that names it.
pub(crate) struct Extras {
    archive: Vec<u8>,
    pub(crate) digest: String,
}

impl Extras {
    pub(crate) fn write_to(&self, guests: &Path) -> Result<()> {
        write(&guests.join(FILE), &self.archive)
    }
}

/// Builds what is missing, and packs it, with the kernel modules of tests, which are in a directory for
/// each kernel of that name.
pub(crate) fn extras(
    cache: &Cache,
    root: &Root,
    modules: &[(&str, PathBuf)],
    progress: &Progress,
) -> Result<Extras> {
    let c = c_examples(cache, root, progress)?;
    let openssh = openssh(cache, root, progress)?;
    let mut archive = Archive::new(Vec::new());
    for (kernel, dir) in modules {
        for module in files(dir)? {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.copy(&format!("/tests/{kernel}/{name}"), &module)?;
        }
    }
    for program in build::guest_examples()? {
        let path = format!("/examples/rust/{}", program.name);
        archive.file(&path, &program.contents, 0o755)?;
    }
    let hooks = HOOKS.map(|[from, to]| (build::workspace().join(from), to));
    for (from, to) in hooks.into_iter().chain([(c, "/examples/c")]) {
        for path in files(&from)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let contents = read(&path)?;
            archive.file(&format!("{to}/{name}"), &contents, 0o755)?;
        }
    }
    let keygen = openssh.join(SSH_KEYGEN.trim_start_matches('/'));
    archive.copy(SSH_KEYGEN, &keygen)?;
    let inside = format!("{WORK}{SSH_KEYGEN}");
    for library in libraries(&root.output_with(&[(&openssh, WORK)], &["ldd", &inside])?) {
        let real = root.dir().join(library.trim_start_matches('/'));
        let real = fs::canonicalize(&real)
            .with_context(|| format!("could not find {}", real.display()))?;
        archive.copy(&library, &real)?;
    }
    archive.file("/etc/passwd", PASSWD.as_bytes(), 0o644)?;
    let archive = archive.finish()?;
    let digest = cache::hex(&Sha256::digest(&archive));
    Ok(Extras { archive, digest })
}

const BUILD: &str = r#"
cd /mnt/examples/examples/c
nice make CC=x86_64-linux-gnu-gcc-14 OUT=/mnt/examples/out
"#;

/// The directory with the C examples, built by their own Makefile.
fn c_examples(cache: &Cache, root: &Root, progress: &Progress) -> Result<PathBuf> {
    let sources: Vec<(PathBuf, Vec<u8>)> = files(&build::workspace().join(C_EXAMPLES))?
        .into_iter()
        .filter(|path| is_source(path))
        .map(|path| {
            let name = path.file_name().unwrap_or_default();
            Ok((Path::new("examples/c").join(name), read(&path)?))
        })
        .chain([read(&build::workspace().join(C_HEADER)).map(|header| {
            let place = PathBuf::from("sysgenid/include/uapi/linux/sysgenid.h");
            (place, header)
        })])
        .collect::<Result<_>>()?;
    let mut recipe = format!("{}; {BUILD}", root.dir().display());
    for (path, contents) in &sources {
        let digest = cache::hex(&Sha256::digest(contents));
        recipe += &format!("; {} {digest}", path.display());
    }
    let dir = cache.place("c-examples", &recipe);
    if !dir.exists() {
        let make = |inside: &Path| {
            let work = inside.join("work");
            for (path, contents) in &sources {
                write(&work.join(path), contents)?;
            }
            let out = work.join("out");
            fs::create_dir_all(&out).context("could not make the examples' directory")?;
            let log = cache.log("c-examples")?;
            let step = progress.step("C examples");
            let argv = ["sh", "-ec", BUILD];
            step.run(&mut root.command(&[(&work, WORK)], &argv), &log)?;
            step.done();
            for path in files(&out)? {
                let name = path.file_name().unwrap_or_default();
                fs::rename(&path, inside.join(name)).context("could not move an example")?;
            }
            fs::remove_dir_all(&work).context("could not remove the examples' sources")
        };
        cache
            .make(&dir, make)
            .context("could not build the C examples")?;
    }
    Ok(dir)
}

fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let extension = path.extension().and_then(|extension| extension.to_str());
    name == Some("Makefile") || matches!(extension, Some("c" | "h"))
}

const FETCH: &str = r#"
cd /mnt/examples
apt-get download PACKAGE || { apt-get update; apt-get download PACKAGE; }
dpkg-deb --extract *.deb .
rm *.deb
"#;

/// The directory with the unpacked package of `ssh-keygen`.
fn openssh(cache: &Cache, root: &Root, progress: &Progress) -> Result<PathBuf> {
    let script = FETCH.replace("PACKAGE", OPENSSH);
    let dir = cache.place("openssh", &format!("{}; {script}", root.dir().display()));
    if !dir.exists() {
        let make = |inside: &Path| {
            let log = cache.log("openssh")?;
            let step = progress.step("ssh-keygen");
            let argv = ["sh", "-ec", &script];
            step.run(&mut root.command(&[(inside, WORK)], &argv), &log)?;
            step.done();
            Ok(())
        };
        cache.make(&dir, make).context("could not get ssh-keygen")?;
    }
    Ok(dir)
}

/// The files in a directory, in the order of their names.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(entries.iter().map(fs::DirEntry::path).collect())
    };
    let mut all = list().with_context(|| format!("could not list {}", dir.display()))?;
    all.retain(|path| path.is_file());
    all.sort();
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))
        .and_then(|()| fs::write(path, contents))
        .with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_by_name_and_directories_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.c", "a.h", "Makefile", "old.o"] {
            write(&dir.path().join(name), b"").unwrap();
        }
        fs::create_dir(dir.path().join("c.c")).unwrap();
        let found = files(dir.path()).unwrap();
        let sources = found.iter().filter(|path| is_source(path));
        let names: Vec<_> = sources.map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["Makefile", "a.h", "b.c"]);
    }
}
