//! What a run adds to the emulated host: the agent, the job, and the job's files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vm_agent::{GUEST_DIR, JOB_PATH, Job, QEMU_DIR, QEMU_PROGRAM, WORK_DIR, Work};

use super::{Request, environment};
use crate::archive::Archive;

/// Where programs of this machine are in the emulated host.
const JOB_DIR: &str = "/job";
/// Where the `vmgenie` program is in the emulated host.
const VMGENIE: &str = "/bin/vmgenie";

/// Writes the base initramfs and the run's own archive behind it to `path`. `image` is the Debian image's name on the
/// disk that is mounted at [`WORK_DIR`], if there is one; `runtimes` is the runtimes disk's there.
pub(super) fn write(
    path: &Path,
    base: &Path,
    request: &Request,
    image: Option<&str>,
    runtimes: Option<&str>,
) -> Result<()> {
    let mut from =
        File::open(base).with_context(|| format!("could not open {}", base.display()))?;
    let mut to =
        File::create(path).with_context(|| format!("could not make {}", path.display()))?;
    io::copy(&mut from, &mut to).with_context(|| format!("could not fill {}", path.display()))?;
    let mut archive = Archive::new(io::BufWriter::new(to));
    let mut programs = Programs::default();
    let job = Job {
        env: environment(
            GUEST_DIR,
            &format!("{QEMU_DIR}/{QEMU_PROGRAM}"),
            request.vmgenie.as_ref().map(|_| VMGENIE),
            image.map(|name| format!("{WORK_DIR}/{name}")).as_deref(),
            runtimes,
            "emulated",
        ),
        work: programs.move_work(&request.work)?,
        work_disk: image.is_some(),
    };
    for (to, from) in &programs.files {
        add_program(&mut archive, to, Path::new(from))?;
    }
    add_program(&mut archive, "/init", &request.agent)?;
    if let Some(vmgenie) = &request.vmgenie {
        add_program(&mut archive, VMGENIE, vmgenie)?;
    }
    for file in &request.files {
        archive.copy(&file.to, &file.from)?;
    }
    archive.file(JOB_PATH, &serde_json::to_vec(&job)?, 0o644)?;
    archive.finish()?;
    Ok(())
}

/// The programs that move into the host: their path there and here.
#[derive(Default)]
struct Programs {
    files: BTreeMap<String, String>,
}

impl Programs {
    /// The same work with the paths of the host.
    fn move_work(&mut self, work: &Work) -> Result<Work> {
        Ok(match work {
            Work::Command { argv } => Work::Command {
                argv: self.move_argv(argv)?,
            },
            Work::Terminal {
                argv,
                rows,
                columns,
            } => Work::Terminal {
                argv: self.move_argv(argv)?,
                rows: *rows,
                columns: *columns,
            },
            Work::Tests(plan) => {
                let mut plan = plan.clone();
                for binary in &mut plan.binaries {
                    binary.path = self.add(&binary.path)?;
                }
                Work::Tests(plan)
            }
        })
    }

    /// A program that is a file here moves; any other is taken to be one of the host's own.
    fn move_argv(&mut self, argv: &[String]) -> Result<Vec<String>> {
        let mut argv = argv.to_vec();
        let program = argv.first_mut().context("no command was given")?;
        if program.contains('/') && Path::new(program.as_str()).exists() {
            *program = self.add(program)?;
        }
        Ok(argv)
    }

    fn add(&mut self, from: &str) -> Result<String> {
        let name = Path::new(from)
            .file_name()
            .with_context(|| format!("{from} is no file"))?
            .to_string_lossy();
        let mut to = format!("{JOB_DIR}/{name}");
        while self.files.get(&to).is_some_and(|other| other != from) {
            to.push('_');
        }
        self.files.insert(to.clone(), from.to_owned());
        Ok(to)
    }
}

/// Adds a program after a look at whether it can run in the host, which has no libraries.
fn add_program<W: io::Write>(archive: &mut Archive<W>, to: &str, from: &Path) -> Result<()> {
    let read = || -> io::Result<_> { Ok((fs::read(from)?, fs::metadata(from)?)) };
    let (contents, metadata) =
        read().with_context(|| format!("could not read {}", from.display()))?;
    let mode = metadata.permissions().mode() & 0o777;
    ensure!(mode & 0o111 != 0, "{} is not executable", from.display());
    ensure!(
        !is_dynamic(&contents),
        "{} is dynamically linked, and the emulated host has no libraries: build it with \
         RUSTFLAGS='-C target-feature=+crt-static' and --target x86_64-unknown-linux-gnu, or with \
         cc -static",
        from.display()
    );
    archive.file(to, &contents, mode)
}

/// Whether an ELF64 file asks for a program interpreter, the dynamic linker.
fn is_dynamic(file: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let read = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        file.get(at..at.checked_add(size)?)?
            .read_exact(&mut bytes[..size])
            .ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let headers = || -> Option<(usize, usize, usize)> {
        Some((
            read(32, 8)? as usize,
            read(54, 2)? as usize,
            read(56, 2)? as usize,
        ))
    };
    if !file.starts_with(b"\x7fELF\x02") {
        return false;
    }
    let Some((offset, size, count)) = headers() else {
        return false;
    };
    (0..count)
        .filter_map(|n| read(offset.checked_add(n * size)?, 4))
        .any(|kind| kind == u64::from(PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        // Test binaries are dynamic in the ordinary build and static in none of ours.
        assert!(is_dynamic(&fs::read("/proc/self/exe").unwrap()));
        assert!(!is_dynamic(b"#!/bin/sh\n"));
        assert!(!is_dynamic(b"\x7fELF\x02 cut short"));
    }

    #[test]
    fn two_programs_of_one_name_do_not_meet() {
        let mut programs = Programs::default();
        let a = programs.add("/a/x").unwrap();
        let b = programs.add("/b/x").unwrap();
        assert_ne!(a, b);
        assert_eq!(programs.add("/a/x").unwrap(), a);
        assert_eq!(programs.files.len(), 2);
    }

    #[test]
    fn a_command_without_a_file_here_is_the_host_s_own() {
        let mut programs = Programs::default();
        let argv = vec!["uname".to_owned(), "-a".to_owned()];
        assert_eq!(programs.move_argv(&argv).unwrap(), argv);
        assert!(programs.files.is_empty());
    }
}
